"""Each process opens a storage once: forked processes and unpickled copies open it again."""

import os
import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest

from optuna_s2e import open_storage
from optuna_s2e.storages._connection import Connection, ProcessLocalConnection


def test_pickled_storage_opens_again_and_keeps_its_settings(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", patience=7, heartbeat_interval=5)
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    copied = pickle.loads(pickle.dumps(study))
    copied.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(study.trials) == 2
    assert copied._storage._patience == 7
    assert copied._storage.get_heartbeat_interval() == 5


class Opened:
    """Counts openings in a file, and what becomes of them in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, what: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{what} in {os.getpid()}\n")

    def __call__(self) -> Connection:
        self.write("opened")
        storage = optuna.storages.InMemoryStorage()
        return Connection(
            storage, close=lambda: self.write("closed"), abandon=lambda: self.write("abandoned")
        )


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_abandons_the_connection_of_its_parent_and_opens_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    connection = ProcessLocalConnection(Opened(log))
    assert connection.if_open() is None
    first = connection.get()
    assert connection.get() is first is connection.if_open()
    if (pid := os.fork()) == 0:
        try:
            assert connection.if_open() is None
            own: Any = connection.get()
            assert own is not first
            assert connection.get() is own
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert connection.get() is first
    del connection
    parent = os.getpid()
    assert log.read_text().splitlines() == [
        f"opened in {parent}",
        f"abandoned in {pid}",
        f"opened in {pid}",
        f"closed in {parent}",
    ]


def test_an_unpickled_copy_opens_at_its_first_use(tmp_path: Path) -> None:
    connection = ProcessLocalConnection(Opened(tmp_path / "log"))
    first = connection.get()
    copied = pickle.loads(pickle.dumps(connection))
    assert copied.if_open() is None
    assert copied.get() is not first
    assert (tmp_path / "log").read_text().count("opened") == 2
