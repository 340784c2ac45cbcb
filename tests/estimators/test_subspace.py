"""Steps among many categories: the same as with full matrices, without the matrices."""

import tracemalloc

import numpy as np
import pytest
from newton_problems import DIRECTIONS, every_estimator, settings_of, update
from scipy import stats

from optuna_s2e.distributions import Beta, Categorical, Dirichlet, SearchDistribution
from optuna_s2e.distributions import _search_distribution as p_theta
from optuna_s2e.estimators import newton
from optuna_s2e.estimators._block_eigh import block_eigh


def both_ways(monkeypatch, families, theta, X, f, settings):
    """Return theta after an update with full matrices, and after one in the subspace."""
    found = []
    for many in (10**9, 0):
        monkeypatch.setattr(p_theta, "MANY_CATEGORIES", many)
        distribution = SearchDistribution(families)
        drawn = distribution.log_density(theta, X)
        found.append(update(distribution, theta, X, f, drawn, settings).theta)
    return found


@every_estimator
@pytest.mark.parametrize("start", ["uniform", "moved"])
def test_one_categorical_takes_the_step_of_the_full_matrices(monkeypatch, estimator, start):
    rng, families = np.random.default_rng(0), (Categorical(30),)
    distribution = SearchDistribution(families)
    theta = distribution.uniform_theta()
    if start == "moved":
        theta = distribution.project(rng.uniform(1, 9, 30), (1.0, 100.0))
    X = distribution.sample(theta, rng, 50)
    f, settings = X[:, 0] + rng.normal(size=50), settings_of(estimator, step_size=0.5)
    full, subspace = both_ways(monkeypatch, families, theta, X, f, settings)
    assert np.abs(full - theta).max() > 1e-3
    np.testing.assert_allclose(subspace, full, rtol=1e-9)


@pytest.mark.parametrize("estimator", ["natural", "gradient"])
def test_steps_without_a_hessian_are_the_same_in_any_space(monkeypatch, estimator):
    rng, families = (
        np.random.default_rng(1),
        (Dirichlet(3), Categorical(5), Beta(), Categorical(4)),
    )
    distribution = SearchDistribution(families)
    theta = distribution.project(rng.uniform(1, 9, distribution.n_theta), (1.0, 100.0))
    X = distribution.sample(theta, rng, 40)
    full, subspace = both_ways(
        monkeypatch, families, theta, X, rng.normal(size=40), settings_of(estimator)
    )
    np.testing.assert_allclose(subspace, full, rtol=1e-9)


@every_estimator
def test_a_step_in_the_subspace_goes_downhill(monkeypatch, estimator):
    monkeypatch.setattr(p_theta, "MANY_CATEGORIES", 0)
    families = (Categorical(6), Beta(), Categorical(9), Dirichlet(3))
    distribution = SearchDistribution(families)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        theta = distribution.project(rng.uniform(1, 9, distribution.n_theta), (1.0, 100.0))
        X, f = distribution.sample(theta, rng, 60), newton.z_scores(rng.normal(size=60))
        settings = settings_of(estimator, step_size=1e-3, theta_bounds=(1e-3, 1e3))
        gradient, step = newton.subspace_step(
            distribution, theta, X, f, direction=DIRECTIONS[estimator],
            needs_hessian=settings.needs_hessian, reference=theta, settings=settings,
        )  # fmt: skip
        moved = np.log(step.theta / theta)
        moved -= np.average(moved)  # the projection scales categories
        assert gradient @ (step.theta - theta) < 0 or np.abs(moved).max() < 1e-12


@every_estimator
def test_thousands_of_categories_need_no_matrix_of_them(estimator):
    distribution = SearchDistribution((Categorical(5000), Beta()))
    theta, rng = distribution.uniform_theta(), np.random.default_rng(0)
    X = distribution.sample(theta, rng, 60)
    drawn, f = distribution.log_density(theta, X), X[:, 1]
    tracemalloc.start()
    try:
        step = update(distribution, theta, X, f, drawn, settings_of(estimator))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5e6  # 5000 x 5000: 2e8
    assert stats.pearsonr(step.theta[X[:, 0].astype(int)], f).statistic < -0.5
    assert distribution.mean(step.theta)[1] < 0.5


def test_categories_that_are_alike_stay_alike():
    distribution = SearchDistribution((Categorical(100), Beta()))
    theta, rng = distribution.uniform_theta(), np.random.default_rng(0)
    X = distribution.sample(theta, rng, 400)
    f = newton.z_scores(np.where(X[:, 0] < 10, X[:, 0], 5.0) + X[:, 1])
    alike = np.arange(10, 100)
    found = [
        newton.subspace_step(
            distribution, theta, X, f, direction=newton.newton_direction, needs_hessian=True,
            reference=theta, settings=settings_of(), alike=groups,
        )[1].theta
        for groups in ((), (alike,))
    ]  # fmt: skip
    assert len(set(found[0][alike])) > 10
    assert len(set(found[1][alike])) == 1


def test_the_curvature_of_many_categories_is_solved_block_by_block(monkeypatch):
    """A matrix of all directions would cost cubic time. The axes are those of that matrix."""
    distribution = SearchDistribution((Categorical(5),) * 60)
    rng = np.random.default_rng(0)
    theta = rng.uniform(1, 9, distribution.n_theta)
    X, solve, sizes, hessians = distribution.sample(theta, rng, 400), np.linalg.eigh, [], []

    def counted(matrix):
        sizes.append(matrix.shape)
        return solve(matrix)

    def direction(gradient, hessian, *others):
        hessians.append(hessian)
        return newton.newton_direction(gradient, hessian, *others)

    monkeypatch.setattr(np.linalg, "eigh", counted)
    _, step = newton.subspace_step(
        distribution, theta, X, newton.z_scores(X[:, 0] + X[:, 7]), direction=direction,
        needs_hessian=True, reference=theta, settings=settings_of(),
    )  # fmt: skip
    assert sizes == [(60, 2, 2)]
    assert step.scale > 0
    for found, expected in zip(block_eigh(hessians[0]), solve(hessians[0]), strict=True):
        np.testing.assert_array_equal(found, expected)
