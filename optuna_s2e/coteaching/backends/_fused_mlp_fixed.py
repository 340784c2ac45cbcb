r"""Multi-layer perceptrons of many trials in steps of one size, for devices other than a CPU.

On a CPU `_fused_mlp` leaves out the dropped samples. On a GPU that saves little: a step of small
networks is as long as the number of its kernels, and its rounding may follow from the sizes of its
products. Here a step has the same kernels and sizes whatever R(t) the trials have. So a trial's
numbers do not follow from the R(t) of its group, and one recorded step serves all epochs.

Samples lie in the last dimension, so that the weights of a layer are one matrix for both networks
of a trial where both read the same inputs. A dropped sample has weight 0. All biases are summed in
one operation.

Notation, in addition to that of `_fused`
    H               outputs of a layer
    hidden          activations of a layer                                  (M, H, B)
    delta           gradient of the loss by the outputs of a layer          (M, H, B)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching import _selection as selection
from optuna_s2e.coteaching.backends._fused import FusedTrainer, Tensors
from optuna_s2e.coteaching.backends._fused_mlp import joint_sizes
from optuna_s2e.coteaching.data import to_input

_aten = torch.ops.aten


class FixedMlpTrainer(FusedTrainer):
    """Trains K trials of multi-layer perceptrons (see `FusedTrainer`)."""

    def _join(self, networks: list[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
        self._sizes = joint_sizes(networks, self._setup.data)
        layers = list(zip(*map(_layers, networks), strict=True))
        self._weights_of: list[Tensor] = [
            nn.Parameter(torch.stack([one.weight.detach() for one in layer])) for layer in layers
        ]
        self._biases: list[Tensor] = [
            nn.Parameter(torch.stack([one.bias.detach() for one in layer])) for layer in layers
        ]
        self._make_gradients()
        return [*self._weights_of, *self._biases], []

    def _copy_to(self, network: nn.Module, m: int) -> None:
        for layer, weight, bias in zip(
            _layers(network), self._weights_of, self._biases, strict=True
        ):
            layer.weight.copy_(weight[m])
            layer.bias.copy_(bias[m])

    def keep_trials(self, positions: Sequence[int]) -> None:
        """Drop all trials but those at these positions (see `Trainer`)."""
        super().keep_trials(positions)
        self._make_gradients()

    def _make_gradients(self) -> None:
        """Make room for all gradients: those of the biases, and all deltas, are joint tensors."""
        for weight in self._weights_of:
            weight.grad = torch.zeros_like(weight)
        sizes = [bias.numel() for bias in self._biases]
        self._bias_grads = self._biases[0].new_zeros(sum(sizes))
        self._joint_deltas = self._bias_grads.new_empty((sum(sizes), self._setup.batch_size))
        for bias, grad in zip(self._biases, torch.split(self._bias_grads, sizes), strict=True):
            bias.grad = grad.view_as(bias)
        deltas = torch.split(self._joint_deltas, sizes)
        self._deltas = [
            delta.view(*bias.shape, -1) for bias, delta in zip(self._biases, deltas, strict=True)
        ]

    @torch.no_grad()
    def _train_step(self, index: Tensor, y: Tensor, *masks: Tensor) -> Tensors:
        """Step all networks (see `FusedTrainer`)."""
        x = self._inputs(index)
        hidden, logits = self._activations(x)
        losses, weights = self._last_delta(logits, y)
        for i in reversed(range(len(hidden))):
            weight, delta = self._weights_of[i + 1], self._deltas[i + 1]
            torch.bmm(delta, hidden[i].transpose(1, 2), out=weight.grad)
            below = torch.bmm(weight.transpose(1, 2), delta)
            _aten.threshold_backward(below, hidden[i], 0, grad_input=self._deltas[i])  # ReLU's
        of_trials = self._deltas[0].view(len(x), -1, x.shape[1])
        grad = self._weights_of[0].grad
        assert grad is not None
        torch.bmm(of_trials, x, out=grad.view(len(x), -1, x.shape[2]))
        torch.sum(self._joint_deltas, 1, out=self._bias_grads)
        self._optimizer.step()
        predicted = logits.max(dim=1).indices
        return losses, predicted, self._everyone, weights, *self._seen(logits, y)

    def _last_delta(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Set delta of the logits; return losses and weights of all samples, (M, B) each."""
        if not self._method.is_small_loss:
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_()
                losses, _, weights = self._choose(leaf, y)
                (delta,) = torch.autograd.grad((losses * weights).sum(), leaf)
            self._deltas[-1].copy_(delta)
            return losses.detach(), weights
        log_shares = F.log_softmax(logits, dim=1)
        losses = F.nll_loss(log_shares, y, reduction="none")
        order = losses.argsort(dim=1, stable=True)
        if self._method.exchanges:
            order = selection.exchange(order.view(-1, 2, order.shape[1])).flatten(0, 1)
        weights = torch.empty_like(self._weights).scatter_(1, order, self._weights)
        # the gradients of both functions, as autograd computes them
        by_log_shares = _aten.nll_loss2d_backward(
            weights[:, None], log_shares[:, :, None], y[:, None], None, 0, -100, self._nothing
        )[:, :, 0]
        _aten._log_softmax_backward_data(
            by_log_shares, log_shares, 1, logits.dtype, out=self._deltas[-1]
        )
        return losses, weights

    def _inputs(self, index: Tensor) -> Tensor:
        """Return flat inputs, (K, B, D), of the samples with these numbers, (K, B)."""
        x = self._x.index_select(0, index.view(-1))
        if x.dtype == torch.uint8 and self._setup.dtype == torch.get_default_dtype():
            x = x / 255  # `to_input` in one operation, which a CPU is slow at
        return to_input(x, self._setup.dtype).view(*index.shape, -1)

    _nothing: Tensor  # the sum of weights that means over samples divide by; here nobody reads it

    def _plan_selection(self, keep_rates: FloatArray) -> None:
        super()._plan_selection(keep_rates)
        self._keep_in_place("_nothing", self._joint_deltas.new_zeros(()))

    def _logits(self, x: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
        return self._activations(x.flatten(2).expand(self._n_trials, -1, -1))[1]

    def _activations(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the hidden activations, (M, H, B) each, and the logits, (M, C, B).

        Args:
            x: Flat inputs of each trial, (K, B, D).
        """
        first = torch.baddbmm(
            self._biases[0].view(len(x), -1, 1),
            self._weights_of[0].view(len(x), -1, x.shape[2]),
            x.transpose(1, 2),
        )
        hidden = [first.relu_().view(*self._biases[0].shape, -1)]
        for weight, bias in zip(self._weights_of[1:-1], self._biases[1:-1], strict=True):
            hidden.append(torch.baddbmm(bias[:, :, None], weight, hidden[-1]).relu_())
        bias = self._biases[-1][:, :, None]
        return hidden, torch.baddbmm(bias, self._weights_of[-1], hidden[-1])


def _layers(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.children() if isinstance(module, nn.Linear)]
