r"""Surrogate-assisted S2E: theta and the draws follow a model of the loss.

Notation
    f_hat       posterior mean of the model, fitted to all draws so far
    sigma       posterior standard deviation of f under the model
    X           virtual draws: points that nobody trains                       (N, n_columns)
    pending     draws whose losses are not known yet                           (P, d)

Six samples say little about a Hessian; a model of the loss answers for hundreds of virtual draws.
Two things are done with it. `update` minimises :math:`E_{p_\theta}[\hat f]` from theta_m by Newton
steps whose gradient (Eq 7) and Hessian (Proposition 1) are averages over virtual draws, inside
the trust region around theta_m. `propose` draws candidates, half of them from p_theta and half
uniformly (a defensive mixture: p_theta, a product, cannot follow a bent valley, and may be
wrong). In more than six dimensions, where none of these comes near the best draws, a third of the
candidates lie between one of the best draws and a candidate of the other kinds. Trained is the one
with the lowest :math:`\hat f - \kappa_m \tilde\sigma`, where

.. math:: \tilde\sigma = \sigma^2 / \sqrt{\sigma^2 + \tau^2}

is the standard deviation of what a loss there, with noise of standard deviation tau, would change
of the posterior mean: where one noisy loss teaches little, there is little to explore (with sigma
itself, noisy objectives are searched in the corners). Sigma is what is left of the uncertainty
once the pending draws are known, so that the draws of a generation differ. Exploration decays,
:math:`\kappa_m = \max(3 / \sqrt{m}, 1/2)` in generation m: a budget of sixty trainings is spent
first on finding the good region and then in it. Where some of the five nearest draws have failed,
that share of the bound is replaced by the largest loss of the model: a region where the objective
raises teaches no loss, and would be drawn from again and again.

Bias: the estimates are those of :math:`E_{p_\theta}[\hat f]`, not of :math:`E_{p_\theta}[f]`; the
model is smooth where f is not. The draws are not distributed as p_theta: a Monte-Carlo estimator
must not take them as such.

References:
    Yao et al., "Searching to Exploit Memorization Effect in Learning with Noisy Labels",
    ICML 2020: Eq 7, Proposition 1.
    Srinivas et al., "Gaussian Process Optimization in the Bandit Setting", ICML 2010 (lower
    confidence bounds). Frazier et al., "The Knowledge-Gradient Policy for Correlated Normal
    Beliefs", INFORMS J. Computing 2009 (sigma tilde). Desautels et al., "Parallelizing
    Exploration-Exploitation Tradeoffs in Gaussian Process Bandit Optimization", JMLR 2014 (pending
    draws).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution
from scipy.spatial.distance import cdist

from optuna_s2e import newton, surrogate
from optuna_s2e.conditions import Conditions, conditions_of
from optuna_s2e.features import features, groups
from optuna_s2e.one_thread import one_blas_thread
from optuna_s2e.relevance import relevance
from optuna_s2e.search_space import SearchSpace
from optuna_s2e.settings import UpdateSettings
from optuna_s2e.surrogate import Surrogate

FloatArray = npt.NDArray[np.float64]

N_STEPS = 6  # Newton steps of one update
LEAST_SCALE = 0.01  # of a step inside the trust region, after which no other is tried
N_VIRTUAL = 400
N_CANDIDATES = 800
FEW_PARAMETERS = 6  # up to these, candidates lie densely enough
N_BASES = 3  # draws of least expected loss, near which candidates lie in more dimensions
LEAST_SHARE = 0.03  # of the way from such a draw to another
N_NEAREST = 5  # draws that say whether a training at a point will fail


@dataclass(frozen=True)
class Model:
    """A model of the loss over a space.

    Attributes:
        space: What theta describes.
        x: Coordinates of the draws that it was fitted to, (N, d).
        conditions: Which of its parameters the objective asks for where.
        factors: How much each feature matters, (n_features,).
        surrogate: Fitted to the losses over `features`.
    """

    space: SearchSpace
    x: FloatArray
    conditions: Conditions
    factors: FloatArray
    surrogate: Surrogate

    @classmethod
    def fit(
        cls, space: SearchSpace, x: FloatArray, asked: npt.NDArray[np.bool_], losses: FloatArray
    ) -> Model:
        """Fit a model to draws.

        Args:
            space: What theta describes.
            x: Coordinates of the draws, (N, d).
            asked: Which of them the objective asked for, (N, d).
            losses: (N,).

        Raises:
            ValueError: As `surrogate.fit`.
        """
        z = features(space, x, asked)
        factors = relevance(z, surrogate.standardize(losses)[0], groups(space))
        fitted = surrogate.fit(z * factors, losses)
        return cls(space, x, conditions_of(space, x, asked), factors, fitted)

    def features(self, x: FloatArray, asked: npt.NDArray[np.bool_] | None = None) -> FloatArray:
        """Return the features of draws, scaled by how much they matter, (N, n_features).

        Args:
            x: Coordinates, (N, d).
            asked: Which of them the objective asked for, (N, d); None if it did not run yet.
        """
        asked = self.conditions.asked(x) if asked is None else asked
        return features(self.space, x, asked) * self.factors


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
        f = newton.standardize(model.surrogate.mean(model.features(space.coordinates(points))))
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


@one_blas_thread()
def propose(
    theta: FloatArray,
    model: Model,
    pending: FloatArray,
    failed: FloatArray,
    generation: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Return the candidate x (d,) that is most worth a training.

    Args:
        theta: Of the generation, (n_theta,).
        model: Of the loss over theta's space.
        pending: Coordinates of the draws whose losses are not known yet, (P, d).
        failed: Coordinates of draws that failed, (F, d).
        generation: m, at least 1.
        rng: Draws the candidates.
    """
    space, distribution = model.space, model.space.distribution
    n_near = N_CANDIDATES // 3 if len(space.names) > FEW_PARAMETERS else 0
    n_own = (N_CANDIDATES - n_near) // 2
    points = np.concatenate([
        distribution.sample(theta, rng, n_own),
        distribution.sample(distribution.uniform_theta(), rng, N_CANDIDATES - n_near - n_own),
    ])  # fmt: skip
    x = space.coordinates(points)
    if n_near:
        x = np.concatenate([x, _near_the_best(model, x, n_near, rng)])
    known = model.features(pending) if len(pending) else None
    z = model.features(x)
    mean, deviation = model.surrogate.predict(z, known)
    change = deviation**2 / np.hypot(deviation, model.surrogate.noise_deviation)
    bound = mean - exploration(generation) * change
    if len(failed):
        completed = model.surrogate.features
        risk = share_failed(z, completed, model.features(failed))
        bound = (1.0 - risk) * bound + risk * model.surrogate.mean(completed).max()
    chosen: FloatArray = x[int(np.argmin(bound))]
    return chosen


