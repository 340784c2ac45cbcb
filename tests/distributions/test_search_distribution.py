"""p_theta against scipy.stats, central differences, quadrature and Monte Carlo."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_s2e.distributions import Beta, Categorical, Dirichlet, Family, SearchDistribution

FAMILIES: list[Family] = [Beta(), Dirichlet(2), Dirichlet(4), Categorical(2), Categorical(5)]
PRODUCT = (Dirichlet(3), Categorical(4), Beta(), Beta())
DISTRIBUTIONS = [*(SearchDistribution((f,)) for f in FAMILIES), SearchDistribution(PRODUCT)]
Z = 5.0  # bound of a Monte Carlo error in standard errors: 6e-7 per comparison by chance

every_distribution = pytest.mark.parametrize(
    "distribution", DISTRIBUTIONS, ids=lambda d: "*".join(map(repr, d.families))
)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)


def some_theta(distribution, seed=0):
    return np.random.default_rng(seed).uniform(0.7, 6.0, distribution.n_theta)


def some_points(distribution, n, seed=1):
    return distribution.sample(some_theta(distribution), np.random.default_rng(seed), n)


def scipy_log_density(distribution, theta, X):
    """Sum the blocks' log densities, each by scipy."""
    total, column, start = np.zeros(len(X)), 0, 0
    for family in distribution.families:
        t = theta[start : start + family.n_theta]
        x = X[:, column : column + family.n_columns]
        if isinstance(family, Beta):
            total += scipy.stats.beta.logpdf(x[:, 0], t[0], t[1])
        elif isinstance(family, Dirichlet):
            total += scipy.stats.dirichlet.logpdf(x.T, t)
        else:
            counts = (x == np.arange(family.n)).astype(int)
            total += scipy.stats.multinomial.logpmf(counts, 1, t / t.sum())
        column, start = column + family.n_columns, start + family.n_theta
    return total


def central_differences(function, theta, h=1e-5):
    steps = h * np.eye(len(theta))
    slopes = [(function(theta + e) - function(theta - e)) / (2 * h) for e in steps]
    return np.stack(slopes, axis=-1)


def assert_mean(samples, expected):
    """Assert that the mean of independent rows is `expected` within Z standard errors."""
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(axis=0) - expected) <= Z * error + 1e-12)


@every_distribution
def test_log_density_agrees_with_scipy(distribution):
    X = some_points(distribution, 50)
    for seed in range(3):
        theta = some_theta(distribution, seed)
        expected = scipy_log_density(distribution, theta, X)
        np.testing.assert_allclose(distribution.log_density(theta, X), expected, rtol=1e-10)


@every_distribution
def test_score_is_the_gradient_of_the_log_density(distribution):
    theta, X = some_theta(distribution), some_points(distribution, 20)
    slope = central_differences(lambda t: scipy_log_density(distribution, t, X), theta)
    np.testing.assert_allclose(distribution.score(theta, X), slope, rtol=1e-6, atol=1e-7)


@every_distribution
def test_hessian_is_the_derivative_of_the_score(distribution):
    theta, X = some_theta(distribution), some_points(distribution, 20)
    slope = central_differences(lambda t: distribution.score(t, X), theta)
    np.testing.assert_allclose(distribution.hessian(theta, X), slope, rtol=1e-6, atol=1e-7)


@every_distribution
def test_score_has_mean_zero_and_covariance_fisher(distribution):
    theta = some_theta(distribution)
    X = distribution.sample(theta, np.random.default_rng(2), 40_000)
    scores = distribution.score(theta, X)
    assert_mean(scores, 0.0)
    assert_mean(scores[:, :, None] * scores[:, None, :], distribution.fisher(theta))


@every_distribution
def test_fisher_is_minus_the_expected_hessian(distribution):
    theta = some_theta(distribution)
    X = distribution.sample(theta, np.random.default_rng(3), 20_000)
    assert_mean(-distribution.hessian(theta, X), distribution.fisher(theta))


@every_distribution
def test_kl_is_the_expected_log_ratio(distribution):
    theta, other = some_theta(distribution, 4), some_theta(distribution, 5)
    X = distribution.sample(theta, np.random.default_rng(6), 40_000)
    log_p, log_q = (scipy_log_density(distribution, t, X) for t in (theta, other))
    assert_mean((log_p - log_q)[:, None], distribution.kl(theta, other))


