"""Updates: where they lead, and that they stay in the box and the trust region."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from newton_problems import (
    BETA,
    DEFAULT,
    DIRECTIONS,
    DISTRIBUTIONS,
    HARD_LOSSES,
    every_distribution,
    every_estimator,
    one_update,
    settings_of,
    update,
)

from optuna_s2e.distributions import Beta, Categorical, Dirichlet, SearchDistribution
from optuna_s2e.estimators import newton
from optuna_s2e.estimators.newton import descent_step


def search(distribution, f, settings, *, n=600, n_updates=30):
    rng, theta = np.random.default_rng(0), distribution.uniform_theta()
    for _ in range(n_updates):
        theta = one_update(distribution, theta, f, rng, n, settings).theta
    return theta


@every_estimator
def test_first_update_descends(estimator):
    settings = settings_of(estimator)
    step = one_update(
        BETA, np.ones(2), lambda X: X[:, 0], np.random.default_rng(0), 2000, settings
    )
    assert BETA.mean(step.theta)[0] < 0.45


def test_newton_is_not_held_at_the_corner_where_the_search_starts():
    # Regression: clipping a step of all components, (-8.0, -2.3), returned to (1, 1) for ever.
    X = BETA.sample(np.ones(2), np.random.default_rng(0), 100_000)
    step = update(BETA, np.ones(2), X, X[:, 0], np.zeros(len(X)), DEFAULT)
    assert step.theta[0] == 1.0
    assert step.theta[1] > 1.5


def quadratic(X):
    return ((X - np.array([0.3, 0.8])) ** 2).sum(axis=1)


def cost_of_category(X):
    return np.array([3.0, 1.0, 2.0, 0.0, 4.0])[X[:, 0].astype(int)]


def cost_on_simplex(X):
    return X @ np.array([2.0, 1.0, 0.0, 3.0])


@pytest.mark.parametrize("estimator", ["newton", "natural"])
def test_repeated_updates_reach_the_minimum_of_a_quadratic(estimator):
    distribution = SearchDistribution((Beta(), Beta()))
    theta = search(distribution, quadratic, settings_of(estimator))
    np.testing.assert_allclose(distribution.mean(theta), [0.3, 0.8], atol=0.03)
    concentration = theta.reshape(2, 2).sum(axis=1)
    assert np.all(concentration > 80.0)  # the minimum of J over theta is a point mass


@pytest.mark.parametrize("estimator", ["newton", "natural"])
def test_repeated_updates_find_the_best_category(estimator):
    distribution = SearchDistribution((Categorical(5),))
    theta = search(distribution, cost_of_category, settings_of(estimator))
    np.testing.assert_allclose(theta, [1, 1, 1, 100, 1])  # the largest ratio in the box


@pytest.mark.parametrize("estimator", ["newton", "natural"])
def test_repeated_updates_find_the_best_corner_of_a_simplex(estimator):
    distribution = SearchDistribution((Dirichlet(4),))
    theta = search(distribution, cost_on_simplex, settings_of(estimator))
    assert distribution.mean(theta)[2] > 0.9  # the box allows 100 / 103


def test_plain_gradient_prefers_the_minimum():
    # Slow by nature: scores shrink as 1 / theta, so only the ranking is asked for.
    settings = settings_of("gradient", step_size=5)
    beta, category = SearchDistribution((Beta(), Beta())), SearchDistribution((Categorical(5),))
    simplex = SearchDistribution((Dirichlet(4),))
    point = beta.mean(search(beta, quadratic, settings))
    np.testing.assert_allclose(point, [0.3, 0.8], atol=0.06)
    assert category.mean(search(category, cost_of_category, settings)).tolist() == [3.0]
    assert simplex.mean(search(simplex, cost_on_simplex, settings))[2] > 0.5


def test_past_draws_under_their_mixture_improve_the_estimate():
    theta, past = np.array([3.0, 2.0]), np.array([1.0, 1.0])
    settings, rng = settings_of("natural"), np.random.default_rng(0)

    def f(X):
        return (X[:, 0] - 0.2) ** 2

    truth = one_update(BETA, theta, f, rng, 200_000, settings).theta
    errors = {"fresh": [], "all": []}
    for _ in range(200):
        X = np.concatenate([BETA.sample(theta, rng, 6), BETA.sample(past, rng, 60)])
        shares = np.log([6 / 66, 60 / 66])
        densities = [BETA.log_density(t, X) for t in (theta, past)]
        drawn = np.logaddexp(*(shares[:, None] + densities))
        fresh = BETA.log_density(theta, X[:6])
        steps = {
            "all": update(BETA, theta, X, f(X), drawn, settings),
            "fresh": update(BETA, theta, X[:6], f(X[:6]), fresh, settings),
        }
        assert steps["all"].effective_sample_size > 20.0
        assert steps["fresh"].effective_sample_size == 6.0
        for name, step in steps.items():
            errors[name].append(np.abs(step.theta - truth).sum())
    assert scipy.stats.ttest_rel(errors["all"], errors["fresh"], alternative="less").pvalue < 1e-4


@pytest.mark.parametrize("estimator", ["gradient", "natural"])
def test_a_draw_of_weight_two_moves_theta_like_two_draws(estimator):
    theta, X, f = np.array([3.0, 2.0]), np.array([[0.2], [0.5], [0.9]]), np.array([0.0, 3.0, 1.0])
    thetas = []
    for rows, weights in (([0, 1, 2, 2], [1, 1, 1, 1]), ([0, 1, 2], [1, 1, 2])):
        # A step proportional to N undoes the mean over N: only the baseline could differ.
        settings = settings_of(estimator, step_size=0.1 * len(rows))
        drawn = BETA.log_density(theta, X[rows]) - np.log(weights)
        thetas.append(update(BETA, theta, X[rows], f[rows], drawn, settings).theta)
    assert not np.allclose(thetas[0], theta, rtol=1e-2)
    np.testing.assert_allclose(thetas[1], thetas[0], rtol=1e-12)


@every_estimator
def test_affine_changes_of_the_losses_change_nothing(estimator):
    distribution, rng = DISTRIBUTIONS[-1], np.random.default_rng(0)
    theta, settings = rng.uniform(1, 5, distribution.n_theta), settings_of(estimator)
    X, f = distribution.sample(theta, rng, 9), rng.normal(size=9)
    drawn = distribution.log_density(theta, X)
    plain = update(distribution, theta, X, f, drawn, settings)
    changed = update(distribution, theta, X, 1e3 * f + 7.0, drawn, settings)
    np.testing.assert_allclose(changed.theta, plain.theta, rtol=1e-9)


@every_estimator
@every_distribution
def test_equal_inputs_give_equal_bits(distribution, estimator):
    rng, settings = np.random.default_rng(0), settings_of(estimator)
    theta = distribution.project(rng.uniform(1, 5, distribution.n_theta), settings.theta_bounds)
    X, f = distribution.sample(theta, rng, 11), rng.normal(size=11)
    drawn, kept = distribution.log_density(theta, X), (theta.copy(), X.copy(), f.copy())
    first = update(distribution, theta, X, f, drawn, settings)
    np.random.default_rng().normal(size=5)
    again = update(distribution, theta.copy(), np.asfortranarray(X), f.tolist(), drawn, settings)
    assert first.theta.tobytes() == again.theta.tobytes()
    assert first[1:] == again[1:]
    assert all(np.array_equal(a, b) for a, b in zip(kept, (theta, X, f), strict=True))


def assert_sound(distribution, step, settings=DEFAULT):
    low, high = settings.theta_bounds
    assert step.theta.shape == (distribution.n_theta,)
    assert np.all((step.theta >= low) & (step.theta <= high))
    assert all(np.isfinite(number) for number in step[1:])
    assert 0.0 <= step.kl <= settings.max_kl


@every_estimator
@every_distribution
@pytest.mark.parametrize("losses", HARD_LOSSES.values(), ids=HARD_LOSSES.keys())
@pytest.mark.parametrize("repeated", [False, True], ids=["points", "one point repeated"])
def test_hard_inputs_leave_theta_finite_and_in_the_box(distribution, estimator, losses, repeated):
    settings, rng = settings_of(estimator), np.random.default_rng(0)
    X = distribution.sample(distribution.uniform_theta(), rng, len(losses))
    X = np.repeat(X[:1], len(losses), axis=0) if repeated else X
    theta = distribution.project(rng.uniform(1, 100, distribution.n_theta), (1.0, 100.0))
    for drawn in (distribution.log_density(theta, X), np.full(len(X), 900.0), -900.0 - X[:, 0]):
        assert_sound(distribution, update(distribution, theta, X, losses, drawn, settings))


@pytest.mark.parametrize("losses", [[0.3] * 6, [np.inf] * 6, [2.0]])
def test_losses_without_contrast_keep_theta(losses):
    theta = np.array([2.0, 5.0])
    X = BETA.sample(theta, np.random.default_rng(0), len(losses))
    step = update(BETA, theta, X, losses, BETA.log_density(theta, X), DEFAULT)
    assert np.array_equal(step.theta, theta)
    assert (step.gradient_norm, step.kl) == (0.0, 0.0)


@every_estimator
def test_update_is_the_descent_step_of_its_estimates(estimator):
    distribution, rng = DISTRIBUTIONS[-1], np.random.default_rng(0)
    settings = settings_of(estimator)
    theta = rng.uniform(1, 5, distribution.n_theta)
    X, f = distribution.sample(theta, rng, 9), rng.normal(size=9)
    s, f_hat = distribution.score(theta, X), scipy.stats.zscore(f)
    gradient = np.mean(f_hat[:, None] * s, axis=0)
    terms = [
        z * (np.outer(v, v) + h)
        for z, v, h in zip(f_hat, s, distribution.hessian(theta, X), strict=True)
    ]
    expected = descent_step(
        distribution,
        theta,
        gradient,
        np.mean(terms, axis=0),
        direction=DIRECTIONS[estimator],
        reference=theta,
        settings=settings,
    )
    step = update(distribution, theta, X, f, distribution.log_density(theta, X), settings)
    np.testing.assert_allclose(step.theta, expected.theta, rtol=1e-9)
    assert not np.allclose(step.theta, theta)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 12),
    max_kl=st.floats(1e-6, 5.0),
    step_size=st.floats(1e-3, 1e3),
    estimator=st.sampled_from(sorted(DIRECTIONS)),
    distribution=st.sampled_from(DISTRIBUTIONS),
)
@hypothesis_settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_trust_region_and_box_hold(seed, n, max_kl, step_size, estimator, distribution):
    settings = settings_of(estimator, max_kl=max_kl, step_size=step_size)
    rng = np.random.default_rng(seed)
    theta = distribution.project(rng.uniform(1, 100, distribution.n_theta), (1.0, 100.0))
    X = distribution.sample(distribution.uniform_theta(), rng, n)
    drawn = distribution.log_density(theta, X) + rng.normal(0.0, 2.0, n)
    step = update(distribution, theta, X, rng.normal(size=n), drawn, settings)
    assert_sound(distribution, step, settings)
    assert step.kl == pytest.approx(distribution.kl(step.theta, theta), abs=1e-12)
    assert 0.0 <= step.step_scale <= 1.0
    assert step.step_scale > 0.0 or np.array_equal(step.theta, theta)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": [1.0, np.nan]}, "losses[1] must be a number, but got nan."),
        ({"losses": [1.0]}, "losses must have shape (N,) = (2,), but got (1,)."),
        (
            {"log_density_drawn": [[0.0], [0.0]]},
            "log_density_drawn must have shape (N,) = (2,), but got (2, 1).",
        ),
        (
            {"log_density_drawn": [0.0, -np.inf]},
            "log_density_drawn[1] must be finite, but got -inf.",
        ),
        ({"points": [[0.5, 0.5]]}, "X must have shape (K, n_columns) = (1, 1), but got (1, 2)."),
        ({"theta": [1.0, -1.0]}, "theta[1] must be finite and > 0, but got -1.0."),
        (
            {"points": np.zeros((0, 1)), "losses": [], "log_density_drawn": []},
            "losses must have shape (N,) and not be empty, but got (0,).",
        ),
    ],
)
def test_update_names_the_argument_at_fault(arguments, message):
    correct = {
        "theta": [1.0, 1.0],
        "points": [[0.2], [0.7]],
        "losses": [1.0, 2.0],
        "log_density_drawn": [0.0, 0.0],
    }
    with pytest.raises(ValueError) as caught:
        newton.update(BETA, **(correct | arguments), settings=DEFAULT)
    assert str(caught.value).startswith(message)


def test_update_refuses_an_estimator_without_a_direction():
    with pytest.raises(ValueError, match="settings must be of an estimator with a direction"):
        update(BETA, [1.0, 1.0], [[0.2]], [1.0], [0.0], settings_of("surrogate"))
