"""Experimental: any networks of many trials side by side, by `torch.vmap`.

`backend="auto"` never takes this trainer, on any device or network. It is reached by "fused" and
"graphs" alone, for networks that are neither plain multi-layer perceptrons nor plain
convolutional networks, and for multi-layer perceptrons in "bfloat16". On a CPU it is slower than
the loop, except for very small networks in large groups (docs/speed.md).

These networks are known only by what they compute, so each group is checked first: the mapped
networks must give the logits of each network alone, in training and in evaluation. Networks fail
this check if they draw random numbers (dropout: vmap cannot draw the loop's numbers), if their
control flow depends on values, or if they keep numbers outside of parameters and buffers. Batch
normalisation passes, because its running statistics are stacked, too.

The notation is that of `_fused`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from optuna_s2e.coteaching._networks import has_hooks
from optuna_s2e.coteaching.backends._base import TrainingSetup, UnsuitableNetwork
from optuna_s2e.coteaching.backends._fused import FusedTrainer
from optuna_s2e.coteaching.data import to_input

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
_TOLERANCE_BFLOAT16 = 0.1


def is_mappable(setup: TrainingSetup) -> bool:
    """Whether `FusedVmapTrainer` trains networks of the kind that this setup makes."""
    try:
        FusedVmapTrainer(setup, [0], setup.data.noisy_labels)
    except Exception:  # also of the user's function: the trials will raise it again
        return False
    return True


class FusedVmapTrainer(FusedTrainer):
    """Trains K trials of any networks of one shape (see `FusedTrainer`)."""

    def _join(self, networks: list[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
        if any(has_hooks(parameter) for net in networks for parameter in net.parameters()):
            raise UnsuitableNetwork("networks cannot be mapped: their parameters have hooks.")
        try:
            self._stack(copy.deepcopy(networks))  # batch normalisation changes its statistics
            with self._setup.repeatable(exact=True):
                self._check(copy.deepcopy(networks))
            self._stack(networks)
        except Exception as error:
            raise UnsuitableNetwork(f"networks cannot be mapped: {error}") from error
        return list(self._parameters_of.values()), list(self._buffers_of.values())

    def _stack(self, networks: list[nn.Module]) -> None:
        # a copy: functional_call leaves its tensors in modules that a network holds twice
        self._network = copy.deepcopy(networks[0])
        self._parameters_of, self._buffers_of = stack_module_state(networks)

    def _copy_to(self, network: nn.Module, m: int) -> None:
        for name, values in (self._parameters_of | self._buffers_of).items():
            own = network.get_parameter(name) if name in self._parameters_of else None
            (network.get_buffer(name) if own is None else own).copy_(values[m])

    @torch.no_grad()
    def _check(self, networks: list[nn.Module]) -> None:
        """Compare the logits of one mini-batch with those of each network alone.

        Raises:
            AssertionError: If they differ by more than rounding.
            ValueError: If they have another shape than (B, C).
        """
        x = to_input(self._x[: self._setup.batch_size], self._setup.dtype)
        is_exact = self._setup.config.dtype != "bfloat16"
        dtype = self._setup.dtype  # of weights and logits; inputs may be integers
        tolerance = _TOLERANCE[dtype] if is_exact else _TOLERANCE_BFLOAT16
        for masks in ((), None):
            mapped = self._forward(x[None], masks)
            for i, net in enumerate(networks):
                net.train(masks is not None)
                with self._setup.precision():
                    alone = net(x.clone()).to(dtype)
                expected = (self._setup.data.n_classes, len(x))
                if alone.t().shape != expected or mapped[i].shape != expected:
                    raise ValueError(
                        f"logits must have shape (B, C) = {expected[::-1]}, "
                        f"but got {tuple(alone.shape)}."
                    )
                torch.testing.assert_close(
                    mapped[i], alone.t(), rtol=tolerance, atol=tolerance, equal_nan=True
                )

    def _logits(self, x: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
        self._network.train(masks is not None)
        # both networks of a trial read the same inputs; they may write to them, not to the data
        x, dim = (x[0].clone(), None) if len(x) == 1 else (x.repeat_interleave(2, dim=0), 0)
        logits: Tensor = torch.vmap(self._call, in_dims=(0, 0, dim), randomness="error")(
            self._parameters_of, self._buffers_of, x
        )
        return logits.transpose(1, 2)

    def _call(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
    ) -> Tensor:
        logits: Tensor = functional_call(self._network, (parameters, buffers), (x,))
        return logits
