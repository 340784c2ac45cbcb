"""Drivers and workers that die, at any write and at any time: no theta changes."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import optuna
import pytest
from batches import (
    Dead,
    DyingStorage,
    K,
    assert_sound,
    completed,
    new_study,
    parabola,
    states,
    thetas,
)
from optuna.trial import Trial, TrialState
from processes import PATIENCE, Process, wait_until

from optuna_s2e import ScheduleSpace, generations, open_storage, optimize_batch
from optuna_s2e.parallel import _lease as lease


def failing_above(trial: Trial) -> float:
    trial.set_user_attr("note", 1)
    x = trial.suggest_float("x", 0, 1)
    if x > 0.4:
        raise ValueError("too large")
    return x


def dies_at(n: int, storage: DyingStorage, drive: Callable[[], object]) -> bool:
    """Drive until the n-th write, at which the driver dies; say whether it came to that."""
    storage.left = n
    try:
        drive()
    except Dead:
        return True
    finally:
        storage.left = 10**9
    return False


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("after", "estimator", "step"),
    # before every second write, and after it: what dies after a write leaves what dies before the
    # next one leaves
    [(False, "natural", 2), (True, "natural", 2), (False, "surrogate", 4)],
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
        died = dies_at(
            n, storage, partial(optimize_batch, study, failing_above, 5, max_attempts=2)
        )
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
        died = dies_at(n, storage, partial(optimize_batch, study, failing_above, 1))
        optimize_batch(study, failing_above, 2)
        assert any(t.params.get("x") == 0.25 and t.value == 0.25 for t in study.trials), n
        assert states(study) <= {TrialState.COMPLETE, TrialState.FAIL}
    assert n > 5


@pytest.mark.parametrize("after", [False, True])
def test_an_enqueued_point_is_repeated_once_if_the_next_driver_dies_too(
    after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_lives", lambda *_: False)
    n, died = 0, True
    while died:
        n += 1
        storage = DyingStorage(10**9, after)
        study = new_study(storage, size=2)
        study.enqueue_trial({"x": 0.25}, user_attrs={"whose": "mine"})

        def dying(trial: Trial, storage: DyingStorage = storage) -> float:
            storage.left = 0  # no write succeeds any more
            return trial.suggest_float("x", 0, 1)

        with pytest.raises(Dead):
            optimize_batch(study, dying, 1)
        assert [t.state for t in study.trials] == [TrialState.RUNNING]
        died = dies_at(n, storage, partial(optimize_batch, study, failing_above, 1))
        optimize_batch(study, failing_above, 2)
        mine = [t.value for t in study.trials if t.user_attrs.get("whose") == "mine" and t.value]
        assert mine == [0.25], n
        assert states(study) <= {TrialState.COMPLETE, TrialState.FAIL}
    assert n > 8


@pytest.mark.parametrize("after", [False, True])
def test_the_suggested_schedule_is_known_whichever_driver_dies(
    after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_lives", lambda *_: False)
    space = ScheduleSpace(8, noise_rate=0.4)

    def objective(trial: Trial) -> float:
        return float(space.suggest(trial).keep_rates.mean())

    calm = new_study(size=2, estimator="surrogate")
    optimize_batch(calm, objective, 5)
    assert [g.members for g in generations(calm)] == [(), (1, 0), (2, 3)]
    n, died = 0, True
    while died:
        n += 3
        storage = DyingStorage(10**9, after)
        study = new_study(storage, size=2, estimator="surrogate")
        died = dies_at(n, storage, partial(optimize_batch, study, objective, 5))
        optimize_batch(study, objective, 5)
        assert thetas(study, 3) == thetas(calm), n
        assert_sound(study)
    assert n > 30


def pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))


def drive(url: str, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = new_study(open_storage(url))
    optimize_batch(study, parabola, n_trials, executor=pool, max_attempts=50)


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def storm(url: str) -> optuna.Study:
    """Drive a search while its workers and its driver are killed, -9, at random moments."""
    study = new_study(open_storage(url))
    kills, n = 0, 5 * K + 1
    for target in (n // 2, n):
        driver = Process(drive, url, n - completed(study), session=True)
        end = time.monotonic() + PATIENCE
        while completed(study) < target and driver.is_alive():
            assert time.monotonic() < end, "the driver made no progress"
            time.sleep(random.random() * 0.2)
            workers = children(driver.pid)
            if workers and kills < 4:
                os.kill(random.choice(workers), signal.SIGKILL)
                kills += 1
        if target < n:
            driver.kill_session()
    assert driver.wait() == 0, driver.errors
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
    driver = Process(drive, url, 1000, session=True)
    wait_until(lambda: completed(study) >= 3, driver)
    assert driver.stop(signal.SIGTERM)[0] == 128 + signal.SIGTERM
    assert TrialState.RUNNING not in states(study)
    optimize_batch(study, parabola, 2 * K)
    assert thetas(study, 3) == undisturbed[3]


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
