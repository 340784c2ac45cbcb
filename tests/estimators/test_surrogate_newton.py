"""Newton's method on a model: where theta goes, and the Hessian of Proposition 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from optuna_s2e.distributions import Beta, Categorical, Dirichlet, SearchDistribution, SearchSpace
from optuna_s2e.estimators import newton, resolve, surrogate_newton
from optuna_s2e.surrogate import Model

UNIT = SearchSpace.of({name: FloatDistribution(0, 1) for name in "ab"})


def model_of(f: Any, n: int = 40) -> Model:
    x = np.random.default_rng(0).uniform(size=(n, 2))
    return Model.fit(UNIT, x, active=np.ones(x.shape, dtype=bool), losses=f(x))


def bowl(x: np.ndarray) -> np.ndarray:
    return np.asarray(((x - [0.2, 0.7]) ** 2).sum(axis=1))


def test_theta_moves_to_the_minimum_of_the_model() -> None:
    settings, model, theta = resolve({}), model_of(bowl), UNIT.distribution.uniform_theta()
    for seed in range(8):
        step = surrogate_newton.update(
            theta, model, settings=settings, rng=np.random.default_rng(seed)
        )
        assert 0 < step.kl <= settings.max_kl
        theta = step.theta
    np.testing.assert_allclose(UNIT.distribution.mean(theta), [0.2, 0.7], atol=0.05)


def test_a_flat_model_keeps_theta() -> None:
    settings, theta = resolve({}), np.array([2.0, 3.0, 1.0, 1.0])
    model = model_of(lambda x: np.ones(len(x)))
    step = surrogate_newton.update(theta, model, settings=settings, rng=np.random.default_rng(0))
    assert np.array_equal(step.theta, theta)
    assert (step.gradient_norm, step.kl) == (0.0, 0.0)


def test_steps_among_categories_use_both_terms_of_proposition_1() -> None:
    """Near theta = 1 the exact Hessian, (2 J - f_a - f_b) / S^2, has no curvature along a step.

    So its eigenvalues are raised to eta = 1, and a step from theta = 1 is -step_size (f - J). The
    first term of Proposition 1 alone has a curvature of 2 towards the bad category.
    """
    f = np.array([0.0, 0.45, 0.5, 0.5, 0.5, 0.5, 0.5, 1.5])  # 1.5: as far as losses count
    space = SearchSpace.of({"c": CategoricalDistribution(range(8))})
    x = np.repeat(np.arange(8.0), 5)[:, None]
    model = Model.fit(space, x, active=np.ones(x.shape, dtype=bool), losses=np.repeat(f, 5))
    settings = resolve({"step_size": 0.01, "curvature_bounds": (1.0, 10.0)})
    expected = 1.0 - 0.01 * surrogate_newton.N_STEPS * (f - f.mean()) / f.std()
    found = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        theta = surrogate_newton.update(np.ones(8), model, settings=settings, rng=rng).theta
        found.append(np.log(theta[7] / theta[2:7].mean()))
    np.testing.assert_allclose(found, np.log(expected[7] / expected[2]), rtol=0.2)


@pytest.mark.parametrize(
    "families",
    [
        (Beta(), Dirichlet(4), Beta()),
        (Beta(), Categorical(3), Dirichlet(3), Categorical(5)),
        (Categorical(4),),
    ],
)
def test_a_step_is_that_of_the_whole_hessian_of_proposition_1(families: tuple[Any, ...]) -> None:
    """The second term of Beta and Dirichlet is left out: it is zero but for rounding."""
    distribution, settings = SearchDistribution(families), resolve({})
    for seed in range(5):
        rng = np.random.default_rng(seed)
        theta = rng.uniform(1.5, 5.0, distribution.n_theta)
        points = distribution.sample(theta, rng, 60)
        f, scores = newton.z_scores(rng.exponential(size=60)), distribution.score(theta, points)
        gradient = newton.gradient_estimate(f, scores, np.ones(60))
        hessian = newton.hessian_estimate(
            f, scores, distribution.hessian(theta, points), np.ones(60)
        )
        expected = newton.descent_step(
            distribution, theta, gradient, hessian,
            direction=newton.newton_direction, reference=theta, settings=settings,
        )  # fmt: skip
        told, step = surrogate_newton._step(distribution, theta, points, f, theta, settings)
        np.testing.assert_array_equal(told, gradient)
        np.testing.assert_allclose(step.theta, expected.theta, rtol=1e-9)
        assert step.scale == expected.scale
