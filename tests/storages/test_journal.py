"""Journal files: half a line is removed, and forked workers are told apart."""

import os
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from optuna_s2e import open_storage


def work(path: Path, n_trials: int = 3) -> optuna.Study:
    study = optuna.create_study(
        study_name="s", storage=open_storage(f"journal:///{path}"), load_if_exists=True
    )
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n_trials)
    return study


def test_journal_that_a_full_disk_has_cut_in_a_line_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s.log"
    first = work(path)
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"b9eb')
    assert len(work(path).trials) == 6
    assert len(first.trials) == 6  # it had read the file before
    assert b"b9eb{" not in path.read_bytes()


@pytest.mark.parametrize("content", [b"", b'{"op_code":0,"wor'])
def test_journal_without_a_whole_line_begins_anew(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.log"
    path.write_bytes(content)
    assert len(work(path, n_trials=1).trials) == 1


def test_journal_that_cannot_be_made_is_one_clear_line() -> None:
    with pytest.raises(ConnectionError, match=r"journal:////no/such/s.log cannot be opened: \[Er"):
        open_storage("journal:////no/such/s.log")


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
