"""Faults that fit into a test: deaths inside an ask, clocks, full disks, deleted studies.

README.md lists all faults with their tests, and the programs for storms and outages.
"""

import os
import re
import shutil
import signal
import sqlite3
import warnings
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from optuna_s2e import S2ESampler, generations, open_storage, replay
from optuna_s2e.analysis import Snapshot, verify
from optuna_s2e.cli._main import main
from optuna_s2e.parallel._worker import sampler_for, work
from optuna_s2e.storages._retry import RetryingStorage

K = 4
DATA = Path(__file__).parents[1] / "data"
N_WRITES = 7  # of one trial: creation, record, worker, three parameters, end


def objective(trial: optuna.Trial) -> float:
    return sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(3))


def make_study(url: str, load: bool = True) -> optuna.Study:
    sampler = S2ESampler(population_size=K, estimator="natural", seed=0)
    return optuna.create_study(
        study_name="s", storage=open_storage(url), sampler=sampler, load_if_exists=load
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the SQLite file of a search of 2 K + 1 trials, for tests to copy."""
    path = tmp_path_factory.mktemp("searched") / "s.db"
    make_study(f"sqlite:///{path}").optimize(objective, n_trials=2 * K + 1)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it is in one file
    connection.close()
    return path


@pytest.fixture
def url(searched: Path, tmp_path: Path) -> str:
    """Return the URL of a copy of that search."""
    shutil.copy(searched, tmp_path / "s.db")
    return f"sqlite:///{tmp_path}/s.db"


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [t.params for t in study.trials]


def assert_replays(study: optuna.Study) -> None:
    told, computed = generations(study), replay(study)
    for a, b in zip(told, computed, strict=True):
        assert np.array_equal(a.theta, b.theta)
    members = [n for g in told for n in g.members]
    assert len(members) == len(set(members))


def test_the_table_of_faults_names_tests_that_exist() -> None:
    """Each fault of the table has a test, a program that is run by hand, or a reason."""
    table = Path(__file__).with_name("README.md").read_text()
    files = list(Path(__file__).parents[1].rglob("*.py"))
    defined = "\n".join(re.findall(r"def \w+\(", "\n".join(f.read_text() for f in files)))
    rows = re.findall(r"^\| (\d[\d, ]*) \| .*? \| (.*) \|$", table, re.MULTILINE)
    assert {int(n) for numbers, _ in rows for n in numbers.split(",")} == set(range(1, 41))
    for numbers, tests in rows:
        assert tests, numbers
        for name in re.findall(r"`([a-z_0-9]+)`", tests):
            assert name in defined, (numbers, name)
        for path in re.findall(r"`?([a-z_/]+\.py)", tests):
            assert any(file.match(path) for file in files), (numbers, path)


# --- deaths inside a trial -------------------------------------------------------------------


def die_at_write(study: optuna.Study, n: int, *, before: bool) -> None:
    """Fork a worker that kills itself (-9) just before, or after, its n-th write."""
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        return
    try:
        _work_until_write(study, n, before=before)
    finally:
        os._exit(1)  # never reached


def _work_until_write(study: optuna.Study, n: int, *, before: bool) -> None:
    run, n_writes = RetryingStorage.run, 0

    def counted(self: Any, operate: Any, *, writing: bool = False, **options: Any) -> Any:
        nonlocal n_writes
        n_writes += writing
        if writing and before and n_writes == n:
            os.kill(os.getpid(), signal.SIGKILL)
        result = run(self, operate, writing=writing, **options)
        if writing and n_writes == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    RetryingStorage.run = counted  # type: ignore[assignment, method-assign]
    work(study, objective, 1000)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_death_at_every_write_of_a_trial_blocks_nothing(tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=open_storage(f"sqlite:///{tmp_path}/s.db"),
        sampler=S2ESampler(population_size=2, estimator="natural", seed=0),
    )
    deaths = [(n, before) for n in range(1, N_WRITES + 1) for before in (True, False)]
    for n, before in deaths:  # K = 2: every second worker dies while it opens a generation
        die_at_write(study, n, before=before)
        study.optimize(objective, n_trials=1)
    states = [t.state for t in study.trials]
    # the n-th write of a trial is its last one: then it is complete when the worker dies
    assert states.count(TrialState.COMPLETE) == len(deaths) + 1
    assert states.count(TrialState.RUNNING) == len(deaths) - 2  # none before the first write
    points = [tuple(p.values()) for p in params(study) if len(p) == 3]
    assert len(points) == len(set(points))
    assert_replays(study)
    assert len(generations(study)) >= states.count(TrialState.COMPLETE) // 2


# --- clocks ----------------------------------------------------------------------------------


def test_workers_whose_clocks_are_days_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks may only change which trials enter which update."""
    skew = timedelta(0)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + skew

    monkeypatch.setattr(optuna.storages._in_memory, "datetime", Clock)
    storage = optuna.storages.InMemoryStorage()
    sampler = S2ESampler(population_size=K, estimator="natural", seed=0)
    study = optuna.create_study(storage=storage, sampler=sampler)
    for i in range(10 * K):
        skew = timedelta(days=(-1, 0, 1)[i % 3])  # three workers
        study.optimize(objective, n_trials=1)
    times = [t.datetime_complete for t in study.trials]
    assert max(times) - min(times) > timedelta(days=1.9)  # type: ignore[operator, type-var]
    assert_replays(study)
    assert len(generations(study)) == 10


# --- disks -----------------------------------------------------------------------------------


def test_full_disk_is_an_error_and_the_search_goes_on_later(url: str, tmp_path: Path) -> None:
    study = make_study(url)
    assert len(study.trials) == 2 * K + 1
    engine = study._storage._backend._backend.engine  # type: ignore[attr-defined]
    with engine.connect() as connection:  # the pool's only connection
        n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={n_pages}")
    with pytest.raises((StorageInternalError, UnboundLocalError)) as caught:  # Optuna #5280
        study.optimize(objective, n_trials=50)
    chain: list[BaseException | None] = [caught.value]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    assert any("database or disk is full" in str(e) for e in chain)
    check = sqlite3.connect(tmp_path / "s.db")
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()
    again = make_study(url)
    again.optimize(objective, n_trials=2 * K)
    assert_replays(again)
    assert len(generations(again)) >= 5


def test_read_only_database_can_be_analysed(searched: Path) -> None:
    read_only = f"sqlite:///file:{searched}?mode=ro&uri=true"
    assert main(["status", "--storage", read_only, "--verify"]) == 0
    reader = optuna.load_study(study_name="s", storage=open_storage(read_only))
    assert len(generations(reader)) == 3
    with pytest.raises((StorageInternalError, sqlalchemy.exc.OperationalError)) as caught:
        reader.ask()
    assert "readonly" in str(caught.value.__cause__ or caught.value)


def test_attribute_that_is_no_json_is_one_line(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE trial_system_attributes SET value_json = '{\"v\": 1, '")
    connection.close()
    assert main(["status", "--storage", url]) == 2
    assert "no JSON, and Optuna cannot read its study" in capsys.readouterr().err


# --- what people do --------------------------------------------------------------------------


def test_study_that_is_deleted_meanwhile_stops_its_workers(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study = make_study(url)

    def deleting(trial: optuna.Trial) -> float:
        if trial.number == 3:
            optuna.delete_study(study_name="s", storage=url)
        return trial.number + 0.0

    with pytest.raises(ValueError, match="Study 's' was deleted"):
        work(study, deleting, 10)


def test_database_that_is_restored_from_a_backup_goes_on_as_before(
    url: str, tmp_path: Path
) -> None:
    study = make_study(url)
    study.optimize(objective, n_trials=1)
    live, backup = sqlite3.connect(tmp_path / "s.db"), sqlite3.connect(tmp_path / "backup.db")
    live.backup(backup)
    live.close()
    backup.close()
    study.optimize(objective, n_trials=2 * K)
    restored = make_study(f"sqlite:///{tmp_path}/backup.db")
    assert len(restored.trials) == 2 * K + 2
    restored.optimize(objective, n_trials=2 * K)
    assert params(restored) == params(study)
    for a, b in zip(generations(restored), generations(study), strict=True):
        assert np.array_equal(a.theta, b.theta)


@pytest.mark.parametrize("name", ["one-by-one", "batches"])
def test_searches_of_release_0_1_are_read_and_go_on(name: str, tmp_path: Path) -> None:
    shutil.copy(DATA / "release-0.1.log", tmp_path / "s.log")
    study = optuna.load_study(
        study_name=name, storage=open_storage(f"journal:///{tmp_path}/s.log")
    )
    assert len(generations(study)) == 4
    assert verify(Snapshot.of(study)).sound  # on another kind of machine within 1e-9
    study.sampler = sampler_for(study, seed=0)

    def mixed(trial: optuna.Trial) -> float:
        x, n = trial.suggest_float("x", 0, 1), trial.suggest_int("n", 1, 4)
        return (x - 0.3) ** 2 + 0.1 * n + (trial.suggest_categorical("c", ["a", "b"]) == "b")

    study.optimize(mixed, n_trials=4)
    assert [len(g.members) for g in generations(study)] == [0, 4, 4, 4, 4]
    assert verify(Snapshot.of(study)).sound


def test_search_whose_theta_left_conditional_parameters_out_goes_on_so(tmp_path: Path) -> None:
    """Early searches recorded a theta that does not describe conditional parameters."""
    shutil.copy(DATA / "release-0.1-branches.log", tmp_path / "s.log")
    study = optuna.load_study(
        study_name="branches", storage=open_storage(f"journal:///{tmp_path}/s.log")
    )
    assert [g.theta.shape for g in generations(study)] == [(2,)] * 5
    study.sampler = sampler_for(study, seed=3)

    def branches(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("model", ["linear", "tree"]) == "linear":
            return 0.3 + trial.suggest_float("penalty", 0, 1)
        return trial.suggest_int("depth", 1, 12) + trial.suggest_float("shared", 0, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        study.optimize(branches, n_trials=6)
    assert [g.theta.shape for g in generations(study)] == [(2,)] * 7
    assert verify(Snapshot.of(study)).sound


NAMES: dict[str, str] = {
    "quotes": "x'; DROP TABLE trials; --",
    "percent": "%(x)s %s {x} {{}}",
    "lines": "a\nb\r\tc",
    "right to left": "a\u202eb",
    "long": "n" * 500,
    "emoji": "\N{SKULL}" * 50,
}


@pytest.mark.parametrize("case", NAMES)
def test_odd_names_of_studies_and_parameters(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, name = f"sqlite:///{tmp_path}/s.db", NAMES[case]
    sampler = S2ESampler(population_size=2, estimator="natural", seed=0)
    study = optuna.create_study(study_name=name, storage=open_storage(url), sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float(name, 0, 1), n_trials=3)
    assert_replays(study)
    assert len(generations(study)) == 2
    assert main(["status", "--storage", url, "--study-name", name]) == 0
    shown = capsys.readouterr().out
    assert all(c == "\n" or c.isprintable() for c in shown)
