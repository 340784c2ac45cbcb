"""The likelihood against textbook formulas; ARD: what it finds, and when it keeps out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.spatial.distance import pdist, squareform
from scipy.special import expit

from optuna_s2e.surrogate import ard_scales
from optuna_s2e.surrogate._likelihood import (
    LOG_LENGTHS,
    LOGITS,
    LogPosterior,
    category_squares,
    pair_squares,
)


def drawn(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n, d))


def standardised(y: np.ndarray) -> np.ndarray:
    return np.asarray((y - y.mean()) / y.std())


def squares_of(z: np.ndarray) -> np.ndarray:
    """Return the squared distances in each column, which is a parameter of its own."""
    return np.array([pdist(column[:, None], "sqeuclidean") for column in z.T])


def density(z: np.ndarray, y: np.ndarray, v: np.ndarray) -> float:
    """Return the log density of v = (a, log l, logit s) at the best variance.

    The variance is that of the losses and of one pseudo-observation of 1.
    """
    typical, n = np.median(pdist(z) ** 2), len(y) + 1
    r = np.sqrt(5 / typical) * squareform(pdist(z * np.exp(v[:-2]))) / np.exp(v[-2])
    wide, seen = np.eye(n), np.append(y, 1.0)
    wide[:-1, :-1] = (1 - expit(v[-1])) * (1 + r + r**2 / 3) * np.exp(-r)
    wide[:-1, :-1] += expit(v[-1]) * np.eye(len(y))

    cloud = stats.multivariate_normal(np.zeros(n), wide)

    def minus(log_variance: float) -> float:  # of N(seen | 0, variance * wide)
        return n * log_variance / 2 - float(cloud.logpdf(seen * np.exp(-log_variance / 2)))

    found = optimize.minimize_scalar(minus, bounds=(-10, 10), method="bounded")
    prior = stats.norm(0.0, 1.5).logpdf(v[-2]) + stats.cauchy(0.0, 0.5).logpdf(v[:-2]).sum()
    return float(prior) - float(found.fun)


def test_density_is_that_of_the_formulas_up_to_a_constant() -> None:
    z, rng = drawn(25, 3), np.random.default_rng(1)
    y = standardised(np.sin(5 * z[:, 0]) + 0.3 * rng.normal(size=25))
    posterior = LogPosterior(squares_of(z), y)
    at = [rng.normal(size=5) * [1.0, 1.0, 1.0, 0.7, 2.0] for _ in range(12)]
    constants = [posterior.solve(v).value + density(z, y, v) for v in at]
    np.testing.assert_allclose(constants, constants[0], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_the_density(seed: int) -> None:
    z = drawn(30, 4, seed)
    posterior = LogPosterior(squares_of(z), standardised(np.sin(3 * z[:, 0])))
    v = np.append(np.random.default_rng(seed).normal(size=5), -2.0)
    error = optimize.check_grad(lambda v: posterior(v)[0], lambda v: posterior(v)[1], v)
    assert error < 1e-4 * np.linalg.norm(posterior(v)[1])


def test_the_best_of_the_grid_has_the_largest_density() -> None:
    """In some of the cases the prior on the length scale decides."""
    decided = 0
    for seed in range(8):
        z, rng = drawn(4 + seed % 3, 3, seed), np.random.default_rng(seed)
        y = standardised(np.sin(5 * z[:, 0]) + 0.3 * rng.normal(size=len(z)))
        found = np.array([
            [density(z, y, np.array([0.0, log_l, logit_s])) for logit_s in LOGITS]
            for log_l in LOG_LENGTHS
        ])  # fmt: skip
        prior = stats.norm(0.0, 1.5).logpdf(LOG_LENGTHS)[:, None]
        best, without = (np.unravel_index(f.argmax(), f.shape) for f in (found, found - prior))
        v = LogPosterior(pdist(z, "sqeuclidean")[None], y).best_of_grid()
        assert v.tolist() == [0.0, LOG_LENGTHS[best[0]], LOGITS[best[1]]]
        decided += best != without
    assert decided >= 3


@pytest.mark.parametrize("n", [60, 300])
def test_what_matters_is_found_among_many(n: int) -> None:
    z = drawn(n, 20)
    y = (z[:, 3] - 0.3) ** 2 + 2 * (z[:, 11] - 0.8) ** 2
    scales = ard_scales(z, standardised(y), np.arange(20))
    assert set(np.argsort(scales)[-2:]) == {3, 11}
    assert np.sort(scales)[-2] > 3 * np.sort(scales)[-3]
    assert np.log(scales).mean() == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("n", [6, 18, 60])
def test_parameters_that_matter_alike_are_left_alone(n: int) -> None:
    for seed in range(5):
        z = drawn(n, 6, seed)
        y = ((z - 0.4) ** 2).sum(axis=1)
        assert ard_scales(z, standardised(y), np.arange(6)).tolist() == [1.0] * 6


def test_no_parameter_matters_to_noise() -> None:
    found = []
    for seed in range(10):
        y = np.random.default_rng(100 + seed).normal(size=40)
        found.append(np.ptp(ard_scales(drawn(40, 10, seed), standardised(y), np.arange(10))) > 0)
    assert sum(found) <= 1


def test_equal_losses_and_equal_points_are_no_trouble() -> None:
    assert ard_scales(drawn(10, 3), np.zeros(10), np.arange(3)).tolist() == [1.0] * 3
    same = np.full((10, 3), 0.5)
    y = standardised(np.arange(10.0))
    assert np.isfinite(ard_scales(same, y, np.arange(3))).all()


def test_a_single_draw_and_draws_without_features_have_a_length_scale_of_one_unit() -> None:
    for squares, y in ((np.zeros((1, 0)), np.zeros(1)), (np.zeros((1, 6)), np.arange(4.0))):
        posterior = LogPosterior(squares, y)
        assert posterior.unit == 1.0
        assert np.isfinite(posterior.solve(posterior.best_of_grid()).value)


def test_numbers_of_categories_are_as_relevant_as_one_hot_vectors() -> None:
    rng = np.random.default_rng(0)
    c, x = rng.integers(0, 4, 50), rng.uniform(size=(50, 4))
    y = standardised((c % 2) + 0.1 * (x[:, 0] - 0.3) ** 2)
    one_hot = np.column_stack([np.eye(4)[c] / np.sqrt(2.0), x])
    by_vector = ard_scales(one_hot, y, np.array([0] * 4 + [1, 2, 3, 4]))
    by_number = ard_scales(np.column_stack([c, x]), y, np.arange(5), np.arange(5) == 0)
    np.testing.assert_allclose(by_number, by_vector[3:])
    assert by_number[0] > 2 * by_number[1:].max()


def test_pairs_are_as_far_apart_as_in_the_square() -> None:
    z = np.array([[0, 0.5, 1], [2, 0.1, 3], [-1, 0.9, 3]])
    apart = category_squares(z, z, np.array([4.0, 0.0, 1.0])) + (z[:, 1, None] - z[:, 1]) ** 2
    found = pair_squares(z, np.array([4.0, 0.0, 1.0]))
    np.testing.assert_allclose(squareform(found), apart, atol=1e-15)


@pytest.mark.parametrize("weight", [1.0, 0.7])
@pytest.mark.parametrize("inactive", [False, True])
def test_squares_between_categories_are_those_of_a_loop(weight: float, inactive: bool) -> None:
    """600 categories that differ do not fit into a byte."""
    rng = np.random.default_rng(0)
    one, other = (rng.integers(-1 if inactive else 0, 9, (n, 600)).astype(float) for n in (5, 3))
    one[0], other[0] = 1.0, 2.0
    weights = np.full(600, weight)
    weights[7] = 0.0
    differ = np.where((one[:, None] < 0) ^ (other < 0), 0.5, 1.0) * (one[:, None] != other)
    found = category_squares(one, other, weights)
    np.testing.assert_allclose(found, differ @ weights, rtol=1e-13)
    if weight == 1.0:
        assert found[0, 0] == 599
        np.testing.assert_array_equal(found, differ @ weights)
