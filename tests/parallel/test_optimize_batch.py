"""Batches: the same thetas whoever ran what, in which order, and whatever died meanwhile."""

import hashlib
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_s2e import S2ESampler, ScheduleSpace, generations, open_storage, optimize_batch, replay
from optuna_s2e._attributes import DRAW_KEY, DRIVER_KEY, FAILURE_KEY
from optuna_s2e.analysis import Snapshot, verify
from optuna_s2e.history._record import Record
from optuna_s2e.parallel import _lease as lease

K = 4
SPAWN = multiprocessing.get_context("spawn")


def parabola(trial: Trial) -> float:
    x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(3)]
    kind = trial.suggest_categorical("kind", ["a", "b"])
    time.sleep(random.random() * 0.01)  # any order of completion
    return sum((v - 0.3) ** 2 for v in x) + (kind == "b")


def noisy(trial: Trial) -> float:
    return parabola(trial) + np.random.default_rng(trial.user_attrs["seed"]).normal()


def new_study(storage: Any = None, *, size: int = K, **options: Any) -> optuna.Study:
    return optuna.create_study(
        study_name="s",
        storage=storage,
        sampler=S2ESampler(population_size=size, seed=0, **options),
        load_if_exists=True,
    )


def thetas(study: optuna.Study, n: int | None = None) -> str:
    return hashlib.sha256(b"".join(g.theta.tobytes() for g in generations(study)[:n])).hexdigest()


def states(study: optuna.Study) -> set[TrialState]:
    return {t.state for t in study.get_trials(deepcopy=False)}


def assert_sound(study: optuna.Study) -> None:
    assert verify(Snapshot.of(study)).sound
    assert "bit for bit" in verify(Snapshot.of(study)).message
    assert TrialState.RUNNING not in states(study)
    members = [n for g in generations(study) for n in g.members]
    assert len(members) == len(set(members))


@pytest.fixture(scope="module")
def undisturbed() -> list[str]:
    """Hashes of the first n thetas, n = 0 .. 6."""
    study = new_study()
    optimize_batch(study, parabola, 5 * K + 1)
    assert len(generations(study)) == 6
    return [thetas(study, n) for n in range(7)]


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=SPAWN) as executor:
        yield executor


# --- the promise ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_theta_is_the_same_for_any_number_of_threads(workers: int, undisturbed: list[str]) -> None:
    study = new_study()
    with ThreadPoolExecutor(workers) as executor:
        optimize_batch(study, parabola, 5 * K + 1, executor=executor)
    assert thetas(study) == undisturbed[6]
    assert_sound(study)


def test_theta_is_the_same_on_processes(pool: Executor, undisturbed: list[str]) -> None:
    study = new_study()
    optimize_batch(study, parabola, 5 * K + 1, executor=pool)
    assert thetas(study) == undisturbed[6]


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


@pytest.mark.parametrize("estimator", ["natural", "surrogate"])
def test_undisturbed_batches_are_what_one_worker_of_optimize_does(
    estimator: str, pool: Executor
) -> None:
    one, many = (new_study(estimator=estimator) for _ in range(2))
    one.optimize(parabola, 5 * K + 1)
    optimize_batch(many, parabola, 5 * K + 1, executor=pool)
    assert thetas(one) == thetas(many)
    assert [t.params for t in one.trials] == [t.params for t in many.trials]


def failing_schedule(trial: Trial) -> float:
    rates = ScheduleSpace(8).suggest(trial).keep_rates
    if rates[-1] > 0.8:
        raise ValueError("keeps too much")
    return float(np.square(rates - 0.5).mean())


def test_surrogate_assisted_schedules_are_the_same_on_any_executor(pool: Executor) -> None:
    """Draws of a model follow the draws that are pending: those of the slots before."""
    found = []
    for executor, step in ((None, 4 * K), (pool, 4 * K), (pool, 3)):
        study = new_study()
        while len(generations(study)) < 4:
            optimize_batch(study, failing_schedule, step, executor=executor)
        assert_sound(study)
        found.append(thetas(study, 4))
    assert found[0] == found[1] == found[2]


def branching(trial: Trial) -> float:
    if trial.suggest_categorical("model", ["linear", "tree"]) == "linear":
        return 0.25 + trial.suggest_float("penalty", 0, 1)
    return abs(trial.suggest_float("rate", 0, 1) - 0.7) + 0.1 * trial.suggest_int("depth", 1, 9)


