r"""Multi-layer perceptrons of many trials as stacked matrices, with their own backward pass.

Every product is one batched matrix product over all networks. The gradient of a sample that the
peer dropped is zero, so the backward pass runs over the kept samples alone.

Notation, in addition to that of `_fused`
    n               samples that the backward pass sees: the largest n_k of the group, rounded up
    delta           gradient of the loss by the outputs of a layer, kept samples  (M, n, out)

A trial's numbers do not depend on the other trials of its group. They are the same bit for bit if
a batched product treats all of its matrices alike: samples beyond a trial's own n_k have weight 0,
and n is a multiple of 16, so that sums over n are cut into the same pieces for every n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._networks import is_plain
from optuna_s2e.coteaching.backends._base import UnsuitableNetwork
from optuna_s2e.coteaching.backends._fused import FusedTrainer, Tensors
from optuna_s2e.coteaching.data import NoisyData
from optuna_s2e.schedules import n_kept

_MULTIPLE = 16  # numbers: 64 bytes of float32, and the pieces that sums are cut into


def mlp_sizes(
    network: nn.Module, input_shape: Sequence[int], n_classes: int
) -> tuple[int, ...] | None:
    """Return (inputs, hidden, .., classes) of a plain multi-layer perceptron, else None.

    A plain one is an `nn.Sequential` of `Flatten` (not needed for vectors) and then two or more
    `Linear` layers with a `ReLU` between each two. All layers have biases, are trained and carry
    no hooks.
    """
    modules = list(network.children()) if is_plain(network) else []
    if modules and type(modules[0]) is nn.Flatten:
        if modules.pop(0).extra_repr() != "start_dim=1, end_dim=-1":
            return None
    elif len(input_shape) != 1:
        return None
    layers = [m for m in modules[::2] if type(m) is nn.Linear and m.bias is not None]
    n_relu = sum(type(m) is nn.ReLU for m in modules[1::2])
    if not 1 < len(layers) == len(set(layers)) == n_relu + 1 == len(modules) - n_relu:
        return None
    sizes = (math.prod(input_shape), *(layer.out_features for layer in layers))
    fits = sizes[:-1] == tuple(layer.in_features for layer in layers) and sizes[-1] == n_classes
    return sizes if fits else None


def joint_sizes(networks: Sequence[nn.Module], data: NoisyData) -> tuple[int, ...]:
    """Return the sizes of plain multi-layer perceptrons of one shape (`mlp_sizes`).

    Raises:
        UnsuitableNetwork: If they are anything else.
    """
    sizes = {mlp_sizes(net, data.input_shape, data.n_classes) for net in networks}
    (found,) = sizes if len(sizes) == 1 else (None,)
    if found is None:
        raise UnsuitableNetwork("networks must be plain multi-layer perceptrons of one shape.")
    return found


class FusedMlpTrainer(FusedTrainer):
    """Trains K trials of multi-layer perceptrons (see `FusedTrainer`)."""

    def _join(self, networks: list[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
        self._sizes = joint_sizes(networks, self._setup.data)
        self._flat = nn.Parameter(torch.stack([_flat_parameters(net) for net in networks]))
        self._make_views()
        return [self._flat], []

    def keep_trials(self, positions: Sequence[int]) -> None:
        """Drop all trials but those at these positions (see `Trainer`)."""
        super().keep_trials(positions)
        self._make_views()

    def _n_rows(self, keep_rates: FloatArray) -> int:
        most = int(n_kept(keep_rates.max(), self._setup.batch_size))
        return -(-most // _MULTIPLE) * _MULTIPLE

    def _plan_selection(self, keep_rates: FloatArray) -> None:
        super()._plan_selection(keep_rates)
        networks = torch.arange(2 * self._n_trials, device=self._x.device)[:, None]
        self._keep_in_place("_first_rows", networks * self._setup.batch_size)
        self._keep_in_place("_first_inputs", networks // 2 * self._setup.batch_size)
        minus_one = torch.tensor(-1.0, dtype=self._setup.dtype, device=self._x.device)
        self._keep_in_place("_minus_one", minus_one)

    _first_rows: Tensor
    _first_inputs: Tensor
    _minus_one: Tensor

    @torch.no_grad()
    def _train_step(self, index: Tensor, y: Tensor, *masks: Tensor) -> Tensors:
        """Step all networks (see `FusedTrainer`)."""
        x = self._inputs(index).flatten(2)
        hidden, logits = self._activations(x)
        losses, kept, weights, delta = self._last_delta(logits, y)
        rows = kept + self._first_rows
        for i in reversed(range(len(hidden))):
            inputs = _rows(hidden[i], rows)
            self._set_gradients(i + 1, delta, inputs)
            delta = torch.bmm(delta, self._weights_of[i + 1])
            delta = torch.ops.aten.threshold_backward(delta, inputs, 0)  # ReLU's
        self._set_gradients(0, delta, _rows(x, kept + self._first_inputs))
        self._optimizer.step()
        predicted = logits.max(dim=1).indices
        return losses, predicted, kept, weights, *self._seen(logits, y)

    def _last_delta(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `_choose` does, and the gradient by the logits of the kept, (M, n, C)."""
        if not self._method.is_small_loss:
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_()
                losses, kept, weights = self._choose(leaf, y)
                (delta,) = torch.autograd.grad((losses * weights).sum(), leaf)
            return losses.detach(), kept, weights, delta.transpose(1, 2).contiguous()
        losses, kept, weights = self._choose(logits, y)
        # (softmax - one-hot) / n_k, first for all samples, then for the kept
        at = y[:, None]
        delta = F.softmax(logits, dim=1).scatter_add_(1, at, self._minus_one.expand_as(at))
        delta = _rows(delta.transpose(1, 2), kept + self._first_rows)
        return losses, kept, weights, delta.mul_(weights[..., None])

    def _copy_to(self, network: nn.Module, m: int) -> None:
        layers = [module for module in network.children() if isinstance(module, nn.Linear)]
        for layer, weights, biases in zip(layers, self._weights_of, self._biases, strict=True):
            layer.weight.copy_(weights[m])
            layer.bias.copy_(biases[m, 0])

    def _logits(self, x: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
        return self._activations(x.flatten(2).expand(self._n_trials, -1, -1))[1]

    def _activations(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the hidden activations, (M, B, H) each, and the logits, (M, C, B).

        Args:
            x: Flat inputs of each trial, (K, B, D).
        """
        hidden = [self._first_layer(x)]
        for weight, bias in zip(self._weights_of[1:-1], self._biases[1:-1], strict=True):
            hidden.append(torch.baddbmm(bias, hidden[-1], weight.transpose(1, 2)).relu_())
        bias = self._biases[-1].transpose(1, 2)
        return hidden, torch.baddbmm(bias, self._weights_of[-1], hidden[-1].transpose(1, 2))

    def _first_layer(self, x: Tensor) -> Tensor:
        """Return the first activations; both networks of a trial read the same inputs."""
        weight, bias = self._weights_of[0], self._biases[0]
        hidden = x.new_empty((len(weight), x.shape[1], weight.shape[1]))
        for i in (0, 1):
            torch.baddbmm(bias[i::2], x, weight[i::2].transpose(1, 2), out=hidden[i::2])
        return hidden.relu_()

    def _set_gradients(self, layer: int, delta: Tensor, inputs: Tensor) -> None:
        torch.sum(delta, 1, keepdim=True, out=self._bias_grads[layer])
        torch.bmm(delta.transpose(1, 2), inputs, out=self._weight_grads[layer])

    def _make_views(self) -> None:
        """Make views of parameters and gradients, (M, P) each, as matrices aligned to 64 bytes."""
        self._flat.grad = torch.zeros_like(self._flat)
        flat, grad = self._flat.detach(), self._flat.grad
        self._weights_of, self._biases = _layers_of(flat, self._sizes)
        self._weight_grads, self._bias_grads = _layers_of(grad, self._sizes)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return the rows of values (..., features) with these numbers (M, n): (M, n, features)."""
    width = values.shape[-1]
    return values.reshape(-1, width).index_select(0, rows.view(-1)).view(*rows.shape, width)


def _flat_parameters(network: nn.Module) -> Tensor:
    """Return all parameters as one vector, each matrix and bias padded to a multiple of 16."""
    flat = [parameter.detach().flatten() for parameter in network.parameters()]
    return torch.cat([F.pad(values, (0, -len(values) % _MULTIPLE)) for values in flat])


def _layers_of(flat: Tensor, sizes: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return views of flat parameters (M, P): weights (M, out, in) and biases (M, 1, out)."""
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    start = 0
    for n_in, n_out in pairwise(sizes):
        for views, shape in ((weights, (n_out, n_in)), (biases, (1, n_out))):
            size = math.prod(shape)
            views.append(flat[:, start : start + size].view(-1, *shape))
            start += size + -size % _MULTIPLE
    return weights, biases
