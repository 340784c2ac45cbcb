r"""The acquisition: which candidate is most worth a training.

Notation
    f_hat       posterior mean of the model, fitted to all draws so far
    sigma       posterior standard deviation of f under the model
    tau         standard deviation of the noise of one loss
    m           generation, from 1
    pending     draws whose losses are not known yet                           (P, d)

Candidates. Half of them are drawn from p_theta and half uniformly. The uniform half is a
defensive mixture: p_theta is a product of families, cannot follow a bent valley, and may be
wrong. In more than six dimensions none of these lies near the best draws. There, a third of the
candidates lie between one of the best draws and another candidate.

Choice. The candidate with the lowest :math:`\hat f - \kappa_m \tilde\sigma` is trained, where

.. math:: \tilde\sigma = \sigma^2 / \sqrt{\sigma^2 + \tau^2}

is the standard deviation of the change of the posterior mean that a loss there would cause. One
noisy loss teaches little, so little is explored where losses are noisy. With sigma in its place,
noisy objectives would be searched in the corners. Sigma is the uncertainty that remains once the
losses of the pending draws are known, so the draws of one generation differ. Exploration decays
with the generation, :math:`\kappa_m = \max(3 / \sqrt{m}, 1/2)`: the first trainings find the good
region, and the later ones stay in it.

Equal losses. If all losses so far are equal, every candidate is as good as any other. Then the
first one is trained, a draw of p_theta. The least certain candidates lie in the corners, where a
search would find a small region of low losses later than random search does.

Failures. A failed draw has no loss, so a region where the objective raises an error would be drawn
from again and again. Therefore, if some of the five nearest draws have failed, the largest loss
of the model replaces that share of the bound.

The draws are not distributed as p_theta, so a Monte-Carlo estimator must not use them as draws
of p_theta.

References:
    Srinivas et al., "Gaussian Process Optimization in the Bandit Setting", ICML 2010 (lower
    confidence bounds). Frazier et al., "The Knowledge-Gradient Policy for Correlated Normal
    Beliefs", INFORMS J. Computing 2009 (sigma tilde). Desautels et al., "Parallelizing
    Exploration-Exploitation Tradeoffs in Gaussian Process Bandit Optimization", JMLR 2014 (pending
    draws).
"""

from __future__ import annotations

import numpy as np
from optuna.distributions import CategoricalDistribution
from scipy.spatial.distance import cdist

from optuna_s2e._blas import one_blas_thread
from optuna_s2e._checks import check_int
from optuna_s2e._typing import FloatArray, IntArray
from optuna_s2e.surrogate._likelihood import category_squares
from optuna_s2e.surrogate._model import Model

N_CANDIDATES = 800
FEW_PARAMETERS = 6  # up to these, candidates lie densely enough
N_BASES = 3  # draws of least expected loss, near which candidates lie in more dimensions
LEAST_SHARE = 0.03  # of the way from such a draw to another candidate
N_NEAREST = 5  # draws that say whether a training at a point will fail


