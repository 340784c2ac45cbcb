"""The paper's Algorithm 2 as printed.

It uses the losses as they are and the inverse of the Hessian as it is. It moves all components of
theta. It has no trust region: the end of the step is clipped to the box.

References:
    Yao et al. ICML 2020 (Algorithm 2; the full reference is in `newton`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import SearchDistribution
from optuna_s2e.estimators._directions import inverse_direction
from optuna_s2e.estimators._estimates import finite_losses, gradient_estimate, hessian_estimate
from optuna_s2e.estimators._subspace import subspace_step
from optuna_s2e.estimators._trust_region import Step, longest_step
from optuna_s2e.estimators.settings import UpdateSettings


def printed_step(
    distribution: SearchDistribution,
    theta: FloatArray,
    points: FloatArray,
    losses: ArrayLike,
    weights: FloatArray,
    settings: UpdateSettings,
) -> tuple[FloatArray, Step]:
    """Return the gradient and the step of Algorithm 2; `newton.update` has the arguments.

    Among many categories, the inverse is that of the Hessian in the subspace of `subspace_step`.
    """
    f = _scaled(losses)
    if distribution.has_many_categories:
        return subspace_step(
            distribution,
            theta,
            points,
            weights * f,
            direction=inverse_direction,
            needs_hessian=True,
            reference=theta,
            settings=settings,
            free=np.ones(len(theta), dtype=np.bool_),
            max_kl=np.inf,
        )
    scores = distribution.score(theta, points)
    gradient = gradient_estimate(f, scores, weights)  # Eq 7
    hessians = distribution.hessian(theta, points)
    hessian = hessian_estimate(f, scores, hessians, weights)  # Proposition 1
    d = inverse_direction(gradient, hessian, None, settings)  # Eq 9, or Eq 8
    return gradient, longest_step(distribution, theta, d, theta, settings, max_kl=np.inf)


def _scaled(losses: ArrayLike) -> FloatArray:
    """Return the losses over a power of two: it cancels in H^-1 g, and none overflows."""
    values = finite_losses(losses)
    return np.ldexp(values, -int(np.frexp(np.abs(values).max())[1]))
