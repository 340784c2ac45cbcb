"""open_storage: what it refuses, what it says, and that a search goes on behind it."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from optuna_s2e import S2ESampler, generations, open_storage


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_search_goes_on_after_opening_again(scheme: str, tmp_path: Path) -> None:
    for n_trials in (4, 5):
        study = optuna.create_study(
            study_name="s",
            storage=open_storage(f"{scheme}:///{tmp_path}/{{odd name}}.db"),
            sampler=S2ESampler(seed=0, estimator="natural", population_size=4),
            load_if_exists=True,
        )
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n_trials)
    assert len(study.trials) == 9
    assert [g.index for g in generations(study)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("sqlite:////no/such/folder/x.db", ConnectionError, "the folder /no/such/folder does not"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": -1}, "patience must be a finite number >= 0, but got -1"),
        ({"patience": float("inf")}, "patience must be a finite number >= 0, but got inf"),
        ({"patience": "5"}, "patience must be a finite number >= 0, but got '5'"),
        ({"heartbeat_interval": 0}, "heartbeat_interval must be an int of at least 1, but got 0"),
        ({"heartbeat_interval": 1.5}, "heartbeat_interval must be an int of at least 1"),
        ({"heartbeat_interval": True}, "heartbeat_interval must be an int of at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_storage("sqlite://", **arguments)


def test_heartbeat_without_a_database_is_refused() -> None:
    for url in ("journal:///x", "grpc://host:13000"):
        with pytest.raises(ValueError, match=r"must be None for (journal|grpc)://, but"):
            open_storage(url, heartbeat_interval=60)


def test_url_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"url must be a str such as .*, but got"):
        open_storage(Path("s2e.db"))  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    storage: Any = open_storage(
        f"sqlite:///{tmp_path}/s.db",
        patience=np.float32(2),
        heartbeat_interval=np.int64(3),  # type: ignore[arg-type]
    )
    assert type(storage.get_heartbeat_interval()) is int
    assert storage.get_heartbeat_interval() == 3
    assert storage._backend._backend.grace_period == 2 + 2 * 3


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trial_of_a_dead_worker_is_failed_and_retried(tmp_path: Path) -> None:
    try:
        from optuna.storages import RetryHeartbeatStaleTrialCallback as RetryCallback
    except ImportError:  # before Optuna 4.9
        from optuna.storages import RetryFailedTrialCallback as RetryCallback

    storage: Any = open_storage(
        f"sqlite:///{tmp_path}/s.db",
        patience=60,
        heartbeat_interval=30,
        stale_trial_callback=RetryCallback(max_retry=1),
    )
    study = optuna.create_study(storage=storage, sampler=S2ESampler(seed=0))
    with pytest.warns(UserWarning, match="Study.optimize"):
        dying = study.ask()
    dying.suggest_float("x", 0, 1)
    storage.record_heartbeat(dying._trial_id)

    def let_pass(seconds: int) -> None:
        """Shift the heartbeat into the past, by the clock of the database."""
        with sqlite3.connect(tmp_path / "s.db") as database:
            database.execute(
                "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, ?)",
                (f"-{seconds} seconds",),
            )
        database.close()

    let_pass(110)  # patience + two intervals are 120 s
    assert storage._get_stale_trial_ids(study._study_id) == []
    let_pass(11)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    first, second = study.trials
    assert first.state == TrialState.FAIL
    assert second.state == TrialState.COMPLETE
    assert second.params == first.params


# --- what only reads -------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_old(path: Path, change: str) -> None:
    optuna.create_study(storage=f"sqlite:///{path}")
    database = sqlite3.connect(path)
    database.executescript(change)
    database.close()


MISSING: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "file": ("sqlite:///s.db", lambda path: None, "the file does not exist"),
    "journal": ("journal:///s.db", lambda path: None, "the file does not exist"),
    "folder": ("sqlite:///no/s.db", lambda path: None, "the folder .*/no does not exist"),
    "empty file": ("sqlite:///s.db", lambda path: path.touch(), "the database is empty"),
    "text": ("sqlite:///s.db", lambda path: path.write_text("s" * 999), "is not a database"),
    "other": (
        "sqlite:///s.db",
        lambda path: sqlite3.connect(path).execute("CREATE TABLE a (b)").connection.close(),
        "the database holds no studies of Optuna",
    ),
    "older tables": (
        "sqlite:///s.db",
        lambda path: make_old(path, "UPDATE alembic_version SET version_num='v2.6.0.a'"),
        "optuna storage upgrade",
    ),
    "tables before Optuna 1": (
        "sqlite:///s.db",
        lambda path: make_old(path, "DROP TABLE alembic_version"),
        "optuna storage upgrade",
    ),
    "database as journal": (
        "journal:///s.db",
        lambda path: make_old(path, ""),
        "no journal of Optuna",
    ),
    "text as journal": (
        "journal:///s.db",
        lambda path: path.write_text("no\nlog\n"),
        "no journal of Optuna",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_only_reads_makes_nothing_and_names_the_file(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, make, message = MISSING[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "s.db")
    before = bytes_of(tmp_path)
    with pytest.raises(ConnectionError, match=message) as caught:
        open_storage(url, create=False)
    assert str(tmp_path / url.partition(":///")[2]) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert bytes_of(tmp_path) == before


def test_a_study_of_plain_optuna_is_read_without_a_change(tmp_path: Path) -> None:
    optuna.create_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db").ask()
    before = bytes_of(tmp_path)
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", create=False)
    study = optuna.load_study(study_name="s", storage=storage)
    assert len(study.trials) == 1
    assert bytes_of(tmp_path) == before  # nor does it get a write-ahead log
    study.tell(0, 0.5)
    assert [trial.value for trial in study.trials] == [0.5]


@pytest.mark.postgres
def test_a_postgresql_database_without_tables_gets_none_from_who_only_reads(
    postgres_url: str,
) -> None:
    for _ in range(2):
        with pytest.raises(ConnectionError, match=r"cannot be opened: the database is empty"):
            open_storage(postgres_url, create=False)
    other = sqlalchemy.make_url(postgres_url).set(database="nowhere")
    with pytest.raises(ConnectionError, match='database "nowhere" does not exist'):
        open_storage(other.render_as_string(hide_password=False), create=False)
    optuna.create_study(study_name="s", storage=open_storage(postgres_url))
    assert optuna.get_all_study_names(open_storage(postgres_url, create=False)) == ["s"]
