"""Whole searches with the default estimator: theta follows the model, draws explore it."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler

from optuna_s2e import (
    S2ESampler,
    ScheduleSpace,
    coteaching_schedule,
    generations,
    recommend,
    replay,
    suggest_simplex,
)
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.analysis import Snapshot, verify
from optuna_s2e.estimators import resolve
from optuna_s2e.history import Ledger, Rules
from optuna_s2e.sampler._update import fit_model

T = 40
TARGET = coteaching_schedule(T, 0.5, 10).keep_rates


def to_target(trial: optuna.Trial, kind: str = "eq1") -> float:
    rates = ScheduleSpace(T, kind).suggest(trial).keep_rates
    return float(np.sqrt(np.mean((rates - TARGET) ** 2)))


def searched(objective: Any = to_target, n_trials: int = 60, **kwargs: Any) -> optuna.Study:
    study = optuna.create_study(sampler=S2ESampler(**{"seed": 0} | kwargs))
    study.optimize(objective, n_trials=n_trials)
    return study


@pytest.mark.parametrize("kind", ["eq1", "table1"])
def test_schedules_are_searched_with_the_model_and_replay(kind: str) -> None:
    study = searched(lambda trial: to_target(trial, kind), n_trials=36)
    opener = generations(study)[2].opener
    settings = study.trials[opener].system_attrs[DRAW_KEY]["settings"]  # type: ignore[index]
    assert settings["estimator"] == "surrogate"
    told, computed = generations(study), replay(study)
    assert len(told) == 6
    assert all(np.array_equal(a.theta, b.theta) for a, b in zip(told, computed, strict=True))
    assert all(np.ptp(g.theta) > 0 for g in told[1:])


def test_the_model_beats_random_search_on_schedules() -> None:
    ours = [searched(seed=s, n_trials=30).best_value for s in range(6)]
    random = []
    for seed in range(6):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        study.optimize(to_target, n_trials=30)
        random.append(study.best_value)
    assert np.median(ours) < np.median(random) / 2


def test_asked_together_the_draws_differ_and_each_names_its_theta() -> None:
    study = searched(n_trials=12)
    trials = [study.ask() for _ in range(6)]
    rates = np.array([ScheduleSpace(T).suggest(t).keep_rates for t in trials])
    assert min(np.abs(a - b).max() for i, a in enumerate(rates) for b in rates[:i]) > 0.01
    for trial in trials:
        study.tell(trial, 0.5)
    assert verify(Snapshot.of(study)).sound


def test_losses_that_allow_no_model_fall_back_on_the_papers_step_with_one_warning() -> None:
    def infinite(trial: optuna.Trial) -> float:
        ScheduleSpace(T).suggest(trial)
        return float("inf")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = searched(infinite, n_trials=30)
    assert sum("No model can be fitted" in str(w.message) for w in caught) == 1
    told, computed = generations(study), replay(study)
    assert len(told) == 5
    assert all(np.array_equal(a.theta, b.theta) for a, b in zip(told, computed, strict=True))


def test_the_model_of_a_long_study_is_bounded_and_remembers_the_beginning() -> None:
    study = searched(n_trials=260, population_size=20, estimator="gradient")  # draws fast
    ledger = Ledger(Rules.of(study)).read(study.trials)
    chain, pool, _ = ledger.state(20)
    assert chain is not None
    model = fit_model(chain.space, chain.head, pool, ledger, resolve({}))
    assert model is not None
    every = np.array([chain.space.encode(t.params) for t in study.trials])
    used = [int(np.abs(every - x).sum(axis=1).argmin()) for x in model.x]
    assert used == sorted(set(used))
    assert len(used) == len(model.gp.features) == 200
    assert used[0] == 0
    assert used[-100:] == list(range(160, 260))  # the newest half
    assert np.ptp(np.diff(used[:100])) <= 1  # the rest, evenly spread


def test_monte_carlo_estimators_leave_assisted_draws_out() -> None:
    study = searched(n_trials=25)
    study.sampler = S2ESampler(seed=0, estimator="natural", on_config_change="adopt")
    study.optimize(to_target, n_trials=12)
    told, computed = generations(study), replay(study)
    assert all(np.array_equal(a.theta, b.theta) for a, b in zip(told, computed, strict=True))


def test_a_simplex_beside_a_schedule_is_a_feature_too() -> None:
    def objective(trial: optuna.Trial) -> float:
        return to_target(trial) + float(suggest_simplex(trial, "w", 3)[0])

    study = searched(objective, n_trials=40)
    assert study.best_value < 0.2


def test_a_region_that_fails_is_left_though_losses_fall_towards_it() -> None:
    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        if x > 0.7:
            raise ValueError
        return (1 - x) ** 2 + (y - 0.3) ** 2

    for seed in range(2):
        study = optuna.create_study(sampler=S2ESampler(seed=seed))
        study.optimize(objective, n_trials=60, catch=(ValueError,))
        failed = [t.number for t in study.trials if t.state == optuna.trial.TrialState.FAIL]
        assert sum(number >= 40 for number in failed) < 12  # without: all twenty
        assert study.best_value < 0.12  # the least possible: 0.09


def test_search_where_few_of_many_parameters_matter() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(20)]
        return (x[4] - 0.3) ** 2 + (x[17] - 0.8) ** 2

    def last_mean(sampler: optuna.samplers.BaseSampler) -> float:
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=48)
        return float(np.mean([t.value for t in study.trials[-12:]]))

    ours, theirs = (
        [last_mean(make(seed=seed)) for seed in range(3)] for make in (S2ESampler, TPESampler)
    )
    assert np.median(ours) < np.median(theirs) / 3  # without ARD: twice theirs


def plateau(trial: optuna.Trial) -> float:
    return max(0.0, trial.suggest_float("x", 0, 1) - 0.6) + max(
        0.0, trial.suggest_float("y", 0, 1) - 0.8
    )


def errors(trial: optuna.Trial) -> float:
    return math.floor(4 * (trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)))


def rare_error(trial: optuna.Trial) -> float:
    return float(trial.suggest_categorical("c", "abcdefghij") == "j")


@pytest.mark.parametrize("objective", [plateau, errors, rare_error])
def test_losses_that_tie_are_searched_better_than_at_random(objective: Any) -> None:
    """Half of them are 0, few values are possible, nine of ten are 0."""

    def late(sampler: optuna.samplers.BaseSampler) -> float:
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=36)
        return float(np.mean([t.value for t in study.trials[18:]]))

    seeds = range(4)
    ours = [late(S2ESampler(seed=s)) for s in seeds]
    random = [late(RandomSampler(seed=s)) for s in seeds]
    assert np.mean(ours) < np.mean(random) / 3


CHOICES = [f"choice {i}" for i in range(3000)]


def among_thousands(trial: optuna.Trial) -> float:
    choice = CHOICES.index(trial.suggest_categorical("c", CHOICES))
    return choice % 10 / 10 + (trial.suggest_float("x", 0, 1) - 0.3) ** 2


def test_thousands_of_choices_are_searched_in_little_memory_and_replay() -> None:
    tracemalloc.start()
    try:
        study = searched(among_thousands, n_trials=20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e8  # one Hessian for each of 400 draws: 3e10
    last = generations(study)[-1].theta
    assert 1 < len(set(last[:3000])) < 20  # choices that no draw had are equally probable
    assert verify(Snapshot.of(study)).sound


def test_among_thousands_of_choices_good_ones_are_found_again() -> None:
    def late(sampler: optuna.samplers.BaseSampler) -> float:
        study = optuna.create_study(sampler=sampler)
        study.optimize(among_thousands, n_trials=48)
        return float(np.mean([t.value for t in study.trials[24:]]))

    ours = [late(S2ESampler(seed=s)) for s in range(2)]
    random = [late(RandomSampler(seed=s)) for s in range(2)]
    assert max(ours) < min(random) / 2  # if theta does not move: / 1.9


def branches(trial: optuna.Trial) -> float:
    if trial.suggest_categorical("model", ["linear", "tree"]) == "linear":
        return 0.25 + (trial.suggest_float("penalty", 0, 1) - 0.3) ** 2
    return 3 * (trial.suggest_float("depth", 0, 1) - 0.7) ** 2


def test_a_branch_that_must_be_tuned_beats_one_that_need_not() -> None:
    best, last = [], []
    for seed in range(4):
        study = optuna.create_study(sampler=S2ESampler(seed=seed))
        study.optimize(branches, n_trials=36)
        best.append(study.best_value)
        last.append(np.mean([t.value for t in study.trials[-6:]]))
        assert recommend(study).params.keys() == {"model", "depth"}
        assert recommend(study, "theta").params.keys() == {"model", "depth"}
    assert max(best) < 1e-3
    assert np.median(last) < 0.05


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("fixed", [{"R.c": 1.0}, {"R.tau": 0.5, "R.tk": 8.0}])
def test_a_schedule_whose_parameter_is_fixed_from_the_start_is_searched(
    fixed: dict[str, float],
) -> None:
    study = optuna.create_study(sampler=PartialFixedSampler(fixed, S2ESampler(seed=0)))
    study.optimize(to_target, n_trials=20)
    assert len(generations(study)) == 4
    assert verify(Snapshot.of(study)).sound
    assert recommend(study).params.items() >= fixed.items()
