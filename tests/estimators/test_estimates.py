"""Losses, weights and the estimates of gradient and Hessian, against closed forms and loops."""

import numpy as np
import pytest
import scipy.stats
from newton_problems import BETA

from optuna_s2e.distributions import Categorical, SearchDistribution
from optuna_s2e.estimators.newton import (
    effective_sample_size,
    gradient_estimate,
    hessian_estimate,
    importance_weights,
    z_scores,
)

Z = 5.0  # bound of a Monte Carlo error in standard errors


def assert_mean(samples, expected):
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(axis=0) - expected) <= Z * error)


# Losses


def test_standardized_losses_are_z_scores():
    losses = np.random.default_rng(0).normal(3.0, 7.0, 20)
    np.testing.assert_allclose(z_scores(losses), scipy.stats.zscore(losses), atol=1e-13)


def test_weights_of_one_standardize_like_no_weights():
    losses = np.random.default_rng(0).normal(size=7)
    assert np.array_equal(z_scores(losses, weights=np.ones(7)), z_scores(losses))


def test_weights_standardize_like_repeated_draws():
    losses = np.array([1.0, 4.0, 9.0])
    repeated = z_scores([1.0, 4.0, 4.0, 9.0, 9.0, 9.0])
    weighted = z_scores(losses, weights=[1.0, 2.0, 3.0])
    np.testing.assert_allclose(weighted, repeated[[0, 1, 3]], rtol=1e-14)


def test_infinite_losses_count_as_the_worst_and_best_finite_one():
    infinite = z_scores([np.inf, 1.0, 3.0, -np.inf])
    assert np.array_equal(infinite, z_scores([3.0, 1.0, 3.0, 1.0]))


@pytest.mark.parametrize(
    "losses",
    [[0.1] * 3, [0.0, 0.0], [5.0], [np.inf, -np.inf], [np.inf] * 2, [1e308] * 3, [7.0, np.inf]],
)
def test_losses_without_any_contrast_become_zeros(losses):
    assert z_scores(losses).tolist() == [0.0] * len(losses)


@pytest.mark.parametrize("weights", [[0.0, 1.0], [0.0, 0.0]])
def test_losses_without_any_contrast_among_weighted_draws_become_zeros(weights):
    assert not z_scores([1.0, 2.0], weights=weights).any()


@pytest.mark.parametrize("scale", [1e308, 5e-324, 1e-300, 1.0])
def test_losses_of_any_magnitude_are_standardized(scale):
    np.testing.assert_allclose(z_scores([scale, -scale]), [1.0, -1.0])
    np.testing.assert_allclose(z_scores([scale, 0.0]), [1.0, -1.0])


# Weights


def test_draws_of_theta_itself_weigh_exactly_one():
    log_density = np.random.default_rng(0).normal(0.0, 300.0, 50)
    assert np.array_equal(importance_weights(log_density, log_density, 10.0), np.ones(50))


def test_weights_are_density_ratios_with_an_upper_bound():
    weights = importance_weights([0.0, -1.0, 5.0, 1e300, -1e300], np.zeros(5), 10.0)
    np.testing.assert_allclose(weights, [1.0, np.exp(-1.0), 10.0, 10.0, 0.0])
    assert weights.max() == 10.0


def test_effective_sample_size_counts_the_draws_that_matter():
    assert effective_sample_size([3.0] * 4) == pytest.approx(4.0)
    assert effective_sample_size([0.0, 2.0, 0.0]) == 1.0
    assert effective_sample_size([1.0, 2.0]) == pytest.approx(9 / 5)
    assert effective_sample_size([0.0, 0.0]) == 0.0
    assert effective_sample_size([1e-300] * 3) == pytest.approx(3.0)


def closed_form_beta(a, b):
    """Return gradient and Hessian of J = E[x] = a / (a + b)."""
    s = a + b
    gradient = np.array([b, -a]) / s**2
    return gradient, np.array([[-2 * b, a - b], [a - b, 2 * a]]) / s**3


def batches_of_estimates(theta, drawn_from, *, weighted=True, n_batches=100, n=1000):
    """Return estimates of gradient and Hessian of E[x] from draws of another theta."""
    rng, gradients, hessians = np.random.default_rng(0), [], []
    for _ in range(n_batches):
        X = BETA.sample(drawn_from, rng, n)
        drawn = BETA.log_density(drawn_from, X)
        weights = importance_weights(BETA.log_density(theta, X), drawn, 10.0)
        weights = weights if weighted else np.ones(n)
        scores = BETA.score(theta, X)
        gradients.append(gradient_estimate(X[:, 0], scores, weights))
        hessians.append(hessian_estimate(X[:, 0], scores, BETA.hessian(theta, X), weights))
    return np.array(gradients), np.array(hessians)


@pytest.mark.parametrize("drawn_from", [[2.0, 3.0], [1.0, 1.0], [1.5, 2.0]])
def test_estimates_are_unbiased_for_any_proposal(drawn_from):
    # p / q is at most 1.8 for these proposals, so the bound on the weights never bites.
    gradients, hessians = batches_of_estimates(np.array([2.0, 3.0]), np.array(drawn_from))
    gradient, hessian = closed_form_beta(2.0, 3.0)
    assert_mean(gradients, gradient)
    assert_mean(hessians, hessian)


def test_estimates_without_weights_are_wrong_for_another_proposal():
    theta, drawn_from = np.array([2.0, 3.0]), np.array([1.0, 1.0])
    gradients, _ = batches_of_estimates(theta, drawn_from, weighted=False)
    with pytest.raises(AssertionError):
        assert_mean(gradients, closed_form_beta(2.0, 3.0)[0])


def test_estimates_are_exact_where_every_category_is_drawn_in_proportion():
    f, theta = np.array([3.0, 1.0, -2.0]), np.array([1.0, 2.0, 5.0])
    distribution, X = SearchDistribution((Categorical(3),)), np.arange(3.0)[:, None]
    s, weights = theta.sum(), 3 * theta / theta.sum()  # mean of w f = sum of p f
    J = f @ theta / s
    scores = distribution.score(theta, X)
    gradient = gradient_estimate(f, scores, weights)
    hessian = hessian_estimate(f, scores, distribution.hessian(theta, X), weights)
    np.testing.assert_allclose(gradient, (f - J) / s, atol=1e-14)
    np.testing.assert_allclose(hessian, (2 * J - f[:, None] - f) / s**2, atol=1e-14)


def test_estimates_are_the_means_written_out_as_loops():
    rng = np.random.default_rng(0)
    f, w, s = rng.normal(size=5), rng.random(5), rng.normal(size=(5, 3))
    h = rng.normal(size=(5, 3, 3))
    h += h.transpose(0, 2, 1)
    gradient = sum(w[i] * f[i] * s[i] for i in range(5)) / 5
    hessian = sum(w[i] * f[i] * (np.outer(s[i], s[i]) + h[i]) for i in range(5)) / 5
    np.testing.assert_allclose(gradient_estimate(f, s, w), gradient)
    np.testing.assert_allclose(hessian_estimate(f, s, h, w), hessian)
    skewed = h + np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(hessian_estimate(f, s, skewed, w), hessian)


def test_estimates_name_the_shape_at_fault():
    with pytest.raises(ValueError, match=r"weights must have shape \(N,\) = \(3,\), but got"):
        gradient_estimate(np.ones(3), np.ones((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"\(N, n_theta, n_theta\) = \(3, 2, 2\), but got"):
        hessian_estimate(np.ones(3), np.ones((3, 2)), np.ones((3, 2)), np.ones(3))
