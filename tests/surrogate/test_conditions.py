"""Conditions that are found: nested, with thresholds, with siblings, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler

from optuna_s2e.distributions import SearchSpace
from optuna_s2e.surrogate import find_conditions


def layers(trial: optuna.Trial) -> float:
    n = trial.suggest_int("n_layers", 1, 4)
    trial.suggest_float("a", 0, 1)
    return sum(trial.suggest_float(f"width{i}", 0, 1) for i in range(n))


def nested(trial: optuna.Trial) -> float:
    trial.suggest_float("a", 0, 1)
    if trial.suggest_categorical("model", ["linear", "tree", "net"]) == "linear":
        return trial.suggest_float("penalty", 0, 1)
    if trial.params["model"] == "tree":
        if trial.suggest_categorical("booster", ["dart", "plain"]) == "dart":
            trial.suggest_float("skip", 0, 1)
        return trial.suggest_float("rate", 0, 1)
    return trial.suggest_float("momentum", 0, 1)


def threshold(trial: optuna.Trial) -> float:
    trial.suggest_float("a", 0, 1)
    if trial.suggest_float("z", 0, 1) < 0.4:
        trial.suggest_float("below", 0, 1)
    return 0.0


def drawn(objective: Any, n: int, seed: int) -> list[optuna.trial.FrozenTrial]:
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    study.optimize(objective, n_trials=n)
    return study.trials


def known(space: SearchSpace, trials: list[optuna.trial.FrozenTrial]) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    theta = space.distribution.uniform_theta()
    x = np.array([space.sample(theta, rng) for _ in trials])  # inactive coordinates are random
    active = np.array([space.active(t.params) for t in trials])
    return np.where(active, np.array([space.encode(t.params) for t in trials]), x), active


@pytest.mark.parametrize("objective", [layers, nested, threshold])
def test_conditions_of_new_points_are_those_of_the_objective(objective: Any) -> None:
    trials = drawn(objective, 400, seed=0)
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        distributions |= trial.distributions
    space = SearchSpace.of(distributions)
    x, active = known(space, trials)
    conditions = find_conditions(space, x[:200], active[:200])
    wrong = conditions.active(x[200:]) != active[200:]
    assert wrong.mean() <= (0.002 if objective is threshold else 0)


def test_parameters_that_all_trials_have_are_always_active() -> None:
    space = SearchSpace.of({n: FloatDistribution(0, 1) for n in "ab"})
    x = np.random.default_rng(0).uniform(size=(20, 2))
    conditions = find_conditions(space, x, np.ones(x.shape, dtype=bool))
    assert not conditions.by_column
    assert conditions.active(x).all()


def test_parameters_without_a_parent_count_as_active() -> None:
    space = SearchSpace.of({n: FloatDistribution(0, 1) for n in "ab"})
    x = np.random.default_rng(0).uniform(size=(20, 2))
    active = np.ones(x.shape, dtype=bool)
    active[::2, 1] = False  # every second trial, whatever a is
    assert find_conditions(space, x, active).active(x).all()


def test_parameters_that_no_trial_had_are_never_active() -> None:
    for kind in (FloatDistribution(0, 1), CategoricalDistribution("xy")):
        space = SearchSpace.of({"a": FloatDistribution(0, 1), "b": kind})
        x = np.array([[0.1, 0.0], [0.7, 1.0]])
        active = np.array([[True, False], [True, False]])
        assert find_conditions(space, x, active).active(x).tolist() == active.tolist()


def test_siblings_are_active_together_whatever_their_values() -> None:
    """The first is the parent of the second, but its values decide nothing."""
    space = SearchSpace.of({
        "booster": CategoricalDistribution("xyz"),
        "model": CategoricalDistribution(["linear", "tree"]),
        "rate": FloatDistribution(0, 1),
    })  # fmt: skip
    x = np.array([[0.0, 1.0, 0.2], [1.0, 1.0, 0.4], [2.0, 0.0, 0.6], [2.0, 0.0, 0.8]])
    active = np.array([[True] * 3, [True] * 3, [False, True, False], [False, True, False]])
    unseen = np.array([[2.0, 1.0, 0.5]])  # a booster that no tree had yet
    assert find_conditions(space, x, active).active(unseen).all()


def test_a_category_is_preferred_to_a_float_that_separates_by_chance() -> None:
    distributions: Mapping[str, BaseDistribution] = {
        "a": FloatDistribution(0, 1),
        "b": FloatDistribution(0, 1),
        "c": CategoricalDistribution(["x", "y"]),
    }
    space = SearchSpace.of(distributions)
    x = np.array([[0.1, 0.5, 0.0], [0.2, 0.5, 0.0], [0.8, 0.5, 1.0], [0.9, 0.5, 1.0]])
    active = np.ones(x.shape, dtype=bool)
    active[2:, 1] = False
    new = np.array([[0.9, 0.5, 0.0], [0.1, 0.5, 1.0]])
    assert find_conditions(space, x, active).active(new)[:, 1].tolist() == [True, False]
