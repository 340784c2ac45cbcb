"""open_storage while the database is away, and when it forgets to answer."""

import logging
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_s2e import S2ESampler, open_storage
from optuna_s2e.storages import _rdb
from optuna_s2e.storages._retry import DatabaseLostError, writes

D = FloatDistribution(0, 1)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Any]:
    from servers import ForgetfulProxy

    proxy = ForgetfulProxy(postgres_url)
    yield proxy
    proxy.close()


def study_of(storage: Any) -> int:
    study_id: int = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    return study_id


def finish(s: Any, t: int) -> None:
    assert s.set_trial_state_values(t, TrialState.COMPLETE, [0.25]) is True


def claim(s: Any, t: int) -> None:
    assert s.set_trial_state_values(t, TrialState.RUNNING) is True


WAITING = optuna.trial.create_trial(
    state=TrialState.WAITING, system_attrs={"fixed_params": {"x": 0.5}}
)
DONE = optuna.trial.create_trial(params={"x": 0.5}, distributions={"x": D}, value=math.inf)

# name: (what is done to a storage with a study 1 and a trial, and how many trials there are then)
WRITES: dict[str, tuple[Callable[[Any, int], Any], int]] = {
    "ask": (lambda s, t: s.create_new_trial(1), 2),
    "enqueue": (lambda s, t: s.create_new_trial(1, WAITING), 2),
    "add": (lambda s, t: s.create_new_trial(1, DONE), 2),
    "parameter": (lambda s, t: s.set_trial_param(t, "x", 0.5, D), 1),
    "system attribute": (lambda s, t: s.set_trial_system_attr(t, "a", [1]), 1),
    "user attribute": (lambda s, t: s.set_trial_user_attr(t, "a", [1]), 1),
    "report": (lambda s, t: s.set_trial_intermediate_value(t, 3, 0.5), 1),
    "tell": (finish, 1),
    "fail": (lambda s, t: s.set_trial_state_values(t, TrialState.FAIL), 1),
    "study attribute": (lambda s, t: s.set_study_user_attr(1, "a", "b"), 1),
}


@pytest.mark.postgres
@pytest.mark.parametrize("case", WRITES)
def test_write_whose_acknowledgement_is_lost_is_done_once(
    case: str, proxy: Any, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    write, n_trials = WRITES[case]
    storage = open_storage(proxy.url)
    assert study_of(storage) == 1
    trial = storage.create_new_trial(1)
    proxy.forget_commit()
    with caplog.at_level(logging.WARNING):
        result = write(storage, trial)
    assert proxy.swallowed == 1
    direct = open_storage(postgres_url)
    trials = direct.get_all_trials(1)
    assert len(trials) == n_trials
    if n_trials == 2:
        assert result == trials[1]._trial_id
    if case == "tell":
        assert trials[0].value == 0.25
    messages = [r.message for r in caplog.records if r.name == "optuna_s2e.storages._retry"]
    assert len(messages) == 2
    assert "is away" in messages[0]
    assert "is back" in messages[1]


@pytest.mark.postgres
def test_claim_of_an_enqueued_trial_whose_acknowledgement_is_lost(proxy: Any) -> None:
    storage = open_storage(proxy.url)
    study_of(storage)
    trial = storage.create_new_trial(1, WAITING)
    proxy.forget_commit()
    claim(storage, trial)
    assert proxy.swallowed == 1
    assert storage.set_trial_state_values(trial, TrialState.RUNNING) is False  # now it is taken


@pytest.mark.postgres
def test_study_whose_acknowledgement_is_lost_is_created_once(proxy: Any) -> None:
    storage = open_storage(proxy.url)
    proxy.forget_commit()
    study_id = study_of(storage)
    assert proxy.swallowed == 1
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        study_of(storage)
    storage.create_new_trial(study_id)
    proxy.forget_commit()
    storage.delete_study(study_id)
    assert proxy.swallowed == 2
    assert storage.get_all_studies() == []
    with pytest.raises(KeyError):
        storage.delete_study(study_id)


@pytest.mark.postgres
def test_what_another_worker_finished_is_not_taken_for_ones_own(
    proxy: Any, postgres_url: str
) -> None:
    storage, other = open_storage(proxy.url), open_storage(postgres_url)
    study_of(storage)
    trial = storage.create_new_trial(1)
    other.set_trial_state_values(trial, TrialState.FAIL)
    proxy.forget_commit()
    with pytest.raises(UpdateFinishedTrialError):
        finish(storage, trial)


@pytest.mark.postgres
def test_lost_acknowledgements_all_over_a_search_change_nothing(
    proxy: Any, postgres_url: str
) -> None:
    def objective(trial: optuna.Trial) -> float:
        return sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(2))

    def disturbing(trial: optuna.Trial) -> float:
        proxy.forget_commit(after=trial.number % 5)  # somewhere in the next asks and tells
        return objective(trial)

    def run(storage: Any, name: str, objective: Any) -> optuna.Study:
        sampler = S2ESampler(population_size=4, seed=0)
        study = optuna.create_study(study_name=name, storage=storage, sampler=sampler)
        study.optimize(objective, n_trials=18)
        return study

    calm = run(open_storage(postgres_url), "calm", objective)
    disturbed = run(open_storage(proxy.url), "disturbed", disturbing)
    assert proxy.swallowed > 10
    assert [t.params for t in disturbed.trials] == [t.params for t in calm.trials]
    assert [t.state for t in disturbed.trials] == [TrialState.COMPLETE] * 18