@every_distribution
def test_sums_and_products_are_those_of_the_full_matrices(distribution):
    theta, X, rng = (
        some_theta(distribution),
        some_points(distribution, 20),
        np.random.default_rng(3),
    )
    weights, basis = rng.normal(size=20), rng.normal(size=(distribution.n_theta, 3))
    scores, hessians = distribution.score(theta, X), distribution.hessian(theta, X)
    expected = (
        weights @ scores,
        scores @ basis,
        basis.T @ np.tensordot(weights, hessians, 1) @ basis,
    )
    found = (
        distribution.score_sum(theta, X, weights),
        distribution.score_along(theta, X, basis),
        distribution.hessian_along(theta, X, weights, basis),
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("uniform", [True, False])
@every_distribution
def test_tangents_are_orthonormal_and_span_the_natural_gradient(distribution, uniform):
    theta = distribution.uniform_theta() if uniform else some_theta(distribution)
    X, fisher = some_points(distribution, 20), distribution.fisher(theta)
    gradient = distribution.score_sum(theta, X, np.random.default_rng(3).normal(size=20))
    free = np.ones(distribution.n_theta, dtype=bool)
    basis, _ = distribution.tangents(theta, gradient, free)
    np.testing.assert_allclose(basis.T @ fisher @ basis, np.eye(basis.shape[1]), atol=1e-9)
    natural = np.linalg.pinv(fisher, rcond=1e-12) @ gradient
    np.testing.assert_allclose(basis @ (basis.T @ gradient), natural, rtol=1e-7, atol=1e-9)


def test_held_components_have_no_tangent_and_no_gradient_none():
    distribution = SearchDistribution((Beta(), Categorical(5)))
    theta, gradient = np.ones(7), np.array([1.0, -1.0, 0, 0, 0, 0, 0])
    free = distribution.free(theta, gradient, (1.0, 100.0))
    basis, _ = distribution.tangents(theta, gradient, free)
    assert basis.shape == (7, 1)
    assert np.flatnonzero(basis).tolist() == [1]


def test_each_categorical_is_a_part_and_all_other_blocks_are_one():
    distribution = SearchDistribution((Beta(), Categorical(5), Dirichlet(3), Categorical(4)))
    theta, gradient = some_theta(distribution), np.random.default_rng(0).normal(size=14)
    _, part = distribution.tangents(theta, gradient, np.ones(14, dtype=bool))
    assert part.tolist() == [-1, -1, 1, 1, -1, -1, -1, 3, 3]


@pytest.mark.parametrize(("n", "many"), [(1, False), (18, False), (19, True), (5000, True)])
def test_more_than_72_categories_are_many(n, many):
    distribution = SearchDistribution((*[Categorical(n)] * 4, Beta(), Dirichlet(80)))
    assert distribution.has_many_categories is many


def test_unseen_categories_are_named_by_their_components():
    distribution = SearchDistribution((Beta(), Categorical(4), Categorical(2)))
    X = np.array([[0.5, 3.0, 0.0], [0.5, 1.0, 1.0]])
    assert [u.tolist() for u in distribution.unseen(X)] == [[2, 4], []]


@every_distribution
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_kl_is_zero_at_equal_and_never_negative(distribution, data):
    n = distribution.n_theta
    thetas = st.lists(st.floats(1e-2, 1e3), min_size=n, max_size=n).map(np.array)
    theta, other = data.draw(thetas), data.draw(thetas)
    assert distribution.kl(theta, other) >= 0.0
    assert distribution.kl(theta, theta) <= 1e-12


@every_family
def test_theta_of_ones_is_the_uniform_distribution(family):
    distribution = SearchDistribution((family,))
    theta = distribution.uniform_theta()
    density = np.exp(distribution.log_density(theta, some_points(distribution, 30)))
    # 1 over the volume: of the simplex in k - 1 weights 1 / (k - 1)!, of n categories n
    uniform = {"Beta()": 1.0, "Dirichlet(k=2)": 1.0, "Dirichlet(k=4)": 6.0}
    expected = uniform.get(repr(family), 1.0 / family.n_theta)
    np.testing.assert_allclose(density, expected, rtol=1e-12)


@every_distribution
def test_draws_depend_on_the_generator_alone(distribution):
    theta = some_theta(distribution)
    first, again, other = (
        distribution.sample(theta, np.random.default_rng(seed), 200) for seed in (7, 7, 8)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@every_distribution
def test_log_density_of_a_row_does_not_depend_on_its_neighbours(distribution):
    theta, X = some_theta(distribution), some_points(distribution, 33)
    alone = np.concatenate([distribution.log_density(theta, row[None, :]) for row in X])
    assert np.array_equal(distribution.log_density(theta, X), alone)
    assert np.array_equal(distribution.log_density(theta, np.asfortranarray(X)), alone)


def test_product_is_the_blocks_side_by_side():
    first, second = SearchDistribution((Beta(),)), SearchDistribution((Categorical(3),))
    both = SearchDistribution((Beta(), Categorical(3)))
    t1, t2 = np.array([2.0, 3.0]), np.array([1.0, 2.0, 4.0])
    theta, X = np.concatenate([t1, t2]), np.array([[0.3, 2.0], [0.8, 0.0]])
    scores = [first.score(t1, X[:, :1]), second.score(t2, X[:, 1:])]
    assert np.array_equal(both.score(theta, X), np.concatenate(scores, axis=1))
    fisher = both.fisher(theta)
    assert np.array_equal(fisher[:2, :2], first.fisher(t1))
    assert np.array_equal(fisher[2:, 2:], second.fisher(t2))
    assert not fisher[:2, 2:].any()
    assert not both.hessian(theta, X)[:, :2, 2:].any()


def test_mean_is_the_mean_and_the_most_probable_category():
    distribution = SearchDistribution((Dirichlet(3), Beta(), Categorical(4)))
    theta = [2.0, 1.0, 1.0, 3.0, 1.0, 1.0, 7.0, 2.0, 7.0]
    np.testing.assert_allclose(distribution.mean(theta), [0.5, 0.25, 0.25, 0.75, 1.0])


@every_distribution
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_projection_lies_in_the_box_and_is_a_projection(distribution, data):
    n, bounds = distribution.n_theta, (0.5, 20.0)
    numbers = st.floats(-1e300, 1e300) | st.floats(-1.0, 30.0)
    theta = data.draw(st.lists(numbers, min_size=n, max_size=n))
    projected = distribution.project(theta, bounds)
    assert np.all((projected >= 0.5) & (projected <= 20.0))
    np.testing.assert_allclose(distribution.project(projected, bounds), projected, rtol=1e-14)


def test_concentrations_pushed_against_the_box_are_not_free():
    distribution = SearchDistribution((Beta(), Dirichlet(3), Categorical(2)))
    theta = [1.0, 1.0, 100.0, 50.0, 100.0, 1.0, 100.0]
    gradient = np.array([1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0])
    free = distribution.free(theta, gradient, (1.0, 100.0))
    assert free.tolist() == [False, True, False, True, True, True, True]
    free = distribution.free(theta, -gradient, (1.0, 100.0))
    assert free.tolist() == [True, False, True, True, False, True, True]


def test_numpy_integers_are_ints():
    assert repr(Dirichlet(np.int64(3))) == "Dirichlet(k=3)"
    assert repr(Categorical(np.int32(3))) == "Categorical(n=3)"
    assert SearchDistribution((Dirichlet(np.int64(3)),)) == SearchDistribution((Dirichlet(3),))
    assert SMALL.sample(np.ones(5), np.random.default_rng(0), np.int64(2)).shape == (2, 4)


def test_distribution_is_an_immutable_value():
    distribution = SearchDistribution(PRODUCT)
    assert distribution == SearchDistribution(PRODUCT)
    assert hash(distribution) == hash(SearchDistribution(PRODUCT))
    with pytest.raises(dataclasses.FrozenInstanceError):
        distribution.families = ()
    assert (distribution.n_columns, distribution.n_theta) == (6, 11)


SMALL = SearchDistribution((Dirichlet(3), Beta()))
WEIGHTS = [0.2, 0.3, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Dirichlet(1), "k must be an int of at least 2, but got 1."),
        (lambda: Dirichlet(True), "k must be an int of at least 2, but got True."),
        (lambda: Categorical(0), "n must be an int of at least 1, but got 0."),
        (lambda: SearchDistribution(()), "families must be non-empty, but got ()."),
        (lambda: SearchDistribution([Beta()]), "families must be a tuple of Family, but got [Be"),
        (
            lambda: SMALL.score(np.ones(5), np.ones((20, 6))),
            "X must have shape (K, n_columns) = (20, 4), but got (20, 6).",
        ),
        (
            lambda: SMALL.log_density(np.ones(5), np.ones(4)),
            "X must have shape (K, n_columns) = (1, 4), but got (4,).",
        ),
        (
            lambda: SMALL.fisher(np.ones(4)),
            "theta must have shape (n_theta,) = (5,), but got (4,).",
        ),
        (
            lambda: SMALL.kl(np.ones(5), np.ones((5, 1))),
            "other must have shape (n_theta,) = (5,), but got (5, 1).",
        ),
        (
            lambda: SMALL.mean([1, 1, 0, 1, 1]),
            "theta[2] must be finite and > 0, but got 0.0.",
        ),
        (
            lambda: SMALL.project([1, np.inf, 0, 1, 1], (1.0, 2.0)),
            "theta[1] must be finite, but got inf.",
        ),
        (
            lambda: SMALL.project(np.ones(5), (2.0, 1.0)),
            "bounds must be (low, high), 0 < low < high, but got (2.0, 1.0).",
        ),
        (
            lambda: SMALL.free(np.ones(5), np.full(5, np.nan), (1.0, 2.0)),
            "gradient[0] must be finite, but got nan.",
        ),
        (
            lambda: SMALL.sample(np.ones(5), np.random.default_rng(0), -1),
            "size must be an int of at least 0, but got -1.",
        ),
        (
            lambda: SMALL.score(np.ones(5), [[*WEIGHTS, 1.0]]),
            "The columns of a Beta must be strictly between 0 and 1, but got values in [1.0, ",
        ),
        (
            lambda: SMALL.score(np.ones(5), [[0.2, 0.3, 0.6, 0.5]]),
            "The columns of a Dirichlet must be > 0 and sum to 1 in each row, but got values in",
        ),
        (
            lambda: SMALL.score(np.ones(5), [[np.nan, 0.5, 0.5, 0.5]]),
            "The columns of a Dirichlet must be > 0 and sum to 1 in each row, but got values in",
        ),
    ],
)
def test_errors_name_the_argument_the_condition_and_the_value(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
