"""Features: distances between schedules, and which feature belongs to which parameter."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from optuna_s2e import ScheduleSpace
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.surrogate import N_POINTS, feature_groups, featurize


def space_with_schedules(**others: FloatDistribution) -> SearchSpace:
    trial = optuna.create_study().ask()
    ScheduleSpace(30).suggest(trial)
    tags = {n: v for n, v in trial.params.items() if trial.distributions[n].single()}
    return SearchSpace.of({**trial.distributions, **others}, tags)


def test_distance_of_schedules_is_the_root_mean_square_over_their_curves() -> None:
    space, rng = space_with_schedules(), np.random.default_rng(0)
    x = np.array([space.sample(space.distribution.uniform_theta(), rng) for _ in range(20)])
    z = featurize(space, x)
    assert z.shape == (20, N_POINTS)
    schedules = ScheduleSpace(30)
    for i in range(1, 20):
        first, other = (schedules.from_params(space.decode(x[j])).keep_rates for j in (0, i))
        dense = np.linspace(0, 29, 2000)
        gap = np.interp(dense, np.arange(30), first) - np.interp(dense, np.arange(30), other)
        distance = np.linalg.norm(z[0] - z[i])
        assert distance == pytest.approx(np.sqrt(np.mean(gap**2)), abs=0.02)


def test_other_parameters_follow_the_curve() -> None:
    space = space_with_schedules(lr=FloatDistribution(0, 4))
    params = {"R.tau": 0.5, "R.tk": 9.0, "R.c": 1.0, "lr": 3.0}
    z = featurize(space, space.encode(params)[None])
    assert z.shape == (1, N_POINTS + 1)
    assert z[0, -1] == pytest.approx(0.75)
    alone = space_with_schedules()
    np.testing.assert_array_equal(z[:, :-1], featurize(alone, alone.encode(params)[None]))


def test_unknown_schedules_are_refused() -> None:
    space = SearchSpace.of({"x": FloatDistribution(0, 1)}, {"R.spline": 1, "R.n_epochs": 9})
    with pytest.raises(ValueError, match="must name one schedule space"):
        featurize(space, np.array([[0.5]]))


def test_a_parameter_is_one_group_of_features() -> None:
    space = SearchSpace.of({
        "a": FloatDistribution(0, 1),
        "c": CategoricalDistribution("xyz"),
        "w.simplex3.1": FloatDistribution(0, 1),
        "w.simplex3.2": FloatDistribution(0, 1),
    })  # fmt: skip
    assert feature_groups(space).tolist() == [0, 0, 0, 1, 2, 2, 2]
    x = np.array([[0.2, 0.3, 0.4, 1.0]])
    assert featurize(space, x).shape == (1, len(feature_groups(space)))


def test_a_schedule_is_one_parameter_beside_others() -> None:
    space = space_with_schedules(lr=FloatDistribution(0, 1))
    assert feature_groups(space).tolist() == [0] * N_POINTS + [1]
    assert feature_groups(space_with_schedules()).tolist() == [0] * N_POINTS
