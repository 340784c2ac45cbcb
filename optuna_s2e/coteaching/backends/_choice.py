"""The choice of a backend for a network on a device, and of how many trials train side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from optuna_s2e._checks import check_choice, check_int
from optuna_s2e.coteaching._networks import check_inputs, make_network
from optuna_s2e.coteaching._steps import Method
from optuna_s2e.coteaching.backends._base import Trainer, TrainingSetup, UnsuitableNetwork
from optuna_s2e.coteaching.backends._fastest import fastest
from optuna_s2e.coteaching.backends._fused import EVALUATION_BATCH, FusedTrainer
from optuna_s2e.coteaching.backends._fused_cnn import FusedCnnTrainer, is_fusible
from optuna_s2e.coteaching.backends._fused_cnn_unfolded import UnfoldedCnnTrainer
from optuna_s2e.coteaching.backends._fused_mlp import FusedMlpTrainer, mlp_sizes
from optuna_s2e.coteaching.backends._fused_mlp_fixed import FixedMlpTrainer
from optuna_s2e.coteaching.backends._fused_vmap import FusedVmapTrainer, is_mappable
from optuna_s2e.coteaching.backends._loop import LoopTrainer
from optuna_s2e.coteaching.backends._loop_kept_rows import KeptRowsTrainer, has_rules
from optuna_s2e.coteaching.backends._loop_reweight import ReweightTrainer
from optuna_s2e.coteaching.backends._memory import free_bytes, trial_bytes, width_that_fits
from optuna_s2e.coteaching.backends._padded import PaddedTrainer

BACKENDS = ("auto", "loop", "rows", "fused", "unfolded", "graphs")

_MAPPABLE = "can be mapped by torch.vmap (no dropout, no control flow that depends on values)"
_NEEDS = {
    "fused": _MAPPABLE,
    "unfolded": "is a plain convolutional nn.Sequential, such as 'cnn2'",
    "graphs": _MAPPABLE,
    "rows": (
        "is an nn.Sequential of Conv2d, ReLU, MaxPool2d(2), Flatten and Linear, such as 'cnn2', "
        "not in 'bfloat16'"
    ),
}
_WIDTH = 16  # trials side by side, where nothing else is known
_MOST = 64  # on a GPU
_MLP_CPU_WIDTH = 32
_MLP_CPU_CACHE = 16 * 2**20  # bytes
_SMALL_CNN = 20_000  # products with weights, per image
_FEW_CHANNELS = 16  # that a filter reads: less than tensor cores multiply at a time
_MEASURED = ("cuda",)  # devices on which a choice is measured

# (setup, seeds, labels) -> the trainer of a group of trials
MakeTrainer = Callable[[TrainingSetup, Sequence[int], Tensor], Trainer]


class Backend(NamedTuple):
    """How the trials of a batch are trained.

    Attributes:
        trainer: Makes the trainer of a group of trials.
        width: Largest number of trials in a group.
        is_padded: Whether each group has as many lanes as that, some of them without a trial.
    """

    trainer: MakeTrainer
    width: int
    is_padded: bool = False

    @property
    def name(self) -> str:
        """Its name, one of `BACKENDS` other than "auto"."""
        if isinstance(self.trainer, partial):
            return "graphs"
        names = {LoopTrainer: "loop", KeptRowsTrainer: "rows", UnfoldedCnnTrainer: "unfolded"}
        return next((name for kind, name in names.items() if self.trainer is kind), "fused")

    def n_lanes(self, n_trials: int) -> int:
        """Return the size of a group of K trials."""
        return self.width if self.is_padded else n_trials

    def make_trainer(self, setup: TrainingSetup, seeds: Sequence[int], labels: Tensor) -> Trainer:
        """Make the trainer of a group; a trial whose networks it cannot train goes to the loop.

        Args:
            setup: What all trials share.
            seeds: Seeds of the trials, (K,).
            labels: Noisy labels that all trials share, (N,), or those of each trial, (K, N).

        Raises:
            UnsuitableNetwork: If a group of several trials has networks it cannot train.
        """
        try:
            if self.is_padded:
                return PaddedTrainer(self.trainer, self.width, setup, seeds, labels)
            return self.trainer(setup, seeds, labels)
        except UnsuitableNetwork:
            if len(seeds) > 1:
                raise
            return LoopTrainer(setup, seeds, labels)


def find_backend(name: str, setup: TrainingSetup, width: int | None) -> Backend:
    """Return the backend for a network on a device.

    Args:
        name: Name of the backend, as `backend` of `train_batch`.
        setup: Data, network, config and method of the call.
        width: Trials side by side, as `fused_width` of `train_batch`.

    Raises:
        ValueError: If there is no such backend, it cannot train the network or the method, the
            width is below 1, or a network of the papers would see integers.
    """
    check_choice("backend", name, BACKENDS)
    width = width if width is None else check_int("fused_width", width, 1)
    check_inputs(setup.network, setup.data.x.dtype)
    if name == "graphs" and setup.data.x.device.type != "cuda":
        raise ValueError("backend 'graphs' needs a CUDA device. Take 'auto' or 'fused'.")
    check_method(name, setup.method)
    if not setup.method.is_pointwise:
        return Backend(ReweightTrainer, 1)
    if name == "loop":
        return Backend(LoopTrainer, 1)
    probe = _make_probe(setup)
    if probe is not None:
        found = _suitable(name, setup, probe, width)
        if found is not None:
            is_padded = width is not None and setup.data.x.device.type != "cpu"
            return found._replace(is_padded=is_padded and found.width > 1)
    if name == "auto":
        return Backend(LoopTrainer, 1)
    raise ValueError(
        f"backend {name!r} needs a network that {_NEEDS[name]}. "
        "Take 'auto' or 'loop' for any other."
    )


def check_method(name: str, method: Method) -> None:
    """Refuse a backend that cannot train a method.

    Args:
        name: Name of the backend.
        method: The method.

    Raises:
        ValueError: If it cannot.
    """
    needs = None
    if name not in ("auto", "loop") and not method.is_pointwise:
        needs = "whose steps follow from logits alone"
    elif name == "rows" and not method.is_small_loss:
        needs = "that trains on the mean of small losses"
    if needs is not None:
        raise ValueError(
            f"backend {name!r} needs a method {needs}, but got {method.name!r}. "
            "Take 'auto' or 'loop'."
        )


def _suitable(
    name: str, setup: TrainingSetup, probe: nn.Module, width: int | None
) -> Backend | None:
    """Return the backend of that name (not "loop") for networks like the probe, or None."""
    on_cpu = setup.data.x.device.type == "cpu"
    sizes = mlp_sizes(probe, setup.data.input_shape, setup.data.n_classes)
    # backward passes that are written out compute everything in one dtype
    one_dtype = setup.config.dtype != "bfloat16"
    if name not in ("rows", "unfolded") and sizes is not None and one_dtype:
        trainer = FusedMlpTrainer if on_cpu else FixedMlpTrainer
        own = _mlp_width(setup, sizes) if on_cpu else _device_width(name, setup, probe, _MOST)
        return _fused(name, trainer, width or own)
    # Measured on CPUs: "rows" is faster than the loop. Grouped convolutions are slower, unless
    # they are small. "auto" gives each trial a group of its own, because the rounding of a
    # grouped convolution depends on the number of trials in it.
    n_products = _count_products(probe, setup.data.input_shape) if is_fusible(probe) else math.inf
    if name == "auto" and on_cpu and n_products <= _SMALL_CNN:
        return _fused(name, FusedCnnTrainer, width or 1)
    if name == "rows" or (name == "auto" and on_cpu):
        fits = has_rules(probe) and one_dtype and setup.method.is_small_loss
        return Backend(KeptRowsTrainer, 1) if fits else None
    if is_fusible(probe):
        convolving = _convolving(name, setup, probe)
        own = _device_width(name, setup, probe, _WIDTH, convolving)
        return _fused(name, convolving, width or own)
    # measured on CPUs: faster for very small networks in large groups, slower for all others
    if name not in ("auto", "unfolded") and is_mappable(setup):
        return _fused(name, FusedVmapTrainer, width or _WIDTH)
    return None


def _convolving(name: str, setup: TrainingSetup, probe: nn.Module) -> type[FusedCnnTrainer]:
    """Return how convolutional networks train side by side: with few channels, as measured."""
    ways = {"fused": FusedCnnTrainer, "unfolded": UnfoldedCnnTrainer}
    if name in ways:
        return ways[name]
    channels = [m.in_channels // m.groups for m in probe.modules() if isinstance(m, nn.Conv2d)]
    if setup.data.x.device.type not in _MEASURED or max(channels) >= _FEW_CHANNELS:
        return FusedCnnTrainer
    return ways[fastest(setup, probe, ways)]


def _fused(name: str, trainer: type[FusedTrainer], width: int) -> Backend:
    if name != "graphs":
        return Backend(trainer, width)
    from optuna_s2e.coteaching.backends._cuda_graph import CudaGraphs, CudaGraphSteps

    return Backend(partial(trainer, make_steps=partial(CudaGraphSteps, CudaGraphs())), width)


def _make_probe(setup: TrainingSetup) -> nn.Module | None:
    """Make one network to see what kind it is; return None if that fails."""
    try:
        return make_network(setup.network, setup.data.input_shape, setup.data.n_classes, seed=0)
    except Exception:  # the trials will raise it again and carry it as their failure
        return None


def _count_products(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Return an upper bound on a convolutional network's products with weights per image.

    It counts each convolution as if it were applied at every pixel of the input.
    """
    pixels = math.prod(input_shape[1:])
    return sum(w.numel() * (pixels if w.ndim == 4 else 1) for w in network.parameters())


