"""Directions of descent, against linear algebra done by hand."""

import numpy as np
import pytest
from newton_problems import DEFAULT, DIRECTIONS, every_estimator, random_problem, settings_of

from optuna_s2e.distributions import Categorical, SearchDistribution
from optuna_s2e.estimators import ESTIMATORS
from optuna_s2e.estimators.newton import (
    gradient_direction,
    gradient_estimate,
    hessian_estimate,
    natural_gradient_direction,
    newton_direction,
    z_scores,
)


def test_newton_step_solves_the_system_where_assumption_3_holds():
    gradient, hessian, fisher = random_problem(0)
    hessian = hessian @ hessian + np.eye(6)
    settings = settings_of(curvature_bounds=(1e-9, 1e9))
    direction = newton_direction(gradient, hessian, fisher, settings)
    np.testing.assert_allclose(direction, -np.linalg.solve(hessian, gradient), rtol=1e-8)


def test_newton_step_brings_the_curvature_into_its_bounds():
    hessian, gradient = np.diag([-3.0, 0.0, 2.0, 50.0]), np.array([1.0, 1.0, 1.0, 1.0])
    direction = newton_direction(gradient, hessian, np.eye(4), DEFAULT)
    np.testing.assert_allclose(direction, [-10.0, -10.0, -0.5, -0.1])


def test_natural_gradient_is_the_pseudo_inverse_times_the_gradient():
    gradient, _, fisher = random_problem(1)
    fisher[:, 2] = fisher[2, :] = 0.0
    direction = natural_gradient_direction(gradient, None, fisher, DEFAULT)
    np.testing.assert_allclose(direction, -np.linalg.pinv(fisher) @ gradient, atol=1e-12)


def test_gradient_step_is_minus_the_gradient():
    gradient, _, fisher = random_problem(2)
    assert np.array_equal(gradient_direction(gradient, None, fisher, DEFAULT), -gradient)


@every_estimator
def test_direction_descends_for_any_hessian(estimator):
    for seed in range(30):
        gradient, hessian, fisher = random_problem(seed)
        direction = DIRECTIONS[estimator](gradient, hessian, fisher, DEFAULT)
        assert direction.shape == (6,)
        assert gradient @ direction < 0.0


@every_estimator
def test_categorical_block_gets_no_step_along_its_own_scale(estimator):
    distribution, theta = SearchDistribution((Categorical(4),)), np.array([1.0, 2.0, 3.0, 9.0])
    X = np.array([[0.0], [3.0], [2.0], [2.0], [1.0]])
    scores, f = distribution.score(theta, X), z_scores([1.0, 5.0, 2.0, 2.0, -3.0])
    gradient = gradient_estimate(f, scores, np.ones(5))
    hessian = hessian_estimate(f, scores, distribution.hessian(theta, X), np.ones(5))
    fisher = distribution.fisher(theta)
    direction = DIRECTIONS[estimator](gradient, hessian, fisher, DEFAULT)
    assert abs(direction @ theta) <= 1e-10 * np.linalg.norm(direction) * np.linalg.norm(theta)


@every_estimator
def test_only_directions_that_need_a_hessian_refuse_to_go_without(estimator):
    def direction():
        return DIRECTIONS[estimator](np.ones(2), None, np.eye(2), DEFAULT)

    if ESTIMATORS[estimator].needs_hessian:
        with pytest.raises(ValueError, match="hessian must be an array"):
            direction()
    else:
        assert direction().tolist() == [-1.0, -1.0]
