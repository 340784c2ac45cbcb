"""Databases: SQLite files that are shared, PostgreSQL with a suspended worker, first openings."""

import gc
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError

from optuna_s2e import open_storage
from optuna_s2e.storages import _rdb
from optuna_s2e.storages._connection import is_writing


def engine_of(storage: Any) -> Any:
    return storage._backend._backend.engine


def statements(storage: Any, run: Callable[[], Any]) -> list[str]:
    """Return the SQL statements that a call causes."""
    found: list[str] = []

    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    sqlalchemy.event.listen(engine_of(storage), "before_cursor_execute", executed)
    run()
    sqlalchemy.event.remove(engine_of(storage), "before_cursor_execute", executed)
    return found


# --- SQLite ----------------------------------------------------------------------------------


def test_sqlite_keeps_a_write_ahead_log_and_locks_before_it_writes(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = optuna.create_study(storage=storage)
    with engine_of(storage).connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA busy_timeout")).scalar() == 200
    other = sqlite3.connect(tmp_path / "s.db")
    assert other.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    other.close()
    asked = statements(storage, study.ask)
    assert "BEGIN IMMEDIATE" in asked
    read = statements(storage, lambda: study.get_trials())
    assert "BEGIN" in read
    assert "BEGIN IMMEDIATE" not in read


def test_a_reader_is_not_held_up_by_a_writer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=open_storage(url), study_name="s")
    study.ask()
    writer = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    reader = optuna.load_study(study_name="s", storage=open_storage(url, patience=0))
    assert len(reader.trials) == 1
    writer.execute("COMMIT")
    writer.close()


def test_a_new_sqlite_file_that_another_process_locks_for_its_tables_is_waited_for(
    tmp_path: Path,
) -> None:
    open_storage(f"sqlite:///{tmp_path}/first.db")  # what is imported takes longer than the lock
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(5 * _rdb._SQLITE_SLICE, other.execute, ["COMMIT"])
    release.start()
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", patience=0)
    release.join()
    other.close()
    assert optuna.create_study(storage=storage).trials == []


@pytest.mark.parametrize("timeout", [60.0, 0.0])  # in one operation, or tried again
def test_sqlite_that_is_locked_for_long_is_waited_for(
    timeout: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rdb, "SQLITE_TIMEOUT", timeout)
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", patience=30)
    study = optuna.create_study(storage=storage)
    with engine_of(storage).connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=50")  # not a minute
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    n_tries = 0

    def free_at_the_third(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal n_tries
        n_tries += statement == "BEGIN IMMEDIATE"
        if n_tries == 3 and other.in_transaction:
            other.execute("COMMIT")

    sqlalchemy.event.listen(engine_of(storage), "before_cursor_execute", free_at_the_third)
    study.ask()
    assert n_tries >= 3
    assert not other.in_transaction
    other.close()


@pytest.mark.parametrize("leave", [SystemExit(143), KeyboardInterrupt()])
def test_a_signal_in_the_middle_of_a_statement_is_no_outage(
    tmp_path: Path, leave: BaseException
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = optuna.create_study(storage=storage)
    n_raised = 0

    def raise_once(*args: object) -> None:
        nonlocal n_raised
        n_raised += 1
        if n_raised == 1:
            raise leave

    sqlalchemy.event.listen(engine_of(storage), "do_execute", raise_once)
    with pytest.raises(type(leave)):
        study.ask()
    assert n_raised == 1
    sqlalchemy.event.remove(engine_of(storage), "do_execute", raise_once)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)


# --- PostgreSQL ------------------------------------------------------------------------------


def stop_amid_an_ask(url: str) -> None:
    """Suspend this process (SIGSTOP) when its trial is written, but not committed."""
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        if is_writing() and not stopped:
            stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)

    sqlalchemy.event.listen(engine_of(study._storage), "commit", stop)
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


@pytest.mark.postgres
# Optuna's failed opening leaves its connection to the garbage collector
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
def test_tables_are_made_once_when_two_workers_open_at_once(postgres_url: str) -> None:
    barrier = threading.Barrier(2)

    def work(_: int) -> None:
        barrier.wait(20)
        storage = open_storage(postgres_url)
        study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
        study.tell(study.ask(), 0.5)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))
    gc.collect()
    study = optuna.load_study(study_name="s", storage=open_storage(postgres_url))
    assert [t.number for t in study.trials] == [0, 1]


@pytest.mark.postgres
def test_waiting_for_a_connection_of_the_pool_counts_as_unavailable(postgres_url: str) -> None:
    storage = open_storage(postgres_url, patience=0)
    study = optuna.create_study(storage=storage)
    engine = engine_of(storage)
    engine.pool._timeout = 0.05  # not half a minute
    taken = [engine.connect() for _ in range(engine.pool.size() + engine.pool._max_overflow)]
    with pytest.raises(StorageInternalError, match="was unavailable for 0 s"):
        study.ask()
    for connection in taken:
        connection.close()
    study.ask()
