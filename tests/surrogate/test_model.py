"""The model over a space: it is the regression on scaled features, and knows the conditions."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from optuna_s2e import surrogate
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.distributions import _search_distribution as p_theta
from optuna_s2e.surrogate import Model
from optuna_s2e.surrogate._acquisition import share_failed
from optuna_s2e.surrogate._likelihood import category_squares

BRANCHES = SearchSpace.of({
    "depth": FloatDistribution(0, 1),
    "model": CategoricalDistribution(["tree", "net"]),
})  # fmt: skip


def test_only_parameters_that_matter_are_stretched() -> None:
    space = SearchSpace.of({f"x{i}": FloatDistribution(0, 1) for i in range(12)})
    x = np.random.default_rng(0).uniform(0.01, 0.99, size=(80, 12))
    losses = (x[:, 5] - 0.3) ** 2
    model = Model.fit(space, x, active=np.ones(x.shape, dtype=bool), losses=losses)
    assert int(np.argmax(model.scales)) == 5
    np.testing.assert_allclose(model.featurize(x), x * model.scales, rtol=1e-14)
    gp = surrogate.fit(x * model.scales, losses)
    np.testing.assert_array_equal(model.gp.mean(model.gp.features), gp.mean(gp.features))


def test_inactive_parameters_have_no_influence() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(size=40), rng.integers(0, 2, 40)])
    active = np.column_stack([x[:, 1] == 0.0, np.ones(40, dtype=bool)])
    losses = np.where(active[:, 0], x[:, 0] ** 2, 0.5)
    model = Model.fit(BRANCHES, x, active=active, losses=losses)
    nets, trees = np.array([[0.1, 1.0], [0.9, 1.0]]), np.array([[0.1, 0.0], [0.9, 0.0]])
    assert np.ptp(model.gp.mean(model.featurize(nets))) == 0.0
    np.testing.assert_allclose(model.gp.mean(model.featurize(trees)), [0.01, 0.81], atol=0.05)
    as_told = model.featurize(nets, np.ones(nets.shape, dtype=bool))
    assert np.ptp(model.gp.mean(as_told)) > 0.0


def test_numbers_of_categories_are_as_far_apart_as_one_hot_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Searches among many categories see the same model; only the features take less memory."""
    space = SearchSpace.of({
        "c": CategoricalDistribution(range(40)),
        "d": CategoricalDistribution("abcd"),
        "x": FloatDistribution(0, 1),
    })  # fmt: skip
    rng = np.random.default_rng(0)
    draws = space.coordinates(
        space.distribution.sample(space.distribution.uniform_theta(), rng, 90)
    )
    x, new, pending = draws[:60], draws[60:80], draws[80:]
    losses = (x[:, 0] % 5) + (x[:, 2] - 0.3) ** 2 + rng.normal(size=60)
    found = []
    for many in (10**9, 0):
        monkeypatch.setattr(p_theta, "MANY_CATEGORIES", many)
        again = SearchSpace.of(space.distributions)
        model = Model.fit(again, x, active=np.ones(x.shape, dtype=bool), losses=losses)
        z, known = model.featurize(new), model.featurize(pending)
        failed = share_failed(z, model.gp.features, known, model.gp.category_weights)
        found.append((*model.gp.predict(z, known), failed))
        assert z.shape[1] == (45 if many else 3)
    for one_hot, numbers in zip(*found, strict=True):
        np.testing.assert_allclose(numbers, one_hot, rtol=1e-6)


def test_inactive_categories_are_half_as_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p_theta, "MANY_CATEGORIES", 0)
    space = SearchSpace.of({"c": CategoricalDistribution("abc"), "x": FloatDistribution(0, 1)})
    z = surrogate.featurize(
        space, np.array([[0, 0.5], [2, 0.5], [1, 0.5]]), np.array([[1, 1], [1, 1], [0, 1]]) > 0
    )
    weights = np.where(surrogate.numbered_features(space), 4.0, 0.0)
    squares = category_squares(z, z, weights)
    assert squares.tolist() == [[0, 4, 2], [4, 0, 2], [2, 2, 0]]


