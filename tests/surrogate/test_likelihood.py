"""The likelihood against textbook formulas; relevance: what it finds, and when it keeps out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.spatial.distance import pdist, squareform
from scipy.special import logit

from optuna_s2e.surrogate import clip_and_standardize
from optuna_s2e.surrogate._likelihood import LogPosterior, Mode, find_mode


def drawn(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n, d))


def standardised(y: np.ndarray) -> np.ndarray:
    return np.asarray((y - y.mean()) / y.std())


def mode_of(z: np.ndarray, y: np.ndarray, *, apart: bool = False) -> Mode:
    groups = np.arange(z.shape[1]) if apart else np.zeros(z.shape[1], dtype=int)
    return find_mode(z, y, groups, np.zeros(z.shape[1], dtype=bool))


def scales_of(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    return mode_of(z, y, apart=True).scales


def log_evidence(distances: np.ndarray, log_length: float, share: float, y: np.ndarray) -> float:
    """Return the log likelihood at the best variance, given one pseudo-observation of 1."""
    r = np.sqrt(5) * distances / np.exp(log_length)
    n, seen = len(y) + 1, np.append(y, 1.0)
    wide = np.eye(n)
    wide[:-1, :-1] = (1 - share) * (1 + r + r**2 / 3) * np.exp(-r) + share * np.eye(len(y))
    log_determinant, square = np.linalg.slogdet(wide)[1], seen @ np.linalg.inv(wide) @ seen

    def minus(log_variance: float) -> float:  # of N(seen | 0, variance * wide), twice
        return float(log_determinant + n * log_variance + square * np.exp(-log_variance))

    found = optimize.minimize_scalar(minus, bounds=(-10, 10), method="bounded")
    return -0.5 * float(found.fun)


def test_the_mode_is_where_the_posterior_is_largest() -> None:
    """In some of the cases the prior on the length scale decides, in some that on the noise."""
    lengths, logits = np.linspace(np.log(0.1), np.log(6.0), 12), np.linspace(-6.0, 2.5, 9)
    decided = np.zeros(2, dtype=int)
    for seed in range(8):
        z, rng = drawn(4 + seed % 3, 3, seed), np.random.default_rng(seed)
        losses = np.sin(5 * z[:, 0]) + 0.3 * rng.normal(size=len(z))
        y, typical = clip_and_standardize(losses).y, float(np.median(pdist(z) ** 2)) ** 0.5

        def densities(log_length: float, of_noise: float) -> np.ndarray:
            """Return the likelihood, and the priors of l and s."""
            share = 1.0 / (1.0 + np.exp(-of_noise))
            distances = squareform(pdist(z)) / typical  # noqa: B023
            likelihood = log_evidence(distances, log_length, share, y)  # noqa: B023
            of_length = stats.norm(0.0, 1.5).logpdf(log_length)
            return np.array([likelihood, of_length, stats.norm(-2.0, 2.5).logpdf(of_noise)])

        mode = mode_of(z, y)
        found = densities(np.log(mode.length_scale / typical), float(logit(mode.noise_share)))
        grid = np.array([[densities(a, b) for b in logits] for a in lengths])
        assert found.sum() > grid.sum(axis=2).max() - 0.1
        for prior in (1, 2):  # where the mode would be without it
            without = np.delete(grid, prior, axis=2).sum(axis=2)
            best = np.unravel_index(np.argmax(without), without.shape)
            decided[prior - 1] += grid[best].sum() < found.sum() - 0.1
    assert np.all(decided >= 2), decided


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_the_density(seed: int) -> None:
    z = drawn(30, 4, seed)
    squares = np.array([pdist(z[:, [j]], "sqeuclidean") for j in range(4)])
    posterior = LogPosterior(squares, standardised(np.sin(3 * z[:, 0])))
    v = np.append(np.random.default_rng(seed).normal(size=5), -2.0)
    error = optimize.check_grad(lambda v: posterior(v)[0], lambda v: posterior(v)[1], v)
    assert error < 1e-4 * np.linalg.norm(posterior(v)[1])


@pytest.mark.parametrize("n", [60, 300])
def test_what_matters_is_found_among_many(n: int) -> None:
    z = drawn(n, 20)
    y = (z[:, 3] - 0.3) ** 2 + 2 * (z[:, 11] - 0.8) ** 2
    scales = scales_of(z, standardised(y))
    assert set(np.argsort(scales)[-2:]) == {3, 11}
    assert np.sort(scales)[-2] > 3 * np.sort(scales)[-3]
    assert np.log(scales).mean() == pytest.approx(0, abs=1e-3)


def test_length_scale_and_noise_are_those_of_all_draws() -> None:
    """The first and every third of the losses are free of noise; only they are used for a."""
    z = drawn(298, 2)
    noise = np.where(np.arange(298) % 3 == 0, 0.0, 1.0)
    y = standardised(np.sin(3 * z[:, 0]) + noise * np.random.default_rng(1).normal(size=298))
    assert mode_of(z[::3], y[::3]).noise_share < 0.01
    share = mode_of(z, y).noise_share
    assert share == pytest.approx(mode_of(z[1:], y[1:]).noise_share, rel=0.1)
    assert share > 0.3


@pytest.mark.parametrize("n", [6, 18, 60])
def test_parameters_that_matter_alike_are_left_alone(n: int) -> None:
    for seed in range(5):
        z = drawn(n, 6, seed)
        y = ((z - 0.4) ** 2).sum(axis=1)
        assert scales_of(z, standardised(y)).tolist() == [1.0] * 6


def test_no_parameter_matters_to_noise() -> None:
    found = []
    for seed in range(10):
        y = np.random.default_rng(100 + seed).normal(size=40)
        found.append(np.ptp(scales_of(drawn(40, 10, seed), standardised(y))) > 0)
    assert sum(found) <= 1


def test_equal_losses_equal_points_and_single_ones_are_no_trouble() -> None:
    assert scales_of(drawn(10, 3), np.zeros(10)).tolist() == [1.0] * 3
    same = np.full((10, 3), 0.5)
    assert np.isfinite(scales_of(same, standardised(np.arange(10.0)))).all()
    assert mode_of(drawn(1, 3), np.zeros(1)).length_scale == 1.0
    assert scales_of(np.zeros((4, 0)), standardised(np.arange(4.0))).shape == (0,)


def test_categories_by_number_and_as_vectors_have_one_mode() -> None:
    rng = np.random.default_rng(0)
    c, x = rng.integers(0, 4, 50), rng.uniform(size=50)
    y = standardised((c % 2) + (x - 0.3) ** 2 + 0.1 * rng.normal(size=50))
    one_hot = np.column_stack([np.eye(4)[c] / np.sqrt(2.0), x])
    by_vector = find_mode(one_hot, y, np.array([0] * 4 + [1]), np.zeros(5, dtype=bool))
    by_number = find_mode(np.column_stack([c, x]), y, np.arange(2), np.array([True, False]))
    np.testing.assert_allclose(by_number[1:], by_vector[1:])
    np.testing.assert_allclose(by_number.scales, by_vector.scales[[0, 4]])
