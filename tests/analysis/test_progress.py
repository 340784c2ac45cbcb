"""Workers, zombies, rate and time left, from trials made by hand."""

from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from optuna_s2e._attributes import N_TRIALS_KEY, SEARCH_KEY, WORKER_KEY
from optuna_s2e.analysis import Progress, Snapshot, duration_text
from optuna_s2e.analysis._progress import progress_lines

START = datetime(2026, 1, 1)


def add(
    study: optuna.Study,
    start: float,
    seconds: float | None,
    worker: Any = None,
    state: TrialState = TrialState.COMPLETE,
) -> None:
    """Add a trial that began so many seconds after the start; it runs if `seconds` is None."""
    begun = START + timedelta(seconds=start)
    ended = seconds is not None
    complete = ended and state == TrialState.COMPLETE
    study.add_trial(
        optuna.trial.FrozenTrial(
            number=-1, trial_id=-1, state=state if ended else TrialState.RUNNING,
            value=0.0 if complete else None, datetime_start=begun, params={}, distributions={},
            datetime_complete=begun + timedelta(seconds=seconds) if seconds is not None else None,
            user_attrs={}, intermediate_values={},
            system_attrs={} if worker is None else {WORKER_KEY: worker},
        )
    )  # fmt: skip


def worker(pid: int, host: str = "node") -> dict[str, Any]:
    return {"v": 1, "host": host, "pid": pid}


def progress_at(study: optuna.Study, seconds: float) -> Progress:
    return Snapshot.of(study, moment=START + timedelta(seconds=seconds)).progress


def test_progress_counts_workers_zombies_rate_and_time_left() -> None:
    study = optuna.create_study()
    study.set_user_attr(N_TRIALS_KEY, 20)
    for i in range(10):
        add(study, 30 * i, 30)  # two per minute, until 300 s
    add(study, 0, None)  # runs for 330 s, eleven times as long as any that completed: 10
    add(study, 290, None, worker(1))  # has begun another one since: 11
    add(study, 299, None, worker(1))
    add(study, 301, None, worker(2, "\x1b[31mred"))
    add(study, 302, None, {"host": 3})
    progress = progress_at(study, 330)
    assert progress.zombies == (10, 11)
    assert progress.workers == {"node:1": 1, "\\x1b[31mred:2": 1, "?": 1}
    assert progress.rate == pytest.approx(1 / 30)
    assert progress.seconds_left == pytest.approx(300)
    text = "\n".join(progress_lines(progress))
    assert "Working: 3 trials, by 3 workers" in text
    assert "Zombies: 2 trials" in text
    assert "Rate: 2 complete per minute, 5 min left" in text
    assert "\x1b" not in text


def test_the_rate_falls_while_nothing_completes() -> None:
    study = optuna.create_study()
    for i in range(5):
        add(study, 10 * i, 10)
    assert progress_at(study, 60).rate == pytest.approx(1 / 10)
    assert progress_at(study, 550).rate == pytest.approx(1 / 100)  # five trials, silent for 500 s


def test_the_rate_is_that_of_the_last_fifty_trials() -> None:
    study = optuna.create_study()
    for i in range(20):
        add(study, 100 * i, 100)  # until 2000 s
    for i in range(50):
        add(study, 2000 + 10 * i, 10)
    assert progress_at(study, 2500).rate == pytest.approx(1 / 10)


def test_a_night_between_two_runs_is_no_slowness() -> None:
    study = optuna.create_study()
    night = 8 * 3600.0
    for i in range(5):
        add(study, 30 * i, 30)
    for i in range(5):
        add(study, night + 30 * i, 30)
    # nine steps in 120 + 30 + 120 s: the first trial after the night takes its 30 s
    assert progress_at(study, night + 150).rate == pytest.approx(9 / 270)


def test_long_trials_and_batches_are_no_pause() -> None:
    study = optuna.create_study()
    for batch in range(3):
        for _ in range(4):  # four at once, of an hour each
            add(study, 3600 * batch, 3600)
    assert progress_at(study, 3 * 3600).rate == pytest.approx(11 / 7200)
    failing = optuna.create_study()
    add(failing, 0, 10)
    add(failing, 10, 300, state=TrialState.FAIL)  # a worker was busy meanwhile
    add(failing, 310, 10)
    assert progress_at(failing, 320).rate == pytest.approx(1 / 310)


def test_progress_of_a_new_study_is_unknown() -> None:
    study = optuna.create_study()
    study.set_user_attr(N_TRIALS_KEY, 5)
    add(study, 0, 10)
    progress = progress_at(study, 10)
    assert progress.rate != progress.rate  # NaN
    assert progress.seconds_left != progress.seconds_left
    assert progress_lines(progress) == []


def test_nothing_is_left_when_all_are_complete() -> None:
    study = optuna.create_study()
    study.set_user_attr(N_TRIALS_KEY, 2)
    for i in range(3):
        add(study, 10 * i, 10)
    progress = progress_at(study, 30)
    assert progress.seconds_left == 0
    assert progress_lines(progress) == ["Rate: 6 complete per minute"]


def test_a_young_trial_is_no_zombie_for_a_minute() -> None:
    study = optuna.create_study()
    add(study, 0, 1)
    add(study, 1, None)
    assert progress_at(study, 60).zombies == ()
    assert progress_at(study, 62).zombies == (1,)


@pytest.mark.parametrize(
    ("search", "shown", "planned"),
    [
        (None, None, None),
        ({"v": 1, "n_trials": 60}, None, 60),
        (None, 40, 40),
        ({"v": 1, "n_trials": 60}, 100, 100),  # a worker was started with --trials 100
        ({"v": 1, "n_trials": None}, 40, 40),
        ({"v": 1}, None, None),
        ({"n_trials": "60"}, True, None),
        ({"n_trials": -1}, 10**12, None),
        ("damaged", [60], None),
        ({"n_trials": 0.5}, {"n": 1}, None),
    ],
)
def test_damaged_numbers_of_trials_are_unknown(
    search: Any, shown: Any, planned: int | None
) -> None:
    study = optuna.create_study()
    study.set_user_attr(SEARCH_KEY, search)
    study.set_user_attr(N_TRIALS_KEY, shown)
    assert Snapshot.of(study).n_planned == planned


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (6000, "1 h 40 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