@one_blas_thread()
def propose(
    theta: FloatArray,
    model: Model,
    *,
    pending: FloatArray,
    failed: FloatArray,
    generation: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Return the candidate that is most worth a training.

    Args:
        theta: theta of the generation, (n_theta,).
        model: Model of the loss over theta's space.
        pending: Coordinates of the draws whose losses are not known yet, (P, d). P may be 0.
        failed: Coordinates of draws that failed, (F, d). F may be 0.
        generation: m, at least 1.
        rng: Generator that draws the candidates.

    Returns:
        Coordinates of the candidate, (d,).

    Raises:
        ValueError: If `generation` is no int of at least 1.

    Example:
        >>> import numpy as np
        >>> from optuna.distributions import FloatDistribution
        >>> from optuna_s2e.distributions import SearchSpace
        >>> from optuna_s2e.surrogate import Model, propose
        >>> space = SearchSpace.of({"a": FloatDistribution(0, 1)})
        >>> x = np.linspace(0.1, 0.9, 9)[:, None]
        >>> model = Model.fit(space, x, active=x > 0, losses=(x[:, 0] - 0.3) ** 2)
        >>> none, theta = np.empty((0, 1)), space.distribution.uniform_theta()
        >>> rng = np.random.default_rng(0)
        >>> best = propose(theta, model, pending=none, failed=none, generation=36, rng=rng)
        >>> abs(float(best[0]) - 0.3) < 0.1
        True
    """
    check_int("generation", generation, 1)
    x = _candidates(theta, model, rng)
    known = model.featurize(pending) if len(pending) else None
    z = model.featurize(x)
    z_failed = model.featurize(failed) if len(failed) else failed
    unit = model.gp.unit  # no square overflows
    means = model.mean_at_draws / unit
    worst, none_differs, kappa = float(means.max()), not np.ptp(means), exploration(generation)

    def bound(mean: FloatArray, deviation: FloatArray, rows: IntArray | None) -> FloatArray:
        mean, deviation = mean / unit, deviation / unit
        observed = np.hypot(deviation, model.gp.noise_deviation / unit)
        change = deviation**2 / np.maximum(observed, np.finfo(np.float64).tiny)
        lowest = np.zeros_like(mean) if none_differs else mean - kappa * change
        if not len(failed):
            return lowest
        if rows is None:
            return np.minimum(lowest, worst)
        risk = share_failed(z[rows], model.gp.features, z_failed, model.gp.category_weights)
        return (1.0 - risk) * lowest + risk * worst

    chosen: FloatArray = x[model.gp.lowest(z, bound, known)]
    return chosen


def _candidates(theta: FloatArray, model: Model, rng: np.random.Generator) -> FloatArray:
    """Draw `N_CANDIDATES` candidates, (N_CANDIDATES, d)."""
    space, distribution = model.space, model.space.distribution
    n_near = N_CANDIDATES // 3 if len(space.names) > FEW_PARAMETERS else 0
    n_own = (N_CANDIDATES - n_near) // 2
    points = np.concatenate([
        distribution.sample(theta, rng, n_own),
        distribution.sample(distribution.uniform_theta(), rng, N_CANDIDATES - n_near - n_own),
    ])  # fmt: skip
    x = space.coordinates(points)
    return np.concatenate([x, _near_the_best(model, x, n_near, rng)]) if n_near else x


def _near_the_best(model: Model, x: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
    """Return candidates (n, d) between the best draws and some of the candidates x (N, d).

    Each lies a share w of the way from a draw to a candidate, with w log-uniform in
    [`LEAST_SHARE`, 1]. A category is the candidate's with probability w, else the draw's.
    """
    order = np.argsort(model.mean_at_draws, kind="stable")
    bases = model.x[rng.choice(order[:N_BASES], n)]
    others = x[rng.choice(len(x), n)]
    w = np.exp(rng.uniform(np.log(LEAST_SHARE), 0.0, (n, 1)))
    either = np.where(rng.random(bases.shape) < w, others, bases)
    distributions = model.space.distributions.values()
    is_category = [isinstance(d, CategoricalDistribution) for d in distributions]
    return np.where(is_category, either, bases + w * (others - bases))


def share_failed(
    z: FloatArray, completed: FloatArray, failed: FloatArray, category_weights: FloatArray
) -> FloatArray:
    """Return the share of failed draws among the five nearest draws of each point.

    Args:
        z: Features of the points, (N, n_features).
        completed: Features of draws that completed, (C, n_features).
        failed: Features of draws that failed, (F, n_features), F > 0.
        category_weights: As in `GaussianProcess`, (n_features,).

    Returns:
        Shares in [0, 1], (N,).
    """
    ran = np.concatenate([completed, failed])
    numbers = category_weights == 0.0
    distances = cdist(z[:, numbers], ran[:, numbers])
    if not numbers.all():
        distances = np.sqrt(distances**2 + category_squares(z, ran, category_weights))
    n_near = min(N_NEAREST, distances.shape[1])
    nearest = np.argpartition(distances, n_near - 1, axis=1)[:, :n_near]
    return np.asarray((nearest >= len(completed)).mean(axis=1))


def exploration(generation: int) -> float:
    """Return kappa_m, the weight of what a loss would teach, in generation m >= 1."""
    return float(max(3.0 / np.sqrt(generation), 0.5))
