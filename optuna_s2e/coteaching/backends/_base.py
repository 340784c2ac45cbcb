"""What all backends share: the setup of a training, its networks and the order of its data.

Notation
    trial       two networks, their optimiser and the order of their data
    K           trials of one group, trained side by side
    S, B        mini-batches of an epoch, samples of a mini-batch
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import starmap
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import DTYPES, TrainingConfig
from optuna_s2e.coteaching._methods import METHODS
from optuna_s2e.coteaching._networks import Network, make_network
from optuna_s2e.coteaching._samples import SampleStatistics, SampleWatch
from optuna_s2e.coteaching._steps import Method
from optuna_s2e.coteaching._threads import is_small
from optuna_s2e.coteaching.data import NoisyData

_NEARLY = 0.01  # of rounding, also in bfloat16


class TrainingSetup(NamedTuple):
    """What all trials of one call of `train_batch` share.

    Attributes:
        data: The data, on the device that trains.
        network: A name or a function, as in `make_network`.
        config: Optimiser, learning rates and mini-batches.
        evaluation: Inputs (N, ...) and labels (N,) that every epoch is evaluated on.
        watch_samples: Whether the trainers watch each training sample.
        method: What the two networks learn from a mini-batch.
        n_left_out: Training samples that each trial leaves out; their labels are -1.
    """

    data: NoisyData
    network: Network
    config: TrainingConfig
    evaluation: tuple[Tensor, Tensor]
    watch_samples: bool = False
    method: Method = METHODS["coteaching"]
    n_left_out: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, inputs and losses."""
        return DTYPES[self.config.dtype]

    @property
    def sum_dtype(self) -> torch.dtype:
        """The dtype of sums over an epoch: float64, or float32 on devices that may lack it."""
        has_float64 = self.data.x.device.type in ("cpu", "cuda")
        return torch.float64 if has_float64 else torch.float32

    def precision(self) -> AbstractContextManager[object]:
        """Return the context that every forward pass runs in: autocast for "bfloat16"."""
        if self.config.dtype != "bfloat16":
            return nullcontext()
        return torch.autocast(self.data.x.device.type, torch.bfloat16)

    def repeatable(self, *, exact: bool = False) -> AbstractContextManager[None]:
        """Return the context of all work on the device: its libraries repeat their bits.

        Args:
            exact: Whether "tf32" is float32 here, too.
        """
        if self.data.x.device.type != "cuda":
            return nullcontext()
        from optuna_s2e.coteaching._precision import cuda_precision

        return cuda_precision(tf32=self.config.dtype == "tf32" and not exact)

    @property
    def n_samples(self) -> int:
        """Number of samples that each trial trains on."""
        return len(self.data.x) - self.n_left_out

    @property
    def batch_size(self) -> int:
        """B, or the number of samples if a trial has fewer than that."""
        return min(self.config.batch_size, self.n_samples)

    def make_watch(self, n_trials: int) -> SampleWatch | None:
        """Return what watches the samples of K trials, or None if nothing does."""
        if not self.watch_samples:
            return None
        return SampleWatch(n_trials, len(self.data.x), self.data.x.device, self.sum_dtype)

    def is_small(self, network: nn.Module) -> bool:
        """Whether a training step of such networks gains nothing from a second CPU thread."""
        return is_small(network, self.data.x, self.batch_size)


class UnsuitableNetwork(TypeError):
    """A backend cannot train these networks."""


