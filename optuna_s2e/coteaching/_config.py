"""The configuration of a training: optimiser, learning rates, mini-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from optuna_s2e._checks import check_choice, check_int, check_number
from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._adam import Adam

Optimizer: TypeAlias = torch.optim.Optimizer | Adam

OPTIMIZERS = ("adam", "sgd", "rmsprop")
# the dtype of weights, losses and optimisers
DTYPES = {
    "float32": torch.float32, "float64": torch.float64,
    "tf32": torch.float32, "bfloat16": torch.float32,
}  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    r"""Hold everything about a training but data, network, schedule and seed.

    The learning rate is constant up to epoch $s$ = `decay_start` * T and then falls linearly,
    $\eta_t = \eta (T - t) / (T - s)$. From epoch $s$ on, Adam's beta1 is `late_beta1`. In the
    papers the learning rate falls from epoch 80 of 200, in Co-teaching's program for CIFAR-100
    from epoch 100.

    Attributes:
        batch_size: B, at least 1. The last incomplete mini-batch of an epoch is dropped, as in
            the published protocol. If there are fewer than B samples, all are one mini-batch.
        learning_rate: Learning rate before the decay, above 0.
        decay_start: Share of the epochs before the decay, in [0, 1]. The default is the paper's
            80 of 200.
        beta1: Adam's beta1 before the decay, in [0, 1).
        late_beta1: Adam's beta1 from the decay on, in [0, 1).
        dtype: The precision: "float32", "float64" (for comparisons), "tf32" or "bfloat16". With
            the latter two, matrix products and convolutions are computed in TF32 (on CUDA; on any
            other device this is "float32") or in bfloat16 (`torch.autocast`); weights, losses,
            their order and the optimiser stay in float32. "float32" never means TF32, whatever
            `torch.backends` say.
        optimizer: PyTorch's "adam", "sgd" or "rmsprop".
        momentum: Momentum of "sgd" and "rmsprop", in [0, 1). "adam" ignores it.
        weight_decay: L2 penalty that is added to the gradient, at least 0.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> TrainingConfig(learning_rate=0.6).learning_rates(10).round(3).tolist()
        [0.6, 0.6, 0.6, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    """

    batch_size: int = 128
    learning_rate: float = 1e-3
    decay_start: float = 0.4
    beta1: float = 0.9
    late_beta1: float = 0.1
    dtype: str = "float32"
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        checked = {
            "batch_size": check_int("batch_size", self.batch_size, 1),
            "learning_rate": check_number("learning_rate", self.learning_rate, 0, open_low=True),
            "decay_start": check_number("decay_start", self.decay_start, 0, 1),
            "weight_decay": check_number("weight_decay", self.weight_decay, 0),
        }
        for name in ("beta1", "late_beta1", "momentum"):
            checked[name] = check_number(name, getattr(self, name), 0, 1, open_high=True)
        for name, value in checked.items():  # as Python's own numbers: JSON takes no others
            object.__setattr__(self, name, value)

    def learning_rates(self, n_epochs: int) -> FloatArray:
        """Return the learning rate of each epoch, shape (T,), for T = `n_epochs`."""
        start = round(self.decay_start * n_epochs)
        left = (n_epochs - np.arange(n_epochs)) / max(1, n_epochs - start)
        return self.learning_rate * np.minimum(1.0, left)

    def beta1s(self, n_epochs: int) -> FloatArray:
        """Return Adam's beta1 of each epoch, shape (T,), for T = `n_epochs`."""
        start = round(self.decay_start * n_epochs)
        return np.where(np.arange(n_epochs) < start, self.beta1, self.late_beta1)

    def make_optimizer(
        self, parameters: Sequence[Tensor], *, on_device: bool = False, capturable: bool = False
    ) -> Optimizer:
        """Return a new optimiser, which treats each weight independently of all others.

        Args:
            parameters: The parameters to train.
            on_device: Whether "adam" and "sgd" read their learning rate from the device, where it
                is a float32, so that a recorded step stays valid when it changes.
            capturable: Whether its steps are recorded as a CUDA graph.
        """
        rate: float | Tensor = self.learning_rate
        if on_device:
            rate = torch.tensor(rate, dtype=torch.float32, device=parameters[0].device)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                rate,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                fused=True,
            )
        if self.optimizer == "rmsprop":
            return torch.optim.RMSprop(
                parameters,
                self.learning_rate,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                capturable=capturable,
            )
        return Adam(parameters, rate, weight_decay=self.weight_decay, capturable=capturable)


def set_learning_rate(optimizer: Optimizer, learning_rate: float, beta1: float) -> None:
    """Set the learning rate of an optimiser and, if it is Adam, its beta1."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
        if "betas" in group:
            group["betas"] = (beta1, group["betas"][1])


def constants_of(optimizer: Optimizer) -> tuple[object, ...]:
    """Return the settings of an optimiser that are no tensors: a recorded step holds them."""
    return tuple(
        value
        for group in optimizer.param_groups
        for name, value in group.items()
        if name != "params" and not isinstance(value, Tensor)
    )
