"""How a training goes on: optimiser, learning rates, mini-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optuna_s2e._typing import FloatArray

OPTIMIZERS = ("adam", "sgd", "rmsprop")
# of weights, losses and optimisers
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}


@dataclass(frozen=True)
class TrainingConfig:
    r"""Everything about a training but data, network, schedule and seed.

    The learning rate is constant up to epoch $s$ = `decay_start` * T and then falls linearly,
    $\eta_t = \eta (T - t) / (T - s)$; from the same epoch on, Adam's beta1 is `late_beta1`. The
    papers let it fall from epoch 80 of 200, Co-teaching's program on CIFAR-100 from epoch 100.

    Attributes:
        batch_size: B. A last incomplete mini-batch is dropped, as in the published protocol; a
            data set smaller than B is one mini-batch.
        learning_rate: > 0.
        decay_start: Share of the epochs before the decay, in [0, 1]; 80 of 200 in the paper.
        beta1: Adam's beta1 before the decay.
        late_beta1: Adam's beta1 from then on.
        dtype: "float32"; "float64" for comparisons; or "bfloat16": matrix products and
            convolutions of bfloat16 numbers (`torch.autocast`), all else in float32: weights,
            losses, their order, the optimiser.
        optimizer: "adam", "sgd" or "rmsprop", PyTorch's.
        momentum: Of "sgd" and "rmsprop", in [0, 1).
        weight_decay: L2 penalty, added to the gradient, at least 0.

    Raises:
        ValueError: If a value is out of range.
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
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise ValueError(f"batch_size must be an int, but got {self.batch_size!r}.")
        conditions = {
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < np.inf, "positive"),
            "decay_start": (0 <= self.decay_start <= 1, "in [0, 1]"),
            "beta1": (0 <= self.beta1 < 1, "in [0, 1)"),
            "late_beta1": (0 <= self.late_beta1 < 1, "in [0, 1)"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {list(OPTIMIZERS)}"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < np.inf, "at least 0 and finite"),
            "dtype": (self.dtype in DTYPES, f"one of {list(DTYPES)}"),
        }
        for name, (holds, condition) in conditions.items():
            if not holds:
                raise ValueError(f"{name} must be {condition}, but got {getattr(self, name)!r}.")

    def learning_rates(self, n_epochs: int) -> FloatArray:
        """Return the learning rate of each epoch, shape (T,)."""
        start = round(self.decay_start * n_epochs)
        left = (n_epochs - np.arange(n_epochs)) / max(1, n_epochs - start)
        return self.learning_rate * np.minimum(1.0, left)

    def beta1s(self, n_epochs: int) -> FloatArray:
        """Return Adam's beta1 of each epoch, shape (T,)."""
        start = round(self.decay_start * n_epochs)
        return np.where(np.arange(n_epochs) < start, self.beta1, self.late_beta1)

    def make_optimizer(
        self, parameters: Sequence[Tensor], *, capturable: bool = False
    ) -> torch.optim.Optimizer:
        """Return the optimiser; each works on each weight alone, whatever else it holds.

        Args:
            parameters: What to train.
            capturable: Whether its steps go into a CUDA graph.
        """
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                self.learning_rate,
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
        return torch.optim.Adam(
            parameters,
            self.learning_rate,
            weight_decay=self.weight_decay,
            fused=True,
            capturable=capturable,
        )


def plan_epoch(optimizer: torch.optim.Optimizer, learning_rate: float, beta1: float) -> None:
    """Set the learning rate and, of Adam, beta1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if "betas" in group:
            group["betas"] = (beta1, group["betas"][1])
