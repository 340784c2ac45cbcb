"""Which backend trains a batch of trials, and how many of them side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from optuna_s2e.coteaching._networks import make_network
from optuna_s2e.coteaching.backends._base import Lanes, Setting, UnsuitableNetwork
from optuna_s2e.coteaching.backends._cuda_graph import GraphSteps
from optuna_s2e.coteaching.backends._fused import FusedLanes
from optuna_s2e.coteaching.backends._fused_cnn import ChannelLanes, is_fusible
from optuna_s2e.coteaching.backends._fused_mlp import StackedMlps, mlp_sizes
from optuna_s2e.coteaching.backends._fused_vmap import MappedLanes, is_mappable
from optuna_s2e.coteaching.backends._loop import Peers
from optuna_s2e.coteaching.backends._loop_kept_rows import RowPeers, has_rules

BACKENDS = ("auto", "loop", "rows", "fused", "graphs")

_FUSED = "can be mapped by torch.vmap (no dropout, no control flow that depends on values)"
_NEEDS = {
    "fused": _FUSED,
    "graphs": _FUSED,
    "rows": (
        "is an nn.Sequential of Conv2d, ReLU, MaxPool2d(2), Flatten and Linear, such as 'cnn2', "
        "not in 'bfloat16'"
    ),
}
_CPU_CACHE = 16 * 2**20  # bytes
_CPU_WIDTH = 32
_CPU_SMALL = 20_000  # products with weights, per image
_CUDA_WIDTH = 64
_LANES_WIDTH = 16

# (setting, seeds, labels) -> the trials in training
MakeLanes = Callable[[Setting, Sequence[int], Tensor], Lanes]


class Backend(NamedTuple):
    """How trials are trained.

    Attributes:
        make_lanes: Makes the trials of a group.
        width: Trials side by side, at most.
    """

    make_lanes: MakeLanes
    width: int


def find_backend(name: str, setting: Setting, width: int | None) -> Backend:
    """Return the backend for a network on a device.

    Args:
        name: As `backend` of `train_batch`.
        setting: Data, network and config of the call.
        width: As `fused_width` of `train_batch`.

    Raises:
        ValueError: If there is no such backend, it cannot train the network, or the width is
            below 1.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, but got {name!r}.")
    if width is not None and width < 1:
        raise ValueError(f"fused_width must be at least 1, but got {width!r}.")
    if name == "graphs" and setting.data.x.device.type != "cuda":
        raise ValueError("backend 'graphs' needs a CUDA device. Take 'auto' or 'fused'.")
    if name == "loop":
        return Backend(Peers, 1)
    probe = _probe(setting)
    if probe is not None:
        found = _suitable(name, setting, probe, width)
        if found is not None:
            return found
    if name == "auto":
        return Backend(Peers, 1)
    raise ValueError(
        f"backend {name!r} needs a network that {_NEEDS[name]}. "
        "Take 'auto' or 'loop' for any other."
    )


def _suitable(name: str, setting: Setting, probe: nn.Module, width: int | None) -> Backend | None:
    """Return the backend of that name (not "loop") for networks like the probe, or None."""
    on_cpu = setting.data.x.device.type == "cpu"
    sizes = mlp_sizes(probe, setting.data.input_shape, setting.data.n_classes)
    # backward passes that are written out do all in one dtype
    one_dtype = setting.config.dtype != "bfloat16"
    if name != "rows" and sizes is not None and one_dtype:
        return _fused(name, StackedMlps, width or _stacked_width(setting, sizes))
    # measured on CPUs: rows are faster than the loop, grouped convolutions slower, unless they
    # are small: of one lane, since of several their rounding depends on how many they are
    n_products = _most_products(probe, setting.data.input_shape) if is_fusible(probe) else math.inf
    if name == "auto" and on_cpu and n_products <= _CPU_SMALL:
        return _fused(name, ChannelLanes, width or 1)
    if name == "rows" or (name == "auto" and on_cpu):
        return Backend(_or_loop(RowPeers), 1) if has_rules(probe) and one_dtype else None
    if is_fusible(probe):
        return _fused(name, ChannelLanes, width or _LANES_WIDTH)
    # measured on CPUs: faster for very small networks in large groups, else slower
    if name != "auto" and is_mappable(setting):
        return _fused(name, MappedLanes, width or _LANES_WIDTH)
    return None


def _fused(name: str, lanes: type[FusedLanes], width: int) -> Backend:
    make = lanes if name != "graphs" else partial(lanes, run_steps=GraphSteps())
    return Backend(_or_loop(make), width)


def _probe(setting: Setting) -> nn.Module | None:
    """Make one network to see what it is; None if that fails."""
    try:
        return make_network(
            setting.network, setting.data.input_shape, setting.data.n_classes, seed=0
        )
    except Exception:  # the trials will meet it, and carry it as their failure
        return None


def _or_loop(make_lanes: MakeLanes) -> MakeLanes:
    """Let the loop train a trial whose networks are unlike the probe."""

    def make(setting: Setting, seeds: Sequence[int], labels: Tensor) -> Lanes:
        try:
            return make_lanes(setting, seeds, labels)
        except UnsuitableNetwork:
            if len(seeds) > 1:
                raise
            return Peers(setting, seeds, labels)

    return make


def _most_products(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Return a bound on the products with weights that a convolutional network makes of an image:
    its convolutions seen at every pixel."""
    pixels = math.prod(input_shape[1:])
    return sum(w.numel() * (pixels if w.ndim == 4 else 1) for w in network.parameters())


def _stacked_width(setting: Setting, sizes: Sequence[int]) -> int:
    """Return how many trials gain from sharing their operations.

    On a CPU a call's overhead is spread over the group, until the weights no longer fit into the
    cache: 784-256-10 trains 2 at once, 784-64-10 10, 64-256-10 27 (measured: docs/speed.md).
    """
    if setting.data.x.device.type != "cpu":
        return _CUDA_WIDTH
    n_weights = sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))
    # weight, gradient and Adam's two moments, of two networks
    lane_bytes = 2 * 4 * n_weights * setting.dtype.itemsize
    return min(_CPU_WIDTH, max(1, _CPU_CACHE // lane_bytes))
