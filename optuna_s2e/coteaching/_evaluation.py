"""Fixed schedules to compare with, and schedules retrained with fresh seeds on test data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._networks import Network
from optuna_s2e.coteaching._training import Metrics, TrainingResult, last_epochs_mean, train_batch
from optuna_s2e.coteaching.data import NoisyData
from optuna_s2e.schedules import Schedule, coteaching_schedule, standard_schedule

EVALUATION_STREAM = 1  # spawn key: never the seeds of the trials of a search (stream 0)


def fixed_schedules(n_epochs: int, noise_rate: float) -> dict[str, Schedule]:
    """Return the baselines that need no search, by name.

    "standard" trains on everything; "coteaching" is Eq 1 with tau = `noise_rate`, which it is
    told, and t_k = 10.

    Args:
        n_epochs: T.
        noise_rate: The true noise rate, in [0, 0.95].

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
    """One schedule retrained `n_repeats` times; both networks averaged.

    Attributes:
        test_accuracy: Per repeat and epoch, (n_repeats, T); NaN from a loss that became
            non-finite on.
        label_precision: Share of right labels among the selected samples, (n_repeats, T).
        seeds: Seed of each repeat, (n_repeats,).
        final_accuracy: Mean over the last 10 % of the epochs, (n_repeats,).
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

    All schedules share the seeds, so that repeat r of one is to be compared with repeat r of
    another: same initial weights, same order of the data, same noisy labels.

    Args:
        schedules: R(t) by name, each (T,) of the same T.
        data: Data that hold a test part.
        network: As in `make_network`.
        config: As the search had it (`CoteachingObjective.config`).
        n_repeats: Seeds per schedule, at least 1.
        seed: Seed of the seeds; they are never those of a search's trials.
        device: As in `train_batch`.
        progress: Called with (epochs done, epochs in all) after each epoch of each training.

    Raises:
        ValueError: If an argument is out of range, or the data hold no test part.
    """
    if n_repeats < 1:
        raise ValueError(f"n_repeats must be at least 1, but got {n_repeats!r}.")
    rows = [np.asarray(rates, dtype=np.float64) for rates in schedules.values()]
    if len({row.shape for row in rows}) != 1:  # also refuses none
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
