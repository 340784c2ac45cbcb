"""One driver per study: who is refused, who takes over, whose heartbeats are sent."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from batches import K, assert_sound, completed, new_study, parabola, states, thetas
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import Trial, TrialState

from optuna_s2e import optimize_batch
from optuna_s2e._attributes import DRIVER_KEY
from optuna_s2e.parallel import _lease as lease


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
