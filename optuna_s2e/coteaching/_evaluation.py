"""Baseline schedules, and the evaluation of schedules on test data with fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from optuna_s2e._checks import check_int
from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._evaluation_rows import Row, RowFile
from optuna_s2e.coteaching._networks import Network
from optuna_s2e.coteaching._training import Metrics, find_device, last_epochs_mean, train_batch
from optuna_s2e.coteaching.data import NoisyData
from optuna_s2e.schedules import (
    Schedule,
    coteaching_schedule,
    standard_schedule,
    suggested_schedule,
)

EVALUATION_STREAM = 1  # spawn key; the trials of a search have stream 0, so no seed is shared


def fixed_schedules(
    n_epochs: int, noise_rate: float | None, estimated_rate: float | None = None
) -> dict[str, Schedule]:
    """Return the baselines that need no search, by name.

    "standard" trains on all samples. "coteaching" is Eq 1 with the noise rate as tau, and with
    t_k = 10. "suggested" is `suggested_schedule` at the estimated noise rate, or at the true one
    if there is no estimate.

    Args:
        n_epochs: T, the number of training epochs, at least 2.
        noise_rate: The noise rate for Co-teaching, in [0, 0.95]. None leaves it out.
        estimated_rate: The noise rate that was estimated, in [0, 1]. None if there is none.

    Returns:
        Schedules by name: "standard" and, if a noise rate is known, the others.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> sorted(fixed_schedules(40, 0.5))
        ['coteaching', 'standard', 'suggested']
    """
    schedules = {"standard": standard_schedule(n_epochs)}
    if noise_rate is not None:
        schedules["coteaching"] = coteaching_schedule(n_epochs, noise_rate)
    suggested_rate = noise_rate if estimated_rate is None else estimated_rate
    if suggested_rate is not None:
        schedules["suggested"] = suggested_schedule(n_epochs, suggested_rate)
    return schedules


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
    keep: str | Path | None = None,
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
            training, and first of all if some are done.
        keep: File that keeps every training that has ended, in a folder that exists. A call with
            the same file trains only what is missing: it goes on where another was interrupted.
            It needs a network that has a name. None keeps nothing.

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
    if data.x_test is None:
        raise ValueError(f"An evaluation needs test data, but {data.name!r} holds none.")
    data, config = data.to(find_device(device)), config or TrainingConfig()
    file = None
    if keep is not None:
        if not isinstance(network, str):
            raise ValueError("keep must be None for a network that is a function: it has no name.")
        file = RowFile(Path(keep), data, network, config)
    states = np.random.SeedSequence(seed, spawn_key=(EVALUATION_STREAM,))
    seeds = [int(state) for state in states.generate_state(n_repeats)]
    # repeat by repeat: what an interrupted evaluation has trained can be compared
    runs = [_Run(name, s, row) for s in seeds for name, row in zip(schedules, rows, strict=True)]
    kept = {run.key: file.find(run.keep_rates, run.seed) for run in runs} if file else {}
    found = {key: row for key, row in kept.items() if row is not None}
    missing = [run for run in runs if run.key not in found]
    done, total = (len(runs) - len(missing)) * len(rows[0]), len(runs) * len(rows[0])
    if progress is not None and done:
        progress(done, total)

    def on_epoch() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    setup = {"data": data, "network": network, "config": config, "device": device}
    width = len(rows) if file else max(1, len(missing))  # runs that train side by side end at once
    for start in range(0, len(missing), width):
        group = missing[start : start + width]
        trained = _train(group, file, on_epoch, **setup)
        found |= {run.key: row for run, row in zip(group, trained, strict=True)}
    return {name: _evaluation({s: found[name, s] for s in seeds}) for name in schedules}


class _Run(NamedTuple):
    """A schedule that is trained with a seed."""

    name: str
    seed: int
    keep_rates: FloatArray

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.seed


def _train(
    runs: Sequence[_Run], file: RowFile | None, after_epoch: Callable[[], None], **setup: Any
) -> list[Row]:
    """Train runs; each is written to the file when its last epoch is done."""
    keep_rates = np.stack([run.keep_rates for run in runs])
    curves = np.full((len(runs), len(Row._fields), keep_rates.shape[1], 2), np.nan)

    def on_epoch(k: int, epoch: int, metrics: Metrics) -> None:
        curves[k, :, epoch] = metrics.error, metrics.label_precision
        if file is not None and epoch == keep_rates.shape[1] - 1:
            file.add(runs[k].keep_rates, runs[k].seed, Row(*curves[k]))
        after_epoch()

    results = train_batch(
        keep_rates, [run.seed for run in runs], evaluate_on="test", on_epoch=on_epoch, **setup
    )
    rows = [Row(result.curves.error, result.curves.label_precision) for result in results]
    for run, result, row in zip(runs, results, rows, strict=True):
        if result.failure is not None and not isinstance(result.failure, FloatingPointError):
            raise result.failure
        if file is not None and result.failure is not None:
            file.add(run.keep_rates, run.seed, row)
    return rows


def _evaluation(rows: Mapping[int, Row]) -> Evaluation:
    """Gather the rows of one schedule, by their seeds."""
    curves = list(rows.values())
    return Evaluation(
        test_accuracy=np.stack([1.0 - curve.error.mean(axis=1) for curve in curves]),
        label_precision=np.stack([curve.label_precision.mean(axis=1) for curve in curves]),
        seeds=tuple(rows),
        final_accuracy=np.array([1.0 - last_epochs_mean(curve.error) for curve in curves]),
    )
