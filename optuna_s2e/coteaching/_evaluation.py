"""Baseline schedules, and the evaluation of schedules on test data with fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from optuna_s2e._checks import check_choice, check_int
from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._evaluation_rows import Row, RowFile, Training
from optuna_s2e.coteaching._methods import METHODS, find_method
from optuna_s2e.coteaching._networks import Network
from optuna_s2e.coteaching._steps import Method
from optuna_s2e.coteaching._training import Metrics, find_device, last_epochs_mean, train_batch
from optuna_s2e.coteaching.data import NoisyData
from optuna_s2e.schedules import (
    Schedule,
    coteaching_schedule,
    standard_schedule,
    suggested_schedule,
)

EVALUATION_STREAM = 1  # spawn key; the trials of a search have stream 0, so no seed is shared
EARLY_STOPPING = "early-stopping"


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


class Compared(NamedTuple):
    """Hold methods with the schedules that they are compared under, by the names of the rows.

    Attributes:
        schedules: The schedules: Standard's for methods that make no use of one.
        methods: What is trained, as `methods` of `evaluate_schedules`.
        left_out: Why a method cannot be compared, by its name.
    """

    schedules: dict[str, Schedule]
    methods: dict[str, str]
    left_out: dict[str, str]


def compared_methods(
    names: Iterable[str],
    n_epochs: int,
    noise_rate: float | None,
    *,
    data: NoisyData,
    searched: Schedule | None = None,
) -> Compared:
    """Return the rows of an evaluation that compares methods.

    A method that obeys R(t) has two rows: "jocor" under Co-teaching's schedule (Eq 1), as in its
    paper, and "jocor/searched" under the searched one.

    Args:
        names: Names in `METHODS`, "early-stopping", or "all" alone.
        n_epochs: T, the number of training epochs, at least 2.
        noise_rate: The noise rate for Co-teaching's schedule, in [0, 0.95], or None.
        data: Data to train on.
        searched: The schedule that a search found, or None.

    Raises:
        ValueError: If there is no such method.

    Example:
        >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
        >>> data = NoisyData.from_arrays(x, y, x, y)
        >>> compared_methods(["jocor", "bare"], 40, 0.5, data=data).methods
        {'jocor': 'jocor', 'bare': 'bare'}
    """
    known = [*(name for name in METHODS if name != "single"), EARLY_STOPPING]
    asked = list(names)
    asked = known if asked == ["all"] else asked
    compared = Compared({}, {}, {})

    def add(row: str, schedule: Schedule, name: str) -> None:
        compared.schedules[row], compared.methods[row] = schedule, name

    for name in asked:
        if name != EARLY_STOPPING:
            check_choice("methods", name, [*METHODS, EARLY_STOPPING, "all"])
            if name == "all":
                raise ValueError("methods must be 'all' alone or names without it.")
        if name == EARLY_STOPPING or not METHODS[name].uses_schedule:
            if name == "f-correction-true" and data.clean_labels is None:
                compared.left_out[name] = "the clean labels of the training data are unknown"
            else:
                add(name, standard_schedule(n_epochs), name)
            continue
        if noise_rate is None:
            compared.left_out[name] = "its schedule needs a noise rate"
        else:
            add(name, coteaching_schedule(n_epochs, noise_rate), name)
        if searched is not None:
            add(f"{name}/searched", searched, name)
    return compared


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
    methods: Mapping[str, str | Method] | None = None,
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
        methods: What is trained under the schedules, by their names: a method, as in
            `train_batch`, or "early-stopping", which is Standard whose networks are taken from the
            epoch with the smallest validation error so far. All others are Co-teaching.

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
    rates = {name: np.asarray(own, dtype=np.float64) for name, own in schedules.items()}
    shapes = {name: own.shape for name, own in rates.items()}
    if len(set(shapes.values())) != 1:  # an empty mapping is refused, too
        raise ValueError(f"schedules must have one shape (T,), but got {shapes}.")
    if set(methods or {}) - set(schedules):
        raise ValueError(
            f"methods must be given for schedules among {list(schedules)}, but got "
            f"{list(methods or {})}."
        )
    n_epochs = len(next(iter(rates.values())))
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
    entries = {name: _Entry(own, (methods or {}).get(name)) for name, own in rates.items()}
    # repeat by repeat: what an interrupted evaluation has trained can be compared
    runs = {_key(t): t for s in seeds for e in entries.values() for t in e.trainings(s)}
    found = {key: row for key, t in runs.items() if file and (row := file.find(t))}
    missing = [training for key, training in runs.items() if key not in found]
    done, total = len(found) * n_epochs, len(runs) * n_epochs
    if progress is not None and done:
        progress(done, total)

    def on_epoch() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    setup = {"data": data, "network": network, "config": config, "device": device}
    width = len(runs) // len(seeds) if file else len(missing)  # side by side: they end at once
    for start in range(0, len(missing), max(1, width)):
        together = missing[start : start + width]
        for what in dict.fromkeys((t.method, t.evaluate_on) for t in together):
            group = [t for t in together if (t.method, t.evaluate_on) == what]
            trained = _train(group, file, on_epoch, **setup)
            found |= {_key(t): row for t, row in zip(group, trained, strict=True)}
    return {
        name: _evaluation({s: entry.row([found[_key(t)] for t in entry.trainings(s)])
                           for s in seeds})
        for name, entry in entries.items()
    }  # fmt: skip


class _Entry:
    """A schedule and the method that is trained under it."""

    def __init__(self, keep_rates: FloatArray, method: str | Method | None) -> None:
        self._stops = method == EARLY_STOPPING
        found = METHODS["standard"] if self._stops else find_method(method or "coteaching")
        self._keep_rates = keep_rates if found.uses_schedule else np.ones_like(keep_rates)
        # Standard is Co-teaching with R(t) = 1: the same training is not done twice
        self._method = METHODS["coteaching"] if found == METHODS["standard"] else found

    def trainings(self, seed: int) -> list[Training]:
        """Return the trainings that a row is made of."""
        own = Training(self._keep_rates, seed, self._method)
        return [own, own._replace(evaluate_on="validation")] if self._stops else [own]

    def row(self, rows: Sequence[Row]) -> Row:
        """Return the row that the rows of these trainings make."""
        return _stopped(*rows) if self._stops else rows[0]


def _stopped(test: Row, validation: Row) -> Row:
    """Return the row of networks that are taken from their best epoch so far."""
    errors = np.where(np.isnan(validation.error), np.inf, validation.error)
    best = [[int(errors[: t + 1, i].argmin()) for i in (0, 1)] for t in range(len(errors))]
    return Row(*(np.take_along_axis(curve, np.array(best), axis=0) for curve in test))


def _key(training: Training) -> tuple[object, ...]:
    keep_rates, seed, method, evaluate_on = training
    return keep_rates.tobytes(), seed, method, evaluate_on


def _train(
    runs: Sequence[Training], file: RowFile | None, after_epoch: Callable[[], None], **setup: Any
) -> list[Row]:
    """Train runs of one method; each is written to the file when its last epoch is done."""
    keep_rates = np.stack([run.keep_rates for run in runs])
    curves = np.full((len(runs), len(Row._fields), keep_rates.shape[1], 2), np.nan)

    def on_epoch(k: int, epoch: int, metrics: Metrics) -> None:
        curves[k, :, epoch] = metrics.error, metrics.label_precision
        if file is not None and epoch == keep_rates.shape[1] - 1:
            file.add(runs[k], Row(*curves[k]))
        after_epoch()

    results = train_batch(
        keep_rates,
        [run.seed for run in runs],
        evaluate_on=runs[0].evaluate_on,
        method=runs[0].method,
        on_epoch=on_epoch,
        **setup,
    )
    rows = [Row(result.curves.error, result.curves.label_precision) for result in results]
    for run, result, row in zip(runs, results, rows, strict=True):
        if result.failure is not None and not isinstance(result.failure, FloatingPointError):
            raise result.failure
        if file is not None and result.failure is not None:
            file.add(run, row)
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
