"""What draws and readings ask of a database: few statements, and still all that is there."""

import math
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_s2e import S2ESampler, ScheduleSpace, _optuna, _sql, open_storage
from optuna_s2e._attributes import DRAW_KEY, FIXED_PARAMS_KEY

OPENERS: dict[str, Callable[[str], Any]] = {"optuna": lambda url: url, "s2e": open_storage}


def engine_of(storage: Any) -> Any:
    """Return the engine of Optuna's storage, or of the one that `open_storage` makes."""
    return rdb_of(storage).engine


def rdb_of(storage: Any) -> Any:
    """Return Optuna's storage of a database, below those that wrap it."""
    return rdb_of(storage._backend) if hasattr(storage, "_backend") else storage


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


def test_finding_that_nothing_has_changed_takes_a_long_study_no_more_steps() -> None:
    """Steps of Python. SQLite finds the few rows by their identifiers."""
    steps = Counter[int]()

    def count(frame: Any, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = frame.f_code.co_filename == _optuna.__file__
        steps[n] += event == "opcode"
        return count

    for n in (10, 100):
        study = optuna.create_study(storage="sqlite://")
        study.add_trials([create_trial(value=0.0) for _ in range(n)])
        frozen = _optuna.frozen(study, study.ask()._trial_id)
        before = sys.gettrace()
        sys.settrace(count)
        try:
            known = _optuna.trials_for(study, frozen)
        finally:
            sys.settrace(before)
        assert len(known) == n + 1
    assert 0 < steps[100] == steps[10]


def test_a_pruned_trial_reads_no_more_than_a_completed_one(tmp_path: Path) -> None:
    def pruned(trial: optuna.Trial) -> float:
        quadratic(trial)
        raise optuna.TrialPruned

    counts = {}
    for sampler in (RandomSampler(seed=0), S2ESampler(seed=0, population_size=9)):
        storage = open_storage(f"sqlite:///{tmp_path}/{type(sampler).__name__}.db")
        study = optuna.create_study(storage=storage, sampler=sampler)
        study.optimize(quadratic, n_trials=3)
        for objective in (quadratic, pruned):
            asked = traced(study, partial(study.optimize, objective, n_trials=1))
            counts[type(sampler), objective] = sum(s.startswith("SELECT") for s in asked)
    more = [counts[S2ESampler, f] - counts[RandomSampler, f] for f in (quadratic, pruned)]
    assert more[0] == more[1]


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
    assert [before[n].state for n in (0, 1)] == [TrialState.RUNNING] * 2
    change(other)
    seen = _optuna.trials_for(study, frozen)
    now = other.get_trials(deepcopy=False)
    assert [seen[n] for n in range(len(seen))] == now != [before[n] for n in range(len(before))]


def test_a_trial_sees_the_trials_before_it_though_it_has_parameters_itself(
    tmp_path: Path,
) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db")
    study.optimize(quadratic, n_trials=3)
    trial = study.ask()
    trial.suggest_int("R.n_epochs", 9, 9)
    frozen, found = _optuna.frozen(study, trial._trial_id), []
    reading = traced(study, lambda: found.append(_optuna.trials_for(study, frozen)))
    assert len(reading) == 1
    assert [found[0][n].number for n in range(len(found[0]))] == [0, 1, 2, 3]
    assert [found[0][n] for n in range(3)] == study.trials[:3]


def test_the_trial_of_a_study_that_was_deleted_is_not_made_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=url, study_name="s")
    frozen = _optuna.frozen(study, study.ask()._trial_id)
    optuna.delete_study(storage=url, study_name="s")
    with pytest.raises(KeyError):
        _optuna.trials_for(study, frozen)


def test_a_method_that_is_called_run_says_nothing_of_a_storage() -> None:
    class Own(optuna.storages.InMemoryStorage):
        def run(self, *_: Any, **__: Any) -> bool:
            return True  # as if everything were done

    study = optuna.create_study(storage=Own(), sampler=S2ESampler(seed=0, population_size=2))
    study.optimize(quadratic, n_trials=5)
    assert all(DRAW_KEY in trial.system_attrs for trial in study.trials)


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


# --- all trials of a study ---


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/s.db"
    return str(request.getfixturevalue("postgres_url"))


