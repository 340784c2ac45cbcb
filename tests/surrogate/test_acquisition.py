"""The acquisition: where candidates lie, and which of them is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy import stats
from scipy.spatial.distance import cdist

from optuna_s2e.distributions import SearchSpace
from optuna_s2e.surrogate import Model, _acquisition, propose
from optuna_s2e.surrogate._acquisition import share_failed

UNIT = SearchSpace.of({name: FloatDistribution(0, 1) for name in "ab"})
THETA = UNIT.distribution.uniform_theta()
NONE = np.empty((0, 2))


def model_of(f: Any, n: int) -> Model:
    x = np.random.default_rng(0).uniform(size=(n, 2))
    return Model.fit(UNIT, x, active=np.ones(x.shape, dtype=bool), losses=f(x))


def bowl(x: np.ndarray) -> np.ndarray:
    return np.asarray(((x - [0.2, 0.7]) ** 2).sum(axis=1))


def proposals(model: Model, n: int, generation: int) -> np.ndarray:
    """Return proposals of n seeds without pending or failed draws."""
    space = model.space
    none, theta = np.empty((0, len(space.names))), space.distribution.uniform_theta()
    return np.array([
        propose(
            theta, model, pending=none, failed=none, generation=generation,
            rng=np.random.default_rng(seed),
        )
        for seed in range(n)
    ])  # fmt: skip


def test_proposals_are_good_and_differ_from_the_pending_ones() -> None:
    model, pending = model_of(bowl, 12), NONE
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x = propose(THETA, model, pending=pending, failed=NONE, generation=2, rng=rng)
        assert np.all((x > 0) & (x < 1))
        pending = np.vstack([pending, x])
    assert bowl(pending).mean() < bowl(np.random.default_rng(1).uniform(size=(999, 2))).mean() / 2
    alone = proposals(model, 6, generation=2)
    spread = [np.linalg.norm(np.std(x, axis=0)) for x in (pending, alone)]
    assert spread[0] > 1.5 * spread[1]  # without the pending ones, all ask for the same place


def bounds(model: Model, x: np.ndarray, kappa: float) -> np.ndarray:
    """Return mean - kappa * (deviation of the mean's change that a loss at x causes).

    A loss y at x changes the posterior mean at x by g (y - mean), with the gain g of the weights
    of a Gaussian process that knows y, and y - mean has the predictive deviation.
    """
    gp, z = model.gp, model.featurize(x)
    unit = gp.noise_deviation / np.sqrt(gp.noise_share)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        r = np.sqrt(5) * cdist(a, b) / gp.length_scale
        return np.asarray((1 - gp.noise_share) * (1 + r + r**2 / 3) * np.exp(-r))

    def change(point: np.ndarray) -> float:
        every = np.vstack([gp.features, point])
        among = kernel(every, every) + gp.noise_share * np.eye(len(every))
        gain = np.linalg.solve(among, kernel(every, point[None])[:, 0])[-1]
        known, cross = among[:-1, :-1], among[:-1, -1]
        predictive = among[-1, -1] - cross @ np.linalg.solve(known, cross)
        return float(gain * unit * np.sqrt(predictive))

    return np.asarray(gp.mean(z) - kappa * np.array([change(point) for point in z]))


@pytest.mark.parametrize(("n", "seed"), [(80, 0), (40, 2), (80, 2)])
def test_proposal_has_the_lowest_bound_of_what_a_loss_would_teach(n: int, seed: int) -> None:
    """Noisy losses fall towards 0 and nothing is known beyond 0.6: one loss there teaches little.

    The lower confidence bound of f itself goes to 1.
    """
    line, rng = SearchSpace.of({"a": FloatDistribution(0, 1)}), np.random.default_rng(seed)
    x = rng.uniform(0.0, 0.6, size=(n, 1))
    losses = 2.0 * x[:, 0] + rng.normal(size=n)
    model = Model.fit(line, x, active=np.ones(x.shape, dtype=bool), losses=losses)
    grid = np.linspace(0.001, 0.999, 400)[:, None]
    expected, chosen = bounds(model, grid, 3.0), bounds(model, proposals(model, 5, 1), 3.0)
    assert np.all(np.mean(expected[:, None] < chosen, axis=0) < 0.01)
    mean, deviation = model.gp.predict(model.featurize(grid))
    of_f = int(np.argmin(mean - 3.0 * deviation))
    assert grid[of_f] > 0.99
    assert np.mean(expected < expected[of_f]) > 0.04  # so the test tells the two apart


@pytest.mark.parametrize("scale", [1.4, 1.9, 3.0])
def test_the_unit_of_the_losses_does_not_matter(scale: float) -> None:
    """A bonus that is no deviation of the losses would grow or shrink with their unit."""
    plain = proposals(model_of(bowl, 12), 10, generation=1)
    scaled = proposals(model_of(lambda x: scale * bowl(x), 12), 10, generation=1)
    np.testing.assert_array_equal(scaled, plain)


def test_after_equal_losses_a_draw_of_p_theta_is_proposed() -> None:
    """The least certain points, by contrast, are the corners."""
    found = proposals(model_of(lambda x: np.full(len(x), 7.0), 12), 150, generation=2)
    for column in found.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3


def test_exploration_decays_to_a_half() -> None:
    found = [_acquisition.exploration(m) for m in (1, 4, 36, 10_000)]
    assert found == [3.0, 1.5, 0.5, 0.5]


def test_generation_counts_from_one() -> None:
    with pytest.raises(ValueError, match="generation must be an int of at least 1, but got 0"):
        proposals(model_of(bowl, 12), 1, generation=0)


def test_in_many_dimensions_a_proposal_is_near_the_best_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = SearchSpace.of(
        {f"x{i:02d}": FloatDistribution(0, 1) for i in range(20)}
        | {f"z{i}": CategoricalDistribution("abc") for i in range(2)}
    )
    theta, active = space.distribution.uniform_theta(), np.ones((60, 22), dtype=bool)
    x = space.coordinates(space.distribution.sample(theta, np.random.default_rng(0), 60))
    losses = ((x[:, :20] - 0.4) ** 2).sum(axis=1) + (x[:, 20:] != 1).sum(axis=1)
    model = Model.fit(space, x, active=active, losses=losses)

    def expected() -> float:
        """Mean of the model at eight proposals that explore little."""
        return float(model.gp.mean(model.featurize(proposals(model, 8, 36))).mean())

    near = expected()
    monkeypatch.setattr(_acquisition, "FEW_PARAMETERS", 22)
    assert near < expected() - 0.1 * losses.std()


def test_candidates_near_the_best_lie_on_the_way_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = SearchSpace.of({"a": FloatDistribution(0, 1), "z": CategoricalDistribution("abcd")})
    x = np.array([[0.1, 0.0], [0.5, 2.0], [0.9, 0.0], [0.2, 0.0]])
    losses = np.array([1.0, 0.0, 1.0, 1.0])
    model = Model.fit(space, x, active=np.ones(x.shape, dtype=bool), losses=losses)
    monkeypatch.setattr(_acquisition, "N_BASES", 1)
    other = np.array([[0.7, 3.0]])
    found = _acquisition._near_the_best(model, other, 4000, np.random.default_rng(0))
    way = (found[:, 0] - 0.5) / 0.2
    assert 0.03 - 1e-9 <= way.min() <= way.max() <= 1.0
    assert np.median(way) == pytest.approx(np.sqrt(0.03), rel=0.1)  # log-uniform
    assert set(found[:, 1]) == {2.0, 3.0}
    assert np.mean(found[:, 1] == 3.0) == pytest.approx(way.mean(), abs=0.03)


def test_share_failed_is_that_of_the_five_nearest() -> None:
    completed = np.array([[0.0], [0.1], [0.2], [0.3], [0.4]])
    failed = np.array([[0.8], [0.9], [1.0]])
    share = _acquisition.share_failed(
        np.array([[0.0], [0.65], [1.0]]), completed, failed, np.zeros(1)
    )
    assert share.tolist() == [0.0, 0.6, 0.6]
    few = _acquisition.share_failed(np.array([[0.0]]), completed[:1], failed[:2], np.zeros(1))
    assert few.tolist() == [2 / 3]


def test_neighbours_are_looked_for_where_the_bound_may_be_lowest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, failed, sizes = model_of(bowl, 30), np.array([[0.2, 0.69], [0.9, 0.1]]), list[int]()

    def counted(z: np.ndarray, *others: np.ndarray) -> np.ndarray:
        sizes.append(len(z))
        return share_failed(z, *others)

    monkeypatch.setattr(_acquisition, "share_failed", counted)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = _acquisition._candidates(THETA, model, np.random.default_rng(seed))
        z, of_failed = model.featurize(x), model.featurize(failed)
        risk = share_failed(z, model.gp.features, of_failed, model.gp.category_weights)
        lowest = (1 - risk) * bounds(model, x, 3.0) + risk * model.mean_at_draws.max()
        found = propose(THETA, model, pending=NONE, failed=failed, generation=1, rng=rng)
        assert found.tolist() == x[lowest.argmin()].tolist()
    assert sum(sizes) < 5 * 400
