"""One step of theta that stays in the box and in the trust region.

References:
    Bertsekas. Projected Newton methods for optimization problems with simple constraints. SIAM
    Journal on Control and Optimization 1982 (free and held components).
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import SearchDistribution
from optuna_s2e.estimators._directions import Direction
from optuna_s2e.estimators.settings import UpdateSettings

BACKTRACK = 0.85
MAX_BACKTRACKS = 60  # the shortest step tried is 0.85**59 = 7e-5 of the full one


class Step(NamedTuple):
    """Hold what `descent_step` returns.

    Attributes:
        theta: The end of the step, (n_theta,).
        kl: KL(p_theta || p_reference) in nats.
        scale: Share of the full step that was taken, in [0, 1].
    """

    theta: FloatArray
    kl: float
    scale: float


def descent_step(
    distribution: SearchDistribution,
    theta: FloatArray,
    gradient: FloatArray,
    hessian: FloatArray | None,
    *,
    direction: Direction,
    reference: FloatArray,
    settings: UpdateSettings,
) -> Step:
    """Step from theta inside the box and the trust region.

    Components that sit on a bound and would leave the box are held, and the direction is taken
    among the free ones (projected Newton, Bertsekas 1982). At theta = 1 with low = 1, half of the
    components are held. Clipping a step of all components instead can undo a descent. Take
    f(x) = x, one Beta and exact estimates: the Newton step from (1, 1) is (-8.0, -2.3). It goes
    downhill, yet the box would hold theta at (1, 1) for ever.

    Args:
        distribution: p_theta.
        theta: Start of the step, inside the box, (n_theta,).
        gradient: Gradient of J at theta, (n_theta,).
        hessian: Hessian of J at theta, (n_theta, n_theta). None if the direction needs none.
        direction: Function that returns d. It sees the free components only.
        reference: Centre of the trust region, (n_theta,): theta, or the start of a series of
            steps.
        settings: `step_size`, `max_kl`, `theta_bounds`, and what the direction uses.

    Returns:
        The first candidate project(theta + scale * step_size * d), scale = 1, 0.85, 0.85^2, ...
        with KL(p_candidate || p_reference) <= max_kl. If no candidate fulfils that, or if an input
        or the direction is not finite, the step ends at theta with scale 0.

    Raises:
        ValueError: If the direction needs a Hessian and `hessian` is None.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import Beta, SearchDistribution
        >>> from optuna_s2e.estimators import newton, resolve
        >>> theta = np.array([2.0, 2.0])
        >>> newton.descent_step(
        ...     SearchDistribution((Beta(),)), theta, np.array([0.5, -0.5]), None,
        ...     direction=newton.gradient_direction, reference=theta, settings=resolve({}),
        ... ).theta.tolist()
        [1.5, 2.5]
    """
    d = np.full_like(theta, np.nan)
    if np.isfinite(gradient).all():
        free = distribution.free(theta, gradient, settings.theta_bounds)
        face = np.ix_(free, free)
        fisher = distribution.fisher(theta)[face]
        hessian = None if hessian is None else hessian[face]
        with np.errstate(all="ignore"), suppress(np.linalg.LinAlgError):
            among_free = direction(gradient[free], hessian, fisher, settings)
            d = np.zeros_like(theta)
            d[free] = among_free
    return longest_step(distribution, theta, d, reference, settings, settings.max_kl)


def longest_step(
    distribution: SearchDistribution,
    theta: FloatArray,
    direction: FloatArray,
    reference: FloatArray,
    settings: UpdateSettings,
    max_kl: float,
) -> Step:
    """Return the longest step that stays in the trust region: project(theta + scale rho d).

    If no step does, or if the direction d is not finite, theta stays where it is.
    """
    with np.errstate(all="ignore"):
        full = settings.step_size * direction
    scale = 1.0
    for _ in range(MAX_BACKTRACKS if np.isfinite(full).all() else 0):
        candidate = distribution.project(theta + scale * full, settings.theta_bounds)
        kl = distribution.kl(candidate, reference)
        if kl <= max_kl:
            return Step(candidate, kl, scale)
        scale *= BACKTRACK
    return Step(theta.copy(), distribution.kl(theta, reference), 0.0)
