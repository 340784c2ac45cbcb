"""Baseline schedules, and the evaluation of schedules on test data with fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from optuna_s2e._checks import check_int
from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._networks import Network
from optuna_s2e.coteaching._training import Metrics, TrainingResult, last_epochs_mean, train_batch
from optuna_s2e.coteaching.data import NoisyData
from optuna_s2e.schedules import Schedule, coteaching_schedule, standard_schedule

EVALUATION_STREAM = 1  # spawn key; the trials of a search have stream 0, so no seed is shared


def fixed_schedules(n_epochs: int, noise_rate: float) -> dict[str, Schedule]:
    """Return the baselines that need no search, by name.

    "standard" trains on all samples. "coteaching" is Eq 1 with the true noise rate as tau, and
    with t_k = 10.

    Args:
        n_epochs: T, the number of training epochs, at least 2.
        noise_rate: The true noise rate, in [0, 0.95].

    Returns:
        Schedules by name: "standard" and "coteaching".

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> sorted(fixed_schedules(40, 0.5))
        ['coteaching', 'standard']
    """
    return {
        "standard": standard_schedule(n_epochs),
        "coteaching": coteaching_schedule(n_epochs, noise_rate),
    }


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Hold the test results of one schedule, as means over both networks.

    Attributes:
        test_accuracy: Test accuracy of each repeat and epoch, in [0, 1], (n_repeats, T). It is
            NaN after the epoch in which a loss became non-finite.
        label_precision: Share of right labels among the selected samples, in [0, 1],
            (n_repeats, T); NaN if the clean labels are unknown.
        seeds: Seed of each repeat, (n_repeats,).
        final_accuracy: Mean test accuracy over the last 10 % of the epochs, (n_repeats,).
    """

    test_accuracy: FloatArray
    label_precision: FloatArray
    seeds: tuple[int, ...]
    final_accuracy: FloatArray


def evaluate_schedules(
    schedules: Mapping[str, npt.ArrayLike],
    data: NoisyData,
    *,
    network: Network = "mlp",
    config: TrainingConfig | None = None,
    n_repeats: int = 5,
    seed: int = 0,
    device: torch.device | str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Evaluation]:
    """Retrain schedules with fresh seeds and measure them on the test data.

    All schedules share the seeds. Repeat r of one schedule can therefore be compared with repeat
    r of another: both have the same initial weights, order of the data and noisy labels.

    Args:
        schedules: R(t) by name, each of shape (T,) with the same T.
        data: Data with a test part.
        network: Name or function, as in `make_network`.
        config: Configuration of the search (`CoteachingObjective.config`). The default is
            `TrainingConfig()`.
        n_repeats: Number of trainings of each schedule, at least 1.
        seed: Seed that the seeds of the trainings follow from, a non-negative int. They are never
            those of the trials of a search.
        device: Device to train on, as in `train_batch`.
        progress: Function that is called with (epochs done, all epochs) after each epoch of each
            training.

    Returns:
        Test results by the names of the schedules.

    Raises:
        ValueError: If an argument is out of range, or the data have no test part.
        Exception: If a training raises, unless a loss became non-finite.

    Example:
        >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
        >>> data = NoisyData.from_arrays(x, y, x, y, x_test=x, y_test=y)
        >>> results = evaluate_schedules({"all": np.ones(3)}, data, n_repeats=2, device="cpu")
        >>> results["all"].test_accuracy.shape
        (2, 3)
    """
    n_repeats, seed = check_int("n_repeats", n_repeats, 1), check_int("seed", seed, 0)
    rows = [np.asarray(rates, dtype=np.float64) for rates in schedules.values()]
    if len({row.shape for row in rows}) != 1:  # an empty mapping is refused, too
        shapes = dict(zip(schedules, (row.shape for row in rows), strict=True))
        raise ValueError(f"schedules must have one shape (T,), but got {shapes}.")
    keep_rates = np.repeat(np.stack(rows), n_repeats, axis=0)
    states = np.random.SeedSequence(seed, spawn_key=(EVALUATION_STREAM,))
    seeds = [int(state) for state in states.generate_state(n_repeats)]
    done = 0

    def on_epoch(k: int, epoch: int, metrics: Metrics) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, keep_rates.size)

    results = train_batch(
        keep_rates,
        seeds * len(rows),
        data=data,
        network=network,
        config=config,
        device=device,
        evaluate_on="test",
        on_epoch=on_epoch,
    )
    groups = [results[i : i + n_repeats] for i in range(0, len(results), n_repeats)]
    return {name: _evaluation(group) for name, group in zip(schedules, groups, strict=True)}


def _evaluation(results: list[TrainingResult]) -> Evaluation:
    for result in results:
        if result.failure is not None and not isinstance(result.failure, FloatingPointError):
            raise result.failure
    curves = [result.curves for result in results]
    return Evaluation(
        test_accuracy=np.stack([1.0 - curve.error.mean(axis=1) for curve in curves]),
        label_precision=np.stack([curve.label_precision.mean(axis=1) for curve in curves]),
        seeds=tuple(result.seed for result in results),
        final_accuracy=np.array([1.0 - last_epochs_mean(curve.error) for curve in curves]),
    )