class Trainer(Protocol):
    """Trains K trials side by side. No trial changes the numbers of another.

    Attributes:
        is_small: Whether the networks are small (`TrainingSetup.is_small`).
    """

    is_small: bool

    def train_epoch(self, keep_rates: FloatArray, learning_rate: float, beta1: float) -> Tensor:
        """Train all trials for one epoch.

        Args:
            keep_rates: R(t) of each trial in this epoch, (K,).
            learning_rate: Learning rate in this epoch.
            beta1: Adam's beta1 in this epoch.

        Returns:
            Label precision, accuracy and loss of the training steps, (3, K, 2).
        """

    def evaluate(self) -> Tensor:
        """Return cross-entropy and error on the evaluation data, (2, K, 2)."""

    def networks(self, position: int) -> tuple[nn.Module, nn.Module]:
        """Return the two networks of a trial that is trained no further."""

    def samples(self, position: int) -> SampleStatistics | None:
        """Return what a trial saw of each sample so far, if that is watched."""

    def keep_trials(self, positions: Sequence[int]) -> None:
        """Drop all trials but those at these positions, which are then numbered in this order."""


class TrialSeeds(NamedTuple):
    """The independent seeds of a trial's two networks, the order of its data and of clean data."""

    first: int
    second: int
    order: int
    clean: int


def trial_seeds(seed: int) -> TrialSeeds:
    """Return the four seeds that follow from the seed of a trial."""
    return TrialSeeds(*map(int, np.random.SeedSequence(seed).generate_state(4, np.uint64)))


def make_networks(setup: TrainingSetup, seed: int) -> tuple[nn.Module, nn.Module]:
    """Make the two networks of a trial, on the device and in the dtype of the training.

    Raises:
        ValueError: If the user's function returns the same module twice.

    Warns:
        UserWarning: If all their weights are equal.
    """
    shape, n_classes = setup.data.input_shape, setup.data.n_classes
    device, seeds = setup.data.x.device, trial_seeds(seed)
    first, second = (
        make_network(setup.network, shape, n_classes, seed=own).to(device, setup.dtype)
        for own in (seeds.first, seeds.second)
    )
    if first is second:
        raise ValueError("network must make a new module at each call, but returned one twice.")
    if _begin_alike(first, second):
        warnings.warn(
            "Both networks of a trial begin with the same weights. They learn the same then, and "
            "cannot correct each other (dropout alone would tell them apart). Let the network "
            "function draw new weights at each call: without a seed of its own, and with "
            "reset_parameters() for layers that it copies or sets to zero.",
            UserWarning,
            stacklevel=2,
        )
    return first, second


def _begin_alike(first: nn.Module, second: nn.Module) -> bool:
    """Whether all weights that are trained are equal in both networks; lazy ones are not yet."""
    trained = [[w for w in net.parameters() if w.requires_grad] for net in (first, second)]
    if not trained[0] or any(map(is_lazy, trained[0])):
        return False
    return all(starmap(torch.equal, zip(*trained, strict=False)))


