"""The three steps of a fit: how many labels are wrong, which schedule, and the networks.

Without clean validation labels a search holds samples out and minimises the error on their noisy
labels. Under wrong labels that error still ranks schedules, and the cross-entropy does not
(docs/losses.md). The networks that are kept are trained on all samples.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from optuna.study import Study
from optuna.trial import Trial, TrialState
from torch import Tensor, nn
from tqdm import tqdm

from optuna_s2e._typing import FloatArray, IntArray
from optuna_s2e.analysis import recommend
from optuna_s2e.coteaching import (
    CoteachingObjective,
    NoiseEstimate,
    NoisyData,
    TrainingConfig,
    TrainingResult,
    estimate_noise,
    train_batch,
)
from optuna_s2e.parallel import optimize_batch
from optuna_s2e.schedules import Schedule

FEWEST_SAMPLES, FEWEST_OF_CLASS = 30, 3  # that the estimate needs
N_CURVE = 256  # samples that the last training is measured on; nothing follows from them

Labelled = tuple[Tensor, IntArray]  # inputs (N, ...) and class numbers (N,)


class Noise(NamedTuple):
    """How many labels are wrong.

    Attributes:
        rate: Share of wrong labels.
        known: What is known beside it, as `label_quality` takes it: the estimate, the matrix
            P(given | true class), (C, C), if nothing could be estimated, or None if the user gave
            the rate.
        networks: The networks of an estimate, if they were kept.
    """

    rate: float
    known: NoiseEstimate | FloatArray | None
    networks: tuple[nn.Module, ...] = ()

    @property
    def matrix(self) -> FloatArray | None:
        """P(given | true class), (C, C), or None."""
        return (
            self.known.transition_matrix if isinstance(self.known, NoiseEstimate) else self.known
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of an estimated rate, or None."""
        return self.known.interval if isinstance(self.known, NoiseEstimate) else None

    @property
    def probabilities(self) -> FloatArray | None:
        """Out-of-fold probabilities, (N, C), or None."""
        return self.known.probabilities if isinstance(self.known, NoiseEstimate) else None