def test_conditional_parameters_are_the_same_on_any_executor(pool: Executor) -> None:
    drawn = []
    for executor in (None, pool):
        study = new_study()
        optimize_batch(study, branching, 5 * K, executor=executor)
        assert_sound(study)
        assert generations(study)[0].theta.shape == (2 + 3 * 2,)
        drawn.append((thetas(study), [t.params for t in study.trials]))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("step", [1, 3, 7])
def test_theta_is_the_same_in_calls_of_any_length(step: int, undisturbed: list[str]) -> None:
    study = new_study()
    for start in range(0, 5 * K + 1, step):
        optimize_batch(study, parabola, min(step, 5 * K + 1 - start))
    assert thetas(study) == undisturbed[6]


def test_seeds_follow_the_slot(pool: Executor) -> None:
    calm, stormy = new_study(), new_study()
    optimize_batch(calm, noisy, 3 * K + 1)
    stormy.enqueue_trial({"x0": 0.5})  # shifts the numbers
    stormy.ask()
    optimize_batch(stormy, noisy, 3 * K + 2, executor=pool)
    assert thetas(calm) == thetas(stormy)
    assert len({t.user_attrs["seed"] for t in calm.trials}) == 3 * K + 1


class Dead(BaseException):
    """Stands for kill -9: nothing after it happens."""


class DyingStorage(InMemoryStorage):
    """Dies at the n-th write, before or after it took place."""

    def __init__(self, n: int, after: bool) -> None:
        super().__init__()
        self.left, self.after = n, after

    def _write(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.after):
            raise Dead
        result = method(*args, **kwargs)
        if self.left == 0:
            raise Dead
        return result

    def create_new_trial(self, *args: Any, **kwargs: Any) -> int:
        return self._write(super().create_new_trial, *args, **kwargs)  # type: ignore[no-any-return]

    def set_trial_param(self, *args: Any) -> None:
        self._write(super().set_trial_param, *args)

    def set_trial_user_attr(self, *args: Any) -> None:
        self._write(super().set_trial_user_attr, *args)

    def set_trial_system_attr(self, *args: Any) -> None:
        self._write(super().set_trial_system_attr, *args)

    def set_study_system_attr(self, *args: Any) -> None:
        self._write(super().set_study_system_attr, *args)

    def set_trial_state_values(self, *args: Any, **kwargs: Any) -> bool:
        return self._write(super().set_trial_state_values, *args, **kwargs)  # type: ignore[no-any-return]


def failing_above(trial: Trial) -> float:
    trial.set_user_attr("note", 1)
    x = trial.suggest_float("x", 0, 1)
    if x > 0.4:
        raise ValueError("too large")
    return x


@pytest.mark.parametrize(
    ("after", "estimator", "step"),
    [(False, "natural", 1), (True, "natural", 1), (False, "surrogate", 4)],
)
def test_a_driver_may_die_at_any_write(
    after: bool, estimator: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_lives", lambda *_: False)  # its process is this one
    calm = new_study(size=2, estimator=estimator)
    optimize_batch(calm, failing_above, 5, max_attempts=2)
    assert len(generations(calm)) == 3
    assert any(t.state == TrialState.FAIL for t in calm.trials)
    n, died = 0, True
    while died:
        n += step
        storage = DyingStorage(10**9, after)
        study = new_study(storage, size=2, estimator=estimator)
        storage.left, died = n, False
        try:
            optimize_batch(study, failing_above, 5, max_attempts=2)
        except Dead:
            died = True
        storage.left = 10**9
        optimize_batch(study, failing_above, 5, max_attempts=2)
        assert thetas(study, 3) == thetas(calm), n
        assert_sound(study)
    assert n > 30


@pytest.mark.parametrize("after", [False, True])
def test_no_enqueued_point_is_lost_with_its_driver(
    after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_lives", lambda *_: False)
    n, died = 0, True
    while died:
        n += 1
        storage = DyingStorage(10**9, after)
        study = new_study(storage, size=2)
        study.enqueue_trial({"x": 0.25})
        storage.left, died = n, False
        try:
            optimize_batch(study, failing_above, 1)
        except Dead:
            died = True
        storage.left = 10**9
        optimize_batch(study, failing_above, 2)
        assert any(t.params.get("x") == 0.25 and t.value == 0.25 for t in study.trials), n
        assert states(study) <= {TrialState.COMPLETE, TrialState.FAIL}
    assert n > 5


# --- real processes and real kills ------------------------------------------------------------

DRIVER = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import optuna
from optuna_s2e import S2ESampler, open_storage, optimize_batch
from test_optimize_batch import K, parabola
optuna.logging.set_verbosity(optuna.logging.ERROR)

def make():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))

