"""Signals wait for the end of an operation, of an ask and of a tell; no lock outlives them."""

import inspect
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from processes import Process, wait_until

from optuna_s2e import S2ESampler, _optuna, open_storage, optimize_batch
from optuna_s2e.storages import _deferral


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    return optuna.create_study(storage=storage, sampler=S2ESampler(seed=0), study_name="s")


def engine_of(study: optuna.Study) -> Any:
    return study._storage._backend._backend.engine  # type: ignore[attr-defined]


def shoot(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def quick(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def assert_writable(path: Path) -> None:
    """Check that nobody holds a lock, at once."""
    database = sqlite3.connect(path / "s.db", timeout=0, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    database.execute("ROLLBACK")
    database.close()


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


# --- Optuna's loop ---------------------------------------------------------------------------


def shoot_in_objective(study: optuna.Study) -> Callable[[optuna.Trial], float]:
    def objective(trial: optuna.Trial) -> float:
        sqlalchemy.event.listen(engine_of(study), "before_cursor_execute", shoot, once=True)
        trial.set_user_attr("a", 1)
        raise AssertionError("The signal comes before.")

    return objective


def shoot_in_tell(study: optuna.Study) -> Callable[[optuna.Trial], float]:
    def objective(trial: optuna.Trial) -> float:
        value = quick(trial)
        sqlalchemy.event.listen(engine_of(study), "commit", shoot, once=True)
        return value

    return objective


def shoot_in_ask(study: optuna.Study) -> Callable[[optuna.Trial], float]:
    n_commits = 0

    def third(*_: Any) -> None:  # the third is that of the trial's record
        nonlocal n_commits
        n_commits += 1
        if n_commits == 3:
            shoot()

    sqlalchemy.event.listen(engine_of(study), "commit", third)
    return quick


def shoot_in_sampler(study: optuna.Study) -> Callable[[optuna.Trial], float]:
    class Shooting(optuna.samplers.RandomSampler):
        def before_trial(self, *args: Any) -> None:
            shoot()
            super().before_trial(*args)

    study.sampler = Shooting()
    return quick


def shoot_in_sampler_before_a_long_wait(
    study: optuna.Study,
) -> Callable[[optuna.Trial], float]:
    shoot_in_sampler(study)

    def objective(trial: optuna.Trial) -> float:
        time.sleep(60)
        return 0.0

    return objective


LOOPS = {
    "objective": (shoot_in_objective, TrialState.FAIL),
    "tell": (shoot_in_tell, TrialState.COMPLETE),
    "ask": (shoot_in_ask, TrialState.FAIL),
    "sampler": (shoot_in_sampler, TrialState.FAIL),
    "long wait": (shoot_in_sampler_before_a_long_wait, TrialState.FAIL),
}


@pytest.mark.parametrize("where", LOOPS)
def test_ctrl_c_ends_the_loop_with_its_trial_finished_and_the_file_writable(
    where: str, study: optuna.Study, tmp_path: Path
) -> None:
    make, state = LOOPS[where]
    objective = make(study)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        study.optimize(objective, n_trials=3)
    assert time.monotonic() - start < 30
    assert_writable(tmp_path)
    assert states(study) == [state]
    if where == "objective":
        assert study.trials[0].user_attrs == {"a": 1}  # the operation ended
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("interrupts_objective", [False, True])
def test_ctrl_c_before_the_first_operation_of_a_tell_leaves_no_running_trial(
    interrupts_objective: bool, study: optuna.Study, tmp_path: Path
) -> None:
    tell = inspect.unwrap(_optuna._tell_with_warning).__code__

    def shoot_as_it_begins(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code is tell:
            sys.setprofile(None)
            shoot()

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        sys.setprofile(shoot_as_it_begins)
        if interrupts_objective:
            shoot()
        return x

    def search() -> None:
        try:
            study.optimize(objective, n_trials=3)
        finally:
            time.sleep(20 * _deferral._PAUSE)  # here a second Ctrl-C arrives at the latest

    with pytest.raises(KeyboardInterrupt):
        search()
    assert_writable(tmp_path)
    assert states(study) == [TrialState.FAIL if interrupts_objective else TrialState.COMPLETE]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_batch_leaves_no_running_trial(study: optuna.Study, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        optimize_batch(study, shoot_in_tell(study), n_trials=12)
    assert_writable(tmp_path)
    assert TrialState.RUNNING not in states(study)


# --- handlers --------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a signal of Unix")
def test_a_handler_of_ones_own_is_called_once_and_stays(study: optuna.Study) -> None:
    called: list[int] = []

    def own(number: int, frame: Any) -> None:
        called.append(number)

    numbers = [signal.SIGUSR1, signal.SIGTERM]
    before = [signal.signal(number, own) for number in numbers]

    def shoot_both(*_: Any) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
        assert called == []  # they wait for the end of the operation

    sqlalchemy.event.listen(engine_of(study), "commit", shoot_both, once=True)
    study.set_user_attr("a", 1)
    assert sorted(called) == sorted(numbers)
    time.sleep(5 * _deferral._PAUSE)
    study.set_user_attr("a", 2)
    assert len(called) == 2
    assert [signal.getsignal(number) for number in numbers] == [own, own]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_thread_that_works_leaves_the_handlers_alone(study: optuna.Study) -> None:
    seen: list[Any] = []
    sqlalchemy.event.listen(
        engine_of(study), "commit", lambda *_: seen.append(signal.getsignal(signal.SIGINT))
    )
    thread = threading.Thread(target=study.set_user_attr, args=("a", 1))
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_after_a_search_the_handlers_are_back(study: optuna.Study) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # nothing is read to be logged
    study.optimize(quick, n_trials=1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_whoever_puts_back_what_was_found_gives_the_signal_to_its_own_handler(
    study: optuna.Study,
) -> None:
    called: list[int] = []
    study.ask()  # ends with a stand-in for Python's handler
    found = signal.signal(signal.SIGINT, lambda number, frame: called.append(number))
    study.set_user_attr("a", 1)
    signal.signal(signal.SIGINT, found)
    with pytest.raises(KeyboardInterrupt):
        shoot()
    assert called == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_of_another_thread_amid_an_operation_is_in_none(study: optuna.Study) -> None:
    codes: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            with _deferral.signals_wait():
                pass
            given_back = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            os._exit(0 if given_back else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def fork_in_a_thread(*_: Any) -> None:
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()

    sqlalchemy.event.listen(engine_of(study), "commit", fork_in_a_thread, once=True)
    study.set_user_attr("a", 1)
    assert codes == [0]


# --- signals that waited for long ------------------------------------------------------------


@pytest.mark.parametrize("when", ["before_cursor_execute", "after_cursor_execute", "commit"])
def test_a_long_operation_is_interrupted_and_leaves_no_lock(
    when: str, study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_deferral, "MAX_WAIT", 0.1)

    def shoot_and_wait(connection: Any, cursor: Any = None, statement: str = "", *_: Any) -> None:
        if when != "commit" and not statement.startswith("BEGIN"):
            return
        shoot()
        time.sleep(30)

    sqlalchemy.event.listen(engine_of(study), when, shoot_and_wait)
    with pytest.raises(KeyboardInterrupt) as caught:
        study.set_user_attr("a", 1)
    assert caught.traceback  # it keeps its frames, and the connection with them
    assert_writable(tmp_path)
    sqlalchemy.event.remove(engine_of(study), when, shoot_and_wait)
    study.set_user_attr("a", 2)
    assert study.user_attrs == {"a": 2}


class Finalized:
    """Python drops an exception that is raised while its end is awaited."""

    def __del__(self) -> None:
        shoot()
        wait_in_python(3 * _deferral.MAX_WAIT)


def wait_in_python(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_arrives_inside_a_finalizer_is_not_lost(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_deferral, "MAX_WAIT", 0.1)

    def finalize_and_wait(*_: Any) -> None:
        Finalized()
        wait_in_python(30)

    sqlalchemy.event.listen(engine_of(study), "before_cursor_execute", finalize_and_wait)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        study.set_user_attr("a", 1)
    assert time.monotonic() - start < 20
    assert_writable(tmp_path)
    sqlalchemy.event.remove(engine_of(study), "before_cursor_execute", finalize_and_wait)
    study.set_user_attr("a", 2)  # nothing is left to be handed on


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a signal of Unix")
@pytest.mark.parametrize("exception", [TimeoutError, SystemExit])
def test_a_handler_that_raises_amid_an_operation_is_called_once(
    exception: type[BaseException], study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_deferral, "MAX_WAIT", 0.1)
    called: list[int] = []

    def own(number: int, frame: Any) -> None:
        called.append(number)
        raise exception("too late")

    def shoot_and_wait(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_in_python(30)

    before = signal.signal(signal.SIGUSR1, own)
    sqlalchemy.event.listen(engine_of(study), "before_cursor_execute", shoot_and_wait, once=True)
    with pytest.raises(exception, match="too late"):
        study.set_user_attr("a", 1)
    wait_in_python(5 * _deferral.MAX_WAIT)
    study.set_user_attr("a", 2)
    assert called == [signal.SIGUSR1]
    signal.signal(signal.SIGUSR1, before)


def test_ctrl_c_does_not_wait_for_the_lock_of_another_process(
    study: optuna.Study, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, shoot)
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        study.ask()
    assert time.monotonic() - start < 20  # not a minute
    timer.join()
    other.execute("ROLLBACK")
    other.close()
    study.ask()


# --- a storm ---------------------------------------------------------------------------------


def be_interrupted(url: str, name: str) -> None:
    """Search on after every interrupt until there is a file "enough"; then stay idle."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    storage, sampler = open_storage(url), S2ESampler(seed=0, estimator="natural")
    study = optuna.create_study(storage=storage, study_name=name, sampler=sampler)
    last = None
    print("ready", flush=True)
    while not Path("enough").exists():
        try:
            study.optimize(quick, n_trials=10**6)
        except KeyboardInterrupt as error:
            last = error  # with its frames, as a notebook does
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"idle after {last!r}", flush=True)
    time.sleep(60)


def test_no_lock_and_no_running_trial_outlives_many_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/s.db"
    open_storage(url)
    workers = [Process(be_interrupted, url, name) for name in "ab"]
    for worker in workers:
        wait_until(lambda worker=worker: "ready" in worker.printed, worker)  # type: ignore[misc]
    for _ in range(25):
        for worker in workers:
            worker.send_signal(signal.SIGINT)
            time.sleep(0.07)
    Path("enough").touch()
    for worker in workers:
        worker.send_signal(signal.SIGINT)
        wait_until(lambda worker=worker: "idle" in worker.printed, worker)  # type: ignore[misc]
    assert_writable(tmp_path)
    for name, worker in zip("ab", workers, strict=True):
        assert worker.is_alive()
        assert "Error" not in worker.errors
        study = optuna.load_study(study_name=name, storage=url)
        assert TrialState.RUNNING not in states(study)
        worker.stop(signal.SIGKILL)
