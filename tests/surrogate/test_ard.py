"""Automatic relevance determination: its gradient, what it finds, and when it keeps out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from optuna_s2e.surrogate import ard_scales
from optuna_s2e.surrogate._ard import LOGIT, _Posterior


def drawn(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n, d))


def standardised(y: np.ndarray) -> np.ndarray:
    return np.asarray((y - y.mean()) / y.std())


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_the_density(seed: int) -> None:
    z = drawn(30, 5)
    groups = np.array([0, 1, 1, 2, 3])
    posterior = _Posterior(
        z, standardised(np.sin(3 * z[:, 0])), groups, 4, np.zeros(5, dtype=bool)
    )
    v = np.append(np.random.default_rng(seed).normal(size=5), LOGIT)
    error = check_grad(lambda v: posterior(v)[0], lambda v: posterior(v)[1], v)
    assert error < 1e-4 * np.linalg.norm(posterior(v)[1])


@pytest.mark.parametrize("n", [60, 300])
def test_what_matters_is_found_among_many(n: int) -> None:
    z = drawn(n, 20)
    y = (z[:, 3] - 0.3) ** 2 + 2 * (z[:, 11] - 0.8) ** 2
    scales = ard_scales(z, standardised(y), np.arange(20))
    assert set(np.argsort(scales)[-2:]) == {3, 11}
    assert np.sort(scales)[-2] > 3 * np.sort(scales)[-3]
    assert np.log(scales).mean() == pytest.approx(0, abs=1e-12)


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