def test_another_task_teaches_its_shape_in_the_units_of_the_own_losses() -> None:
    """Own losses at the left end only: where the minimum lies, only the other task says."""
    space = SearchSpace.of({"a": FloatDistribution(0, 1)})
    own, other = np.linspace(0.02, 0.3, 6), np.linspace(0.02, 0.98, 25)
    x = np.concatenate([own, other])[:, None]
    losses = np.concatenate([(own - 0.6) ** 2, 700 + 300 * (other - 0.6) ** 2])
    tasks = np.repeat([0, 1], [len(own), len(other)])
    model = Model.fit(space, x, active=x > 0, losses=losses, tasks=tasks)
    alone = Model.fit(space, x[:6], active=x[:6] > 0, losses=losses[:6])
    grid = np.linspace(0.01, 0.99, 99)[:, None]
    expected = model.gp.mean(model.featurize(grid))
    assert abs(grid[expected.argmin(), 0] - 0.6) < 0.1
    assert abs(grid[alone.gp.mean(alone.featurize(grid)).argmin(), 0] - 0.6) > 0.15
    assert expected.max() < 1.0
    assert model.mean_at_draws.shape == (31,)
    np.testing.assert_allclose(model.mean_at_draws, model.gp.mean(model.featurize(x)))


def test_a_task_that_says_the_contrary_is_not_believed() -> None:
    space = SearchSpace.of({"a": FloatDistribution(0, 1)})
    x = np.concatenate([np.linspace(0.02, 0.98, 12), np.linspace(0.03, 0.97, 25)])[:, None]
    tasks = np.repeat([0, 1], [12, 25])
    losses = np.where(tasks == 0, (x[:, 0] - 0.3) ** 2, -((x[:, 0] - 0.3) ** 2))
    model = Model.fit(space, x, active=x > 0, losses=losses, tasks=tasks)
    alone = Model.fit(space, x[:12], active=x[:12] > 0, losses=losses[:12])
    np.testing.assert_array_equal(model.gp.features, alone.gp.features)
    np.testing.assert_array_equal(model.gp.mean_at_draws, alone.gp.mean_at_draws)


@pytest.mark.parametrize("scale", [2.0**-900, 2.0**900])
def test_tasks_are_compared_in_any_unit(scale: float) -> None:
    space = SearchSpace.of({"a": FloatDistribution(0, 1)})
    x = np.concatenate([np.linspace(0.02, 0.98, 12), np.linspace(0.03, 0.97, 25)])[:, None]
    tasks = np.repeat([0, 1], [12, 25])
    losses = (x[:, 0] - 0.3) ** 2 + 0.05 * np.sin(40 * x[:, 0])
    scaled = np.where(tasks == 0, losses, scale * losses)
    model, same = (
        Model.fit(space, x, active=x > 0, losses=own, tasks=tasks) for own in (losses, scaled)
    )
    assert len(same.x) == len(x)
    np.testing.assert_array_equal(same.mean_at_draws, model.mean_at_draws)


def test_a_task_that_did_not_search_a_parameter_says_nothing_of_its_condition() -> None:
    """Here all draws of the task happen to lie below the own ones."""
    space = SearchSpace.of({name: FloatDistribution(0, 1) for name in "abc"})
    rng = np.random.default_rng(0)
    x, tasks = rng.uniform(0.01, 0.99, (24, 3)), np.repeat([0, 1], 12)
    x[:, 0] = np.where(tasks == 0, 0.2 + 0.8 * x[:, 0], 0.2 * x[:, 0])
    active = np.ones(x.shape, dtype=bool)
    active[12:, 1] = False
    model = Model.fit(space, x, active=active, losses=x[:, 2], tasks=tasks)
    assert len(model.x) == 24
    assert model.conditions.active(rng.uniform(size=(50, 3))).all()


def test_a_task_that_searched_all_parameters_says_where_they_are_active() -> None:
    x = np.array([[0.1, 0], [0.5, 0], [0.9, 0], [0.2, 0], [0.7, 0], [0.3, 1], [0.6, 1]])
    tasks, active = np.repeat([0, 1], [3, 4]), np.column_stack([x[:, 1] == 0, x[:, 1] >= 0])
    model = Model.fit(BRANCHES, x, active=active, losses=x[:, 0], tasks=tasks)
    assert len(model.x) == 7
    assert model.conditions.active(np.array([[0.5, 1.0]])).tolist() == [[False, True]]
