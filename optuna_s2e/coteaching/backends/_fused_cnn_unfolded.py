r"""Convolutional networks of many trials as matrix products, for GPUs and few channels.

A grouped convolution with a handful of channels per group is what libraries for GPUs are worst at.
Here a convolution is one batched product: the pixels that its filters see are copied side by side
("unfolded"), and the filters of a network are one matrix. Both networks of a trial read the same
images, so the first layer of both is one matrix. The copies take as many times the memory of a
layer's inputs as a filter has pixels: with many channels grouped convolutions are the better way.
Autograd computes the gradients.

Notation, in addition to that of `_fused`
    G               copies of the inputs: M networks, or K trials before the first convolution
    C, O            channels that a filter reads, and filters of a network (or of a group of it)
    h, w            size of a filter
    H, W            size of an image
    patches         what the filters see at each place          (G, C * h * w, B * H * W)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_s2e.coteaching.backends._fused_cnn import FusedCnnTrainer


class UnfoldedCnnTrainer(FusedCnnTrainer):
    """Trains K trials of plain convolutional networks (see `FusedTrainer`)."""

    def _logits(self, x: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
        x = x.transpose(1, 2)  # (G, channels, B, H, W)
        n_networks = 2 * self._n_trials
        left = iter(masks or [])
        for i, module in enumerate(self._modules):
            parameters = self._parameters_of[i]
            if isinstance(module, nn.Conv2d):
                x = _convolve(module, parameters, x, n_networks)
            elif isinstance(module, nn.BatchNorm2d):
                joint = F.batch_norm(
                    x.reshape(1, -1, x.shape[2] * x.shape[3], x.shape[4]),
                    **self._statistics_of[i], **parameters, training=masks is not None,
                    momentum=module.momentum or 0.0, eps=module.eps,
                )  # fmt: skip
                x = joint.view(x.shape)
            elif isinstance(module, nn.Dropout2d):
                if masks is not None:  # (B, M * channels, 1, 1)
                    x = x * next(left).to(x.dtype).transpose(0, 1).view(*x.shape[:3], 1, 1)
            elif isinstance(module, nn.Flatten):
                x = x.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (M, features, B)
            elif isinstance(module, nn.Linear):
                weight = parameters["weight"].view(n_networks, module.out_features, -1)
                bias = parameters["bias"].view(n_networks, -1, 1)
                x = torch.baddbmm(bias, weight, x)
            elif isinstance(module, nn.ReLU | nn.LeakyReLU):
                x = module(x)
            else:  # pooling, of each image alone
                pooled = module(x.flatten(0, 1))
                x = pooled.view(*x.shape[:2], *pooled.shape[1:])
        return x


def _convolve(
    module: nn.Conv2d, parameters: dict[str, Tensor], x: Tensor, n_networks: int
) -> Tensor:
    """Return the convolution of inputs (G, channels, B, H, W), (M, filters, B, H', W')."""
    if module.groups > 1:  # each group is as a network of its own
        x = x.repeat_interleave(n_networks // len(x), dim=0)
        x = x.reshape(len(x) * module.groups, -1, *x.shape[2:])
    windows = _windows(module, x)
    patches = windows.flatten(1, 3).flatten(2)
    weight = parameters["weight"].view(len(patches), -1, patches.shape[1])
    if "bias" in parameters:
        out = torch.baddbmm(parameters["bias"].view(len(patches), -1, 1), weight, patches)
    else:
        out = torch.bmm(weight, patches)
    return out.view(n_networks, -1, *windows.shape[4:])


def _windows(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Return a view of what each filter sees, (G, C, h, w, B, H', W'), padded with zeros."""
    if torch.is_autocast_enabled(x.device.type):  # smaller copies
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if any(module._reversed_padding_repeated_twice):
        x = F.pad(x, module._reversed_padding_repeated_twice)
    sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for dim, (size, stride, dilation) in enumerate(sizes, start=3):
        x = x.unfold(dim, dilation * (size - 1) + 1, stride)
        if dilation > 1:
            x = x[..., ::dilation]
    return x.permute(0, 1, 5, 6, 2, 3, 4)