@dataclass(frozen=True)
class Fitting:
    """What a classifier is fitted with.

    Attributes:
        train: The samples, some labels wrong.
        validation: Samples with clean labels, or None.
        n_classes: C.
        network: Name or function, as in `train_batch`.
        n_epochs: T, epochs of each training.
        n_estimate: Epochs of each of the three trainings of the estimate.
        config: Optimiser and mini-batches.
        device: As in `train_batch`.
        seed: Seed that all others follow from.
        bar: A progress bar that counts epochs.
    """

    train: Labelled
    validation: Labelled | None
    n_classes: int
    network: Any
    n_epochs: int
    n_estimate: int
    config: TrainingConfig
    device: str
    seed: int
    bar: tqdm[Any]

    def fingerprint(self) -> str:
        """Return what tells these samples from others, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for x, y in (self.train, *([self.validation] if self.validation else [])):
            digest.update(repr((tuple(x.shape), str(x.dtype))).encode())
            digest.update(x.contiguous().numpy().tobytes())
            digest.update(y.tobytes())
        return digest.hexdigest()

    def noise(self, rate: float | None, *, keep_networks: bool) -> Noise:
        """Return how many labels are wrong: what the user said, or an estimate."""
        return self._estimate(keep_networks) if rate is None else Noise(rate, None)

    def is_rare(self) -> npt.NDArray[np.bool_]:
        """Return which classes have too few samples for the estimate, (C,)."""
        counts = np.bincount(self.train[1], minlength=self.n_classes)
        return np.asarray(counts < FEWEST_OF_CLASS)

    def can_estimate(self) -> bool:
        """Whether there are enough samples to estimate how many labels are wrong."""
        rare = self.is_rare()
        return int((~rare[self.train[1]]).sum()) >= FEWEST_SAMPLES and int((~rare).sum()) >= 2

    def _estimate(self, keep_networks: bool) -> Noise:
        x, y = self.train
        used = np.flatnonzero(~self.is_rare()[y])
        if not self.can_estimate():
            warnings.warn(
                f"The noise rate cannot be estimated from {len(y)} samples of {self.n_classes} "
                "classes and counts as 0: networks are trained on all of them. Give noise_rate= "
                "(with n_pairs of at least 1).",
                UserWarning,
                stacklevel=5,
            )
            return Noise(0.0, np.eye(self.n_classes))
        part = (x[torch.from_numpy(used)], y[used])
        try:
            found = estimate_noise(
                self._data(part, self.validation or self._first(part)),
                network=self.network,
                config=self.config,
                n_epochs=self.n_estimate,
                device=self.device,
                seed=self._seed(0),
                keep_networks=keep_networks,
            )
        except ValueError as error:
            if isinstance(error.__cause__, ValueError | FloatingPointError):
                raise ValueError(self._in_words(error.__cause__)) from error
            raise
        self.bar.update(self.estimate_epochs)
        probabilities = np.full((len(y), self.n_classes), np.nan)
        probabilities[used] = found.probabilities
        known = replace(found, probabilities=probabilities, networks=())
        return Noise(found.noise_rate, known, found.networks)

    @property
    def estimate_epochs(self) -> int:
        """How many epochs on all samples the estimate costs."""
        return 2 * self.n_estimate

    def search(
        self,
        study: Study,
        noise: Noise,
        fraction: float,
        n_trials: int | None,
        seconds: float | None,
    ) -> Schedule | None:
        """Search a schedule; return the recommended one, or None if no training completed.

        Args:
            study: The study, whose sampler draws the schedules.
            noise: How many labels are wrong, which the space follows from. The study records an
                estimate, as with `CoteachingObjective(noise_rate="estimate")`.
            fraction: Share of the samples that is held out if there are no clean labels.
            n_trials: Trainings that the study ends with, or None.
            seconds: Time after which no more begin.
        """
        train, validation = self.train, self.validation
        if validation is None:
            train, validation = self._hold_out(fraction)
        objective = CoteachingObjective(
            self._data(train, validation),
            network=self.network,
            n_epochs=self.n_epochs,
            config=self.config,
            device=self.device,
            seed=self._seed(1),
            noise_rate=noise.known if isinstance(noise.known, NoiseEstimate) else noise.rate,
            reporter=_EpochCounter(self.bar),
        )
        n_done = _n_complete(study)
        self.bar.update(n_done * self.n_epochs)
        n_left = None if n_trials is None else n_trials - n_done
        if n_left is None or n_left > 0:
            optimize_batch(study, objective, n_left, timeout=seconds)
        return recommend(study).schedule if _n_complete(study) else None

    def fit(self, keep_rates: FloatArray, n_pairs: int) -> list[TrainingResult]:
        """Train pairs of networks on all samples.

        Raises:
            ValueError: If a training diverges, or the network does not suit the data.
            Exception: What a network of the user's own raised.
        """
        results = train_batch(
            np.tile(keep_rates, (n_pairs, 1)),
            [self._seed(2 + i) for i in range(n_pairs)],
            data=self._data(self.train, self.validation or self._first(self.train)),
            network=self.network,
            config=self.config,
            device=self.device,
            on_epoch=self._count,
            keep_networks=True,
            watch_samples=True,
        )
        for result in results:
            if result.failure is not None:
                if isinstance(result.failure, FloatingPointError):
                    raise ValueError(self._in_words(result.failure)) from result.failure
                raise result.failure
        return results

    def _in_words(self, failure: ValueError | FloatingPointError) -> str:
        """Return what a training that failed says to a user."""
        if isinstance(failure, ValueError):
            return str(failure)
        why = " ".join(str(failure).split()).rstrip(".")
        return (
            f"The training failed: {why}. A smaller learning_rate than "
            f"{self.config.learning_rate:g}, or another network, may help."
        )

    def _count(self, *_: object) -> None:
        self.bar.update(1)

    def _hold_out(self, fraction: float) -> tuple[Labelled, Labelled]:
        """Split the samples, each class by itself; a class of one sample stays in training."""
        x, y = self.train
        rng = np.random.default_rng([self.seed, 0])
        held = np.zeros(len(y), dtype=np.bool_)
        for label in range(self.n_classes):
            of_class = rng.permutation(np.flatnonzero(y == label))
            n = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
            held[of_class[:n]] = True
        inside, outside = np.flatnonzero(~held), np.flatnonzero(held)
        return (x[torch.from_numpy(inside)], y[inside]), (x[torch.from_numpy(outside)], y[outside])

    def _first(self, part: Labelled) -> Labelled:
        return part[0][:N_CURVE], part[1][:N_CURVE]

    def _data(self, train: Labelled, validation: Labelled) -> NoisyData:
        return NoisyData(
            x=train[0],
            noisy_labels=torch.from_numpy(train[1]),
            clean_labels=None,
            x_val=validation[0],
            y_val=torch.from_numpy(validation[1]),
            x_test=None,
            y_test=None,
            n_classes=self.n_classes,
            name="classifier",
            classes=tuple(range(self.n_classes)),
            clean_validation=self.validation is not None,
        )

    def _seed(self, key: int) -> int:
        return int(np.random.SeedSequence(self.seed, spawn_key=(key,)).generate_state(1)[0])


class _EpochCounter:
    """Counts the epochs of trials on a progress bar (`TrialReporter`)."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def show(
        self,
        trial: Trial,
        schedule: Schedule,
        curves: Mapping[str, Sequence[float]],
        *,
        final: bool = False,
    ) -> None:
        if curves["loss"] and not final:
            self._bar.update(1)


def _n_complete(study: Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
