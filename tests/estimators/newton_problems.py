"""What the tests of the update rules share: distributions, settings, random problems."""

import numpy as np
import pytest

from optuna_s2e.distributions import Beta, Categorical, Dirichlet, SearchDistribution
from optuna_s2e.estimators import ESTIMATORS, newton, resolve

BETA = SearchDistribution((Beta(),))
DISTRIBUTIONS = [
    BETA,
    SearchDistribution((Dirichlet(3),)),
    SearchDistribution((Categorical(4),)),
    SearchDistribution((Dirichlet(4), Beta(), Categorical(3), Beta())),
]
DIRECTIONS = {  # those that go downhill
    n: e.direction for n, e in ESTIMATORS.items() if e.direction is not None and not e.as_printed
}

HARD_LOSSES = {
    "all equal": [0.3] * 6,
    "infinite": [np.inf, 1.0, 2.0, -np.inf, 0.0, np.inf],
    "all infinite": [np.inf] * 6,
    "huge": [1e308, -1e308, 1e308, 0.0, 1.0, -1e308],
    "subnormal": [5e-324, 0.0, 0.0, 1e-323, 0.0, 0.0],
    "one outlier": [1e308, 0.0, 1.0, 2.0, 3.0, 4.0],
    "one draw": [2.0],
}

every_estimator = pytest.mark.parametrize("estimator", list(DIRECTIONS))
every_distribution = pytest.mark.parametrize(
    "distribution", DISTRIBUTIONS, ids=lambda d: "*".join(map(repr, d.families))
)


def settings_of(estimator="newton", **options):
    """Return settings with the same step size for every estimator."""
    return resolve({"estimator": estimator, "step_size": 1.0} | options)


DEFAULT = settings_of()


def random_problem(seed, n=6):
    """Return a gradient, a Hessian and a Fisher information."""
    rng = np.random.default_rng(seed)
    gradient, hessian, root = rng.normal(size=n), rng.normal(size=(n, n)), rng.normal(size=(n, n))
    return gradient, hessian + hessian.T, root @ root.T + 0.1 * np.eye(n)


def update(distribution, theta, X, f, drawn, settings=DEFAULT):
    """Update theta with draws X, their losses f and their log densities."""
    return newton.update(
        distribution, theta, X, losses=f, log_density_drawn=drawn, settings=settings
    )


def one_update(distribution, theta, f, rng, n, settings=DEFAULT):
    """Draw n points of p_theta and update with their losses f(X)."""
    X = distribution.sample(theta, rng, n)
    return update(distribution, theta, X, f(X), distribution.log_density(theta, X), settings)
