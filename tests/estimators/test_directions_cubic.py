"""The cubic model's minimiser, against many descents and the conditions of a global minimum."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from newton_problems import random_problem, settings_of

from optuna_s2e.estimators.newton import cubic_direction


def cubic_step(gradient, hessian, fisher=None, lipschitz=1.0):
    gradient, hessian = np.array(gradient, float), np.array(hessian, float)
    fisher = np.eye(len(gradient)) if fisher is None else fisher
    settings = settings_of(curvature_bounds=(min(0.1, lipschitz), lipschitz))
    return cubic_direction(gradient, hessian, fisher, settings)


def cubic_model(d, gradient, hessian, fisher, lipschitz):
    return gradient @ d + d @ hessian @ d / 2 + lipschitz * (d @ fisher @ d) ** 1.5 / 6


def cubic_slope(d, gradient, hessian, fisher, lipschitz):
    size = np.sqrt(d @ fisher @ d)
    return gradient + hessian @ d + lipschitz / 2 * size * fisher @ d


def orthogonal_to_the_lowest_axis(gradient, hessian, fisher):
    # (H - lambda F) v = 0: the axes of H in the coordinates in which F is the identity.
    v = scipy.linalg.eigh(hessian, fisher)[1][:, 0]
    return gradient - fisher @ v * (v @ gradient)


@pytest.mark.parametrize("lipschitz", [0.1, 10.0])
@pytest.mark.parametrize("scale", [0.01, 1.0])
@pytest.mark.parametrize("hard", [False, True], ids=["general", "hard case"])
def test_cubic_step_is_the_lowest_of_many_descents_of_its_model(lipschitz, scale, hard):
    for seed in range(4):
        gradient, hessian, fisher = random_problem(seed, n=3)
        gradient *= scale
        if hard:
            gradient = orthogonal_to_the_lowest_axis(gradient, hessian, fisher)
        model = (gradient, hessian, fisher, lipschitz)
        starts = cubic_step(*model) + np.random.default_rng(seed).normal(0.0, 5.0, (8, 3))
        descents = [
            scipy.optimize.minimize(cubic_model, x, model, jac=cubic_slope) for x in starts
        ]
        lowest = min(descent.fun for descent in descents)
        value = cubic_model(cubic_step(*model), *model)
        assert lowest < 0.0
        assert value == pytest.approx(lowest, rel=1e-6)


@pytest.mark.parametrize("lipschitz", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("hard", [False, True], ids=["general", "hard case"])
def test_cubic_step_meets_the_conditions_of_a_global_minimum(lipschitz, hard):
    # Nesterov, Polyak 2006: (H + L |d| / 2) d = -g and H + L |d| / 2 >= 0; both suffice.
    for seed in range(200):
        rng = np.random.default_rng(seed)
        gradient, hessian, fisher = random_problem(seed, n=1 + seed % 7)
        gradient *= 10.0 ** rng.integers(-12, 13)
        hessian *= 10.0 ** rng.integers(-12, 13)
        if hard:
            gradient = orthogonal_to_the_lowest_axis(gradient, hessian, fisher)
        d = cubic_step(gradient, hessian, fisher, lipschitz)
        shifted = hessian + lipschitz / 2 * np.sqrt(d @ fisher @ d) * fisher
        curvature = np.abs(hessian).max() + np.abs(shifted).max()  # what rounding is relative to
        slope = np.abs(gradient).max() + curvature * np.abs(d).max()
        assert np.abs(shifted @ d + gradient).max() <= 1e-9 * slope
        assert np.linalg.eigvalsh(shifted)[0] >= -1e-9 * curvature


def test_cubic_step_in_the_hard_case_has_its_closed_form():
    hessian, along = np.diag([-1.0, 2.0]), np.sqrt(4 - 1 / 9)  # |d| = 2 / L, d_2 = -1 / (2 + 1)
    np.testing.assert_allclose(np.abs(cubic_step([0.0, 1.0], hessian)), [along, 1 / 3])
    np.testing.assert_allclose(cubic_step([1e-17, 1.0], hessian), [-along, -1 / 3])
    np.testing.assert_allclose(cubic_step([-1e-200, 1.0], hessian), [along, -1 / 3])
    # Beyond |g_2| = 6 the step is long enough without the lowest axis.
    np.testing.assert_allclose(cubic_step([0.0, 8.0], hessian), [0.0, 2 - np.sqrt(20)], atol=1e-15)


def test_cubic_step_leaves_a_saddle_and_stays_at_a_minimum():
    assert np.abs(cubic_step([0.0, 0.0], np.diag([-3.0, 1.0]))).tolist() == [6.0, 0.0]
    assert cubic_step([0.0, 0.0], np.diag([3.0, 0.0])).tolist() == [0.0, 0.0]
    assert cubic_step([0.0, 0.0], np.zeros((2, 2))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [1e-140, 1e-20, 1e20, 1e140])
def test_cubic_step_scales_with_the_problem(scale):
    gradient, hessian, fisher = random_problem(0)
    step = cubic_step(gradient, hessian, fisher)
    scaled = cubic_step(gradient * scale**2, hessian * scale, fisher)
    np.testing.assert_allclose(scaled / scale, step, rtol=1e-9)
