"""The ledger against a model of the rules, under any interleaving of workers."""

import copy
import math
import sys
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import S2ESampler, ScheduleSpace, generations, optimize_batch, replay
from optuna_s2e._attributes import DRAW_KEY, FIXED_PARAMS_KEY
from optuna_s2e._optuna import all_trials
from optuna_s2e.history import _ledger
from optuna_s2e.history._ledger import Ledger, locate, space_of
from optuna_s2e.history._record import Rules

K = 3
PHASES = (Phase.explicit, Phase.generate)

# what happens next: (ask | tell | fail | inf | die | enqueue, which of the open trials)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "ask", "ask", "tell", "tell", "tell", "fail", "inf", "die", "enqueue"]
        ),
        st.integers(0, 7),
    ),
    min_size=20,
    max_size=60,
)


def suggest(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1) + (trial.suggest_categorical("c", ["a", "b"]) == "a")


def run(steps: list[tuple[str, int]], watch: Any) -> optuna.Study:
    """Run the steps, each worker with a sampler of its own; call `watch` now and then."""
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage)
    workers = [
        optuna.load_study(
            study_name="s",
            storage=storage,
            sampler=S2ESampler(population_size=K, seed=0, estimator="natural"),
        )
        for _ in range(3)
    ]
    running: list[tuple[optuna.Study, optuna.Trial, float]] = []
    for i, (what, which) in enumerate(steps):
        study = workers[which % 3]
        if what == "ask":
            trial = study.ask()
            running.append((study, trial, suggest(trial)))
        elif what == "enqueue":
            study.enqueue_trial({"x": 0.5})
        elif running:
            study, trial, value = running.pop(which % len(running))
            if what == "fail":
                study.tell(trial, state=TrialState.FAIL)
            elif what != "die":
                study.tell(trial, math.inf if what == "inf" else value,
                           skip_if_finished=True)  # fmt: skip
        if i % 4 == 3:
            watch(workers[0])
    return workers[0]


def every_completed_draw_enters_one_update(study: optuna.Study) -> None:
    told, computed = generations(study), replay(study)
    for a, b in zip(told, computed, strict=True):
        assert np.array_equal(a.theta, b.theta)
        assert np.all((a.theta >= 1) & (a.theta <= 100))
        assert len(a.members) == (K if a.index else 0)
    members = [n for g in told for n in g.members]
    assert len(members) == len(set(members))
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    drawn = {t.number for t in complete if FIXED_PARAMS_KEY not in t.system_attrs}
    assert set(members) <= drawn
    # one more ask per K completions drains the pool: nothing completed is left behind
    for _ in range(len(drawn) // K + 1):
        study.tell(study.ask(), state=TrialState.FAIL)  # suggests nothing, draws nothing
        suggest(study.ask())
    members = [n for g in generations(study) for n in g.members]
    assert len(drawn - set(members)) < K


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60, deadline=None, derandomize=True, phases=PHASES)
@given(steps)
def test_ledger_that_follows_knows_what_a_new_one_reads_and_no_draw_counts_twice_or_never(
    steps: list[tuple[str, int]],
) -> None:
    following = Ledger(Rules())

    def compare(study: optuna.Study) -> None:
        trials = study.get_trials(deepcopy=True)  # no object is the one of before
        following.read(trials)
        fresh = Ledger(Rules()).read(trials)
        assert following.draws.keys() == fresh.draws.keys()
        assert [d.trial.number for d in following.completed] == [
            d.trial.number for d in fresh.completed
        ]
        assert following.openers == fresh.openers
        a, b = following.state(K), fresh.state(K)
        assert [d.trial.number for d in a.pool] == [d.trial.number for d in b.pool]
        assert (a.chain is None) == (b.chain is None)
        if a.chain is not None and b.chain is not None:
            assert a.chain.openers == b.chain.openers
            assert a.chain.members == b.chain.members

    every_completed_draw_enters_one_update(run(steps, compare))


