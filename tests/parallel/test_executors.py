"""Where trials of a batch run: any executor, broken ones, all trials in one call."""

import math
import os
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from batches import K, assert_sound, new_study, parabola, states, thetas
from optuna.trial import Trial, TrialState
from processes import CONTEXT

from optuna_s2e import optimize_batch


def test_theta_is_the_same_on_joblibs_executor(undisturbed: list[str]) -> None:
    from joblib.externals.loky import get_reusable_executor

    study = new_study()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loky's own, about semaphores
        optimize_batch(study, parabola, 2 * K + 1, executor=lambda: get_reusable_executor(2))
    assert thetas(study) == undisturbed[3]


class PolledFuture:
    """What submitit and Dask return: no `concurrent.futures.Future`."""

    def __init__(self, future: Any) -> None:
        self.result, self.done = future.result, future.done


class PolledExecutor:
    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    def submit(self, function: Callable[..., Any], *args: Any) -> PolledFuture:
        return PolledFuture(self._pool.submit(function, *args))


def test_theta_is_the_same_on_an_executor_whose_futures_are_polled(undisturbed: list[str]) -> None:
    study = new_study()
    with ThreadPoolExecutor(3) as threads:
        optimize_batch(study, parabola, 5 * K + 1, executor=PolledExecutor(threads))
    assert thetas(study) == undisturbed[6]


def dies(trial: Trial) -> float:
    trial.suggest_float("x", 0, 1)
    os._exit(1)


def make_pool() -> Executor:
    return ProcessPoolExecutor(2, mp_context=CONTEXT)


def test_an_objective_that_kills_its_workers_ends_with_one_error() -> None:
    study = new_study()
    with pytest.raises(RuntimeError, match="2 batches in a row returned nothing"):
        optimize_batch(study, dies, 20, executor=make_pool, max_attempts=2)
    assert states(study) == {TrialState.FAIL}
    assert len(study.trials) == 2 * K


def test_a_broken_executor_is_named_and_the_study_goes_on(undisturbed: list[str]) -> None:
    study = new_study()
    with make_pool() as broken, pytest.raises(RuntimeError, match="executor=lambda: Process"):
        optimize_batch(study, dies, 20, executor=broken)
    assert len(study.trials) == K
    optimize_batch(study, parabola, 5 * K + 1)
    assert thetas(study) == undisturbed[6]


def test_what_cannot_be_pickled_ends_with_one_error(pool: Executor) -> None:
    with pytest.raises(RuntimeError, match=r"returned nothing.*pickle"):
        optimize_batch(new_study(), lambda trial: 0.0, 20, executor=pool)


class Together:
    """An objective that trains a whole batch at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, trial: Trial) -> float:
        return parabola(trial)

    def batch(self, trials: list[Trial]) -> list[float]:
        self.sizes.append(len(trials))
        return [parabola(trial) for trial in trials]


def test_objective_batch_gets_all_trials_at_once(pool: Executor, undisturbed: list[str]) -> None:
    for executor, sizes in ((None, [K] * 5 + [1]), (pool, [])):
        study, objective = new_study(), Together()
        optimize_batch(study, objective, 5 * K + 1, executor=executor)
        assert objective.sizes == sizes
        assert thetas(study) == undisturbed[6]


def test_one_trial_of_a_batch_may_fail_or_be_pruned() -> None:
    class Mixed(Together):
        def batch(self, trials: list[Trial]) -> list[Any]:
            values: list[Any] = super().batch(trials)
            if len(self.sizes) == 1:
                values[:3] = [MemoryError("out of memory"), math.nan, optuna.TrialPruned()]
            return values

    study = new_study()
    optimize_batch(study, Mixed(), K - 1)
    F, P, C = TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE
    assert [t.state for t in study.trials] == [F, F, P, C, C][: len(study.trials)]
    assert_sound(study)


@pytest.mark.parametrize("result", [[], [1.0] * 9, ValueError("all of it")])
def test_a_batch_that_fails_as_a_whole(result: Any) -> None:
    class Broken(Together):
        def batch(self, trials: list[Trial]) -> list[float]:
            if isinstance(result, Exception):
                raise result
            return result  # type: ignore[no-any-return]

    study = new_study()
    with pytest.raises(RuntimeError, match=r"all of it|for each of 4 trials, but returned"):
        optimize_batch(study, Broken(), 20)
    assert states(study) == {TrialState.FAIL}
