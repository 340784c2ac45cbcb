"""Signals: none is lost, all are obeyed in time, also where a process sleeps, waits or retries."""

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from batches import K, new_study, parabola, states
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState
from processes import Process

from optuna_s2e import open_storage, optimize_batch
from optuna_s2e._attributes import STOPPED_BY_KEY
from optuna_s2e.parallel import _signals, work
from optuna_s2e.parallel._signals import Orders, Stopped


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """All tests begin with Python's own handlers, and all leave what they found."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.signal(signal.SIGINT, signal.default_int_handler)]
    found = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == found
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    signal.signal(signal.SIGINT, before[0])


def shoot(sign: signal.Signals) -> None:
    os.kill(os.getpid(), sign)


class Referent:
    pass


def shot_in_a_weak_callback(sign: signal.Signals) -> None:
    referent = Referent()
    reference = weakref.ref(referent, lambda _: shoot(sign))
    del referent
    assert reference() is None


class ShotWhenCollected:
    def __init__(self, sign: signal.Signals) -> None:
        self.sign = sign

    def __del__(self) -> None:
        shoot(self.sign)


def shot_in_a_finalizer(sign: signal.Signals) -> None:
    ShotWhenCollected(sign)


LOST = [shot_in_a_weak_callback, shot_in_a_finalizer]
ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lose", LOST)
@pytest.mark.parametrize("sign", ENDS)
def test_a_signal_whose_exception_python_drops_interrupts_all_the_same(
    lose: Callable[[signal.Signals], None], sign: signal.Signals
) -> None:
    def objective(trial: Trial) -> float:
        lose(sign)
        time.sleep(60)
        return 0.0

    start = time.monotonic()
    with pytest.raises(ENDS[sign]):
        optimize_batch(new_study(), objective, K)
    study = optuna.create_study()
    assert work(study, objective, 1, grace=0) == sign.name
    assert study.trials[0].user_attrs == {STOPPED_BY_KEY: sign.name}
    assert time.monotonic() - start < 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_flag_is_looked_at_in_each_epoch_where_there_is_no_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("optuna_s2e.parallel._signals._HAS_ALARM", False)  # as on Windows
    epochs = []

    def objective(trial: Trial) -> float:
        for epoch in range(10):
            epochs.append(epoch)
            if epoch == 2:
                shot_in_a_weak_callback(signal.SIGINT)
            trial.report(0.5, epoch)
        return 0.0

    study = new_study()
    with pytest.raises(KeyboardInterrupt):
        optimize_batch(study, objective, K)
    assert epochs == [0, 1, 2]
    assert states(study) == {TrialState.FAIL}


def test_what_was_saved_and_how_to_go_on_is_said() -> None:
    def objective(trial: Trial) -> float:
        if trial.number == K + 1:
            shoot(signal.SIGINT)
            time.sleep(60)
        return parabola(trial)

    study = new_study()
    with pytest.raises(KeyboardInterrupt) as caught:
        optimize_batch(study, objective, 3 * K)
    assert str(caught.value) == (
        f"SIGINT: optimize_batch was stopped. {K + 1} trials of this call are kept; those that "
        "were running are failed. Call it again: it goes on with the same points."
    )
    assert caught.value.__suppress_context__


class AwayStorage(InMemoryStorage):
    """A storage that is away from some moment on: its operations wait, as retries do."""

    away = False

    def _wait(self) -> None:
        if self.away:
            time.sleep(60)

    def set_trial_user_attr(self, *args: Any) -> None:
        self._wait()
        super().set_trial_user_attr(*args)

    def set_trial_state_values(self, *args: Any, **options: Any) -> bool:
        self._wait()
        return super().set_trial_state_values(*args, **options)

    def get_all_trials(self, *args: Any, **options: Any) -> Any:
        self._wait()
        return super().get_all_trials(*args, **options)


def later(seconds: float, *signs: signal.Signals) -> None:
    def send() -> None:
        for sign in signs:
            time.sleep(seconds)
            shoot(sign)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("run", ["driver", "worker"])
def test_ctrl_c_ends_in_time_while_the_storage_is_away(
    run: str, in_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _signals._IN_ALL["SIGINT"] < 2  # as documented
    monkeypatch.setitem(_signals._IN_ALL, "SIGINT", 0.6)
    monkeypatch.setattr(_signals, "MAX_WAIT", 0.3)
    storage = AwayStorage()
    study = new_study(storage)
    sent = []

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        storage.away = True
        sent.append(time.monotonic())
        later(0.2, signal.SIGINT)
        if in_training:
            time.sleep(60)
        return x

    if run == "worker":
        assert work(study, objective, 5) == "SIGINT"
    else:
        with pytest.raises(KeyboardInterrupt, match="the next call fails those that were running"):
            optimize_batch(study, objective, 5)
    assert time.monotonic() - sent[0] < 6  # less than 1.3 on a quiet machine


def test_a_second_ctrl_c_does_not_keep_the_first_from_cleaning_up() -> None:
    cleaned = []

    def objective(trial: Trial) -> float:
        later(0.1, signal.SIGINT, signal.SIGINT, signal.SIGINT)
        try:
            time.sleep(60)
        finally:
            time.sleep(0.5)
            cleaned.append(trial.number)
        return 0.0

    study = new_study()
    with pytest.raises(KeyboardInterrupt):
        optimize_batch(study, objective, K)
    assert cleaned == [0]
    assert states(study) == {TrialState.FAIL}


def test_an_objective_that_swallows_the_interrupt_is_interrupted_again() -> None:
    study, n_interrupts = new_study(), []

    def objective(trial: Trial) -> float:
        later(0.1, signal.SIGINT)
        for _ in range(3):
            try:
                time.sleep(30)
            except BaseException as error:
                n_interrupts.append(type(error))
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        optimize_batch(study, objective, K)
    assert n_interrupts == [Stopped] * 3
    assert len(study.trials) == K


def test_signals_that_are_ignored_or_handled_by_others_are_left_alone() -> None:
    got = []
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a background job
        signal.signal(signal.SIGTERM, lambda *_: got.append("SIGTERM"))
        orders = Orders()
        with orders.obeyed(), orders.interruptible():
            shoot(signal.SIGINT)
            shoot(signal.SIGTERM)
        assert orders.stop is None
        assert got == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_an_interrupt_is_no_traceback_in_the_log_of_a_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()

    def objective(trial: Trial) -> float:
        if trial.number == 0:
            raise ValueError("mine")
        shoot(signal.SIGINT)
        return 0.0

    try:
        assert work(optuna.create_study(), objective, 1, catch=(ValueError,)) == "SIGINT"
    finally:
        optuna.logging.disable_propagation()
    assert "Trial 0 failed" in caplog.text
    assert "mine" in caplog.text
    assert "Trial 1" not in caplog.text
    assert "Stopped" not in caplog.text


class ShootingSampler(RandomSampler):
    def before_trial(self, study: optuna.Study, trial: Any) -> None:
        shoot(signal.SIGTERM)


def test_no_trial_begins_after_sigterm_although_there_is_grace() -> None:
    study = optuna.create_study(sampler=ShootingSampler())
    assert work(study, lambda trial: 1 / 0, 1, grace=100) == "SIGTERM"
    (trial,) = study.trials
    assert (trial.state, trial.user_attrs) == (TrialState.FAIL, {STOPPED_BY_KEY: "SIGTERM"})


def test_a_driver_in_a_thread_leaves_signals_to_the_main_thread() -> None:
    study = new_study()
    thread = threading.Thread(target=optimize_batch, args=(study, parabola, K))
    thread.start()
    thread.join()
    assert len(study.trials) == K


@pytest.mark.parametrize("run", ["driver", "worker"])
def test_a_storage_that_lets_signals_wait_does_not_delay_these(run: str, tmp_path: Path) -> None:
    storage: Any = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = new_study(storage)
    seen = []

    def objective(trial: Trial) -> float:
        if trial.number == 1:
            shoot(signal.SIGTERM)  # from here on SIGALRM is handled, too
        return trial.suggest_float("x", 0, 1)

    @sqlalchemy.event.listens_for(storage._backend._backend.engine, "commit")
    def look(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
            seen.append([type(signal.getsignal(number)) for number in numbers])

    if run == "worker":
        assert work(study, objective, 5, grace=100) == "SIGTERM"
    else:
        with pytest.raises(SystemExit):
            optimize_batch(study, objective, 5)
    assert [Orders] * 3 in seen


def _whose_terminal_is_closed() -> None:
    def objective(trial: Trial) -> float:
        shoot(signal.SIGHUP)
        time.sleep(60)
        return 0.0

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, too
    study = new_study()
    try:
        optimize_batch(study, objective, K)
    finally:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        print({state.name for state in states(study)})


def test_a_closed_terminal_ends_a_batch_as_sigterm_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    driver = Process(_whose_terminal_is_closed)
    assert driver.wait() == 128 + signal.SIGHUP
    assert driver.printed == "{'FAIL'}\n"
