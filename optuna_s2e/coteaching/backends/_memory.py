"""How many trials fit side by side into the memory of a device, from sizes alone.

It is a plan, not a promise: libraries take work space of their own. A group that does not fit
after all is halved and trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

_SHARE = 0.8  # of the free memory; the rest is for work space, and for pieces between tensors


def trial_bytes(
    network: nn.Sequential,
    input_shape: Sequence[int],
    *,
    batch_size: int,
    evaluation_batch: int,
    itemsize: int,
    unfolds: bool = False,
    is_recorded: bool = False,
) -> int:
    """Return the memory that the two networks of a trial take at most.

    Weights count four times: with their gradients and the two moments of Adam. In training the
    output of each layer stays until its gradient is computed. In evaluation the input and the
    output of one layer are there at a time. Patches of unfolded convolutions are as outputs. The
    memory of a recorded step is its own: an evaluation comes on top of it.

    Args:
        network: One of the networks. It is not changed, and nothing is computed.
        input_shape: Shape of an image.
        batch_size: Samples of a mini-batch.
        evaluation_batch: Samples that are evaluated at a time.
        itemsize: Bytes of a number.
        unfolds: Whether convolutions copy what each of their filters sees.
        is_recorded: Whether steps are replayed from a CUDA graph.

    Example:
        >>> mlp = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> sizes = {"batch_size": 10, "evaluation_batch": 20, "itemsize": 4}
        >>> trial_bytes(mlp, (1, 2, 2), **sizes)  # 2 * 4 * (4 * 23 + 10 * (2 * 12 + 4))
        2976
    """
    n_weights = sum(weight.numel() for weight in network.parameters())
    outputs = _output_sizes(network, input_shape, unfolds=unfolds)
    n_inputs = outputs[0]
    training = batch_size * (2 * sum(outputs[1:]) + n_inputs)
    evaluation = evaluation_batch * max(a + b for a, b in pairwise(outputs))
    most = training + evaluation if is_recorded else max(training, evaluation)
    return 2 * itemsize * (4 * n_weights + most)


def _output_sizes(
    network: nn.Sequential, input_shape: Sequence[int], *, unfolds: bool
) -> list[int]:
    """Return how many numbers the input and the output of each layer have per sample."""
    x = torch.empty((1, *input_shape), device="meta")
    sizes = [x.numel()]
    for module in network:
        weights = {
            name: torch.empty_like(value, device="meta")
            for name, value in module.state_dict().items()
        }
        was_training = module.training
        module.eval()  # batch normalisation of one sample
        try:
            x = torch.func.functional_call(module, weights, (x,))
        finally:
            module.train(was_training)
        if unfolds and isinstance(module, nn.Conv2d):
            sizes.append(module.weight[0].numel() * x[0, 0].numel() * module.groups)
        sizes.append(x.numel())
    return sizes


def width_that_fits(bytes_of_trial: int, free: int, most: int) -> int:
    """Return how many trials train side by side: at most `most`, at least one.

    Example:
        >>> width_that_fits(2 * 2**30, 80 * 2**30, 64)
        32
    """
    return max(1, min(most, int(_SHARE * free) // bytes_of_trial))


def free_bytes(device: torch.device) -> int | None:
    """Return the memory of a CUDA device that nobody uses, or None for any other device."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + kept
