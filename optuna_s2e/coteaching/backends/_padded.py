"""Groups of one size, however many trials they hold, for devices other than a CPU.

Libraries for GPUs choose their kernels by the size of what they multiply and add, so the rounding
of a trial may follow from the number of trials beside it. Here a group has the same number of
lanes from its first step to its last: a lane without a trial trains a copy of the first one, which
nobody reads. Nothing has to be recorded anew when a trial leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._samples import SampleStatistics
from optuna_s2e.coteaching.backends._base import Trainer, TrainingSetup


class PaddedTrainer:
    """Trains K trials in a group of more lanes (see `Trainer`).

    Attributes:
        is_small: Whether the networks are small.
    """

    def __init__(
        self,
        make_trainer: Callable[[TrainingSetup, Sequence[int], Tensor], Trainer],
        n_lanes: int,
        setup: TrainingSetup,
        seeds: Sequence[int],
        labels: Tensor,
    ) -> None:
        """Make the trainer of all lanes.

        Args:
            make_trainer: Makes it.
            n_lanes: Number of lanes, at least K.
            setup: What all trials share.
            seeds: Seeds of the trials, (K,).
            labels: Noisy labels that all trials share, (N,), or those of each trial, (K, N).
        """
        n_empty = n_lanes - len(seeds)
        if labels.ndim == 2:
            labels = torch.cat([labels, labels[:1].expand(n_empty, -1)])
        self._trainer = make_trainer(setup, [*seeds, *[seeds[0]] * n_empty], labels)
        self._n_lanes, self._lanes = n_lanes, list(range(len(seeds)))
        self.is_small = self._trainer.is_small

    def train_epoch(self, keep_rates: FloatArray, learning_rate: float, beta1: float) -> Tensor:
        """Train all lanes for one epoch (see `Trainer`)."""
        of_lanes = keep_rates[:1].repeat(self._n_lanes)
        of_lanes[self._lanes] = keep_rates
        return self._trainer.train_epoch(of_lanes, learning_rate, beta1)[:, self._lanes]

    def evaluate(self) -> Tensor:
        """Return cross-entropy and error on the evaluation data (see `Trainer`)."""
        return self._trainer.evaluate()[:, self._lanes]

    def networks(self, position: int) -> tuple[nn.Module, nn.Module]:
        """Return the networks of a trial (see `Trainer`)."""
        return self._trainer.networks(self._lanes[position])

    def samples(self, position: int) -> SampleStatistics | None:
        """Return what a trial saw of each sample (see `Trainer`)."""
        return self._trainer.samples(self._lanes[position])

    def keep_trials(self, positions: Sequence[int]) -> None:
        """Read these trials alone; the lanes of all others train on (see `Trainer`)."""
        self._lanes = [self._lanes[position] for position in positions]
