"""Trials detached from their storage: what an objective may do there, and what comes back."""

import math
import pickle
from decimal import Decimal
from typing import Any

import numpy as np
import optuna
import pytest
from optuna import TrialPruned
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import Trial

from optuna_s2e.parallel._detached import Outcome, Task, detach, run, run_together
from optuna_s2e.parallel._process import Process


def task_of(study: optuna.Study) -> Task:
    return detach(study.ask(), study.get_trials(deepcopy=False), RandomSampler(seed=0))


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study()


def busy(trial: Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    trial.report(x, step=3)
    trial.set_user_attr("note", [1, 2])
    return x


def test_what_an_objective_does_comes_back_and_nothing_is_written(study: optuna.Study) -> None:
    task = task_of(study)
    outcome = run(busy, task)
    value, distribution = outcome.params["x"]
    assert outcome.values == (value,)
    assert distribution == FloatDistribution(0, 1)
    assert outcome.user_attrs == {"note": [1, 2]}
    assert outcome.intermediate_values == {3: value}
    assert outcome.failure is None
    (stored,) = study.trials
    assert (stored.params, stored.user_attrs, stored.intermediate_values) == ({}, {}, {})


def test_a_task_travels(study: optuna.Study) -> None:
    task = task_of(study)
    outcome = run(busy, pickle.loads(pickle.dumps(task)))
    assert pickle.loads(pickle.dumps(outcome)) == outcome
    assert outcome.params == run(busy, task_of(study)).params  # the sampler's seed travels, too


NO_NUMBER = "It returned an object of type {}, which is no number."
FAR_TOO_LARGE = f"It returned {10**59}, which is no number."  # its first 60 digits


class Stubborn:
    def __float__(self) -> float:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


def raising(trial: Trial) -> float:
    raise KeyError("x")


def pruning(trial: Trial) -> float:
    raise TrialPruned


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (raising, {"failure": "KeyError: 'x'"}),
        (pruning, {"pruned": True}),
        (lambda trial: math.nan, {"failure": "It returned NaN."}),
        (lambda trial: None, {"failure": "It returned None, which is no number."}),
        (lambda trial: "a", {"failure": "It returned 'a', which is no number."}),
        (lambda trial: (1, 2), {"failure": "It returned 2 values, not 1."}),
        (lambda trial: math.inf, {"values": (math.inf,)}),
        (lambda trial: "2.5", {"failure": "It returned '2.5', which is no number."}),
        (lambda trial: 10**400, {"failure": FAR_TOO_LARGE}),
        (
            lambda trial: 10**5000,
            {"failure": NO_NUMBER.format("int")},
        ),
        (
            lambda trial: Stubborn(),
            {"failure": NO_NUMBER.format("Stubborn")},
        ),
        (lambda trial: [None], {"failure": "It returned [None], which is no number."}),
        (lambda trial: [0.5], {"values": (0.5,)}),
        (lambda trial: True, {"values": (1.0,)}),
        (lambda trial: Decimal("0.25"), {"values": (0.25,)}),
        (lambda trial: np.float32(0.25), {"values": (0.25,)}),
        (lambda trial: np.array(0.25), {"values": (0.25,)}),
        (lambda trial: 1j, {"failure": "It returned 1j, which is no number."}),
    ],
)
def test_each_kind_of_result_is_an_outcome(
    study: optuna.Study, objective: Any, expected: dict[str, Any]
) -> None:
    outcome = run(objective, task_of(study))
    assert {name: getattr(outcome, name) for name in expected} == expected
    assert (outcome.values is None) == ("values" not in expected)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: None)


def test_an_error_from_another_process_can_travel_and_brings_its_traceback(
    study: optuna.Study,
) -> None:
    def objective(trial: Trial) -> float:
        raise Unpicklable

    task = task_of(study)
    elsewhere = Task(task.study, task.trial_id, process=Process("elsewhere", 1, None))
    error = run(objective, elsewhere).error
    assert isinstance(pickle.loads(pickle.dumps(error)), RuntimeError)
    assert error is not None
    assert "in objective" in "".join(error.__notes__)
    assert isinstance(run(objective, task_of(study)).error, Unpicklable)  # here it stays itself


@pytest.mark.parametrize(
    "change",
    [
        lambda trial: trial.study.enqueue_trial({"x": 1}),
        lambda trial: trial.study.set_user_attr("a", 1),
        lambda trial: trial.study.tell(trial, 1.0),
        lambda trial: optuna.delete_study(study_name="s", storage=trial.study._storage),
    ],
)
def test_an_objective_cannot_change_its_study(study: optuna.Study, change: Any) -> None:
    def objective(trial: Trial) -> float:
        change(trial)
        return 0.0

    outcome = run(objective, task_of(study))
    assert outcome.failure is not None
    assert "it runs without the storage. Do that in a callback." in outcome.failure


def test_a_stop_comes_back(study: optuna.Study) -> None:
    def objective(trial: Trial) -> float:
        trial.study.stop()
        return 1.0

    assert run(objective, task_of(study)).stop


@pytest.mark.parametrize("result", [[1.0], None, "raise"])
def test_a_batch_must_return_one_result_per_trial(study: optuna.Study, result: Any) -> None:
    def batch(trials: Any) -> Any:
        if result == "raise":
            raise ValueError("all of them")
        return result

    outcomes = run_together(batch, [task_of(study), task_of(study)])
    assert all(isinstance(o, Outcome) and o.failure for o in outcomes)


def test_the_past_can_be_read(study: optuna.Study) -> None:
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)

    def objective(trial: Trial) -> float:
        return float(len(trial.study.trials))

    assert run(objective, task_of(study)).values == (3.0,)
