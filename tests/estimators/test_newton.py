"""The update rules against closed forms, linear algebra done by hand and Monte Carlo."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optuna_s2e.distributions._search_distribution import (
    Beta,
    Categorical,
    Dirichlet,
    SearchDistribution,
)
from optuna_s2e.estimators.newton import (
    ESTIMATORS,
    descent_step,
    effective_sample_size,
    gradient_estimate,
    hessian_estimate,
    importance_weights,
    standardize,
    update,
)
from optuna_s2e.estimators.settings import UpdateSettings

BETA = SearchDistribution((Beta(),))
DISTRIBUTIONS = [
    BETA,
    SearchDistribution((Dirichlet(3),)),
    SearchDistribution((Categorical(4),)),
    SearchDistribution((Dirichlet(4), Beta(), Categorical(3), Beta())),
]
DEFAULT = UpdateSettings()
Z = 5.0  # bound of a Monte Carlo error in standard errors

every_estimator = pytest.mark.parametrize("estimator", list(ESTIMATORS))
every_distribution = pytest.mark.parametrize(
    "distribution", DISTRIBUTIONS, ids=lambda d: "*".join(map(repr, d.families))
)


def one_update(distribution, theta, f, rng, n, settings=DEFAULT):
    """Draw n points of p_theta and update with their losses f(X)."""
    X = distribution.sample(theta, rng, n)
    return update(distribution, theta, X, f(X), distribution.log_density(theta, X), settings)


def search(distribution, f, settings, *, n=600, n_updates=30):
    rng, theta = np.random.default_rng(0), distribution.uniform_theta()
    for _ in range(n_updates):
        theta = one_update(distribution, theta, f, rng, n, settings).theta
    return theta


def assert_mean(samples, expected):
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(axis=0) - expected) <= Z * error)


# Losses


def test_standardized_losses_are_z_scores():
    losses = np.random.default_rng(0).normal(3.0, 7.0, 20)
    np.testing.assert_allclose(standardize(losses), scipy.stats.zscore(losses), atol=1e-13)


def test_weights_of_one_standardize_like_no_weights():
    losses = np.random.default_rng(0).normal(size=7)
    assert np.array_equal(standardize(losses, weights=np.ones(7)), standardize(losses))


def test_weights_standardize_like_repeated_draws():
    losses = np.array([1.0, 4.0, 9.0])
    repeated = standardize([1.0, 4.0, 4.0, 9.0, 9.0, 9.0])
    weighted = standardize(losses, weights=[1.0, 2.0, 3.0])
    np.testing.assert_allclose(weighted, repeated[[0, 1, 3]], rtol=1e-14)


def test_infinite_losses_count_as_the_worst_and_best_finite_one():
    infinite = standardize([np.inf, 1.0, 3.0, -np.inf])
    assert np.array_equal(infinite, standardize([3.0, 1.0, 3.0, 1.0]))


@pytest.mark.parametrize(
    "losses",
    [[0.1] * 3, [0.0, 0.0], [5.0], [np.inf, -np.inf], [np.inf] * 2, [1e308] * 3, [7.0, np.inf]],
)
def test_losses_without_any_contrast_become_zeros(losses):
    assert standardize(losses).tolist() == [0.0] * len(losses)


@pytest.mark.parametrize("weights", [[0.0, 1.0], [0.0, 0.0]])
def test_losses_without_any_contrast_among_weighted_draws_become_zeros(weights):
    assert not standardize([1.0, 2.0], weights=weights).any()


@pytest.mark.parametrize("scale", [1e308, 5e-324, 1e-300, 1.0])
def test_losses_of_any_magnitude_are_standardized(scale):
    np.testing.assert_allclose(standardize([scale, -scale]), [1.0, -1.0])
    np.testing.assert_allclose(standardize([scale, 0.0]), [1.0, -1.0])


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


# Directions


def random_problem(seed, n=6):
    rng = np.random.default_rng(seed)
    gradient, hessian, root = rng.normal(size=n), rng.normal(size=(n, n)), rng.normal(size=(n, n))
    return gradient, hessian + hessian.T, root @ root.T + 0.1 * np.eye(n)


def test_newton_step_solves_the_system_where_assumption_3_holds():
    gradient, hessian, fisher = random_problem(0)
    hessian = hessian @ hessian + np.eye(6)
    settings = UpdateSettings(curvature_bounds=(1e-9, 1e9))
    direction = ESTIMATORS["newton"](gradient, hessian, fisher, settings)
    np.testing.assert_allclose(direction, -np.linalg.solve(hessian, gradient), rtol=1e-8)


def test_newton_step_brings_the_curvature_into_its_bounds():
    hessian, gradient = np.diag([-3.0, 0.0, 2.0, 50.0]), np.array([1.0, 1.0, 1.0, 1.0])
    direction = ESTIMATORS["newton"](gradient, hessian, np.eye(4), DEFAULT)
    np.testing.assert_allclose(direction, [-10.0, -10.0, -0.5, -0.1])


def test_natural_gradient_is_the_pseudo_inverse_times_the_gradient():
    gradient, _, fisher = random_problem(1)
    fisher[:, 2] = fisher[2, :] = 0.0
    direction = ESTIMATORS["natural"](gradient, None, fisher, DEFAULT)
    np.testing.assert_allclose(direction, -np.linalg.pinv(fisher) @ gradient, atol=1e-12)


def test_gradient_step_is_minus_the_gradient():
    gradient, _, fisher = random_problem(2)
    assert np.array_equal(ESTIMATORS["gradient"](gradient, None, fisher, DEFAULT), -gradient)


@every_estimator
def test_direction_descends_for_any_hessian(estimator):
    for seed in range(30):
        gradient, hessian, fisher = random_problem(seed)
        direction = ESTIMATORS[estimator](gradient, hessian, fisher, DEFAULT)
        assert direction.shape == (6,)
        assert gradient @ direction < 0.0


@every_estimator
def test_categorical_block_gets_no_step_along_its_own_scale(estimator):
    distribution, theta = SearchDistribution((Categorical(4),)), np.array([1.0, 2.0, 3.0, 9.0])
    X = np.array([[0.0], [3.0], [2.0], [2.0], [1.0]])
    scores, f = distribution.score(theta, X), standardize([1.0, 5.0, 2.0, 2.0, -3.0])
    gradient = gradient_estimate(f, scores, np.ones(5))
    hessian = hessian_estimate(f, scores, distribution.hessian(theta, X), np.ones(5))
    fisher = distribution.fisher(theta)
    direction = ESTIMATORS[estimator](gradient, hessian, fisher, DEFAULT)
    assert abs(direction @ theta) <= 1e-10 * np.linalg.norm(direction) * np.linalg.norm(theta)


@pytest.mark.parametrize("estimator", ["newton", "cubic"])
def test_second_order_direction_without_hessian_is_refused(estimator):
    with pytest.raises(ValueError, match="hessian must be an array"):
        ESTIMATORS[estimator](np.ones(2), None, np.eye(2), DEFAULT)


def cubic_step(gradient, hessian, fisher=None, lipschitz=1.0):
    gradient, hessian = np.array(gradient, float), np.array(hessian, float)
    fisher = np.eye(len(gradient)) if fisher is None else fisher
    settings = UpdateSettings(curvature_bounds=(min(0.1, lipschitz), lipschitz))
    return ESTIMATORS["cubic"](gradient, hessian, fisher, settings)


def cubic_model(d, gradient, hessian, fisher, lipschitz):
    return gradient @ d + d @ hessian @ d / 2 + lipschitz * (d @ fisher @ d) ** 1.5 / 6


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
        lowest = min(scipy.optimize.minimize(cubic_model, x, model).fun for x in starts)
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


# Updates


@every_estimator
def test_first_update_descends(estimator):
    settings = UpdateSettings(estimator=estimator)
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
    theta = search(distribution, quadratic, UpdateSettings(estimator=estimator))
    np.testing.assert_allclose(distribution.mean(theta), [0.3, 0.8], atol=0.03)
    concentration = theta.reshape(2, 2).sum(axis=1)
    assert np.all(concentration > 80.0)  # the minimum of J over theta is a point mass


@pytest.mark.parametrize("estimator", ["newton", "natural"])
def test_repeated_updates_find_the_best_category(estimator):
    distribution = SearchDistribution((Categorical(5),))
    theta = search(distribution, cost_of_category, UpdateSettings(estimator=estimator))
    np.testing.assert_allclose(theta, [1, 1, 1, 100, 1])  # the largest ratio in the box


@pytest.mark.parametrize("estimator", ["newton", "natural"])
def test_repeated_updates_find_the_best_corner_of_a_simplex(estimator):
    distribution = SearchDistribution((Dirichlet(4),))
    theta = search(distribution, cost_on_simplex, UpdateSettings(estimator=estimator))
    assert distribution.mean(theta)[2] > 0.9  # the box allows 100 / 103


def test_plain_gradient_prefers_the_minimum():
    # Slow by nature: scores shrink as 1 / theta, so only the ranking is asked for.
    settings = UpdateSettings(estimator="gradient", step_size=5)
    beta, category = SearchDistribution((Beta(), Beta())), SearchDistribution((Categorical(5),))
    simplex = SearchDistribution((Dirichlet(4),))
    point = beta.mean(search(beta, quadratic, settings))
    np.testing.assert_allclose(point, [0.3, 0.8], atol=0.06)
    assert category.mean(search(category, cost_of_category, settings)).tolist() == [3.0]
    assert simplex.mean(search(simplex, cost_on_simplex, settings))[2] > 0.5


def test_past_draws_under_their_mixture_improve_the_estimate():
    theta, past = np.array([3.0, 2.0]), np.array([1.0, 1.0])
    settings, rng = UpdateSettings(estimator="natural"), np.random.default_rng(0)

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
        settings = UpdateSettings(estimator=estimator, step_size=0.1 * len(rows))
        drawn = BETA.log_density(theta, X[rows]) - np.log(weights)
        thetas.append(update(BETA, theta, X[rows], f[rows], drawn, settings).theta)
    assert not np.allclose(thetas[0], theta, rtol=1e-2)
    np.testing.assert_allclose(thetas[1], thetas[0], rtol=1e-12)


@every_estimator
def test_affine_changes_of_the_losses_change_nothing(estimator):
    distribution, rng = DISTRIBUTIONS[-1], np.random.default_rng(0)
    theta, settings = rng.uniform(1, 5, distribution.n_theta), UpdateSettings(estimator=estimator)
    X, f = distribution.sample(theta, rng, 9), rng.normal(size=9)
    drawn = distribution.log_density(theta, X)
    plain = update(distribution, theta, X, f, drawn, settings)
    changed = update(distribution, theta, X, 1e3 * f + 7.0, drawn, settings)
    np.testing.assert_allclose(changed.theta, plain.theta, rtol=1e-9)


@every_estimator
@every_distribution
def test_equal_inputs_give_equal_bits(distribution, estimator):
    rng, settings = np.random.default_rng(0), UpdateSettings(estimator=estimator)
    theta = distribution.project(rng.uniform(1, 5, distribution.n_theta), settings.theta_bounds)
    X, f = distribution.sample(theta, rng, 11), rng.normal(size=11)
    drawn, kept = distribution.log_density(theta, X), (theta.copy(), X.copy(), f.copy())
    first = update(distribution, theta, X, f, drawn, settings)
    np.random.default_rng().normal(size=5)
    again = update(distribution, theta.copy(), np.asfortranarray(X), f.tolist(), drawn, settings)
    assert first.theta.tobytes() == again.theta.tobytes()
    assert first[1:] == again[1:]
    assert all(np.array_equal(a, b) for a, b in zip(kept, (theta, X, f), strict=True))


HARD_LOSSES = {
    "all equal": [0.3] * 6,
    "infinite": [np.inf, 1.0, 2.0, -np.inf, 0.0, np.inf],
    "all infinite": [np.inf] * 6,
    "huge": [1e308, -1e308, 1e308, 0.0, 1.0, -1e308],
    "subnormal": [5e-324, 0.0, 0.0, 1e-323, 0.0, 0.0],
    "one outlier": [1e308, 0.0, 1.0, 2.0, 3.0, 4.0],
    "one draw": [2.0],
}


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
    settings, rng = UpdateSettings(estimator=estimator), np.random.default_rng(0)
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
            direction=ESTIMATORS[estimator],
            reference=theta,
            settings=UpdateSettings(estimator=estimator),
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
def test_an_estimator_that_breaks_down_keeps_theta(monkeypatch, broken):
    monkeypatch.setitem(ESTIMATORS, "newton", broken)
    theta, settings = np.array([2.0, 3.0]), UpdateSettings(estimator="newton")
    step = one_update(BETA, theta, lambda X: X[:, 0], np.random.default_rng(0), 9, settings)
    assert np.array_equal(step.theta, theta)
    assert (step.kl, step.step_scale) == (0.0, 0.0)


def test_the_step_is_step_size_times_the_direction(monkeypatch):
    def fixed(gradient, hessian, fisher, settings):
        assert hessian.shape == fisher.shape == (2, 2)
        return np.array([0.25, -0.5])

    monkeypatch.setitem(ESTIMATORS, "newton", fixed)
    settings = UpdateSettings(estimator="newton", step_size=2.0)
    theta = np.array([3.0, 3.0])
    step = one_update(BETA, theta, lambda X: X[:, 0], np.random.default_rng(0), 9, settings)
    assert step.theta.tolist() == [3.5, 2.0]
    assert step.step_scale == 1.0


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 12),
    max_kl=st.floats(1e-6, 5.0),
    step_size=st.floats(1e-3, 1e3),
    estimator=st.sampled_from(sorted(ESTIMATORS)),
    distribution=st.sampled_from(DISTRIBUTIONS),
)
@hypothesis_settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_trust_region_and_box_hold(seed, n, max_kl, step_size, estimator, distribution):
    settings = UpdateSettings(estimator=estimator, max_kl=max_kl, step_size=step_size)
    rng = np.random.default_rng(seed)
    theta = distribution.project(rng.uniform(1, 100, distribution.n_theta), (1.0, 100.0))
    X = distribution.sample(distribution.uniform_theta(), rng, n)
    drawn = distribution.log_density(theta, X) + rng.normal(0.0, 2.0, n)
    step = update(distribution, theta, X, rng.normal(size=n), drawn, settings)
    assert_sound(distribution, step, settings)
    assert step.kl == pytest.approx(distribution.kl(step.theta, theta), abs=1e-12)
    assert 0.0 <= step.step_scale <= 1.0
    assert step.step_scale > 0.0 or np.array_equal(step.theta, theta)


def test_backtracking_takes_the_longest_step_that_fits():
    gradient, settings = np.array([0.0, -20.0]), UpdateSettings(estimator="gradient")
    theta = np.array([1.0, 1.0])
    step = descent_step(
        BETA,
        theta,
        gradient,
        None,
        direction=ESTIMATORS["gradient"],
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
    settings = UpdateSettings(estimator="gradient", max_kl=BETA.kl([1.0, 3.5], reference))
    step = descent_step(
        BETA,
        theta,
        np.array([0.0, -1.0]),
        None,
        direction=ESTIMATORS["gradient"],
        reference=reference,
        settings=settings,
    )
    assert 3.4 < step.theta[1] <= 3.5
    assert step.kl == BETA.kl(step.theta, reference)


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
            "losses must have shape (K,), K >= 1, but got (0,).",
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
        update(BETA, **(correct | arguments), settings=DEFAULT)
    assert str(caught.value).startswith(message)


def test_estimates_name_the_shape_at_fault():
    with pytest.raises(ValueError, match=r"weights must have shape \(N,\) = \(3,\), but got"):
        gradient_estimate(np.ones(3), np.ones((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"\(N, n_theta, n_theta\) = \(3, 2, 2\), but got"):
        hessian_estimate(np.ones(3), np.ones((3, 2)), np.ones((3, 2)), np.ones(3))
