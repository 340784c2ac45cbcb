"""Single steps: the longest one inside the box and the trust region."""

import numpy as np
import pytest
from newton_problems import BETA, DEFAULT, DIRECTIONS, every_estimator, settings_of

from optuna_s2e.estimators.newton import descent_step, gradient_direction


@every_estimator
@pytest.mark.parametrize(
    ("gradient", "hessian"),
    [
        ([1.0, -1.0], [[0.0, 0.0], [0.0, 0.0]]),
        ([1.0, -1.0], [[-5.0, 1.0], [1.0, -7.0]]),
        ([1e308, -1e308], [[1e308, -1e308], [-1e308, 1e308]]),
        ([1e-300, 1e-300], [[1e308, 0.0], [0.0, 0.0]]),
        ([np.nan, 1.0], [[1.0, 0.0], [0.0, 1.0]]),
        ([np.inf, 1.0], [[1.0, 0.0], [0.0, 1.0]]),
        ([1.0, 1.0], [[np.nan, 0.0], [0.0, 1.0]]),
        ([1.0, 1.0], [[np.inf, 0.0], [0.0, -np.inf]]),
    ],
)
def test_singular_indefinite_huge_and_missing_numbers_are_safe(estimator, gradient, hessian):
    for theta in (np.ones(2), np.array([30.0, 100.0])):
        step = descent_step(
            BETA,
            theta,
            np.array(gradient),
            np.array(hessian),
            direction=DIRECTIONS[estimator],
            reference=theta,
            settings=settings_of(estimator),
        )
        assert np.all((step.theta >= 1.0) & (step.theta <= 100.0))
        assert step.kl <= 1.0


def raise_no_convergence(*_):
    raise np.linalg.LinAlgError("Eigenvalues did not converge")


@pytest.mark.parametrize(
    "broken",
    [lambda g, *_: g * np.nan, lambda g, *_: g * np.inf, raise_no_convergence],
    ids=["nan", "inf", "no convergence"],
)
def test_a_direction_that_breaks_down_keeps_theta(broken):
    theta = np.array([2.0, 3.0])
    step = descent_step(
        BETA,
        theta,
        np.array([1.0, -1.0]),
        np.eye(2),
        direction=broken,
        reference=theta,
        settings=DEFAULT,
    )
    assert np.array_equal(step.theta, theta)
    assert (step.kl, step.scale) == (0.0, 0.0)


def test_the_step_is_step_size_times_the_direction():
    def fixed(gradient, hessian, fisher, settings):
        assert hessian.shape == fisher.shape == (2, 2)
        return np.array([0.25, -0.5])

    theta = np.array([3.0, 3.0])
    step = descent_step(
        BETA,
        theta,
        np.array([1.0, -1.0]),
        np.eye(2),
        direction=fixed,
        reference=theta,
        settings=settings_of(step_size=2.0),
    )
    assert step.theta.tolist() == [3.5, 2.0]
    assert step.scale == 1.0


def test_backtracking_takes_the_longest_step_that_fits():
    gradient, settings = np.array([0.0, -20.0]), settings_of("gradient")
    theta = np.array([1.0, 1.0])
    step = descent_step(
        BETA,
        theta,
        gradient,
        None,
        direction=gradient_direction,
        reference=theta,
        settings=settings,
    )
    backtracks = np.log(step.scale) / np.log(0.85)
    assert backtracks == pytest.approx(round(backtracks))
    assert round(backtracks) > 0
    assert step.theta.tolist() == pytest.approx([1.0, 1.0 + 20.0 * step.scale])
    longer = np.array([1.0, 1.0 + 20.0 * step.scale / 0.85])
    assert BETA.kl(step.theta, theta) <= settings.max_kl < BETA.kl(longer, theta)


def test_trust_region_is_measured_from_the_reference():
    reference, theta = np.array([1.0, 1.0]), np.array([1.0, 3.0])
    settings = settings_of("gradient", max_kl=BETA.kl([1.0, 3.5], reference))
    step = descent_step(
        BETA,
        theta,
        np.array([0.0, -1.0]),
        None,
        direction=gradient_direction,
        reference=reference,
        settings=settings,
    )
    assert 3.4 < step.theta[1] <= 3.5
    assert step.kl == BETA.kl(step.theta, reference)
