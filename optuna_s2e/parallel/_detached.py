"""Trials detached from their storage: an objective runs anywhere, its driver writes the outcome.

A `Task` is all that a worker needs: a trial over a study that holds this trial and, if a pruner or
a sampler compares with them, earlier ones. Nothing in it touches the database: reports, attributes
and parameters are collected and come back as an `Outcome`. So a worker needs no access to the
database, a dead worker leaves nothing half written, and what a trial sees of other trials does not
depend on who finishes first.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

from optuna import TrialPruned
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_s2e import _optuna
from optuna_s2e.parallel._process import Process, busy_for, this_process

Objective = Callable[[Trial], float | Sequence[float]]
Together = Callable[[Sequence[Trial]], Sequence[Any]]


@dataclass(frozen=True)
class Task:
    """One trial to run, picklable.

    Attributes:
        study: A study over a `DetachedStorage`.
        trial_id: The trial's identifier in both storages.
        process: The process that made the task.
    """

    study: Study
    trial_id: int
    process: Process


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial.

    Attributes:
        values: The values that the objective returned; None if the trial failed or was pruned.
        pruned: Whether the objective raised `TrialPruned`.
        failure: Why the trial failed; None if it did not.
        error: The exception that the objective raised; None if it raised none.
        params: New parameters by name: the value as the storage keeps it, and the distribution.
        user_attrs: User attributes that were set.
        system_attrs: System attributes that were set.
        intermediate_values: Reports by step.
        stop: Whether the objective called `trial.study.stop()`.
    """

    values: tuple[float, ...] | None = None
    pruned: bool = False
    failure: str | None = None
    error: Exception | None = None
    params: Mapping[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    intermediate_values: Mapping[int, float] = field(default_factory=dict)
    stop: bool = False


def detach(
    trial: Trial,
    past: Sequence[FrozenTrial],
    sampler: BaseSampler,
    check: Callable[[], None] | None = None,
) -> Task:
    """Make the task of a trial that was just asked for.

    The parameters that the study's sampler draws jointly are drawn here.

    Args:
        trial: A running trial.
        past: The other trials that its pruner and `sampler` see.
        sampler: The sampler of all other parameters, wherever the objective runs.
        check: Called whenever the objective writes to the trial in this process, as it does in
            every epoch: raises if the trial is to end.
    """
    drawn = trial.relative_params
    distributions = trial.relative_search_space or {}
    study, trial_id = trial.study, _optuna.trial_id(trial)
    storage = DetachedStorage(study, _optuna.frozen(study, trial_id), past, check)
    view = Study(
        study.study_name, storage, DrawnSampler(distributions, drawn, sampler), study.pruner
    )
    return Task(view, trial_id, this_process())


def run(objective: Objective, task: Task) -> Outcome:
    """Run one trial. Whatever the objective raises is part of the outcome.

    Raises:
        InterruptedError: If the worker's process was told to end, which is not the objective's
            fault.
    """
    here = this_process() == task.process
    if not here:
        task.study.sampler.reseed_rng()  # else all workers would draw the same
    try:
        with (
            nullcontext() if here else busy_for(task.process),
            _optuna.optimize_loop(task.study),
        ):
            result: Any = objective(_optuna.trial_of(task.study, task.trial_id))
    except Exception as error:
        result = error if here else _portable(error)
    except (KeyboardInterrupt, SystemExit) as error:
        if here:
            raise
        raise InterruptedError(f"The worker was told to end: {error!r}") from None
    return _outcome(task, result)


def run_together(batch: Together, tasks: Sequence[Task]) -> list[Outcome]:
    """Run all trials in one call that returns a value or an exception for each of them."""
    trials = [_optuna.trial_of(task.study, task.trial_id) for task in tasks]
    results: Sequence[Any]
    try:
        results = list(batch(trials))
        if len(results) != len(tasks):
            raise ValueError(
                f"objective.batch must return a value or an exception for each of {len(tasks)} "
                f"trials, but returned {len(results)}."
            )
    except Exception as error:
        results = [error] * len(tasks)
    return [_outcome(task, result) for task, result in zip(tasks, results, strict=True)]


def _outcome(task: Task, result: Any) -> Outcome:
    storage = _optuna.storage_of(task.study)
    assert isinstance(storage, DetachedStorage)
    collected: dict[str, Any] = {**storage.written, "stop": _optuna.is_stopped(task.study)}
    if isinstance(result, TrialPruned):
        return Outcome(pruned=True, **collected)
    if isinstance(result, Exception):
        return Outcome(failure=f"{type(result).__name__}: {result}", error=result, **collected)
    try:
        return Outcome(read_values(result, len(storage.directions)), **collected)
    except ValueError as error:
        return Outcome(failure=str(error), **collected)


def read_values(result: Any, n_values: int) -> tuple[float, ...]:
    """Return what an objective returned as floats, with the meaning that Optuna gives it.

    Strings are no numbers, and neither is what `float` refuses for whatever reason: under
    `study.optimize` some of that ends the whole search.

    Raises:
        ValueError: If it is no number, NaN, or not `n_values` of them.
    """
    several = isinstance(result, Sequence) and not isinstance(result, str)
    values = []
    for value in result if several else (result,):
        try:
            if isinstance(value, str):
                raise TypeError
            values.append(float(value))
        except Exception as error:  # of the value's own __float__
            raise ValueError(f"It returned {_shown(result)}, which is no number.") from error
    if any(map(math.isnan, values)):
        raise ValueError("It returned NaN.")
    if len(values) != n_values:
        raise ValueError(f"It returned {len(values)} values, not {n_values}.")
    return tuple(values)


def _shown(result: Any) -> str:
    try:
        return f"{result!r:.60}"
    except Exception:  # of its own __repr__, or it is an int of thousands of digits
        return f"an object of type {type(result).__name__}"


def _portable(error: Exception) -> Exception:
    """Return an error that survives pickling, with its traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the worker:\n{trace}")
    return error


class DrawnSampler(BaseSampler):
    """Return the parameters that are drawn already; another sampler draws the others."""

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        params: Mapping[str, Any],
        rest: BaseSampler,
    ) -> None:
        self._distributions, self._params, self._rest = dict(distributions), dict(params), rest

    def reseed_rng(self) -> None:
        """Reseed the other sampler."""
        self._rest.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn already."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return their values."""
        return dict(self._params)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Let the other sampler draw, unless Optuna's check rounded a large int that is drawn."""
        drawn = self._distributions.get(param_name)
        if param_name in self._params and drawn == param_distribution:
            return self._params[param_name]
        return self._rest.sample_independent(study, trial, param_name, param_distribution)


class DetachedStorage(BaseStorage):
    """A storage of one running trial, and of earlier ones to look at.

    Attributes:
        directions: The directions of the study.
        written: What the objective wrote to the running trial, as in `Outcome`.
    """

    def __init__(
        self,
        study: Study,
        trial: FrozenTrial,
        past: Sequence[FrozenTrial],
        check: Callable[[], None] | None = None,
    ) -> None:
        self.directions = list(study.directions)
        self.written: dict[str, dict[Any, Any]] = {
            name: {} for name in ("params", "user_attrs", "system_attrs", "intermediate_values")
        }
        self._study_id, self._study_name = _optuna.study_id(study), study.study_name
        self._user_attrs = study.user_attrs
        self._system_attrs: dict[str, Any] = {}
        self._trial = copy.deepcopy(trial)
        self._past = past
        self._check = check

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_check": None}  # it is of the driver's process

    def _own(self, trial_id: int) -> FrozenTrial:
        if trial_id != _optuna.trial_id(self._trial):
            _refuse("change another trial")
        if self._check is not None:
            self._check()
        return self._trial

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        trial = self._own(trial_id)
        trial.params[param_name] = distribution.to_external_repr(param_value_internal)
        trial.distributions[param_name] = distribution
        self.written["params"][param_name] = (param_value_internal, distribution)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self._own(trial_id).intermediate_values[step] = intermediate_value
        self.written["intermediate_values"][step] = intermediate_value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        json.dumps(value)  # an error here is the objective's, later it would be the driver's
        self._own(trial_id).user_attrs[key] = value
        self.written["user_attrs"][key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        json.dumps(value)
        self._own(trial_id).system_attrs[key] = value
        self.written["system_attrs"][key] = value

    def get_trial(self, trial_id: int) -> FrozenTrial:
        known = (self._trial, *self._past)
        return copy.deepcopy(next(t for t in known if _optuna.trial_id(t) == trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        number = self._trial.number
        others = [t for t in self._past if t.number != number]
        trials = sorted([*others, self._trial], key=lambda t: t.number)
        chosen = [t for t in trials if states is None or t.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._study_name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._user_attrs

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._system_attrs

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._system_attrs[key] = value  # a sampler's cache; it does not outlive the trial

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        _refuse("set attributes of the study")

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        _refuse("create a study")

    def delete_study(self, study_id: int) -> None:
        _refuse("delete a study")

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        _refuse("add or enqueue a trial")

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        _refuse("finish a trial")

    def get_all_studies(self) -> NoReturn:
        _refuse("list the studies")


def _refuse(what: str) -> NoReturn:
    raise RuntimeError(
        f"An objective under optimize_batch cannot {what}: it runs without the storage. "
        "Do that in a callback."
    )