@pytest.mark.parametrize("batch", [False, True])
def test_a_trial_whose_parameters_are_fixed_while_it_runs_is_no_draw_any_more(batch: bool) -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=K, seed=0))
    following = Ledger(Rules())
    seen: list[tuple[list[int], list[int]]] = []

    def watch(ledger: Ledger) -> None:
        ledger.read(copy.deepcopy(all_trials(study)))
        seen.append((sorted(ledger.draws), [n for s in ledger.slots.values() for n in s]))

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("lr", 0, 1)  # is drawn, so that the trial has a record
        if trial.number == 0:
            watch(following)
        return float(ScheduleSpace(9, noise_rate=0.4).suggest(trial).keep_rates[-1])

    if batch:
        optimize_batch(study, objective, 1)
    else:
        study.optimize(objective, 1)
    watch(following)
    watch(Ledger(Rules()))
    assert seen == [([0], [0] if batch else []), ([], []), ([], [])]


def test_reading_many_generations_takes_work_in_proportion() -> None:
    """Per draw, not per draw and generation: 4 times as many in far less than 16 times."""

    def count_calls(n: int) -> int:
        study = optuna.create_study(
            sampler=S2ESampler(population_size=1, estimator="newton", reuse=1, seed=0)
        )
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n)
        n_calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal n_calls
            n_calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            found = generations(study)
        finally:
            sys.setprofile(None)
        assert len(found) == n
        return n_calls

    assert count_calls(120) < 5 * count_calls(30)


def test_reused_draws_are_looked_up_once() -> None:
    """What an opener reads does not grow with the updates whose draws it reuses."""

    def lookups(n: int) -> int:
        sampler = S2ESampler(population_size=K, estimator="natural", reuse=1000, seed=0)
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n * K)
        n_lookups = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal n_lookups
            n_lookups += event == "call" and frame.f_code.co_name == "coordinates"

        sys.setprofile(count)
        try:
            study.ask().suggest_float("x", 0, 1)  # opens a generation
        finally:
            sys.setprofile(None)
        assert len(generations(study)) == n + 1
        return n_lookups

    assert lookups(60) == lookups(20) <= 8 * K


def searched(n_trials: int) -> list[FrozenTrial]:
    """Return the trials of one worker: trial m K opens generation m."""
    sampler = S2ESampler(population_size=K, seed=0, estimator="natural")
    study = optuna.create_study(sampler=sampler)
    study.optimize(suggest, n_trials=n_trials)
    return study.trials


def edit(drawn: FrozenTrial, **changes: Any) -> FrozenTrial:
    """Return a copy of a trial whose number or record is another one."""
    copied = copy.deepcopy(drawn)
    copied.number = changes.pop("number", drawn.number)
    copied.system_attrs[DRAW_KEY] = copied.system_attrs[DRAW_KEY] | changes
    return copied


def read(trials: list[FrozenTrial]) -> Ledger:
    return Ledger(Rules()).read(trials)


@pytest.mark.parametrize(
    ("opener", "change"),
    [
        (2 * K, {"parent": 2}),  # no opener
        (2 * K, {"parent": 2 * K}),
        (2 * K, {"generation": 3}),  # two after its parent's
        (2 * K, {"members": [3, 4, 3 * K]}),  # no such trial
        (2 * K, {"members": [3, 4, 2 * K]}),  # itself
        (2 * K, {"space": "another"}),
        (2 * K, {"theta": [1.0] * 3}),
        (2 * K, {"theta": [1.0] * 5}),
        (K, {"parent": 2}),  # generation 1 has no parent
        (K, {"members": [0, 1, 3 * K]}),
    ],
    ids=str,
)
def test_an_opener_that_does_not_follow_is_none_and_is_named(
    opener: int, change: dict[str, Any]
) -> None:
    trials = searched(3 * K)
    assert read(trials).damage() == []
    trials[opener] = edit(trials[opener], **change)
    ledger = read(trials)
    lost = [n for n in (K, 2 * K) if n >= opener]  # with its child
    assert sorted(ledger.openers) == [n for n in (K, 2 * K) if n < opener]
    assert ledger.damage() == [f"Trial {n} records a theta that does not follow." for n in lost]


