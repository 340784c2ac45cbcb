r"""Convolutional networks of many trials as one network whose channels lie side by side.

The M convolutions of a layer become one grouped convolution, the batch normalisations one over
all channels, and the linear layers one batched product. Autograd computes the gradients.

Grouped convolutions are meant for CUDA. On a CPU they are slower than a loop over the trials,
unless the networks are small. The notation is that of `_fused`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_s2e.coteaching._networks import flattens_once, is_plain
from optuna_s2e.coteaching.backends._base import TrainingSetup, UnsuitableNetwork
from optuna_s2e.coteaching.backends._fused import FusedTrainer, RunSteps, Tensors, run_eagerly


def is_fusible(network: nn.Module) -> bool:
    """Whether `FusedCnnTrainer` trains networks of this kind.

    It needs an `nn.Sequential` that starts with a convolution and consists of Conv2d,
    BatchNorm2d, ReLU, LeakyReLU, MaxPool2d, AdaptiveAvgPool2d, Dropout2d, Flatten and Linear.
    """
    return (
        is_plain(network)
        and flattens_once(network)
        and isinstance(network[0], nn.Conv2d)
        and all(map(_has_rule, network))
    )


def _has_rule(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros"
    if isinstance(module, nn.BatchNorm2d):
        return module.affine and module.track_running_stats and module.momentum is not None
    if isinstance(module, nn.Dropout2d):
        return module.p < 1
    if isinstance(module, nn.Linear):
        return module.bias is not None
    if isinstance(module, nn.MaxPool2d):
        return not module.return_indices
    return isinstance(module, nn.ReLU | nn.LeakyReLU | nn.AdaptiveAvgPool2d | nn.Flatten)


class FusedCnnTrainer(FusedTrainer):
    """Trains K trials of plain convolutional networks (see `FusedTrainer`)."""

    def __init__(
        self,
        setup: TrainingSetup,
        seeds: Sequence[int],
        labels: Tensor,
        *,
        make_steps: Callable[[], RunSteps] = lambda: run_eagerly,
    ) -> None:
        super().__init__(setup, seeds, labels, make_steps=make_steps)
        self._dropouts = [torch.Generator(self._x.device).manual_seed(seed) for seed in seeds]

    def _join(self, networks: list[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
        if len({str(net) for net in networks}) > 1 or not all(map(is_fusible, networks)):
            raise UnsuitableNetwork("networks must be plain convolutional networks of one shape.")
        self._modules = list(networks[0].children())
        if getattr(self._modules[-1], "out_features", None) != self._setup.data.n_classes:
            raise UnsuitableNetwork("networks must end with a linear layer to the classes.")
        # for each module its parameters and its running statistics, network by network
        self._parameters_of: list[dict[str, Tensor]] = [
            {
                name: nn.Parameter(
                    torch.cat([net.get_parameter(f"{i}.{name}").detach() for net in networks])
                )
                for name, _ in module.named_parameters()
            }
            for i, module in enumerate(self._modules)
        ]
        self._statistics_of = [
            {
                name: torch.cat([net.get_buffer(f"{i}.{name}") for net in networks])
                for name, buffer in module.named_buffers()
                if buffer.ndim
            }
            for i, module in enumerate(self._modules)
        ]
        parameters, statistics = (
            [tensor for of_module in everything for tensor in of_module.values()]
            for everything in (self._parameters_of, self._statistics_of)
        )
        return parameters, statistics

    def _copy_to(self, network: nn.Module, m: int) -> None:
        joint = zip(network.children(), self._parameters_of, self._statistics_of, strict=True)
        for module, parameters, statistics in joint:
            for name, values in (parameters | statistics).items():
                own = module.state_dict(keep_vars=True)[name]
                own.copy_(values.view(2 * self._n_trials, *own.shape)[m])

    def keep_trials(self, positions: Sequence[int]) -> None:
        """Drop all trials but those at these positions (see `Trainer`)."""
        super().keep_trials(positions)
        self._dropouts = [self._dropouts[position] for position in positions]

    def _logits(self, x: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
        x = x.transpose(0, 1).flatten(1, 2)  # (B, channels, ..), or (B, K * channels, ..)
        n_networks = 2 * self._n_trials
        left = iter(masks or [])
        for i, module in enumerate(self._modules):
            parameters = self._parameters_of[i]
            if isinstance(module, nn.Conv2d):
                # in the first layer, both networks of a trial read the same channels
                copies = x.shape[1] // module.in_channels
                if module.groups > 1 and copies < n_networks:  # unless groups share them out
                    of_trials = x.reshape(len(x), copies, -1, *x.shape[2:])
                    x = of_trials.repeat_interleave(n_networks // copies, dim=1).flatten(1, 2)
                    copies = n_networks
                x = F.conv2d(
                    x, parameters["weight"], parameters.get("bias"), module.stride,
                    module.padding, module.dilation, copies * module.groups,
                )  # fmt: skip
            elif isinstance(module, nn.BatchNorm2d):
                x = F.batch_norm(
                    x, **self._statistics_of[i], **parameters, training=masks is not None,
                    momentum=module.momentum or 0.0, eps=module.eps,
                )  # fmt: skip
            elif isinstance(module, nn.Dropout2d):
                x = x * next(left).to(x.dtype) if masks is not None else x
            elif isinstance(module, nn.Flatten):
                x = x.view(len(x), n_networks, -1).transpose(0, 1)
            elif isinstance(module, nn.Linear):
                weight = parameters["weight"].view(n_networks, module.out_features, -1)
                bias = parameters["bias"].view(n_networks, 1, -1)
                x = torch.baddbmm(bias, x, weight.transpose(1, 2))
            else:
                x = module(x)
        return x.transpose(1, 2)

    def _draw_masks(self) -> Tensors:
        """Draw the masks of each dropout layer, (B, M * channels, 1, 1), in the loop's order."""
        layers: list[tuple[float, int]] = []
        channels = 0
        for module in self._modules:
            if isinstance(module, nn.Conv2d):
                channels = module.out_channels
            elif isinstance(module, nn.Dropout2d):
                layers.append((1 - module.p, channels))
        masks: list[list[Tensor]] = [[] for _ in layers]
        for generator in self._dropouts if layers else []:
            for _ in range(2):
                for of_layer, (share, n_channels) in zip(masks, layers, strict=True):
                    mask = torch.empty(
                        (self._setup.batch_size, n_channels, 1, 1),
                        dtype=self._setup.dtype, device=self._x.device,
                    )  # fmt: skip
                    of_layer.append(mask.bernoulli_(share, generator=generator).div_(share))
        return tuple(torch.cat(of_layer, dim=1) for of_layer in masks)
