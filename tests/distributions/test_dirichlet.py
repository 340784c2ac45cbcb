"""Beta and Dirichlet, against scipy.stats and quadrature."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from optuna_s2e.distributions import Beta, Dirichlet, SearchDistribution
from optuna_s2e.distributions._family import EPSILON


def test_kl_of_beta_agrees_with_quadrature():
    p, q = scipy.stats.beta(2.5, 1.5), scipy.stats.beta(1.2, 4.0)
    integral, _ = scipy.integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), 0, 1)
    assert Beta().kl(np.array([2.5, 1.5]), np.array([1.2, 4.0])) == pytest.approx(integral)


def test_beta_draws_follow_the_beta_distribution():
    draws = SearchDistribution((Beta(),)).sample([2.0, 5.0], np.random.default_rng(0), 5_000)
    assert scipy.stats.kstest(draws[:, 0], scipy.stats.beta(2.0, 5.0).cdf).pvalue > 1e-4


def test_dirichlet_draws_have_beta_marginals_and_sum_to_one():
    theta = np.array([1.0, 2.0, 4.0])
    draws = SearchDistribution((Dirichlet(3),)).sample(theta, np.random.default_rng(0), 5_000)
    np.testing.assert_allclose(draws.sum(axis=1), 1.0, rtol=1e-14)
    for column, a in zip(draws.T, theta, strict=True):
        marginal = scipy.stats.beta(a, theta.sum() - a)
        assert scipy.stats.kstest(column, marginal.cdf).pvalue > 1e-4


@pytest.mark.parametrize("family", [Beta(), Dirichlet(2), Dirichlet(4)], ids=repr)
def test_draws_stay_off_the_boundary_where_raw_draws_reach_it(family):
    distribution = SearchDistribution((family,))
    theta = np.full(distribution.n_theta, 0.01)
    X = distribution.sample(theta, np.random.default_rng(0), 500)
    smallest = X.min() if isinstance(family, Dirichlet) else min(X.min(), 1.0 - X.max())
    assert smallest == pytest.approx(EPSILON, rel=1e-5)  # raw: far below 1e-6
    assert np.isfinite(distribution.score(theta, X)).all()


def test_projection_clips_concentrations():
    distribution = SearchDistribution((Beta(), Dirichlet(2)))
    assert distribution.project([0.2, 3.0, 500.0, -1.0], (1, 100)).tolist() == [1, 3, 100, 1]
