"""The ledger against a model of the rules, under any interleaving of workers."""

import math
import sys
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from optuna_s2e import S2ESampler, generations, replay
from optuna_s2e._attributes import FIXED_PARAMS_KEY
from optuna_s2e.history._ledger import Ledger
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


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=100, deadline=None, derandomize=True, phases=PHASES)
@given(steps)
def test_ledger_that_follows_knows_what_a_new_one_reads(steps: list[tuple[str, int]]) -> None:
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

    run(steps, compare)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=100, deadline=None, derandomize=True, phases=PHASES)
@given(steps)
def test_every_completed_draw_enters_one_update_at_most(steps: list[tuple[str, int]]) -> None:
    study = run(steps, lambda study: None)
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

    assert count_calls(240) < 6 * count_calls(60)


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