def checked_logits(output: object, shape: tuple[int, int]) -> Tensor:
    """Return what a network returned, if it is logits of shape (B, C).

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(output, Tensor) and output.shape == shape and output.is_floating_point():
        return output
    raise ValueError(
        f"network must return logits of shape (B, C) = {shape}, but got {_described(output)}."
        + ("" if isinstance(output, Tensor) else " Let its forward return the logits alone.")
    )


def warn_of_probabilities(outputs: Tensor) -> None:
    """Warn if a network returns probabilities in place of logits, (..., C)."""
    sums = outputs.float().sum(dim=-1)
    if bool((outputs >= 0).all() & ((sums - 1).abs() < _NEARLY).all()):
        warnings.warn(
            "The network returns probabilities: no output is negative, and those of each sample "
            "sum to 1. Logits are asked for, and the loss takes their softmax. Leave out the "
            "network's own softmax.",
            UserWarning,
            stacklevel=2,
        )


def _described(output: object) -> str:
    """Name what a network returned, with the shapes of tensors."""
    if isinstance(output, Tensor):
        dtype = "" if output.is_floating_point() else f"{output.dtype} of shape "
        return f"{dtype}{tuple(output.shape)}"
    kind = f"{type(output).__name__}"
    if isinstance(output, Mapping):
        parts = [f"{key!r}: {_described(value)}" for key, value in output.items()]
    elif isinstance(output, list | tuple):
        parts = [_described(value) for value in output]
    else:
        return kind
    return f"a {kind} of {', '.join(parts) or 'nothing'}"


class DataOrders:
    """Draws the order of the data of K trials: each epoch a permutation from the trial's seed.

    For a device other than a CPU, which would have to wait, a thread draws the next epoch while
    this one is trained. The thread ends with this object.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        seeds: Sequence[int],
        labels: Tensor,
        *,
        ahead: bool | None = None,
    ) -> None:
        """Seed the generators.

        Args:
            setup: Data and size of the mini-batches.
            seeds: Seeds of the trials, (K,).
            labels: Noisy labels that all trials share, (N,), or those of each trial, (K, N).
                Samples whose label is -1 are left out.
            ahead: Whether a thread draws the next epoch; None asks the device.
        """
        self._n_samples, self._batch_size = setup.n_samples, setup.batch_size
        self._samples = _labelled(labels) if setup.n_left_out else None
        self._device = setup.data.x.device
        self._generators = [torch.Generator().manual_seed(trial_seeds(s).order) for s in seeds]
        draws_ahead = self._device.type != "cpu" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, "s2e-orders") if draws_ahead else None
        self._next: Future[Tensor] | None = None

    def draw(self) -> Tensor:
        """Return the mini-batches of the next epoch as sample numbers, (S, K, B).

        The samples that do not fill a whole mini-batch are dropped.
        """
        drawn, self._next = self._next, None
        of_trials = self._permutations() if drawn is None else drawn.result()
        by_trial = of_trials.to(self._device, copy=self._thread is not None)
        if self._thread is not None:  # the copy has ended, and its source may be written again
            self._next = self._thread.submit(self._permutations, of_trials)
        if self._samples is not None:
            by_trial = self._samples.gather(1, by_trial)
        n_steps = self._n_samples // self._batch_size
        by_trial = by_trial.view(-1, n_steps, self._batch_size)
        return by_trial.transpose(0, 1).contiguous()

    def _permutations(self, room: Tensor | None = None) -> Tensor:
        """Return the order of each trial's samples, (K, S * B), in `room` if it is given."""
        n_used = self._n_samples // self._batch_size * self._batch_size
        if room is None:
            room = torch.empty(
                (len(self._generators), n_used), dtype=torch.int64,
                pin_memory=self._device.type == "cuda",
            )  # fmt: skip
        for of_trial, generator in zip(room, self._generators, strict=True):
            of_trial.copy_(torch.randperm(self._n_samples, generator=generator)[:n_used])
        return room

    def keep_trials(self, positions: Sequence[int]) -> None:
        """Drop all trials but those at these positions."""
        if self._next is not None:  # the thread draws from all generators
            kept: Future[Tensor] = Future()
            drawn = self._next.result()
            place = drawn[: len(positions)]  # no new memory: it may be pinned
            kept.set_result(place.copy_(drawn[list(positions)]))
            self._next = kept
        if self._samples is not None:
            self._samples = self._samples[list(positions)]
        self._generators = [self._generators[position] for position in positions]


def _labelled(labels: Tensor) -> Tensor:
    """Return the numbers of the samples that each trial trains on, (K, n), by labels (K, N)."""
    return (labels >= 0).nonzero()[:, 1].view(len(labels), -1)


def gather_labels(labels: Tensor, order: Tensor) -> Tensor:
    """Return the labels of the samples of an epoch, (S, K, B).

    Args:
        labels: Labels that all trials share, (N,), or labels of each trial, (K, N).
        order: What `DataOrders.draw` returned, (S, K, B).
    """
    if labels.ndim == 1:
        return labels[order]
    n_steps, n_trials, batch_size = order.shape
    by_trial = labels.gather(1, order.transpose(0, 1).flatten(1))
    return by_trial.view(n_trials, n_steps, batch_size).transpose(0, 1)
