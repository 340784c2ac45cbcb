"""Processes of a pool end with their driver, whatever they are doing; Ctrl-C makes no noise."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import optuna
import pytest
from batches import new_study
from optuna.trial import Trial, TrialState
from processes import PATIENCE, Process, wait_until

from optuna_s2e import open_storage, optimize_batch
from optuna_s2e.parallel._process import Process as Identity
from optuna_s2e.parallel._process import this_process

URL = "sqlite:///s.db"
FOREVER = 2 * PATIENCE  # what lasts so long has to be ended


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sign_in() -> None:
    Path(f"{os.getpid()}.pid").touch()


def sleep_in_a_child() -> None:
    sign_in()
    time.sleep(FOREVER)


COMPUTES, WAITS_FOR_LOCK, WAITS_FOR_CHILD, SLEEPS = range(4)


def busy(trial: Trial) -> float:
    kind = trial.user_attrs["seed"]
    sign_in()
    if kind == COMPUTES:
        os.nice(19)  # it keeps no other test from its core
        end = time.monotonic() + FOREVER
        while time.monotonic() < end:
            pass
    elif kind == WAITS_FOR_LOCK:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire(timeout=FOREVER)
    elif kind == WAITS_FOR_CHILD:
        child = multiprocessing.get_context("fork").Process(target=sleep_in_a_child)
        child.start()
        child.join()
    time.sleep(FOREVER)
    return 0.0


class Busy:
    """What each trial does."""

    def __init__(self, kinds: tuple[int, ...]) -> None:
        self._kinds = kinds

    def __call__(self, trial: Trial) -> float:
        return busy(trial)

    def trial_seed(self, number: int) -> int:
        return self._kinds[number]


def drive(method: str, kinds: tuple[int, ...]) -> None:
    sign_in()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["optuna_s2e.parallel", "pytest"])  # not in each process
    optimize_batch(
        new_study(open_storage(URL)),
        Busy(kinds),
        len(kinds),
        executor=lambda: ProcessPoolExecutor(len(kinds), mp_context=context),
    )


def signed_in() -> list[int]:
    return sorted(int(path.stem) for path in Path().glob("*.pid"))


def alive() -> list[int]:
    found = []
    for pid in signed_in():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


def none_is_left() -> bool:
    end = time.monotonic() + PATIENCE
    while alive() and time.monotonic() < end:
        time.sleep(0.02)
    return not alive()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize(
    ("method", "sign", "kinds"),
    [
        ("fork", signal.SIGKILL, (COMPUTES, WAITS_FOR_LOCK, WAITS_FOR_CHILD, SLEEPS)),
        # each of these processes imports what the others have imported: the two hardest kinds
        ("spawn", signal.SIGKILL, (COMPUTES, WAITS_FOR_CHILD)),
        ("forkserver", signal.SIGKILL, (COMPUTES, WAITS_FOR_CHILD)),
        ("forkserver", signal.SIGTERM, (COMPUTES, WAITS_FOR_CHILD)),
        ("fork", signal.SIGINT, (COMPUTES, WAITS_FOR_LOCK, WAITS_FOR_CHILD, SLEEPS)),
    ],
)
def test_processes_of_a_pool_end_with_their_driver(
    method: str, sign: signal.Signals, kinds: tuple[int, ...]
) -> None:
    driver = Process(drive, method, kinds)
    n = 1 + len(kinds) + 1  # the driver, its processes, and a child of one of them
    wait_until(lambda: len(signed_in()) == n, driver)
    assert len(alive()) == n
    code, _, errors = driver.stop(sign)
    assert none_is_left()
    if sign == signal.SIGKILL:
        assert code == -sign
        return
    states = [t.state for t in new_study(open_storage(URL)).trials]
    assert states == [TrialState.FAIL] * len(kinds)
    assert f"{sign.name}: optimize_batch was stopped. 0 trials of this call are kept" in errors
    assert "The driver of its batch ended" not in errors  # one line says it of all
    if sign == signal.SIGTERM:
        assert code == 143


def test_a_process_knows_whether_another_one_lives() -> None:
    me = this_process()
    assert me.lives is True
    assert me._replace(started="0").lives is False  # its number is used again
    assert me._replace(machine="far").lives is None
    child = Process(sign_in)
    assert child.wait() == 0
    assert Identity(me.machine, child.pid, me.started).lives is False