if __name__ == "__main__":
    study = optuna.create_study(
        study_name="s", storage=open_storage(sys.argv[1]), load_if_exists=True,
        sampler=S2ESampler(population_size=K, seed=0),
    )
    optimize_batch(study, parabola, int(sys.argv[2]), executor=make, max_attempts=50)
"""


def start_driver(url: str, n_trials: int) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DRIVER, url, str(n_trials)],
        env=env,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def completed(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def storm(url: str) -> optuna.Study:
    """Drive a search while its workers and its driver are killed, -9, at random moments."""
    study = new_study(open_storage(url))
    end, n = time.monotonic() + 90, 5 * K + 1
    kills = 0
    for target in (n // 2, n):
        driver = start_driver(url, n - completed(study))
        while completed(study) < target and driver.poll() is None:
            assert time.monotonic() < end, "the driver made no progress"
            time.sleep(random.random() * 0.2)
            workers = children(driver.pid)
            if workers and kills < 4:
                os.kill(random.choice(workers), signal.SIGKILL)
                kills += 1
        if target < n:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    assert driver.wait(60) == 0
    assert kills > 0
    return study


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_killed_workers_and_drivers_change_no_theta(
    tmp_path: Path, undisturbed: list[str]
) -> None:
    study = storm(f"sqlite:///{tmp_path}/s.db")
    assert thetas(study, 6) == undisturbed[6]
    assert_sound(study)


@pytest.mark.postgres
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_killed_workers_and_drivers_change_no_theta_on_postgresql(
    postgres_url: str, undisturbed: list[str]
) -> None:
    study = storm(postgres_url)
    assert thetas(study, 6) == undisturbed[6]
    assert_sound(study)


def test_sigterm_leaves_no_trial_running(tmp_path: Path, undisturbed: list[str]) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study = new_study(open_storage(url))
    driver = start_driver(url, 1000)
    while completed(study) < 3:
        assert driver.poll() is None
        time.sleep(0.02)
    driver.terminate()
    assert driver.wait(60) == 128 + signal.SIGTERM
    assert TrialState.RUNNING not in states(study)
    optimize_batch(study, parabola, 2 * K)
    assert thetas(study, 3) == undisturbed[3]


def dies(trial: Trial) -> float:
    trial.suggest_float("x", 0, 1)
    os._exit(1)


def make_pool() -> Executor:
    return ProcessPoolExecutor(2, mp_context=SPAWN)


def test_an_objective_that_kills_its_workers_ends_with_one_error() -> None:
    study = new_study()
    with pytest.raises(RuntimeError, match="Nothing came back of 2 batches in a row"):
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
    with pytest.raises(RuntimeError, match=r"Nothing came back .* pickle"):
        optimize_batch(new_study(), lambda trial: 0.0, 20, executor=pool)


# --- failures of the objective ----------------------------------------------------------------


def always_raising(trial: Trial) -> float:
    raise ValueError("never again")


def test_an_objective_that_always_raises_ends_with_one_error(pool: Executor) -> None:
    study = new_study()
    with pytest.raises(RuntimeError, match=r"12 trials in a row have failed; .* never again") as e:
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


# --- what an objective sees and does ----------------------------------------------------------


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


def test_schedules_and_a_change_of_the_space() -> None:
    def objective(n_epochs: int) -> Callable[[Trial], float]:
        return lambda trial: float(ScheduleSpace(n_epochs).suggest(trial).keep_rates.mean())

    study, calm = new_study(), new_study()
    optimize_batch(study, objective(8), 3 * K)
    with pytest.raises(ValueError, match="n_epochs"):
        optimize_batch(study, objective(9), K)
    optimize_batch(study, objective(8), K + 1)
    optimize_batch(calm, objective(8), 4 * K + 1)
    assert thetas(study) == thetas(calm)
    assert_sound(study)


def test_another_range_of_a_parameter_is_one_clear_error() -> None:
    study = new_study()
    optimize_batch(study, lambda trial: trial.suggest_float("x", 0, 1), 2 * K)
    with (
        pytest.raises(ValueError, match=r"can move theta: of trial \d+, parameter 'x' is Float"),
        pytest.warns(UserWarning, match="stands still"),
    ):
        optimize_batch(study, lambda trial: trial.suggest_float("x", 0, 2), 2 * K)


def test_settings_of_another_search_are_refused() -> None:
    storage = InMemoryStorage()
    optimize_batch(new_study(storage), parabola, K)
    with pytest.raises(ValueError, match="population_size is 6, was 4"):
        optimize_batch(new_study(storage, size=6), parabola, K)
    adopting = new_study(storage, size=6, on_config_change="adopt")
    optimize_batch(adopting, parabola, 13)
    assert [len(g.members) for g in generations(adopting)] == [0, 4, 6, 6]
    assert_sound(adopting)


def test_batches_and_asynchronous_workers_take_turns() -> None:
    study = new_study()
    for n in (3, 7, 2 * K):
        study.optimize(parabola, n)
        optimize_batch(study, parabola, n + 1)
    assert_sound(study)
    complete = completed(study)
    assert sum(len(g.members) for g in generations(study)) > complete - 3 * K


# --- any sampler, any storage -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    "make_sampler",
    [
        lambda: RandomSampler(seed=0),
        lambda: TPESampler(seed=0, n_startup_trials=4),
        lambda: CmaEsSampler(seed=0),
        lambda: NSGAIISampler(seed=0, population_size=4),
        lambda: QMCSampler(seed=0, warn_independent_sampling=False),
        lambda: PartialFixedSampler({"x0": 0.5}, S2ESampler(seed=0)),
    ],
    ids=["random", "tpe", "cmaes", "nsgaii", "qmc", "partial-fixed"],
)
def test_any_sampler(make_sampler: Callable[[], BaseSampler], pool: Executor) -> None:
    study = optuna.create_study(sampler=make_sampler())
    with pytest.raises(ValueError, match="batch_size must be given for"):
        optimize_batch(study, parabola, 20)
    optimize_batch(study, parabola, 20, batch_size=4, executor=pool)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 20
    points = {tuple(t.params.values()) for t in study.trials}
    if not isinstance(study.sampler, NSGAIISampler):
        assert len(points) == 20
    else:  # its crossover repeats points
        assert max(t.system_attrs["NSGAIISampler:generation"] for t in study.trials) == 4


def test_k_are_asked_before_any_is_told() -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0))
    running = []

    def count(study: optuna.Study, trial: FrozenTrial) -> None:
        running.append(len(study.get_trials(states=(TrialState.RUNNING,))))

    optimize_batch(study, parabola, 10, batch_size=5, callbacks=[count])
    assert running == [4, 3, 2, 1, 0] * 2


def test_several_objectives() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=NSGAIISampler())
    optimize_batch(study, lambda t: (parabola(t), 1.0), 8, batch_size=4)
    assert all(len(t.values) == 2 for t in study.trials)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_any_storage(scheme: str, tmp_path: Path, undisturbed: list[str]) -> None:
    study = new_study(open_storage(f"{scheme}:///{tmp_path}/s.db"))
    with ThreadPoolExecutor(4) as executor:
        optimize_batch(study, parabola, 2 * K + 1, executor=executor)
    assert thetas(study) == undisturbed[3]
    assert [g.index for g in replay(study)] == [0, 1, 2]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_heartbeats_of_all_asked_trials(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    options = {"connect_args": {"timeout": 60}}
    storage = RDBStorage(url, engine_kwargs=options, heartbeat_interval=1, grace_period=2)
    study = new_study(storage)

    class Slow:
        def __call__(self, trial: Trial) -> float:
            raise AssertionError

        def batch(self, trials: list[Trial]) -> list[float]:
            time.sleep(3)  # longer than the grace period
            optuna.storages.fail_stale_trials(optuna.load_study(study_name="s", storage=storage))
            return [trial.suggest_float("x", 0, 1) for trial in trials]

    optimize_batch(study, Slow(), K)
    assert states(study) == {TrialState.COMPLETE}


# --- all trials in one call -------------------------------------------------------------------


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


# --- ends, and other drivers ------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_no_trial_running(error: type[BaseException]) -> None:
    def interrupted(trial: Trial) -> float:
        if trial.number == K + 2:
            raise error
        return parabola(trial)

    study = new_study()
    with pytest.raises(error):
        optimize_batch(study, interrupted, 20)
    assert len(study.trials) == 2 * K
    assert TrialState.RUNNING not in states(study)
    optimize_batch(study, parabola, 4 * K)
    study.optimize(parabola, 1)
    calm = new_study()
    optimize_batch(calm, parabola, 4 * K + 1)
    assert thetas(study, 5) == thetas(calm)


def test_timeout(pool: Executor) -> None:
    study = new_study()
    started = time.monotonic()
    optimize_batch(study, parabola, timeout=0.5, executor=pool)
    assert 0.5 <= time.monotonic() - started < 5
    assert TrialState.RUNNING not in states(study)
    assert completed(study) > 0


def test_callbacks_progress_and_an_error_in_a_callback(capsys: pytest.CaptureFixture[str]) -> None:
    study, numbers = new_study(), []

    def note(study: optuna.Study, trial: FrozenTrial) -> None:
        numbers.append(trial.number)
        if trial.number == 6:
            raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"):
        optimize_batch(study, parabola, 20, callbacks=[note], show_progress_bar=True)
    assert numbers == list(range(7))
    assert TrialState.RUNNING not in states(study)
    assert "Best trial" in capsys.readouterr().err


def test_a_second_driver_is_refused_while_the_first_lives() -> None:
    study = new_study()
    begun, go = threading.Event(), threading.Event()

    def waiting(trial: Trial) -> float:
        begun.set()
        assert go.wait(30)
        return parabola(trial)

    first = threading.Thread(target=optimize_batch, args=(study, waiting, K))
    first.start()
    try:
        assert begun.wait(30)
        with pytest.raises(RuntimeError, match=f"driven by another.*process {os.getpid()} on"):
            optimize_batch(study, parabola, K)
    finally:
        go.set()
        first.join()
    optimize_batch(study, parabola, K)
    assert completed(study) == 2 * K


@pytest.mark.parametrize("alive", [True, False])
def test_a_driver_elsewhere_is_judged_by_its_count_not_by_clocks(
    alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "REFRESH", 0.1)
    monkeypatch.setattr(lease, "PATIENCE", 0.5)
    study, end = new_study(), threading.Event()
    elsewhere = {"driver": "d", "host": "far", "pid": 7, "machine": "far", "count": 0}
    study._storage.set_study_system_attr(study._study_id, DRIVER_KEY, elsewhere)

    def count() -> None:
        for n in range(1, 1000):
            if end.wait(0.05):
                return
            value = elsewhere | {"count": n}
            study._storage.set_study_system_attr(study._study_id, DRIVER_KEY, value)

    thread = threading.Thread(target=count)
    if alive:
        thread.start()
        with pytest.raises(RuntimeError, match="process 7 on 'far'"):
            optimize_batch(study, parabola, K)
        end.set()
        thread.join()
    else:
        optimize_batch(study, parabola, K)
        assert completed(study) == K


@pytest.mark.parametrize("value", ["x", 7, {}, {"driver": 3}, {"driver": "d", "pid": "x"}])
def test_a_damaged_lease_keeps_nobody_out(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PATIENCE", 0.1)
    study = new_study()
    study._storage.set_study_system_attr(study._study_id, DRIVER_KEY, value)
    optimize_batch(study, parabola, K)


def test_two_drivers_at_once_repeat_work_and_harm_nothing(
    monkeypatch: pytest.MonkeyPatch, undisturbed: list[str]
) -> None:
    """The lease fails: both draw the same slots, again and again."""
    monkeypatch.setattr(lease, "_lives", lambda *_: False)
    monkeypatch.setattr(lease.Lease, "check", lambda self: None)
    storage: BaseStorage = InMemoryStorage()
    new_study(storage)
    errors: list[Exception] = []

    def drive() -> None:
        try:
            optimize_batch(new_study(storage), parabola, 5 * K + 1, max_attempts=100)
        except Exception as error:
            errors.append(error)

    drivers = [threading.Thread(target=drive) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert not errors
    study = new_study(storage)
    assert_sound(study)
    assert thetas(study, 6) == undisturbed[6]


def test_nested_calls_are_refused() -> None:
    study = new_study()

    def nested(study: optuna.Study, trial: FrozenTrial) -> None:
        optimize_batch(study, parabola, 1)

    with pytest.raises(RuntimeError, match="must not optimise its own study"):
        optimize_batch(study, parabola, 4, callbacks=[nested])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "n_trials must be a positive int"),
        ({"batch_size": 3}, "batch_size must be the sampler's population_size, 4, but got 3"),
        ({"max_attempts": 0}, "max_attempts must be in"),
        ({"executor": 3}, "executor must have a method submit"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    study = new_study()
    with pytest.raises(ValueError, match=message):
        optimize_batch(study, parabola, **options)
    assert study.trials == []


# --- records ----------------------------------------------------------------------------------


def test_records_of_slots_round_trip_and_damaged_ones_are_ignored() -> None:
    study = new_study()
    optimize_batch(study, parabola, 2 * K)
    records = [Record.from_attr(t.system_attrs[DRAW_KEY]) for t in study.trials]
    assert [r.slot for r in records if r is not None] == list(range(2 * K))
    for record, trial in zip(records, study.trials, strict=True):
        attr = trial.system_attrs[DRAW_KEY]
        assert record is not None
        assert record.to_attr() == attr
        for wrong in ({"slot": -1}, {"slot": "x"}, {"attempt": 10**6}, {"attempt": None}):
            assert Record.from_attr(attr | wrong) is None
