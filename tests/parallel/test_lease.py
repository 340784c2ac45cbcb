"""One driver per study: who is refused, who takes over, whose heartbeats are sent."""

import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from batches import K, assert_sound, completed, new_study, parabola, states, thetas
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState
from processes import CONTEXT, PATIENCE, Process, wait_until

from optuna_s2e import open_storage, optimize_batch
from optuna_s2e._attributes import DRIVER_KEY
from optuna_s2e._optuna import replace_study_system_attr
from optuna_s2e.parallel import _lease as lease
from optuna_s2e.parallel._process import this_process


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_heartbeats_of_all_asked_trials(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    options = {"connect_args": {"timeout": 60}}
    study = new_study(RDBStorage(url, engine_kwargs=options, heartbeat_interval=1))
    looker = sqlite3.connect(tmp_path / "s.db")

    def heartbeats() -> set[tuple[int, str]]:
        return set(looker.execute("SELECT trial_id, heartbeat FROM trial_heartbeats"))

    class Slow:
        def __call__(self, trial: Trial) -> float:
            raise AssertionError

        def batch(self, trials: list[Trial]) -> list[float]:
            first = heartbeats()
            assert {trial_id for trial_id, _ in first} == {trial._trial_id for trial in trials}
            assert eventually(lambda: not first & heartbeats())  # all of them are sent again
            return [trial.suggest_float("x", 0, 1) for trial in trials]

    optimize_batch(study, Slow(), K)
    looker.close()
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


@pytest.mark.parametrize(
    "value",
    ["x", 7, {}, {"driver": 3}, {"driver": "d", "pid": "x"},
     {"driver": "d", **this_process()._asdict(), "pid": "self"}],
    ids=["x", "7", "empty", "driver", "pid", "self"],
)  # fmt: skip
def test_a_damaged_lease_keeps_nobody_out(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "REFRESH", 0.1)
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


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drive(url: str, n: int, end: str, host: str = "", start: Any = None) -> None:
    """Drive the study; print the number of each trial that is trained, or why none is.

    Trials are trained until the file `end` exists.
    """
    if host:  # another machine, as far as a lease can tell
        socket.gethostname = lambda: host  # type: ignore[assignment]
    lease.REFRESH, lease.PATIENCE = 0.2, 1.6
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = new_study(open_storage(url))

    def train(trial: Trial) -> float:
        print("trained", trial.number, flush=True)
        x = trial.suggest_float("x", 0, 1)
        epoch = 0
        while not Path(end).exists():
            time.sleep(0.02)
            trial.report(x, epoch)
            epoch += 1
        print("whole", trial.number, flush=True)
        return x

    if start is not None:
        start.wait()
    try:
        optimize_batch(study, train, n)
    except RuntimeError as error:
        print(error, flush=True)
    print("ended", flush=True)


SCHEMES = ["sqlite", "journal", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        given: str = request.getfixturevalue("postgres_url")
        return given
    return f"{request.param}:///{tmp_path}/s.db"


@pytest.mark.parametrize("url", SCHEMES, indirect=True)
def test_of_many_drivers_that_begin_at_the_same_moment_one_drives(url: str) -> None:
    new_study(open_storage(url))
    start = CONTEXT.Barrier(6)
    drivers = [Process(drive, url, K, "end", "", start) for _ in range(6)]

    def n_printed(text: str) -> int:
        return sum(text in driver.printed for driver in drivers)

    assert eventually(lambda: n_printed("ended") == 5)  # the sixth one trains until it may end
    Path("end").touch()
    assert [driver.wait() for driver in drivers] == [0] * 6
    assert n_printed("trained") == 1
    assert n_printed("is driven by another optimize_batch") == 5
    study = new_study(open_storage(url))
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * K
    assert_sound(study)


def test_a_suspended_driver_that_lost_its_lease_trains_nothing_more(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    new_study(open_storage(url))
    first = Process(drive, url, K, "never")
    wait_until(lambda: "trained 0" in first.printed, first)
    first.send_signal(signal.SIGSTOP)
    Path("now").touch()
    second = Process(drive, url, K, "now", "elsewhere")  # waits until the lease has expired
    assert second.wait() == 0, second.errors
    assert second.printed.count("whole") == K
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0, first.errors
    assert "trained 1" not in first.printed  # nor was the first one brought to its end:
    assert "whole" not in first.printed
    assert "has taken over, because this process stood still for more than 1.6 s" in first.printed
    study = new_study(open_storage(url))
    assert [t.state for t in study.trials] == [TrialState.FAIL] * K + [TrialState.COMPLETE] * K


def test_a_lease_that_could_not_be_given_back_keeps_its_own_process_out_no_longer() -> None:
    study = new_study()
    held = lease.Lease(study).__enter__()
    study._storage.set_study_system_attr(study._study_id, DRIVER_KEY, {**held._lease, "count": 7})
    held.__exit__()  # as if the storage were away
    optimize_batch(study, parabola, K)
    assert completed(study) == K


@pytest.mark.parametrize("url", SCHEMES, indirect=True)
@pytest.mark.parametrize("plain", [True, False])
def test_an_attribute_is_replaced_only_if_it_is_what_was_read(url: str, plain: bool) -> None:
    if plain and url.startswith("journal"):
        backend = JournalFileBackend(url.removeprefix("journal:///"))
        study = optuna.create_study(storage=JournalStorage(backend))
    else:
        study = optuna.create_study(storage=url if plain else open_storage(url))

    def replace(old: Any, new: Any) -> bool | None:
        return replace_study_system_attr(study._storage, study._study_id, "key", old, new)

    assert replace("other", 1) is False
    assert replace(None, {"b": 1, "a": [1.5, None]}) is True
    assert replace(None, 2) is False
    assert replace({"a": [1.5, None], "b": 1}, 3) is True
    assert study._storage.get_study_system_attrs(study._study_id) == {"key": 3}
    assert replace(3, None) is True
    assert replace(None, 4) is True
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda n: replace(4, n), range(10, 18)))
    assert sorted(filter(None, won)) == [True]
    new = study._storage.get_study_system_attrs(study._study_id)["key"]
    assert new == 10 + won.index(True)
    engine = getattr(getattr(study._storage, "_backend", None), "engine", None)
    if engine is not None:
        engine.dispose()


class WithoutStep(InMemoryStorage):
    """Cannot replace a value in one step, as a gRPC proxy."""

    def replace_study_system_attr(self, *_: Any) -> None:
        return None


@pytest.fixture(params=[InMemoryStorage, WithoutStep])
def brief(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    """A study whose leases are renewed every 50 ms."""
    monkeypatch.setattr(lease, "REFRESH", 0.05)
    monkeypatch.setattr(lease, "SETTLE", 0.05)
    return new_study(request.param())


def held_in(study: optuna.Study) -> Any:
    return study._storage.get_study_system_attrs(study._study_id).get(DRIVER_KEY)


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_lease_counts_while_it_is_held_and_is_given_back(brief: optuna.Study) -> None:
    with lease.Lease(brief) as held:
        assert held_in(brief)["driver"] == held.driver
        assert (held_in(brief)["pid"], held_in(brief)["host"]) == (
            os.getpid(),
            socket.gethostname(),
        )
        assert eventually(lambda: held_in(brief)["count"] >= 3)
        held.confirm()
        with pytest.raises(RuntimeError, match=r"another optimize_batch.*Stop that process first"):
            lease.Lease(brief).__enter__()
        assert held_in(brief)["driver"] == held.driver
    assert held_in(brief) is None
    with lease.Lease(brief) as other:
        assert held_in(brief)["driver"] == other.driver != held.driver


@pytest.mark.parametrize(
    ("other", "who"),
    [({"driver": "d", "pid": 7, "host": "far"}, "process 7 on 'far'"),
     ({"driver": "d"}, "process None on None"), (None, "process None on None"),
     ("x", "process None on None")],
    ids=str,
)  # fmt: skip
def test_a_lease_that_is_not_there_any_more_is_lost(
    brief: optuna.Study, other: Any, who: str
) -> None:
    with lease.Lease(brief) as held:
        held.check()
        brief._storage.set_study_system_attr(brief._study_id, DRIVER_KEY, other)
        assert eventually(lambda: not held._thread.is_alive())  # it renews nothing more
        for look in (held.check, held.confirm):
            with pytest.raises(lease.LeaseLostError, match=f"{who}.*It has taken over"):
                look()
        assert held_in(brief) == other
    assert held_in(brief) == other  # nor is it given back


def test_only_a_lease_that_is_old_is_renewed_before_a_trial() -> None:
    study = new_study()
    with lease.Lease(study) as held:
        held.confirm()
        assert held_in(study)["count"] == 0
        for count in (1, 2):
            held._renewed -= lease.REFRESH  # as if this process had stood still
            held.confirm()
            held.confirm()
            assert held_in(study)["count"] == count


class Staggered(WithoutStep):
    """Every write takes 0.2 s longer than the one before, so two overlap."""

    n_writes = 0

    def set_study_system_attr(self, *args: Any) -> None:
        self.n_writes += 1
        time.sleep(0.2 * self.n_writes)
        super().set_study_system_attr(*args)


def test_of_two_drivers_on_a_storage_without_the_step_the_last_to_write_has_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "SETTLE", 1.0)
    study, both = new_study(Staggered()), threading.Barrier(2)

    def enter(_: int) -> lease.Lease | RuntimeError:
        held = lease.Lease(study)
        both.wait()
        try:
            return held.__enter__()
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(pool.map(enter, range(2)), key=lambda x: isinstance(x, lease.Lease))
    assert isinstance(second, lease.Lease)
    assert "is driven by another optimize_batch" in str(first)
    assert held_in(study)["driver"] == second.driver
    second.__exit__()
