"""The categorical distribution, against scipy.stats."""

import numpy as np
import pytest
import scipy.stats

from optuna_s2e.distributions import Categorical, SearchDistribution


def test_kl_of_categorical_agrees_with_scipy_entropy():
    p, q = np.array([1.0, 2.0, 5.0]), np.array([3.0, 0.5, 9.0])
    assert Categorical(3).kl(p, q) == pytest.approx(scipy.stats.entropy(p, q))


def test_categorical_draws_follow_the_weights():
    theta = np.array([1.0, 2.0, 5.0])
    draws = SearchDistribution((Categorical(3),)).sample(theta, np.random.default_rng(0), 5_000)
    counts = (draws == np.arange(3)).sum(axis=0)
    assert scipy.stats.chisquare(counts, 5_000 * theta / theta.sum()).pvalue > 1e-4


def test_categorical_ignores_the_scale_of_theta():
    distribution = SearchDistribution((Categorical(4),))
    theta, X = np.array([1.0, 3.0, 0.5, 2.0]), np.arange(4.0)[:, None]
    scaled = distribution.log_density(8.0 * theta, X)
    np.testing.assert_allclose(scaled, distribution.log_density(theta, X), rtol=1e-14)
    assert distribution.kl(theta, 8.0 * theta) == pytest.approx(0.0, abs=1e-15)
    np.testing.assert_allclose(distribution.score(theta, X) @ theta, 0.0, atol=1e-14)
    np.testing.assert_allclose(distribution.fisher(theta) @ theta, 0.0, atol=1e-14)


@pytest.mark.parametrize(
    ("theta", "expected"),
    [
        ([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]),  # same probabilities, smallest weight on low
        ([0.1, 300.0, 600.0], [1.0, 50.0, 100.0]),  # the ratio 1 : 2 of the others survives
        ([-5.0, 1.0, 2.0], [1.0, 50.0, 100.0]),
        ([-5.0, 0.0, -1.0], [1.0, 1.0, 1.0]),
    ],
)
def test_projection_keeps_the_ratios_of_categories_that_fit(theta, expected):
    distribution = SearchDistribution((Categorical(3),))
    np.testing.assert_allclose(distribution.project(theta, (1.0, 100.0)), expected, rtol=1e-14)


@pytest.mark.parametrize("index", [3.0, -1.0, 0.5, np.nan])
def test_categorical_refuses_what_is_no_index(index):
    with pytest.raises(ValueError, match=r"must be an index in 0\.\.2, but got values in \["):
        SearchDistribution((Categorical(3),)).score(np.ones(3), [[1.0], [index]])
