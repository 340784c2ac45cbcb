r"""The update rules of S2E: from draws and their losses to the next theta.

Notation
    ==================  =======================================================  ==============
    theta               parameters of p_theta                                    (n_theta,)
    points              N draws, of p_theta or of any other proposal q           (N, n_columns)
    losses              f(x) of the draws, minimised                             (N,)
    log_density_drawn   log q(x): the density that each draw came from           (N,)
    weights             :math:`w = \min(p_\theta(x) / q(x), w_{max})`            (N,)
    scores              :math:`s = \nabla_\theta \log p_\theta(x)`               (N, n_theta)
    gradient            estimate of :math:`\nabla J(\theta)`                     (n_theta,)
    hessian             estimate of :math:`\nabla^2 J(\theta)`                   (n_theta, n_theta)
    fisher              F, the Fisher information of p_theta                     (n_theta, n_theta)
    direction           d, a descent step: theta_new = theta + step_size d       (n_theta,)
    K                   population_size, the draws between two updates           scalar
    ==================  =======================================================  ==============

`update` does one step: it estimates gradient and Hessian, chooses a direction, and stays in the
trust region. It takes any number of draws of any proposal q. The K draws of one generation are the
special case q = p_theta, in which all weights are 1. If earlier draws join them, q is the mixture
of the thetas that the draws came from.

References:
    Yao, Yang, Han, Niu, Kwok. Searching to exploit memorization effect in learning with noisy
    labels. ICML 2020 (Eq 6 to 9, Proposition 1, Assumption 3).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from optuna_s2e._checks import check_shape
from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import SearchDistribution, whiten
from optuna_s2e.estimators._directions import (
    Direction,
    StepSettings,
    cubic_direction,
    gradient_direction,
    inverse_direction,
    natural_gradient_direction,
    newton_direction,
)
from optuna_s2e.estimators._estimates import (
    effective_sample_size,
    gradient_estimate,
    hessian_estimate,
    importance_weights,
    z_scores,
)
from optuna_s2e.estimators._paper import printed_step
from optuna_s2e.estimators._subspace import subspace_step
from optuna_s2e.estimators._trust_region import Step, descent_step
from optuna_s2e.estimators.settings import UpdateSettings

__all__ = [
    "Direction",
    "Step",
    "StepSettings",
    "Update",
    "cubic_direction",
    "descent_step",
    "effective_sample_size",
    "gradient_direction",
    "gradient_estimate",
    "hessian_estimate",
    "importance_weights",
    "inverse_direction",
    "natural_gradient_direction",
    "newton_direction",
    "subspace_step",
    "update",
    "whiten",
    "z_scores",
]


class Update(NamedTuple):
    """Hold what `update` returns.

    Attributes:
        theta: The next theta, (n_theta,).
        gradient_norm: Euclidean norm of the estimated gradient of the standardised losses. If
            `settings.as_printed`, it is that of the losses themselves, up to a power of two.
        kl: KL(p_new || p_old) of the step in nats.
        effective_sample_size: Number of equally weighted draws that the draws are worth.
        step_scale: Share of the step that the trust region let through, in [0, 1]. 0 means that
            theta was kept.
    """

    theta: FloatArray
    gradient_norm: float
    kl: float
    effective_sample_size: float
    step_scale: float


def update(
    distribution: SearchDistribution,
    theta: ArrayLike,
    points: ArrayLike,
    *,
    losses: ArrayLike,
    log_density_drawn: ArrayLike,
    settings: UpdateSettings,
) -> Update:
    """Do one step from draws and their losses.

    If `settings.as_printed`, it is the step of the paper's Algorithm 2: Eq 7 and Proposition 1
    with the losses as they are, and the whole step, clipped to the box.

    Args:
        distribution: p_theta.
        theta: Present parameters, inside `settings.theta_bounds`, (n_theta,).
        points: Draws inside the support, (N, n_columns), N >= 1.
        losses: f(x) of the draws, (N,). Infinite losses are allowed.
        log_density_drawn: Log density of each draw under the proposal that it came from, (N,).
            For draws of theta itself it is `distribution.log_density(theta, points)`.
        settings: An `UpdateSettings` of an estimator with a direction.

    Returns:
        The next theta, and numbers that describe the step. A single draw, or equal losses, leave
        theta as it is, unless `settings.as_printed`.

    Raises:
        ValueError: If a shape is wrong, a loss is NaN, a log density is not finite, theta is not
            > 0, a point is outside the support, or the estimator has no direction.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import Beta, SearchDistribution
        >>> from optuna_s2e.estimators import newton, resolve
        >>> distribution = SearchDistribution((Beta(),))
        >>> theta = distribution.uniform_theta()
        >>> X = distribution.sample(theta, np.random.default_rng(0), 100)
        >>> step = newton.update(
        ...     distribution, theta, X, losses=X[:, 0],
        ...     log_density_drawn=distribution.log_density(theta, X),
        ...     settings=resolve({"estimator": "newton"}),
        ... )
        >>> bool(distribution.mean(step.theta)[0] < 0.5)
        True
    """
    if settings.direction is None:
        raise ValueError("settings must be of an estimator with a direction, but it has none.")
    theta, drawn = np.asarray(theta, np.float64), np.asarray(log_density_drawn, np.float64)
    log_density = distribution.log_density(theta, points)
    check_shape("losses", np.asarray(losses, np.float64), "(N,)", log_density.shape)
    if not np.isfinite(drawn).all():
        at = int(np.argmin(np.isfinite(drawn)))
        raise ValueError(f"log_density_drawn[{at}] must be finite, but got {float(drawn[at])!r}.")

    points = np.asarray(points, np.float64)
    weights = importance_weights(log_density, drawn, settings.max_weight)
    if settings.as_printed:
        gradient, step = printed_step(distribution, theta, points, losses, weights, settings)
    elif distribution.has_many_categories:
        gradient, step = subspace_step(
            distribution,
            theta,
            points,
            weights * z_scores(losses, weights=weights),
            direction=settings.direction,
            needs_hessian=settings.needs_hessian,
            reference=theta,
            settings=settings,
        )
    else:
        f, scores = z_scores(losses, weights=weights), distribution.score(theta, points)
        gradient = gradient_estimate(f, scores, weights)
        hessian = None
        if settings.needs_hessian:
            hessians = distribution.hessian(theta, points)
            hessian = hessian_estimate(f, scores, hessians, weights)
        step = descent_step(
            distribution,
            theta,
            gradient,
            hessian,
            direction=settings.direction,
            reference=theta,
            settings=settings,
        )
    return Update(
        theta=step.theta,
        gradient_norm=float(np.linalg.norm(gradient)),
        kl=step.kl,
        effective_sample_size=effective_sample_size(weights),
        step_scale=step.scale,
    )
