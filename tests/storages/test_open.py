import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages.journal import JournalFileBackend

from optuna_s2e import S2ESampler, generations, open_storage


def statements(storage: Any, run: Any) -> list[str]:
    """Return the SQL statements that a call causes."""
    found: list[str] = []
    engine = storage._backend.storage._backend.engine

    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    sqlalchemy.event.listen(engine, "before_cursor_execute", executed)
    run()
    sqlalchemy.event.remove(engine, "before_cursor_execute", executed)
    return found


def test_sqlite_keeps_a_write_ahead_log_and_locks_before_it_writes(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = optuna.create_study(storage=storage)
    engine = storage._backend.storage._backend.engine  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA busy_timeout")).scalar() == 60_000
    other = sqlite3.connect(tmp_path / "s.db")
    assert other.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    other.close()
    asked = statements(storage, study.ask)
    assert "BEGIN IMMEDIATE" in asked
    read = statements(storage, lambda: study.get_trials())
    assert "BEGIN" in read
    assert "BEGIN IMMEDIATE" not in read


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_search_goes_on_after_opening_again(scheme: str, tmp_path: Path) -> None:
    for n_trials in (8, 10):
        study = optuna.create_study(
            study_name="s",
            storage=open_storage(f"{scheme}:///{tmp_path}/{{odd name}}.db"),
            sampler=S2ESampler(seed=0),
            load_if_exists=True,
        )
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n_trials)
    assert len(study.trials) == 18
    assert [g.index for g in generations(study)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("foo", ValueError, "must be a database URL such as sqlite:///s2e.db, but got 'foo'"),
        ("nope://x", ValueError, "must be a database URL"),
        ("sqlite:////no/such/folder/x.db", ConnectionError, "cannot be opened: unable to open"),
        ("postgresql://u:secret@127.0.0.1:1/x", ConnectionError, r"u:\*\*\*@.* cannot be opened"),
        ("mysql://u:secret@127.0.0.1:1/x", ImportError, "driver of mysql.* is missing"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_line(
    url: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_workers_never_take_one_trial_of_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna tells them apart by their thread, which is the same after a fork."""
    study = optuna.create_study(storage=open_storage(f"journal:///{tmp_path}/s.log"))
    append = JournalFileBackend.append_logs

    def slow(self: JournalFileBackend, logs: Any) -> None:
        append(self, logs)
        time.sleep(0.3)  # the others write, before this one reads which trial is its own

    monkeypatch.setattr(JournalFileBackend, "append_logs", slow)
    pids = []
    for _ in range(3):
        if (pid := os.fork()) == 0:
            try:
                os._exit(study.ask().number)
            finally:
                os._exit(255)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sorted(codes) == [0, 1, 2]


def test_journal_that_a_full_disk_has_cut_in_a_line_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s.log"

    def work() -> optuna.Study:
        study = optuna.create_study(
            study_name="s", storage=open_storage(f"journal:///{path}"), load_if_exists=True
        )
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        return study

    first = work()
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"b9eb')
    assert len(work().trials) == 6
    assert len(first.trials) == 6  # it had read the file before
    assert b"b9eb{" not in path.read_bytes()