def test_a_draw_whose_opener_is_lost_is_named() -> None:
    trials = searched(2 * K)
    trials[K + 1] = edit(trials[K + 1], opener=99)
    line = f"Trial {K + 1} was drawn from a theta that no trial records."
    assert read(trials).damage() == [line]


def test_the_head_has_the_largest_generation_and_then_the_lowest_number() -> None:
    """Two workers open generation 1 at once; the chain of the second overtakes the other."""
    trials = searched(3 * K)
    opener, child, last = trials[K], trials[2 * K], trials[3 * K - 1]
    trials = [
        *trials[:K],
        opener,
        edit(opener, number=4, trial=4, opener=4),
        trials[5],
        child,  # of 3
        edit(child, number=7, trial=7, opener=7, parent=4),
        edit(child, number=8, trial=8, opener=8, parent=7, generation=3, members=[6, 7]),
        edit(last, number=9, trial=9, opener=8, generation=3),
    ]
    following = Ledger(Rules())
    for n, openers, members, pool in [
        (4, [3], 3, [3]),
        (5, [3], 3, [3, 4]),
        (6, [3], 3, [3, 4, 5]),
        (7, [3, 6], 6, [6]),
        (8, [3, 6], 6, [6, 7]),
        (9, [4, 7, 8], 8, [8]),
        (10, [4, 7, 8], 8, [8, 9]),
    ]:
        for ledger in (following.read(trials[:n]), read(trials[:n])):
            state = ledger.state(K)
            assert state.chain is not None
            assert [r.trial for r in state.chain.openers] == openers
            assert state.chain.members == set(range(members))
            assert state.chain.n_counted == members
            assert [d.record.trial for d in state.pool] == pool
    head = following.openers[8]
    for n, found in [(0, []), (1, [8]), (2, [7, 8]), (9, [4, 7, 8])]:
        assert [r.trial for r in following.last_openers(head, n)] == found
    assert following.last_openers(None, 2) == []
    assert sorted(following.used) == list(range(8))


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        ([0.0], "parameter 'c' was set by someone else"),  # a, but the trial has b
        ([1.0], None),
        ([2.0], "its recorded coordinates are not in the space"),
        ([-1.0], "its recorded coordinates are not in the space"),
        ([0.5], "its recorded coordinates are not in the space"),
        ([1.0, 0.0], "its recorded coordinates are not in the space"),
        ([1.0, 1.0], "its recorded coordinates are not in the space"),
        ([1.0, 0.5], "parameter 'x' was set by someone else"),
        ([], "its recorded coordinates are not in the space"),
    ],
)
def test_recorded_coordinates_are_those_of_the_space(x: list[float], reason: str | None) -> None:
    trials = searched(2 * K)
    drawn = trials[K + 1].system_attrs[DRAW_KEY]["x"]  # of c, then of x
    assert trials[K + 1].params["c"] == "b"
    trials[K + 1] = edit(trials[K + 1], x=(x + drawn[1:])[:2] if len(x) == 1 else x or drawn * 2)
    ledger = read(trials)
    chain = ledger.state(K).chain
    assert chain is not None
    found = locate(ledger.draws[K + 1], chain.space, ledger.openers)
    if reason is None:
        np.testing.assert_array_equal(found, drawn)
    else:
        assert found == reason
        assert ledger.coordinates(chain.space, ledger.draws[K + 1]) is None
        assert K + 1 not in [d.record.trial for d in ledger.state(K).pool]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_newest_draws_without_a_loss_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ledger, "MAX_PENDING", 3)
    sampler = S2ESampler(population_size=K, seed=0, estimator="natural")
    study = optuna.create_study(sampler=sampler)
    study.optimize(suggest, n_trials=K + 1)
    asked = [study.ask() for _ in range(8)]
    for trial in asked:
        suggest(trial)
    for trial in asked[:4]:
        study.tell(trial, state=TrialState.FAIL)
    ledger = read(study.trials)
    chain = ledger.state(K).chain
    assert chain is not None
    x = [t.system_attrs[DRAW_KEY]["x"] for t in study.trials[K + 1 :]]
    assert ledger.failed(chain).tolist() == x[1:4]
    assert ledger.pending(chain).tolist() == x[5:]
    study.tell(asked[4], 0.0)
    ledger = read(study.trials)
    assert ledger.pending(chain, [ledger.draws[K]]).tolist() == x[5:]
    study.tell(asked[6], state=TrialState.FAIL)
    ledger = read(study.trials)
    assert ledger.pending(chain, [ledger.draws[K]]).tolist() == [x[4], x[5], x[7]]
    assert ledger.pending(chain).tolist() == [x[4], x[5], x[7]]
    assert [d.record.trial for d in ledger.failures()] == [4, 5, 6, 7, 10]


