"""What a draw asks of a database: few statements, and still all that has changed."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from optuna_s2e import S2ESampler, ScheduleSpace, _optuna, open_storage
from optuna_s2e._attributes import DRAW_KEY, FIXED_PARAMS_KEY

OPENERS: dict[str, Callable[[str], Any]] = {"optuna": lambda url: url, "s2e": open_storage}


def engine_of(storage: Any) -> Any:
    """Return the engine of Optuna's storage, or of the one that `open_storage` makes."""
    while not hasattr(storage, "engine"):
        storage = storage._backend
    return storage.engine


def traced(study: optuna.Study, run: Callable[[], Any]) -> list[str]:
    """Return all statements that SQLite itself carries out in a call."""
    found: list[str] = []
    engine = engine_of(study._storage)

    def trace(connection: sqlite3.Connection, *_: Any) -> None:
        connection.set_trace_callback(found.append)

    engine.dispose()  # the connections made from here on are traced
    sqlalchemy.event.listen(engine, "connect", trace)
    run()
    sqlalchemy.event.remove(engine, "connect", trace)
    engine.dispose()
    return [s for s in found if s.split()[0] in ("SELECT", "INSERT", "UPDATE", "COMMIT")]


def quadratic(trial: optuna.Trial) -> float:
    return sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(2))


def scheduled(trial: optuna.Trial) -> float:
    return float(ScheduleSpace(n_epochs=10).suggest(trial).keep_rates.mean())


def searched(url: Any, objective: Callable[..., float], n: int) -> optuna.Study:
    study = optuna.create_study(storage=url, sampler=S2ESampler(seed=0, population_size=4))
    study.optimize(objective, n_trials=n)
    return study


def statements_of_a_trial(study: optuna.Study, objective: Callable[..., float]) -> list[str]:
    study.get_trials()  # as a new process does
    return traced(study, lambda: study.optimize(objective, n_trials=1))


@pytest.mark.parametrize("objective", [quadratic, scheduled])
@pytest.mark.parametrize("opener", OPENERS)
def test_a_draw_takes_two_statements_and_one_commit(
    tmp_path: Path, opener: str, objective: Callable[..., float]
) -> None:
    """Beside those of a trial of Optuna's simplest sampler, from the ask to the end."""
    study = searched(OPENERS[opener](f"sqlite:///{tmp_path}/s.db"), objective, 9)
    counts = []
    for sampler in (study.sampler, RandomSampler(seed=0)):
        study.sampler = sampler
        statements = statements_of_a_trial(study, objective)
        n_commits = sum(s.startswith("COMMIT") for s in statements)
        counts.append((len(statements) - n_commits, n_commits))
    more = [a - b for a, b in zip(*counts, strict=True)]
    # one finds that nothing has changed, one writes the record
    assert more == ([2, 0] if opener == "s2e" else [2, 1])  # there, the writing one commits alone


def test_the_statements_of_a_draw_do_not_grow(tmp_path: Path) -> None:
    study = searched(f"sqlite:///{tmp_path}/s.db", quadratic, 9)
    n = []
    for n_more in (0, 11):
        study.optimize(quadratic, n_trials=n_more)
        n.append(len(statements_of_a_trial(study, quadratic)))
    assert n[0] == n[1]


def start(other: optuna.Study) -> None:
    other.ask()


def complete(other: optuna.Study) -> None:
    other.tell(0, 1.0)


def record(other: optuna.Study) -> None:
    other._storage.set_trial_system_attr(first(other)._trial_id, DRAW_KEY, {})


def fix(other: optuna.Study) -> None:
    other._storage.set_trial_system_attr(first(other)._trial_id, FIXED_PARAMS_KEY, {})


def suggest(other: optuna.Study) -> None:
    optuna.Trial(other, first(other)._trial_id).suggest_float("y", 0, 1)


def first(study: optuna.Study) -> Any:
    return study.get_trials(deepcopy=False)[0]


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("change", [start, complete, record, fix, suggest])
def test_what_another_process_changes_is_seen(
    tmp_path: Path, change: Callable[[optuna.Study], None], opener: str
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=OPENERS[opener](url), study_name="s")
    other = optuna.load_study(storage=url, study_name="s")
    study.ask()
    own = study.ask()
    frozen = _optuna.frozen(study, own._trial_id)
    before = _optuna.trials_for(study, frozen)
    assert [t.state for t in before] == [TrialState.RUNNING] * 2
    change(other)
    seen = _optuna.trials_for(study, frozen)
    assert seen == other.get_trials(deepcopy=False)
    assert seen != before


def test_a_trial_sees_the_trials_before_it_though_it_has_parameters_itself(
    tmp_path: Path,
) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db")
    study.optimize(quadratic, n_trials=3)
    trial = study.ask()
    trial.suggest_int("R.n_epochs", 9, 9)
    frozen, found = _optuna.frozen(study, trial._trial_id), []
    reading = traced(study, lambda: found.extend(_optuna.trials_for(study, frozen)))
    assert len(reading) == 1
    assert [t.number for t in found] == [0, 1, 2, 3]
    assert found[:3] == study.trials[:3]


def test_the_trial_of_a_study_that_was_deleted_is_not_made_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=url, study_name="s")
    frozen = _optuna.frozen(study, study.ask()._trial_id)
    optuna.delete_study(storage=url, study_name="s")
    with pytest.raises(KeyError):
        _optuna.trials_for(study, frozen)


@pytest.mark.parametrize("opener", OPENERS)
def test_an_attribute_is_written_as_optuna_writes_it(tmp_path: Path, opener: str) -> None:
    study = optuna.create_study(storage=OPENERS[opener](f"sqlite:///{tmp_path}/s.db"))
    trial = study.ask()
    frozen = _optuna.frozen(study, trial._trial_id)
    for value in ({"x": [0.1, 1e-300]}, {"x": "\u00e4'%s:y"}):  # the second replaces the first
        _optuna.set_system_attr(study, frozen, "key", value)
        assert study.get_trials()[0].system_attrs == {"key": value}
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        _optuna.set_system_attr(study, frozen, "late", 1)
    assert "late" not in study.get_trials()[0].system_attrs


@pytest.mark.postgres
@pytest.mark.slow
def test_the_same_on_postgresql(postgres_url: str) -> None:
    study = optuna.create_study(storage=postgres_url, sampler=S2ESampler(seed=0))
    study.optimize(quadratic, n_trials=8)
    trial = study.ask()
    frozen = _optuna.frozen(study, trial._trial_id)
    engine, statements = engine_of(study._storage), []
    sqlalchemy.event.listen(
        engine, "before_cursor_execute", lambda *args: statements.append(args[2])
    )
    known = _optuna.trials_for(study, frozen)
    assert not statements  # of Optuna's way
    assert known[:8] == study.trials[:8]
    _optuna.set_system_attr(study, frozen, "key", [1])
    assert study.get_trials()[8].system_attrs == {"key": [1]}
    assert not [s for s in statements if "ON CONFLICT" in s]
    engine.dispose()