def _device_width(
    name: str, setup: TrainingSetup, probe: nn.Module, default: int, trainer: type | None = None
) -> int:
    """Return how many trials fit onto a CUDA device, at most 64; else the default."""
    free = free_bytes(setup.data.x.device)
    if free is None or not isinstance(probe, nn.Sequential):
        return default
    needed = trial_bytes(
        probe,
        setup.data.input_shape,
        batch_size=setup.batch_size,
        evaluation_batch=min(EVALUATION_BATCH, len(setup.evaluation[0])),
        itemsize=setup.dtype.itemsize,
        unfolds=trainer is UnfoldedCnnTrainer,
        is_recorded=name == "graphs",
    )
    return width_that_fits(needed, free, _MOST)


def _mlp_width(setup: TrainingSetup, sizes: Sequence[int]) -> int:
    """Return how many multi-layer perceptrons gain from training side by side on a CPU.

    The group shares the overhead of each call, until its weights no longer fit into the
    cache: 784-256-10 trains 2 at once, 784-64-10 10, 64-256-10 27 (measured: docs/speed.md).
    """
    n_weights = sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))
    # weight, gradient and Adam's two moments, of two networks
    trial_bytes = 2 * 4 * n_weights * setup.dtype.itemsize
    return min(_MLP_CPU_WIDTH, max(1, _MLP_CPU_CACHE // trial_bytes))
