"""The loop for plain networks, with a backward pass over the kept samples alone.

The gradient of a sample that the peer dropped is zero. If no layer mixes samples (no batch
normalisation), the backward pass needs only the kept rows of each activation, which is half of
the work at R(t) = 1/2. PyTorch's autograd cannot leave rows out, so this module holds a backward
rule for each kind of layer.

Notation
    activations     those of one network: activations[i] enters layer i, the last are the logits
    kept            positions in the mini-batch that a network is trained on      (n_kept,)
    delta           gradient of the loss by an activation, kept samples           (n_kept, ...)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from optuna_s2e.coteaching import _selection as selection
from optuna_s2e.coteaching._networks import flattens_once, is_plain
from optuna_s2e.coteaching.backends._base import (
    TrainingSetup,
    UnsuitableNetwork,
    checked_logits,
)
from optuna_s2e.coteaching.backends._loop import LoopTrainer
from optuna_s2e.coteaching.data import to_input


def has_rules(network: nn.Module) -> bool:
    """Whether every layer of a network has a backward rule here.

    It must be an `nn.Sequential` of Conv2d, ReLU and MaxPool2d of 2 x 2, then Flatten, then
    Linear and ReLU.
    """
    return is_plain(network) and flattens_once(network) and all(map(_has_rule, network))


def _has_rule(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if isinstance(module, nn.MaxPool2d):
        return str(module) == str(nn.MaxPool2d(2)) and not module.return_indices
    return isinstance(module, nn.Flatten | nn.Linear | nn.ReLU)


class KeptRowsTrainer(LoopTrainer):
    """Trains one trial of plain networks."""

    def __init__(self, setup: TrainingSetup, seeds: Sequence[int], labels: Tensor) -> None:
        """Make the networks of the trial (see `LoopTrainer`).

        Raises:
            UnsuitableNetwork: If a layer has no backward rule here.
        """
        super().__init__(setup, seeds, labels)
        if not all(has_rules(net) for net in self._networks):
            raise UnsuitableNetwork("networks must consist of layers with backward rules.")

    @torch.no_grad()
    def _train_step(self, index: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x = to_input(self._setup.data.x.index_select(0, index), self._setup.dtype)
        activations = self._activations(x)
        logits = self._logits(activations)
        losses = F.cross_entropy(logits.flatten(0, 1), torch.cat([y, y]), reduction="none")
        losses = losses.view(2, -1)
        kept = self._select(losses)
        for i, net in enumerate(self._networks):
            _set_gradients(list(net.children()), activations[i], kept[i], y[kept[i]])
        self._optimizer.step()
        means = selection.selected_means(losses, kept)
        return kept, self._ones, logits.argmax(dim=2) == y, means, *self._seen(logits, y)

    def _forward(self, x: Tensor) -> Tensor:
        return self._logits(self._activations(to_input(x, self._setup.dtype)))

    def _logits(self, activations: list[list[Tensor]]) -> Tensor:
        """Return the logits of both networks, (2, B, C)."""
        shape = (len(activations[0][0]), self._setup.data.n_classes)
        return torch.stack([checked_logits(of_net[-1], shape) for of_net in activations])

    def _activations(self, x: Tensor) -> list[list[Tensor]]:
        """Return all activations of both networks."""
        layers = [list(net.children()) for net in self._networks]
        firsts = [of_net[0] for of_net in layers]
        activations = []
        for of_net, second in zip(layers, _first_outputs(firsts, x), strict=True):
            of_net_so_far = [x, second]
            for module in of_net[1:]:
                of_net_so_far.append(_output(module, of_net_so_far[-1]))
            activations.append(of_net_so_far)
        return activations


def _first_outputs(layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
    """Return the outputs of the two networks' first layers on the same inputs."""
    first, second = layers
    if not isinstance(first, nn.Conv2d) or str(first) != str(second) or first.groups > 1:
        return [_output(layer, x) for layer in layers]
    # with few input channels, one convolution to twice as many outputs costs little more than one
    joined = {
        name: torch.cat([parameter, second.get_parameter(name)])
        for name, parameter in first.named_parameters()
    }
    both: Tensor = functional_call(first, joined, (x,))
    return both.chunk(2, dim=1)


def _output(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.MaxPool2d):
        # PyTorch's own pooling takes ten times longer on a CPU
        (a, b), (c, d) = _quarters(x)
        return torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
    if isinstance(module, nn.ReLU):
        return F.relu(x)  # never in place
    output: Tensor = module(x)
    return output


def _quarters(x: Tensor) -> list[list[Tensor]]:
    """Return views of the four pixels of all squares of 2 x 2, as [row][column]."""
    height, width = (size // 2 * 2 for size in x.shape[-2:])
    return [[x[..., i:height:2, j:width:2] for j in (0, 1)] for i in (0, 1)]


def _set_gradients(
    layers: Sequence[nn.Module], activations: Sequence[Tensor], kept: Tensor, labels: Tensor
) -> None:
    """Set the gradients of a network's mean cross-entropy over the kept samples."""
    outputs = activations[-1].index_select(0, kept)
    # dloss / dlogits = (softmax - one-hot) / n_kept
    delta = F.softmax(outputs, dim=1)
    delta.scatter_add_(1, labels[:, None], delta.new_full((1, 1), -1.0).expand(len(kept), 1))
    delta /= len(kept)
    first = next(i for i, module in enumerate(layers) if isinstance(module, nn.Conv2d | nn.Linear))
    for i in reversed(range(first, len(layers))):
        inputs = activations[i].index_select(0, kept)
        delta = _backward(layers[i], inputs, outputs, delta, last=i == first)
        outputs = inputs


def _backward(
    module: nn.Module, inputs: Tensor, outputs: Tensor, delta: Tensor, *, last: bool
) -> Tensor:
    """Set the gradients of a layer; return the gradient by its inputs (unless it is the last)."""
    if isinstance(module, nn.ReLU):
        before: Tensor = torch.ops.aten.threshold_backward(delta, outputs, 0)
        return before
    if isinstance(module, nn.Flatten):
        return delta.view_as(inputs)
    if isinstance(module, nn.MaxPool2d):
        return _max_pool_backward(inputs, outputs, delta)
    if isinstance(module, nn.Linear):
        module.weight.grad = delta.t() @ inputs
        if module.bias is not None:
            module.bias.grad = delta.sum(dim=0)
        return delta if last else delta @ module.weight
    if not isinstance(module, nn.Conv2d):
        raise TypeError(f"{module} has no backward rule.")
    grads = torch.ops.aten.convolution_backward(
        delta, inputs, module.weight, [len(module.weight)], module.stride, module.padding,
        module.dilation, False, [0, 0], module.groups, [not last, True, module.bias is not None],
    )  # fmt: skip
    module.weight.grad = grads[1]
    if module.bias is not None:
        module.bias.grad = grads[2]
    return delta if last else grads[0]


def _max_pool_backward(inputs: Tensor, outputs: Tensor, delta: Tensor) -> Tensor:
    """Give the gradient of each square to its first largest pixel, row by row, as PyTorch does."""
    result = torch.zeros_like(inputs)
    pixels = [pixel for row in _quarters(inputs) for pixel in row]
    targets = [target for row in _quarters(result) for target in row]
    left = delta
    for pixel, target in zip(pixels[:3], targets[:3], strict=True):
        taken = left * (pixel == outputs)
        target.copy_(taken)
        left = left - taken
    targets[3].copy_(left)
    return result
