"""open_storage: what it refuses, what it says, and that a search goes on behind it."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
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
