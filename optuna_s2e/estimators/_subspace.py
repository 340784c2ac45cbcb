"""A step of theta among many categories, in a subspace of few directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.distributions import SearchDistribution
from optuna_s2e.estimators._directions import Direction, gradient_direction
from optuna_s2e.estimators._trust_region import Step, longest_step
from optuna_s2e.estimators.settings import UpdateSettings


def subspace_step(
    distribution: SearchDistribution,
    theta: FloatArray,
    points: FloatArray,
    weighted_losses: FloatArray,
    *,
    direction: Direction,
    needs_hessian: bool,
    reference: FloatArray,
    settings: UpdateSettings,
    alike: Sequence[IntArray] = (),
    free: BoolArray | None = None,
    max_kl: float | None = None,
) -> tuple[FloatArray, Step]:
    r"""Estimate the gradient and do a step among many categories, without large matrices.

    The direction is taken in the subspace of `SearchDistribution.tangents`, with basis B: it sees
    the gradient :math:`B^T g`, the Hessian :math:`B^T H B` and the Fisher information
    :math:`B^T F B = I`. For one categorical block, and for natural gradients, this is the step of
    `descent_step`. Time and memory grow with the number of categories, not with its square.
    Hessian terms between a categorical block and other blocks are left out. The directions of the
    block follow from the losses of the same draws, so these terms would be fitted to noise and
    shorten the steps of the other blocks.

    Args:
        distribution: p_theta.
        theta: Start of the step, inside the box, (n_theta,).
        points: Draws, (N, n_columns).
        weighted_losses: Weights of the draws times their standardised losses, (N,).
        direction: Function that returns d.
        needs_hessian: Whether the direction needs a Hessian.
        reference: Centre of the trust region, (n_theta,).
        settings: As for `descent_step`.
        alike: Components of theta whose categories have the same expected loss, in groups. They
            share the mean of their gradients, which is then less noisy.
        free: Components that the step may move, (n_theta,). None: all but those that sit on a
            bound and would leave the box.
        max_kl: Radius of the trust region in nats. None: that of `settings`.

    Returns:
        The gradient by Eq 7, (n_theta,), and the step.

    Raises:
        ValueError: If a shape is wrong, or a point is outside the support.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import Categorical, SearchDistribution
        >>> from optuna_s2e.estimators import newton, resolve
        >>> distribution = SearchDistribution((Categorical(1000),))
        >>> theta, points = distribution.uniform_theta(), np.array([[3.0], [5.0]])
        >>> gradient, step = newton.subspace_step(
        ...     distribution, theta, points, np.array([1.0, -1.0]),
        ...     direction=newton.newton_direction, needs_hessian=True, reference=theta,
        ...     settings=resolve({}),
        ... )
        >>> int(step.theta.argmax())
        5
    """
    n = len(points)
    gradient = distribution.score_sum(theta, points, weighted_losses) / n
    for components in alike:
        if len(components):
            gradient[components] = gradient[components].mean()
    if free is None:
        free = distribution.free(theta, gradient, settings.theta_bounds)
    max_kl = settings.max_kl if max_kl is None else max_kl
    if direction is gradient_direction:  # it needs no metric, and leaves the subspace
        d = np.where(free, -gradient, 0.0)
        return gradient, longest_step(distribution, theta, d, reference, settings, max_kl)
    basis, part = distribution.tangents(theta, gradient, free)
    hessian = None
    if needs_hessian:  # Proposition 1 between directions: B' H B
        scores = distribution.score_along(theta, points, basis)
        hessian = (weighted_losses * scores.T) @ scores
        hessian += distribution.hessian_along(theta, points, weighted_losses, basis)
        hessian = (hessian + hessian.T) / (2.0 * n)
        hessian = np.where(part[:, None] == part, hessian, 0.0)
    with np.errstate(all="ignore"):  # a direction that is not finite keeps theta
        d = (basis * direction(basis.T @ gradient, hessian, None, settings)).sum(axis=1)
    return gradient, longest_step(distribution, theta, d, reference, settings, max_kl)
