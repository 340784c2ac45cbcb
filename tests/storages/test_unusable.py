"""Storages that vanish, fill up or are replaced under a search: one line says so, and it ends."""

import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from optuna_s2e import S2ESampler, open_storage
from optuna_s2e.parallel import work

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def make_study(url: str) -> optuna.Study:
    sampler = S2ESampler(seed=0, estimator="natural")
    return optuna.create_study(study_name="s", storage=open_storage(url), sampler=sampler)


def delete(file: Path) -> None:
    for path in file.parent.iterdir():
        path.unlink()


def replace(file: Path) -> None:
    file.rename(f"{file}.old")
    optuna.create_study(study_name="s", storage=f"sqlite:///{file}")


def make_again(file: Path) -> None:
    """SQLite gives the identifiers of the study and of its trials again."""
    storage = open_storage(f"sqlite:///{file}")
    optuna.delete_study(study_name="s", storage=storage)
    optuna.create_study(study_name="s", storage=storage)


def make_again_and_work(file: Path) -> None:
    make_again(file)
    study = optuna.load_study(study_name="s", storage=open_storage(f"sqlite:///{file}"))
    for _ in range(5):
        study.ask()
    with sqlite3.connect(file) as database:  # not within the same second
        database.execute("UPDATE trials SET datetime_start = '2030-01-01 00:00:00'")
    database.close()


FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "deleted database": ("sqlite", delete, "its file was deleted or replaced meanwhile"),
    "deleted journal": ("journal", delete, "No such file"),
    "replaced database": ("sqlite", replace, "its file was deleted or replaced meanwhile"),
    "study made again": ("sqlite", make_again, "deleted and made again meanwhile"),
    "trials of it": ("sqlite", make_again_and_work, "deleted and made again meanwhile"),
}


@pytest.mark.parametrize(
    ("fault", "when"),
    [
        *((fault, "in a trial") for fault in FAULTS),
        # a worker that is between two trials does not see that another one works already
        *((fault, "between trials") for fault in FAULTS if fault != "trials of it"),
    ],
)
def test_a_worker_ends_with_one_line_and_writes_nothing_to_what_is_not_its_own(
    fault: str, when: str, tmp_path: Path
) -> None:
    scheme, strike, message = FAULTS[fault]
    folder = tmp_path / "storage"
    folder.mkdir()
    file = folder / "s.db"
    study = make_study(f"{scheme}:///{file}")

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 2 and when == "in a trial":
            strike(file)
        return trial.suggest_float("x", 0, 1)

    def callback(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 2 and when == "between trials":
            strike(file)

    with pytest.raises(ConnectionError, match=message) as caught:
        work(study, objective, 10, callbacks=[callback])
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    if file.exists():
        found = optuna.load_study(study_name="s", storage=f"sqlite:///{file}")
        assert TrialState.COMPLETE not in [trial.state for trial in found.trials]
    else:
        assert list(folder.iterdir()) == []  # nor is an empty one made


def test_a_full_database_ends_a_search_with_its_trials_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(f"sqlite:///{tmp_path}/s.db")
    engine = study._storage._backend._backend.engine  # type: ignore[attr-defined]

    def fill(trial: optuna.Trial) -> float:
        if trial.number == 2:
            with engine.connect() as connection:
                n = connection.exec_driver_sql("PRAGMA page_count").scalar()
                connection.exec_driver_sql(f"PRAGMA max_page_count={n}")
        trial.set_user_attr("a", "x" * 9000 * (trial.number == 2))
        return trial.suggest_float("x", 0, 1)

    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(StorageInternalError, match=r"s.db cannot be used: .* full\.$"),
    ):
        study.optimize(fill, n_trials=5)
    assert [r.message for r in caplog.records if "full" in r.message and "Trial" not in r.message]
    kept = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db")
    states = [trial.state for trial in kept.trials]
    assert states[:2] == [TrialState.COMPLETE] * 2
    assert TrialState.COMPLETE not in states[2:]


def test_a_read_only_database_is_read_and_says_that_it_cannot_be_written(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    make_study(url).optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    uri = f"sqlite:///file:{tmp_path}/s.db?mode=ro&uri=true"
    study = optuna.load_study(study_name="s", storage=open_storage(uri, create=False))
    assert len(study.trials) == 2
    with pytest.raises(StorageInternalError, match="attempt to write a readonly database"):
        study.ask()


def test_a_study_goes_on_where_this_process_was_when_it_opened_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    study = make_study("sqlite:///s.db")
    monkeypatch.chdir(there)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4, n_jobs=2)
    assert len(optuna.load_study(study_name="s", storage=f"sqlite:///{here}/s.db").trials) == 4
    assert os.listdir(there) == []


@pytest.mark.parametrize("by", ["this process", "another"])
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_a_study_may_be_made_again_with_the_storage_that_is_open(
    by: str, scheme: str, tmp_path: Path
) -> None:
    url = f"{scheme}:///{tmp_path}/s.db"
    study = make_study(url)
    storage, sampler = study._storage, study.sampler
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=3)
    of = storage if by == "this process" else open_storage(url)
    optuna.delete_study(study_name="s", storage=of)
    again = optuna.create_study(study_name="s", storage=storage, sampler=sampler)
    again.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2)
    assert [t.state for t in again.trials] == [TrialState.COMPLETE] * 2
    assert [t.number for t in again.trials] == [0, 1]
