"""Whitening, against the pseudo-inverse, also where p_theta does not change."""

import numpy as np
import pytest

from optuna_s2e.distributions import Beta, Categorical, SearchDistribution, whiten


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_whitening_is_a_root_of_the_pseudo_inverse(rank):
    root = np.random.default_rng(rank).normal(size=(5, rank))
    fisher = root @ root.T
    whitening = whiten(fisher)
    np.testing.assert_allclose(whitening @ whitening.T, np.linalg.pinv(fisher), atol=1e-9)
    np.testing.assert_allclose(whitening.T @ fisher @ whitening, np.eye(rank), atol=1e-9)


def test_directions_that_are_lost_in_rounding_are_left_out():
    """F of Beta(1, 1e9) has eigenvalues of 1.6 and 1e-18; the smaller one may come out below 0."""
    distribution = SearchDistribution((Beta(), Categorical(100)))
    theta = distribution.uniform_theta()
    theta[1] = 1e9
    basis, _ = distribution.tangents(theta, np.ones(102), np.ones(102, dtype=bool))
    assert np.isfinite(basis).all()
    assert np.count_nonzero(basis[:2].any(axis=0)) == 1