def test_another_study_under_the_same_identifier_is_read_anew() -> None:
    trials = searched(2 * K)
    ledger = read(trials)
    for other in (searched(K), searched(2 * K), searched(3 * K)):
        for number in range(len(other)):
            other[number] = edit(other[number], seed=7)
        fresh = read(other)
        assert ledger.read(other).draws.keys() == fresh.draws.keys()
        assert [d.trial for d in ledger.completed] == other
        assert ledger.openers == fresh.openers


@pytest.mark.parametrize("n_others", [K - 1, K])
def test_a_space_is_left_behind_after_k_draws_of_another(n_others: int) -> None:
    trials = searched(2 * K + 1)
    for n in range(2 * K, 2 * K + n_others):
        changed = edit(trials[K + 1], number=n, trial=n)
        changed.params = {"c": "b", "x": 0.25 + n / 100}
        changed.datetime_complete = trials[-1].datetime_complete
        trials[n:] = [changed]
    state = read(trials).state(K)
    left = "parameter 'x' was set by someone else" if n_others == K else None
    assert state.left_behind == left
    assert state.chain is not None
    adopted = read(trials).state(K, adopt=True)
    assert (adopted.chain is None) == (n_others == K)


def test_the_settings_in_force_are_those_of_the_head_or_of_the_first_draw_that_lives() -> None:
    trials = searched(K + 1)
    settings = dict(trials[0].system_attrs[DRAW_KEY]["settings"])
    other, failed = settings | {"population_size": 5}, settings | {"population_size": 7}
    first = [edit(trials[0], settings=failed), edit(trials[1], settings=other), *trials[2:K]]
    first[0].state, first[0].values = TrialState.FAIL, None
    ledger = read(first)
    assert ledger.settings_in_force(None) == other
    assert read(first[:1]).settings_in_force(None) is None
    opened = [*trials[:K], edit(trials[K], settings=settings | {"step_size": 0.5})]
    ledger = read(opened)
    in_force = ledger.settings_in_force(ledger.state(K).chain)
    assert in_force is not None
    assert in_force["step_size"] == 0.5


def test_a_failed_member_says_nothing_about_the_first_space() -> None:
    """It failed because it asked for another range, say."""
    trials = searched(K + 1)
    failed = edit(trials[0], number=K, trial=K)
    failed.state, failed.values = TrialState.FAIL, None
    failed.distributions["x"] = FloatDistribution(0, 2)
    opener = edit(trials[K], number=K + 1, trial=K + 1, opener=K + 1, members=[*range(K + 1)])
    ledger = read([*trials[:K], failed, opener])
    assert ledger.damage() == []
    chain = ledger.state(K).chain
    assert chain is not None
    assert chain.space == space_of(ledger.completed[:K])
    assert (chain.members, chain.n_counted) == (set(range(K + 1)), K)


def test_a_chain_that_has_not_grown_is_not_made_again() -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=K, seed=0, estimator="natural"))
    study.optimize(suggest, n_trials=4 * K + 1)
    ledger = Ledger(Rules()).read(study.trials)
    chain = ledger.state(K).chain
    assert chain is not None
    assert len(chain.openers) == 4
    study.optimize(suggest, n_trials=1)
    assert ledger.read(study.trials).state(K).chain is chain
    study.optimize(suggest, n_trials=K)
    longer = ledger.read(study.trials).state(K).chain
    assert longer is not None
    assert longer.openers[:-1] == chain.openers
