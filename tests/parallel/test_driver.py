"""What the driver makes of outcomes: failures, prunings, reports, stops, enqueued trials."""

import math
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import optuna
import pytest
from batches import K, assert_sound, new_study, parabola, states, thetas
from optuna.trial import Trial, TrialState

from optuna_s2e import S2ESampler, ScheduleSpace, generations, optimize_batch
from optuna_s2e._attributes import DRAW_KEY, FAILURE_KEY
from optuna_s2e.history import Record


def always_raising(trial: Trial) -> float:
    raise ValueError("never again")


def test_an_objective_that_always_raises_ends_with_one_error(pool: Executor) -> None:
    study = new_study()
    message = r"12 trials in a row have failed; .* never again\. Mend the objective"
    with pytest.raises(RuntimeError, match=message) as e:
        optimize_batch(study, always_raising, 100, executor=pool)
    assert len(study.trials) == 3 * K
    assert "in always_raising" in "".join(e.value.__cause__.__notes__)  # type: ignore[union-attr]
    optimize_batch(study, parabola, 2 * K + 1)  # mended
    assert len(generations(study)) == 3
    assert_sound(study)


def failing_in_part(trial: Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    if x > 0.6:
        raise ValueError("too large")
    return math.nan if x > 0.4 else x


def test_failed_attempts_are_other_points_and_theta_is_still_the_same(pool: Executor) -> None:
    studies = new_study(estimator="natural"), new_study(estimator="natural")
    for study, executor in zip(studies, (None, pool), strict=True):
        optimize_batch(study, failing_in_part, 5 * K, executor=executor, max_attempts=2)
        assert_sound(study)
    a, b = studies
    assert thetas(a) == thetas(b)
    told = generations(a)
    failed = [t for t in a.trials if t.state == TrialState.FAIL]
    assert all(t.system_attrs[FAILURE_KEY]["by"] == "objective" for t in failed)
    assert len({t.params["x"] for t in a.trials}) == len(a.trials)
    worst = [n for g in told for n in g.members if a.trials[n].state == TrialState.FAIL]
    assert worst, "no slot used up its attempts"
    assert all(len(g.members) == K for g in told[1:])
    mean = told[-1].theta[0] / told[-1].theta.sum()
    assert mean < 0.5  # away from where it fails


@pytest.mark.parametrize("seed", range(3))
def test_a_region_that_fails_is_left_and_ends_no_search(seed: int) -> None:
    """Though losses fall towards it; draws know what failed at earlier attempts."""

    def objective(trial: Trial) -> float:
        x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(4)]
        if x[0] > 0.5:
            raise ValueError("too large")
        return sum((v - 0.8) ** 2 for v in x)

    study = optuna.create_study(sampler=S2ESampler(seed=seed))
    optimize_batch(study, objective, 60)
    failed = [t for t in study.trials if t.state == TrialState.FAIL]
    assert len(failed) < 45  # draws that know nothing of it fail twice as often
    assert_sound(study)


def test_an_exception_that_is_not_caught_ends_the_call_and_costs_no_point(
    pool: Executor, undisturbed: list[str]
) -> None:
    study = new_study()
    with pytest.raises(RuntimeError, match="The objective raised ValueError: never again"):
        optimize_batch(study, always_raising, 20, executor=pool, catch=KeyError)
    assert len(study.trials) == K
    optimize_batch(study, parabola, 5 * K + 1)
    assert thetas(study) == undisturbed[6]


@pytest.mark.parametrize(
    ("result", "failure"),
    [
        (None, "no number"),
        ("abc", "no number"),
        ((1.0, 2.0), "2 values, not 1"),
        (math.nan, "NaN"),
    ],
)
def test_what_is_no_value_fails_the_trial(result: Any, failure: str) -> None:
    study = new_study()
    with pytest.raises(RuntimeError, match=failure):
        optimize_batch(study, lambda trial: result, 10, max_attempts=1)
    assert failure in study.trials[0].system_attrs[FAILURE_KEY]["reason"]


def test_infinite_values_count_as_the_worst() -> None:
    study = new_study()
    with pytest.warns(UserWarning, match="infinite"):
        optimize_batch(
            study, lambda t: math.inf if t.suggest_float("x", 0, 1) > 0.5 else 0.0, 5 * K
        )
    assert np.isfinite(generations(study)[-1].theta).all()
    assert_sound(study)