@pytest.mark.postgres
def test_patience_ends_with_one_clear_error() -> None:
    from servers import PostgresServer, new_database

    server = PostgresServer()
    try:
        storage_url = new_database(server.url)
        storage = open_storage(storage_url, patience=1.0)
        study = optuna.create_study(storage=storage)
        server.stop()
        start = time.monotonic()
        with pytest.raises(StorageInternalError, match=r"was away for 1 s") as caught:
            study.ask()
        assert time.monotonic() - start < 10
        assert isinstance(caught.value.__cause__, DatabaseLostError)
        # a worker that starts while the server does waits for it
        threading.Thread(target=server.start).start()
        time.sleep(0.05)
        while True:
            try:
                open_storage(storage_url)
                break
            except ConnectionError:  # refused: not there yet
                assert time.monotonic() - start < 30
        study.ask()
    finally:
        server.remove()


def test_sqlite_that_is_locked_for_long_is_waited_for(tmp_path: Path) -> None:
    import sqlite3

    storage: Any = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = optuna.create_study(storage=storage)
    engine = storage._backend.storage._backend.engine
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=50")  # not a minute
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.6, lambda: other.execute("COMMIT")).start()
    study.ask()
    other.close()


# --- processes -------------------------------------------------------------------------------


def tell_one(study: optuna.Study) -> None:
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)


@pytest.mark.postgres
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_study_is_handed_to_child_processes(
    method: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = (
        f"sqlite:///{tmp_path}/s.db"
        if kind == "sqlite"
        else str(request.getfixturevalue("postgres_url"))
    )
    study = optuna.create_study(storage=open_storage(url), sampler=S2ESampler(seed=0))
    tell_one(study)  # connections are open when the children come
    context = multiprocessing.get_context(method)
    children = [context.Process(target=tell_one, args=(study,)) for _ in range(2)]
    for child in children:
        child.start()
    tell_one(study)
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 12
    assert len({t.params["x"] for t in study.trials}) == 12


def test_pickled_storage_opens_again_and_keeps_its_settings(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", patience=7, heartbeat_interval=5)
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    copied = pickle.loads(pickle.dumps(study))
    copied.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(study.trials) == 2
    assert copied._storage._patience == 7
    assert copied._storage.get_heartbeat_interval() == 5


# --- suspended writers -----------------------------------------------------------------------


def stop_amid_an_ask(url: str) -> None:
    """Suspend this process (SIGSTOP) when its trial is written, but not committed."""
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        if writes() and not stopped:
            stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)

    sqlalchemy.event.listen(study._storage._backend.storage._backend.engine, "commit", stop)
    study.tell(study.ask(), 0.5)


@pytest.mark.postgres
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_worker_suspended_amid_a_write_does_not_hold_up_the_others(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rdb, "WRITER_TIMEOUT", 1.0)
    study = optuna.create_study(study_name="s", storage=open_storage(postgres_url))
    context = multiprocessing.get_context("fork")
    child = context.Process(target=stop_amid_an_ask, args=(postgres_url,))
    child.start()
    assert child.pid is not None
    try:
        assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
        start = time.monotonic()
        study.tell(study.ask(), 0.25)  # an ask locks the study
        assert 0.5 < time.monotonic() - start < 30
        os.kill(child.pid, signal.SIGCONT)
        child.join(60)
        assert child.exitcode == 0  # its write was undone, and done again
    finally:
        child.kill()
    assert [(t.state.name, t.value) for t in study.trials] == [
        ("COMPLETE", 0.25),
        ("COMPLETE", 0.5),
    ]


# --- heartbeat -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trial_of_a_dead_worker_is_failed_and_retried(tmp_path: Path) -> None:
    try:
        from optuna.storages import RetryHeartbeatStaleTrialCallback as RetryCallback
    except ImportError:  # before Optuna 4.9
        from optuna.storages import RetryFailedTrialCallback as RetryCallback

    storage = open_storage(
        f"sqlite:///{tmp_path}/s.db",
        patience=0,
        heartbeat_interval=1,
        stale_trial_callback=RetryCallback(max_retry=1),
    )
    study = optuna.create_study(storage=storage, sampler=S2ESampler(seed=0))
    with pytest.warns(UserWarning, match="Study.optimize"):
        dying = study.ask()
    dying.suggest_float("x", 0, 1)
    storage.record_heartbeat(dying._trial_id)  # type: ignore[attr-defined]
    time.sleep(3.5)  # grace: patience + two intervals
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    first, second = study.trials
    assert first.state == TrialState.FAIL
    assert second.state == TrialState.COMPLETE
    assert second.params == first.params


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": -1}, "patience must be at least 0"),
        ({"patience": math.inf}, "patience must be at least 0 s and finite"),
        ({"heartbeat_interval": 0}, "heartbeat_interval must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_storage("sqlite://", **arguments)
    with pytest.raises(ValueError, match="must be None for journal"):
        open_storage("journal:///x", heartbeat_interval=60)


@pytest.mark.parametrize("leave", [SystemExit(143), KeyboardInterrupt()])
def test_a_signal_in_the_middle_of_a_statement_is_no_outage(
    tmp_path: Path, leave: BaseException
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = optuna.create_study(storage=storage)
    engine = storage._backend.storage._backend.engine  # type: ignore[attr-defined]
    n_raised = 0

    def raise_once(*args: object) -> None:
        nonlocal n_raised
        n_raised += 1
        if n_raised == 1:
            raise leave

    sqlalchemy.event.listen(engine, "do_execute", raise_once)
    with pytest.raises(type(leave)):
        study.ask()
    assert n_raised == 1
    sqlalchemy.event.remove(engine, "do_execute", raise_once)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
