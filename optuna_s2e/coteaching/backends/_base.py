"""What every backend of the training shares: trials side by side as lanes.

Notation
    lane        one trial in training: two networks, their optimiser, the order of its data
    K           lanes of one group, trained side by side
    S, B        mini-batches of an epoch, samples of a mini-batch
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import DTYPES, TrainingConfig
from optuna_s2e.coteaching._networks import Network, make_network
from optuna_s2e.coteaching.data import NoisyData


class Setting(NamedTuple):
    """What all trials of a call share: data on the device, network, config, evaluation data."""

    data: NoisyData
    network: Network
    config: TrainingConfig
    evaluation: tuple[Tensor, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, inputs and losses."""
        return DTYPES[self.config.dtype]

    def precision(self) -> AbstractContextManager[object]:
        """Return what a forward pass runs in."""
        if self.config.dtype != "bfloat16":
            return nullcontext()
        return torch.autocast(self.data.x.device.type, torch.bfloat16)

    @property
    def batch_size(self) -> int:
        """B; a small data set is one mini-batch."""
        return min(self.config.batch_size, len(self.data.x))


class UnsuitableNetwork(TypeError):
    """A backend cannot train these networks."""


class Lanes(Protocol):
    """K trials in training. Lanes never touch each other."""

    def train_epoch(self, keep_rates: FloatArray, learning_rate: float, beta1: float) -> Tensor:
        """Train one epoch under R(t) of each lane, (K,).

        Returns:
            Label precision, accuracy and loss of the training steps, float64 (3, K, 2).
        """

    def evaluate(self) -> Tensor:
        """Return cross-entropy and error on the evaluation data, float64 (2, K, 2)."""

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes alone, counted as they are now, in this order."""


def trial_states(seed: int) -> tuple[int, int, int]:
    """Return the seeds of a trial's first network, second network and order of data."""
    first, second, order = np.random.SeedSequence(seed).generate_state(3, np.uint64)
    return int(first), int(second), int(order)


def make_peers(setting: Setting, seed: int) -> tuple[nn.Module, nn.Module]:
    """Make the two networks of a trial on the device, in training's dtype.

    Raises:
        ValueError: If the user's function returns one module twice.
    """
    shape, n_classes = setting.data.input_shape, setting.data.n_classes
    device = setting.data.x.device
    first, second = (
        make_network(setting.network, shape, n_classes, seed=state).to(device, setting.dtype)
        for state in trial_states(seed)[:2]
    )
    if first is second:
        raise ValueError("network must make a new module at each call, but returned one twice.")
    return first, second


class Orders:
    """The order of the data of each lane: a new permutation per epoch from the trial's seed."""

    def __init__(self, setting: Setting, seeds: Sequence[int]) -> None:
        self._n_samples = len(setting.data.x)
        self._batch_size = setting.batch_size
        self._device = setting.data.x.device
        self._generators = [torch.Generator().manual_seed(trial_states(s)[2]) for s in seeds]

    def draw(self) -> Tensor:
        """Return the mini-batches of an epoch as sample numbers, (S, K, B).

        What is left over after whole mini-batches is dropped.
        """
        n_steps = self._n_samples // self._batch_size
        orders = [
            torch.randperm(self._n_samples, generator=generator)[: n_steps * self._batch_size]
            for generator in self._generators
        ]
        by_lane = torch.stack(orders).to(self._device).view(-1, n_steps, self._batch_size)
        return by_lane.transpose(0, 1).contiguous()

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes alone."""
        self._generators = [self._generators[lane] for lane in lanes]


def labels_of(labels: Tensor, order: Tensor) -> Tensor:
    """Return the labels, (N,) or (K, N), of the samples of an epoch, (S, K, B)."""
    if labels.ndim == 1:
        return labels[order]
    n_steps, n_lanes, batch_size = order.shape
    by_lane = labels.gather(1, order.transpose(0, 1).flatten(1))
    return by_lane.view(n_lanes, n_steps, batch_size).transpose(0, 1)