def learning(trial: Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    noise = np.random.default_rng(trial.user_attrs["seed"]).normal()
    for step in range(3):
        trial.report(x + noise + 1 / (1 + step), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("note", {"process": os.getpid()})
    return float(x + noise)


@pytest.mark.parametrize(
    ("consider", "pruner"),
    [
        (True, optuna.pruners.MedianPruner(n_startup_trials=3)),
        (False, optuna.pruners.MedianPruner(n_startup_trials=3)),
        (True, optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)),
    ],
)
def test_pruning_does_not_depend_on_who_finishes_first(
    consider: bool, pruner: optuna.pruners.BasePruner, pool: Executor
) -> None:
    executors = (None, pool, ThreadPoolExecutor(8))
    found = []
    for executor in executors:
        study = new_study(consider_pruned_trials=consider)
        study.pruner = pruner
        optimize_batch(study, learning, 6 * K, executor=executor)
        found.append((thetas(study), [t.state for t in study.trials]))
        assert all(t.intermediate_values for t in study.trials)
        assert TrialState.PRUNED in states(study)
        if consider:
            assert_sound(study)
    executors[2].shutdown()  # type: ignore[union-attr]
    assert found[0] == found[1] == found[2]


def test_reports_and_attributes_come_back_from_workers(pool: Executor) -> None:
    study = new_study()
    optimize_batch(study, learning, K, executor=pool)
    for trial in study.trials:
        assert trial.user_attrs["note"]["process"] != os.getpid()
        expected = {s: pytest.approx(trial.value - 1 / 3 + 1 / (1 + s)) for s in range(3)}
        assert {s: v - 1 / 3 for s, v in trial.intermediate_values.items()} == expected


def stopping(trial: Trial) -> float:
    if trial.number == K + 1:
        trial.study.stop()
    return trial.suggest_float("x", 0, 1)


@pytest.mark.parametrize("anywhere", [False, True])
def test_study_stop_in_an_objective_ends_the_call(anywhere: bool, pool: Executor) -> None:
    study = new_study()
    optimize_batch(study, stopping, executor=pool if anywhere else None)
    assert len(study.trials) == 2 * K
    assert TrialState.RUNNING not in states(study)
    optimize_batch(study, stopping, 2 * K)
    calm = new_study()
    calm.optimize(lambda trial: trial.suggest_float("x", 0, 1), 3 * K)
    assert thetas(study, 3) == thetas(calm)


def test_an_objective_cannot_change_the_study_behind_the_drivers_back() -> None:
    def enqueue(trial: Trial) -> float:
        trial.study.enqueue_trial({})
        return 0.0

    with pytest.raises(
        RuntimeError, match=r"cannot add or enqueue a trial.*Do that in a callback"
    ):
        optimize_batch(new_study(), enqueue, 4, max_attempts=1)


def test_enqueued_trials_run_and_take_no_slot(undisturbed: list[str]) -> None:
    study = new_study()
    for x in (0.1, 0.2):
        study.enqueue_trial({"x0": x})
    optimize_batch(study, parabola, 5 * K + 3)
    assert [study.trials[n].params["x0"] for n in (0, 1)] == [0.1, 0.2]
    assert len(study.trials) == 5 * K + 3
    assert thetas(study) == undisturbed[6]


@pytest.mark.parametrize(
    ("max_attempts", "first"),
    [(1, [(0, 0), (1, 0), (2, 0)]), (2, [(0, 0), (1, 0), (2, 0), (0, 1)])],
)
def test_a_suggested_schedule_fails_as_often_as_any_point_may(
    max_attempts: int, first: list[tuple[int, int]]
) -> None:
    space = ScheduleSpace(8, noise_rate=0.4)
    assert space.middle is not None
    suggested = space.middle.keep_rates

    def objective(trial: Trial) -> float:
        rates = space.suggest(trial).keep_rates
        return math.nan if np.array_equal(rates, suggested) else float(rates.mean())

    study = new_study(size=3, estimator="surrogate")
    optimize_batch(study, objective, 6, max_attempts=max_attempts)
    records = [Record.from_attr(t.system_attrs[DRAW_KEY]) for t in study.trials]
    tries = [(r.slot, r.attempt) for r in records if r is not None]
    assert tries == [*first, (3, 0), (4, 0), (5, 0)]
    assert [len(g.members) for g in generations(study)] == [0, 2]