INF = math.inf
MIXED = (None, True, 1, 1.5, "1", "", "\u00e4'%s:y", math.nan, -(2**70), False)
LOG, HUGE = FloatDistribution(1e-300, 1.0, log=True), FloatDistribution(-1e300, 1e300)
INT, EVEN = IntDistribution(0, 2**62), IntDistribution(-4, 4, step=2)
SPACES: list[dict[str, tuple[Any, Any]]] = [  # value and distribution of each parameter
    {},
    {"z": (-1e300, HUGE), "a": (1e-300, LOG), "m": (0.30000000000000004, HUGE)},
    {"a": (5e-300, LOG), "int": (2**62, INT), "even": (-2, EVEN)},
    {"int": (2**53 + 2, INT), "step": (0.3, FloatDistribution(0.0, 1.0, step=0.1))},
    {"one": ("only", CategoricalDistribution(("only",))), "z": (0.5, FloatDistribution(0.5, 0.5))},
    *({"mixed": (x, CategoricalDistribution(MIXED))} for x in MIXED),
]
VALUES = [[0.1, 5e-324], [INF, -INF], [-1.7976931348623157e308, 2.0**53 + 2]]
REPORTS = [{}, {3: math.nan, 0: INF, 2**31 - 1: -INF, 7: 0.1}]
ATTRS = [{}, {"z": 1, "a": {"b": [None, 1e-300, "\u00e4\n"]}}, {"n": 10**400, "nan": math.nan}]
STATES = list(TrialState)
N_OF_ALL_KINDS = 45


def trial_of_its_kind(i: int) -> FrozenTrial:
    space, state = SPACES[i % len(SPACES)], STATES[i % len(STATES) if i % 7 else 1]
    return create_trial(
        state=state,
        values=VALUES[i % len(VALUES)] if state == TrialState.COMPLETE else None,
        params={name: value for name, (value, _) in space.items()},
        distributions={name: distribution for name, (_, distribution) in space.items()},
        user_attrs=ATTRS[i // 2 % len(ATTRS)],
        system_attrs=ATTRS[i // 5 % len(ATTRS)],
        intermediate_values=REPORTS[i // 3 % len(REPORTS)],
    )


def plainly(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return all that trials hold as text: NaN is not equal to itself."""
    return [
        repr({k: sorted(v.items()) if k.endswith("attrs") else v for k, v in vars(t).items()})
        for t in trials
    ]


def fill(storage: RDBStorage) -> None:
    """Put two studies, whose trials alternate, into a database with Optuna's own storage."""
    ids = [storage.create_new_study([optuna.study.StudyDirection.MINIMIZE] * 2) for _ in range(2)]
    for i in range(N_OF_ALL_KINDS):
        for study_id in ids if i % 7 == 0 else ids[:1]:
            storage.create_new_trial(study_id, trial_of_its_kind(i))


def change(storage: RDBStorage) -> None:
    """Complete a third of the running trials, and write to the others."""
    for trial in storage.get_all_trials(1, states=[TrialState.RUNNING]):
        if trial.number % 3:
            storage.set_trial_user_attr(trial._trial_id, "late", 1)
            continue
        storage.set_trial_param(trial._trial_id, "new", 0.25, FloatDistribution(0, 1))
        storage.set_trial_intermediate_value(trial._trial_id, 1, 0.5)
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0, 2.0])
    storage.create_new_trial(1)


def test_trials_are_those_that_optuna_reads(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = RDBStorage(url)
    fill(theirs)
    read = theirs.get_all_trials(1)
    kinds = Counter((t.state, len(t.params) > 0, t.values is None) for t in read)
    assert len(kinds) > len(TrialState)
    ours = open_storage(url)
    for _ in range(2):  # the second time, finished trials are known
        assert plainly(ours.get_all_trials(1)) == plainly(read)
    assert plainly(ours.get_all_trials(2)) == plainly(theirs.get_all_trials(2))
    for states in ([], [TrialState.WAITING], list(TrialState)[:3]):
        found = rdb_of(ours).get_all_trials(1, states=states)
        assert plainly(found) == plainly(theirs.get_all_trials(1, states=states))
    with pytest.raises(KeyError, match="Record does not exist"):
        ours.get_all_trials(3)
    change(theirs)
    now = plainly(theirs.get_all_trials(1))
    assert sum(a != b for a, b in zip(plainly(read), now, strict=False)) > 3
    assert plainly(ours.get_all_trials(1)) == now
    monkeypatch.setattr(_sql, "_IN_A_STATEMENT", 3)  # as if it were a long study
    assert plainly(rdb_of(ours).get_all_trials(1)) == now
    change(theirs)
    assert plainly(ours.get_all_trials(1)) == plainly(theirs.get_all_trials(1))
    engine_of(ours).dispose()
    theirs.engine.dispose()


def test_a_long_study_is_read_in_seven_statements(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    optuna.create_study(storage=url, study_name="s").enqueue_trial({"x": 1})
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.executemany(
            "INSERT INTO trials (number, study_id, state) VALUES (?, 1, 'FAIL')",
            [(number,) for number in range(1, 2000)],
        )
    connection.close()
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    for _ in range(2):  # the second time, the enqueued trial only
        asked = traced(study, lambda: len(_optuna.all_trials(study)))
        assert len([s for s in asked if s.startswith("SELECT")]) == 7  # one for each table


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
    assert [known[n] for n in range(8)] == study.trials[:8]
    _optuna.set_system_attr(study, frozen, "key", [1])
    assert study.get_trials()[8].system_attrs == {"key": [1]}
    assert not [s for s in statements if "ON CONFLICT" in s]
    engine.dispose()
