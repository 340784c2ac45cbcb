r"""Newton's method on a model of the loss.

Notation
    f_hat       posterior mean of the model, fitted to all draws so far
    X           virtual draws: points of p_theta that nobody trains            (N, n_columns)

Six losses say little about a Hessian, but a model of the loss answers for hundreds of virtual
draws. `update` starts at theta_m and minimises :math:`E_{p_\theta}[\hat f]` by Newton steps inside
the trust region around theta_m. The gradient (Eq 7) and the Hessian (Proposition 1) of each step
are averages over virtual draws. The trials themselves are drawn by `optuna_s2e.surrogate.propose`.

The estimates are those of :math:`E_{p_\theta}[\hat f]`, not of :math:`E_{p_\theta}[f]`: they are
biased where the model is smooth and f is not.

References:
    Yao et al., "Searching to Exploit Memorization Effect in Learning with Noisy Labels",
    ICML 2020: Eq 7, Proposition 1.
"""

from __future__ import annotations

import numpy as np

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import Categorical, SearchDistribution
from optuna_s2e.estimators import newton
from optuna_s2e.estimators.settings import UpdateSettings
from optuna_s2e.surrogate import Model

N_STEPS = 6  # Newton steps of one update
LEAST_SCALE = 0.01  # if less of a step fits into the trust region, the update ends
N_VIRTUAL = 400  # virtual draws of one step


def update(
    theta: FloatArray,
    model: Model,
    *,
    settings: UpdateSettings,
    rng: np.random.Generator,
) -> newton.Update:
    """Move theta to where the model expects low losses.

    Args:
        theta: theta_m, (n_theta,).
        model: Model of the loss over theta's space.
        settings: Step size, bounds and trust region of every Newton step. The trust region is
            around `theta`.
        rng: Generator that draws the virtual points.

    Returns:
        The next theta. Gradient norm and step scale are those of the first step; the effective
        sample size is the number of virtual draws of a step.

    Raises:
        ValueError: If theta has another shape than that of the model's space, or is not > 0.

    Example:
        >>> import numpy as np
        >>> from optuna.distributions import FloatDistribution
        >>> from optuna_s2e.distributions import SearchSpace
        >>> from optuna_s2e.estimators import resolve, surrogate_newton
        >>> from optuna_s2e.surrogate import Model
        >>> space = SearchSpace.of({"a": FloatDistribution(0, 1)})
        >>> x = np.linspace(0.1, 0.9, 9)[:, None]
        >>> model = Model.fit(space, x, active=x > 0, losses=(x[:, 0] - 0.2) ** 2)
        >>> theta, rng = space.distribution.uniform_theta(), np.random.default_rng(0)
        >>> step = surrogate_newton.update(theta, model, settings=resolve({}), rng=rng)
        >>> bool(space.distribution.mean(step.theta)[0] < 0.4)
        True
    """
    space, distribution = model.space, model.space.distribution
    moved, first_norm, scale = theta, 0.0, 0.0
    # The model expects the same loss of all categories that no draw had.
    unseen = distribution.unseen(space.points(model.x)) if distribution.has_many_categories else []
    for step_number in range(N_STEPS):
        points = distribution.sample(moved, rng, N_VIRTUAL)
        f = newton.z_scores(model.gp.mean(model.featurize(space.coordinates(points))))
        if distribution.has_many_categories:
            gradient, step = newton.subspace_step(
                distribution,
                moved,
                points,
                f,
                direction=newton.newton_direction,
                needs_hessian=True,
                reference=theta,
                settings=settings,
                alike=unseen,
            )
        else:
            gradient, step = _step(distribution, moved, points, f, theta, settings)
        if step_number == 0:
            first_norm, scale = float(np.linalg.norm(gradient)), step.scale
        moved = step.theta
        if step.scale < LEAST_SCALE:
            break
    return newton.Update(moved, first_norm, distribution.kl(moved, theta), N_VIRTUAL, scale)


def _step(
    distribution: SearchDistribution,
    theta: FloatArray,
    points: FloatArray,
    f: FloatArray,
    reference: FloatArray,
    settings: UpdateSettings,
) -> tuple[FloatArray, newton.Step]:
    r"""Return the gradient and the step of virtual draws with losses f of mean 0.

    The Hessian is that of Proposition 1. Its second term, :math:`\sum_i f_i \nabla^2 \log
    p_\theta(x_i)`, is left to categories: for Beta and Dirichlet, the Hessian of log p_theta is
    :math:`-F(\theta)` at every point, so that the term is :math:`-F \sum_i f_i = 0`.
    """
    scores = distribution.score(theta, points)
    gradient = newton.gradient_estimate(f, scores, np.ones(len(points)))
    hessian = (f * scores.T) @ scores
    if any(isinstance(family, Categorical) for family in distribution.families):
        hessian += distribution.hessian_along(theta, points, f, np.eye(len(theta)))
    step = newton.descent_step(
        distribution,
        theta,
        gradient,
        (hessian + hessian.T) / (2.0 * len(points)),
        direction=newton.newton_direction,
        reference=reference,
        settings=settings,
    )
    return gradient, step
