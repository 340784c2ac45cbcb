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


@pytest.mark.parametrize(
    "tags", [{"R.spline": 1, "R.n_epochs": 9}, {"R.eq1": 2, "R.n_epochs": 9}, {"R.eq1": 1}]
)
def test_parameters_of_unknown_schedules_are_like_others(tags: dict[str, int]) -> None:
    known = space_with_schedules()
    space = SearchSpace.of(known.distributions, tags)
    x = np.full((1, 3), 0.5)
    np.testing.assert_array_equal(featurize(space, x), x)
    assert feature_groups(space).tolist() == [0, 1, 2]


def test_schedules_of_two_branches_have_curves_of_their_own() -> None:
    spaces = [ScheduleSpace(30), ScheduleSpace(30, "table1")]
    space = SearchSpace.of(
        {**spaces[0].distributions, **spaces[1].distributions, "lr": FloatDistribution(0, 1)},
        {**spaces[0].tags, **spaces[1].tags},
    )
    params = [
        {"R.tau": 0.5, "R.tk": 9.0, "R.c": 1.0, "lr": 0.25},
        {**dict.fromkeys(spaces[1].searched, 0.5), "lr": 0.25},
        {"lr": 0.25},
    ]
    active = np.array([space.active(p) for p in params])
    z = featurize(space, np.array([space.encode(p) for p in params]), active)
    assert z.shape == (3, 2 * N_POINTS + 1)
    curves = z[:, :-1].reshape(3, 2, N_POINTS) * np.sqrt(N_POINTS)
    grid = np.linspace(0, 29, N_POINTS)
    expected = np.interp(grid, [0, 9, 29], [1.0, 0.5, 0.5])
    np.testing.assert_allclose(curves[0, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(
        curves[1, 1], spaces[1].curves({n: [0.5] for n in spaces[1].searched})[0]
    )
    assert (curves[[0, 1, 2, 2], [1, 0, 0, 1]] == 1).all()  # no such schedule: R = 1
    assert feature_groups(space).tolist() == [0] * N_POINTS + [1] * N_POINTS + [2]


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