def _near_the_best(model: Model, x: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
    """Return candidates (n, d) between the best draws and some of the candidates x (N, d).

    Each goes a share w of the way, log-uniform in [`LEAST_SHARE`, 1]; a category goes over with
    probability w.
    """
    order = np.argsort(model.surrogate.mean(model.surrogate.features), kind="stable")
    bases = model.x[rng.choice(order[:N_BASES], n)]
    others = x[rng.choice(len(x), n)]
    w = np.exp(rng.uniform(np.log(LEAST_SHARE), 0.0, (n, 1)))
    go_over = np.where(rng.random(bases.shape) < w, others, bases)
    distributions = model.space.distributions.values()
    is_category = [isinstance(d, CategoricalDistribution) for d in distributions]
    return np.where(is_category, go_over, bases + w * (others - bases))


def share_failed(z: FloatArray, completed: FloatArray, failed: FloatArray) -> FloatArray:
    """Return the share of failed draws among the five nearest of each point, (N,).

    Args:
        z: Features of the points, (N, n_features).
        completed: Features of draws that completed, (C, n_features).
        failed: Features of draws that failed, (F, n_features), F > 0.
    """
    distances = cdist(z, np.concatenate([completed, failed]))
    n_near = min(N_NEAREST, distances.shape[1])
    nearest = np.argpartition(distances, n_near - 1, axis=1)[:, :n_near]
    return np.asarray((nearest >= len(completed)).mean(axis=1))


def exploration(generation: int) -> float:
    """Return kappa_m, the weight of what can be learned."""
    return float(max(3.0 / np.sqrt(generation), 0.5))
