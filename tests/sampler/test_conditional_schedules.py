"""Schedules that only some branches of an objective draw: every completed draw counts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
import pytest
import searches
from searches import assert_replays, params

from optuna_s2e import S2ESampler, ScheduleSpace, generations, optimize_batch, recommend

K = 8  # so that the first draws take both branches
make_study = partial(searches.make_study, population_size=K)
Objective = Callable[[optuna.Trial], float]


def level(trial: optuna.Trial, n_epochs: int, kind: str = "eq1") -> float:
    return abs(float(ScheduleSpace(n_epochs, kind).suggest(trial).keep_rates.mean()) - 0.6)


def in_one_branch(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    if trial.suggest_categorical("method", ["plain", "select"]) == "plain":
        return x + 0.2
    return x + level(trial, 20)


def two_kinds(trial: optuna.Trial) -> float:
    return level(trial, 20, trial.suggest_categorical("kind", ["eq1", "table1"]))


def two_lengths(trial: optuna.Trial) -> float:
    return level(trial, trial.suggest_categorical("T", [20, 60]), "table1")


def two_ranges(trial: optuna.Trial) -> float:
    return level(trial, trial.suggest_categorical("T", [20, 60]))  # R.tk ends at T


def nested(trial: optuna.Trial) -> float:
    if trial.suggest_categorical("m", ["plain", "select"]) == "plain":
        return 0.2
    kind = trial.suggest_categorical("k", ["eq1", "none", "table1"])
    return 0.5 if kind == "none" else level(trial, 20, kind)


def first_and_conditional(trial: optuna.Trial) -> float:
    """One schedule always, before any other parameter, and one more in a branch."""
    value = level(trial, 20)
    if trial.suggest_categorical("method", ["plain", "select"]) == "plain":
        return value
    space = ScheduleSpace(20, "table1")
    for name, tag in space.tags.items():
        trial.suggest_int(name, tag, tag)
    found = space.from_params({name: trial.suggest_float(name, 0, 1) for name in space.searched})
    return value + float(found.keep_rates.mean())


def of_the_same_name(trial: optuna.Trial) -> float:
    """Constants that a user names like tags are no schedule."""
    trial.suggest_int("R.n_epochs", 9, 9)
    version = trial.suggest_categorical("method", [1, 2])
    trial.suggest_int("R.version", version, version)
    return trial.suggest_float("x", 0, 1) + version


SIZES = {  # concentrations of all branches: 6 of Eq 1; 4 + 2 * 16 of Table 1; 2 of a category
    in_one_branch: 2 + 2 + 6,
    two_kinds: 2 + 6 + 36,
    two_lengths: 2 + 36,
    two_ranges: 2 + 4,  # R.tk has one range per branch, so theta does not describe it
    nested: 2 + 3 + 6 + 36,
    first_and_conditional: 6 + 2 + 36,
    of_the_same_name: 2 + 2,
}


@pytest.mark.filterwarnings("ignore:The parameter 'R.tk'")
@pytest.mark.parametrize("objective", SIZES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("estimator", ["natural", "surrogate"])
def test_every_completed_draw_counts_one_by_one_and_in_batches(
    objective: Objective, estimator: str
) -> None:
    one, many = (make_study(estimator=estimator) for _ in range(2))
    one.optimize(objective, n_trials=2 * K + 1)  # the last one opens generation 2
    optimize_batch(many, objective, 2 * K + 1)
    assert params(one) == params(many)
    found = generations(one)
    assert [n for g in found for n in g.members] == list(range(2 * K))
    assert sorted(n for g in found for n in g.trials) == list(range(2 * K + 1))
    assert found[0].theta.size == SIZES[objective]
    assert_replays(one)


@pytest.mark.filterwarnings("ignore:The parameter 'R.tk'")
@pytest.mark.parametrize("objective", SIZES, ids=lambda f: f.__name__)
def test_the_recommendation_compares_the_trials_of_all_branches(objective: Objective) -> None:
    one = make_study(estimator="natural")
    one.optimize(objective, n_trials=3 * K)
    for rule in ("smoothed", "theta", "best"):
        picked = recommend(one, rule)
        assert picked.left_out_trials == picked.left_out_params == ()
        if objective is not first_and_conditional:  # it may hold two
            assert (picked.schedule is not None) == ("R.c" in picked.params or
                                                     "R.f1.a1" in picked.params)  # fmt: skip


def test_a_branch_that_no_first_draw_took_counts_later() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        return x + level(trial, 20) if trial.number > K and trial.number % 2 else x

    study = make_study(warn_independent_sampling=False)
    study.optimize(objective, n_trials=4 * K)
    found = generations(study)
    assert [n for g in found for n in g.members] == list(range(3 * K))
    assert found[0].theta.size == 2
    assert any("R.tau" in t.params for t in study.trials)
    assert_replays(study)


@pytest.mark.parametrize("how", ["one by one", "batches"])
@pytest.mark.parametrize(
    ("first", "second", "size"), [((9, "eq1"), (8, "eq1"), 8), ((9, "eq1"), (9, "table1"), 38)]
)
def test_a_changed_schedule_beside_other_parameters_is_adopted(
    how: str, first: Any, second: Any, size: int
) -> None:
    """The first parameter is another one, so the trial that asks does not show its schedule."""

    def objective(space: Any) -> Objective:
        return lambda trial: trial.suggest_float("x", 0, 1) + level(trial, *space)

    def run(f: Objective, n: int) -> None:
        study.optimize(f, n) if how == "one by one" else optimize_batch(study, f, n)

    study = make_study(on_config_change="adopt", warn_independent_sampling=False)
    run(objective(first), 2 * K + 1)
    run(objective(second), 4 * K)
    found = generations(study)
    assert found[0].theta.size == size
    members = [n for g in found for n in g.members]
    assert members == sorted(set(members))
    assert min(members) > 2 * K
    assert len(members) == 2 * K
    assert_replays(study)


def test_a_changed_length_beside_other_parameters_stands_still_and_says_why() -> None:
    study = make_study(warn_independent_sampling=False)
    study.optimize(lambda t: t.suggest_float("x", 0, 1) + level(t, 9), n_trials=2 * K + 1)
    with pytest.warns(UserWarning, match=r"stands still.*schedule space is.*8.*not.*9"):
        study.optimize(lambda t: t.suggest_float("x", 0, 1) + level(t, 8), n_trials=2 * K)
    assert len(generations(study)) == 3


def test_an_enqueued_branch_is_not_refused_for_its_schedule() -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=K, seed=0))
    study.optimize(two_kinds, n_trials=2 * K + 1)
    for kind in ("eq1", "table1"):
        study.enqueue_trial({"kind": kind})
    study.optimize(two_kinds, n_trials=K)
    assert [t.params["kind"] for t in study.trials[2 * K + 1 : 2 * K + 3]] == ["eq1", "table1"]
    assert_replays(study)
