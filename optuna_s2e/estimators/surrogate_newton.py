r"""Newton's method on a model of the loss.

Notation
    f_hat       posterior mean of the model, fitted to all draws so far
    X           virtual draws: points that nobody trains                       (N, n_columns)

Six losses say little about a Hessian; a model of the loss answers for hundreds of virtual draws.
`update` minimises :math:`E_{p_\theta}[\hat f]` from theta_m by Newton steps whose gradient (Eq 7)
and Hessian (Proposition 1) are averages over virtual draws, inside the trust region around
theta_m. The trials themselves are drawn by `optuna_s2e.surrogate.propose`.

Bias: the estimates are those of :math:`E_{p_\theta}[\hat f]`, not of :math:`E_{p_\theta}[f]`; the
model is smooth where f is not.

References:
    Yao et al., "Searching to Exploit Memorization Effect in Learning with Noisy Labels",
    ICML 2020: Eq 7, Proposition 1.
"""

from __future__ import annotations

import numpy as np

from optuna_s2e._typing import FloatArray
from optuna_s2e.estimators import newton
from optuna_s2e.estimators.settings import UpdateSettings
from optuna_s2e.surrogate import Model

N_STEPS = 6  # Newton steps of one update
LEAST_SCALE = 0.01  # of a step inside the trust region, after which no other is tried
N_VIRTUAL = 400


def update(
    theta: FloatArray,
    model: Model,
    settings: UpdateSettings,
    rng: np.random.Generator,
) -> newton.Update:
    """Move theta to where the model expects low losses.

    Args:
        theta: theta_m, (n_theta,).
        model: Of the loss over theta's space.
        settings: Step size, bounds and trust region of every Newton step; the trust region is
            around `theta`.
        rng: Draws the virtual points.

    Returns:
        The next theta; its effective sample size is the number of virtual draws of a step.
    """
    space, distribution = model.space, model.space.distribution
    moved, first_norm, scale = theta, 0.0, 0.0
    for step_number in range(N_STEPS):
        points = distribution.sample(moved, rng, N_VIRTUAL)
        f = newton.z_scores(model.gp.mean(model.featurize(space.coordinates(points))))
        weights = np.ones(N_VIRTUAL)
        scores = distribution.score(moved, points)
        gradient = newton.gradient_estimate(f, scores, weights)
        # Proposition 1, as in newton.hessian_estimate but by matrix products: 36 thetas are many
        hessian = (f * scores.T) @ scores
        hessian += np.tensordot(f, distribution.hessian(moved, points), axes=1)
        step = newton.descent_step(
            distribution,
            moved,
            gradient,
            (hessian + hessian.T) / (2.0 * N_VIRTUAL),
            direction=newton.newton_direction,
            reference=theta,
            settings=settings,
        )
        if step_number == 0:
            first_norm, scale = float(np.linalg.norm(gradient)), step.scale
        moved = step.theta
        if step.scale < LEAST_SCALE:
            break
    return newton.Update(moved, first_norm, distribution.kl(moved, theta), N_VIRTUAL, scale)
