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

`update` does one step. It takes any number of draws under whatever proposal, so the K draws of
one generation (q = p_theta, all weights 1) are a special case: with all past draws, q is the
mixture of the thetas that they came from.

References:
    Yao, Yang, Han, Niu, Kwok. Searching to exploit memorization effect in learning with noisy
    labels. ICML 2020 (Eq 6 to 9, Proposition 1, Assumption 3).
    Bertsekas. Projected Newton methods for optimization problems with simple constraints. SIAM
    Journal on Control and Optimization 1982 (free and held components).
    Nesterov, Polyak. Cubic regularization of Newton method and its global performance.
    Mathematical Programming 2006; Shen et al. Efficient hyper-parameter optimization with cubic
    regularization. NeurIPS 2023 (the cubic model).
    Owen, Zhou. Safe and effective importance sampling. JASA 2000 (mixture proposals).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import SearchDistribution
from optuna_s2e.estimators.settings import UpdateSettings

NULL_EIGENVALUE = 1e-12
"""Eigenvalues of the Fisher information below this share of the largest count as zero."""

HARD_CASE = 1e-30
"""Stands for a slope of 0 along the lowest eigenvector: far below rounding, yet it has a sign."""

BACKTRACK = 0.85
MAX_BACKTRACKS = 60  # the shortest step tried is 0.85**59 = 7e-5 of the full one


class Update(NamedTuple):
    """Hold what `update` returns.

    Attributes:
        theta: The next theta, (n_theta,).
        gradient_norm: Euclidean norm of the estimated gradient of the standardised losses.
        kl: KL(p_new || p_old) of the step in nats.
        effective_sample_size: Number of equally weighted draws that the draws are worth.
        step_scale: Share of the step that the trust region let through; 0: theta was kept.
    """

    theta: FloatArray
    gradient_norm: float
    kl: float
    effective_sample_size: float
    step_scale: float


class Step(NamedTuple):
    """Hold what `descent_step` returns: theta, KL(p_theta || p_reference), share taken."""

    theta: FloatArray
    kl: float
    scale: float


def standardize(losses: ArrayLike, *, weights: ArrayLike | None = None) -> FloatArray:
    r"""Return the losses with weighted mean 0 and weighted standard deviation 1.

    An affine change of f moves neither the minimiser of J nor the direction of its gradient, and
    a constant baseline b changes neither Eq 7 nor Proposition 1 in expectation, because
    :math:`E[s] = 0` and :math:`E[s s^T + \nabla^2 \log p] = 0`; it only removes variance.

    The mean is the weighted one: it estimates J(theta), the baseline that a fresh batch would
    have, where the plain mean of old draws estimates the J of their proposal. When p_theta has
    moved to better points, nearly all of them lie below that plain mean, and the baseline would
    put back the noise that it is there to remove. Equal weights give the plain mean.

    Args:
        losses: (K,). +inf counts as the largest finite loss, -inf as the smallest.
        weights: Importance weights, finite and >= 0, (K,). By default all 1.

    Returns:
        The standardised losses, (K,): zeros if the losses (of weight > 0) are all equal or none
        is finite.

    Raises:
        ValueError: If a loss is NaN, or a shape is wrong.

    Example:
        >>> from optuna_s2e.estimators.newton import standardize
        >>> standardize([1e308, -1e308, float("inf"), float("-inf")]).tolist()
        [1.0, -1.0, 1.0, -1.0]
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"losses must have shape (K,), K >= 1, but got {values.shape}.")
    if np.isnan(values).any():
        at = int(np.argmax(np.isnan(values)))
        raise ValueError(f"losses[{at}] must be a number, but got nan. Drop failed draws.")
    w = np.asarray(np.ones_like(values) if weights is None else weights, dtype=np.float64)
    _check_shape("weights", w, "(K,)", values.shape)
    finite = np.isfinite(values)
    total = float(w.sum())
    if not finite.any() or total == 0.0:
        return np.zeros_like(values)
    unit = _to_unit_interval(np.clip(values, values[finite].min(), values[finite].max()))
    centred = unit - float((w * unit).sum()) / total
    deviation = float(np.sqrt((w * centred**2).sum() / total))
    return centred / deviation if deviation > 0.0 else np.zeros_like(values)


def importance_weights(
    log_density: ArrayLike, log_density_drawn: ArrayLike, max_weight: float
) -> FloatArray:
    r"""Return :math:`\min(p_\theta(x) / q(x), w_{max})`, (N,), without overflow.

    Exactly 1 where the densities are equal: draws of theta itself are not reweighted.
    """
    log_p = np.asarray(log_density, dtype=np.float64)
    log_q = np.asarray(log_density_drawn, dtype=np.float64)
    _check_shape("log_density_drawn", log_q, "(N,)", log_p.shape)
    bounded = np.exp(np.minimum(log_p - log_q, np.log(max_weight)))
    return np.asarray(np.minimum(bounded, max_weight))  # exp(log(w)) may round to above w


def effective_sample_size(weights: ArrayLike) -> float:
    r"""Return :math:`(\sum w)^2 / \sum w^2` (Kish), 0 if all weights are 0."""
    w = np.asarray(weights, dtype=np.float64)
    if w.max() == 0.0:
        return 0.0
    scaled = w / w.max()  # tiny weights have no squares
    return float(scaled.sum() ** 2 / (scaled**2).sum())


def gradient_estimate(losses: ArrayLike, scores: ArrayLike, weights: ArrayLike) -> FloatArray:
    r"""Return Eq 7, :math:`\frac{1}{N} \sum_i w_i f(x_i) s_i`, (n_theta,).

    Args:
        losses: f(x) of the draws, (N,).
        scores: (N, n_theta).
        weights: (N,).

    Raises:
        ValueError: If a shape is wrong.
    """
    # Not `weighted @ scores`, and in one memory layout: rows are summed in their order, so the
    # bits depend neither on BLAS and its threads nor on how the caller's points lie.
    scores = np.asarray(scores, dtype=np.float64, order="C")
    weighted = _weighted_losses(losses, weights, len(scores))
    return np.asarray((weighted[:, None] * scores).sum(axis=0) / len(scores))


def hessian_estimate(
    losses: ArrayLike, scores: ArrayLike, log_density_hessians: ArrayLike, weights: ArrayLike
) -> FloatArray:
    r"""Return Proposition 1, :math:`\frac{1}{N} \sum_i w_i f(x_i) (s_i s_i^T + \nabla^2 \log p)`.

    With losses of weighted mean 0, the part of :math:`\nabla^2 \log p` that does not depend on x
    (all of it for Beta and Dirichlet) cancels, and N draws give a Hessian of rank N at most.

    Args:
        losses: f(x) of the draws, (N,).
        scores: (N, n_theta).
        log_density_hessians: Hessians of log p_theta, (N, n_theta, n_theta).
        weights: (N,).

    Returns:
        A symmetric matrix, (n_theta, n_theta); indefinite as a rule.

    Raises:
        ValueError: If a shape is wrong.
    """
    scores = np.asarray(scores, dtype=np.float64, order="C")
    hessians = np.asarray(log_density_hessians, dtype=np.float64)
    n, n_theta = scores.shape
    _check_shape("log_density_hessians", hessians, "(N, n_theta, n_theta)", (n, n_theta, n_theta))
    weighted = _weighted_losses(losses, weights, n)
    terms = scores[:, :, None] * scores[:, None, :] + hessians
    hessian = (weighted[:, None, None] * terms).sum(axis=0) / n
    return np.asarray((hessian + hessian.T) / 2.0)


class Estimator(Protocol):
    """Turn the estimates into a descent step d, (n_theta,): theta_new = theta + step_size d."""

    def __call__(
        self,
        gradient: FloatArray,
        hessian: FloatArray | None,
        fisher: FloatArray,
        settings: UpdateSettings,
        /,
    ) -> FloatArray:
        """Return d."""


def gradient_direction(
    gradient: FloatArray, hessian: FloatArray | None, fisher: FloatArray, settings: UpdateSettings
) -> FloatArray:
    """Return -g: plain stochastic gradient descent."""
    return -gradient


def natural_gradient_direction(
    gradient: FloatArray, hessian: FloatArray | None, fisher: FloatArray, settings: UpdateSettings
) -> FloatArray:
    """Return -F^+ g: steepest descent where length is measured by KL (Amari 1998)."""
    whitening = whiten(fisher)
    return -(whitening @ (whitening.T @ gradient))


def newton_direction(
    gradient: FloatArray, hessian: FloatArray | None, fisher: FloatArray, settings: UpdateSettings
) -> FloatArray:
    r"""Return :math:`-W B^{-1} W^T g`, the Newton step in Fisher-whitened coordinates.

    B is :math:`W^T H W` with its eigenvalues clipped to [eta, L]. Assumption 3 supposes such a
    Hessian; sampled ones are indefinite at every K. In whitened coordinates the bounds mean the
    same for every block and every theta: a step of length r has a KL of about r^2 / 2.
    """
    if hessian is None:
        raise ValueError("hessian must be an array for this estimator, but got None.")
    whitening = whiten(fisher)
    curvature, axes = np.linalg.eigh(whitening.T @ hessian @ whitening)
    curvature = np.clip(curvature, *settings.curvature_bounds)  # Assumption 3
    step = axes @ ((axes.T @ (whitening.T @ gradient)) / curvature)
    return np.asarray(-(whitening @ step))  # "-" as in Eq 9; Eq 8 prints "+", which ascends


def cubic_direction(
    gradient: FloatArray, hessian: FloatArray | None, fisher: FloatArray, settings: UpdateSettings
) -> FloatArray:
    r"""Return W d, d the global minimiser of the cubic model in Fisher-whitened coordinates.

    :math:`m(d) = g^T d + d^T H d / 2 + L |d|^3 / 6`, with L of `curvature_bounds` as the Lipschitz
    constant of the Hessian (Nesterov, Polyak 2006). An indefinite H needs no repair: the minimiser
    is the d with :math:`(H + \frac{L}{2} |d| I) d = -g` and :math:`H + \frac{L}{2} |d| I \succeq
    0`, and :math:`|d|` is the root of one decreasing function. Where g has no part along the
    lowest eigenvector of an indefinite H ("hard case"), d has one of the two signs there.
    """
    if hessian is None:
        raise ValueError("hessian must be an array for this estimator, but got None.")
    whitening = whiten(fisher)
    curvature, axes = np.linalg.eigh(whitening.T @ hessian @ whitening)
    slope = axes.T @ (whitening.T @ gradient)
    if not (np.isfinite(curvature).all() and np.isfinite(slope).all()):
        return np.full_like(gradient, np.nan)

    # In units of this length L / 2 is 1, and no slope or curvature is larger than 1.
    half = settings.curvature_bounds[1] / 2.0
    steepest, sharpest = (float(np.max(np.abs(v), initial=0.0)) for v in (slope, curvature))
    unit = max(float(np.sqrt(steepest / half)), sharpest / half) or 1.0
    slope, curvature = slope / unit / unit / half, curvature / unit / half

    # |d| = pole + shift. The distance from the pole is what must be known to all its digits.
    pole = max(0.0, -float(np.min(curvature, initial=0.0)))
    if pole > 0.0 and slope[0] == 0.0:
        slope[0] = HARD_CASE
    moves = slope != 0.0
    slope, above, axes = slope[moves], (curvature + pole)[moves], axes[:, moves]
    if len(slope) == 0:
        return np.zeros_like(gradient)

    def excess(log_shift: float) -> float:
        shift = np.exp(log_shift)
        return float(np.linalg.norm(slope / (above + shift)) / (pole + shift)) - 1.0

    def shift_for(size: FloatArray) -> float:  # the largest of (above + s) (pole + s) = size
        twice = above + pole + np.sqrt((above - pole) ** 2 + 4.0 * size)
        return float(np.max(2.0 * (size - above * pole) / twice))

    shift = shift_for(np.abs(slope))  # where the first component alone is as long as |d|
    if excess(np.log(shift)) > 0.0:
        high = 2.0 * shift_for(np.sqrt(len(slope)) * np.abs(slope))
        shift = float(np.exp(optimize.brentq(excess, np.log(shift), np.log(high))))
    return np.asarray(-unit * (whitening @ (axes @ (slope / (above + shift)))))


ESTIMATORS: dict[str, Estimator] = {
    "newton": newton_direction,
    "gradient": gradient_direction,
    "natural": natural_gradient_direction,
    "cubic": cubic_direction,
}
"""Name -> direction of the Monte-Carlo estimators."""

FIRST_ORDER = {"gradient", "natural"}
"""Names of estimators that get hessian = None, which `update` then need not estimate."""


def whiten(fisher: FloatArray) -> FloatArray:
    """Return W with W W' = F^+, (n_theta, rank).

    Directions in which p_theta does not change (a categorical block along its theta) are left
    out, so no step goes there.
    """
    eigenvalues, axes = np.linalg.eigh(fisher)
    kept = eigenvalues > NULL_EIGENVALUE * np.max(eigenvalues, initial=0.0)
    return np.asarray(axes[:, kept] / np.sqrt(eigenvalues[kept]))


def descent_step(
    distribution: SearchDistribution,
    theta: FloatArray,
    gradient: FloatArray,
    hessian: FloatArray | None,
    *,
    direction: Estimator,
    reference: FloatArray,
    settings: UpdateSettings,
) -> Step:
    """Step from theta inside the box and the trust region.

    Components that sit on a bound which the gradient pushes against are held, and the direction
    is taken among the free ones (projected Newton, Bertsekas 1982). At theta = 1 with low = 1
    this is half of them. Clipping a step of all components instead can undo a descent: with
    f(x) = x, one Beta and exact estimates, the clipped Newton step from (1, 1) is
    (-8.0, -2.3): downhill, yet the box would hold theta at (1, 1) for ever.

    Args:
        distribution: p_theta.
        theta: Start of the step, inside the box, (n_theta,).
        gradient: Of J at theta, (n_theta,).
        hessian: Of J at theta, (n_theta, n_theta); None for an estimator that needs none.
        direction: An estimator; it sees the free components only.
        reference: Centre of the trust region: theta, or where a series of inner steps started.
        settings: `step_size`, `max_kl`, `theta_bounds` and what the estimator uses.

    Returns:
        The first candidate project(theta + scale * step_size * d), scale = 1, 0.85, 0.85^2, ...
        with KL(p_candidate || p_reference) <= max_kl. Theta itself with scale 0 if there is none
        or if an input or the direction is not finite.
    """
    displacement = _displacement(distribution, theta, gradient, hessian, direction, settings)
    scale = 1.0
    for _ in range(MAX_BACKTRACKS if np.isfinite(displacement).all() else 0):
        candidate = distribution.project(theta + scale * displacement, settings.theta_bounds)
        kl = distribution.kl(candidate, reference)
        if kl <= settings.max_kl:
            return Step(candidate, kl, scale)
        scale *= BACKTRACK
    return Step(theta.copy(), distribution.kl(theta, reference), 0.0)


def update(
    distribution: SearchDistribution,
    theta: ArrayLike,
    points: ArrayLike,
    losses: ArrayLike,
    log_density_drawn: ArrayLike,
    settings: UpdateSettings,
) -> Update:
    """Do one step of Algorithm 2: estimate, choose a direction, stay in the trust region.

    Args:
        distribution: p_theta.
        theta: Present parameters, inside `settings.theta_bounds`, (n_theta,).
        points: Draws inside the support, (N, n_columns), N >= 1.
        losses: f of the draws, (N,); infinite ones are allowed.
        log_density_drawn: Log density of each draw under the proposal that it came from, (N,).
            For draws of theta itself: `distribution.log_density(theta, points)`.
        settings: See `UpdateSettings`.

    Returns:
        The next theta and what a user may want to see of the step. One draw alone, or equal
        losses, leave p_theta as it is.

    Raises:
        ValueError: If a shape is wrong, a loss is NaN, a log density is not finite, theta is not
            > 0 or a point is outside the support.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.estimators.newton import update
        >>> from optuna_s2e.estimators import UpdateSettings
        >>> from optuna_s2e.distributions import Beta, SearchDistribution
        >>> distribution = SearchDistribution((Beta(),))
        >>> theta = distribution.uniform_theta()
        >>> X = distribution.sample(theta, np.random.default_rng(0), 100)
        >>> drawn = distribution.log_density(theta, X)
        >>> step = update(distribution, theta, X, X[:, 0], drawn, UpdateSettings())
        >>> bool(distribution.mean(step.theta)[0] < 0.5)
        True
    """
    theta, drawn = np.asarray(theta, np.float64), np.asarray(log_density_drawn, np.float64)
    log_density = distribution.log_density(theta, points)
    _check_shape("losses", np.asarray(losses, np.float64), "(N,)", log_density.shape)
    if not np.isfinite(drawn).all():
        at = int(np.argmin(np.isfinite(drawn)))
        raise ValueError(f"log_density_drawn[{at}] must be finite, but got {float(drawn[at])!r}.")

    weights = importance_weights(log_density, drawn, settings.max_weight)
    standardized = standardize(losses, weights=weights)
    scores = distribution.score(theta, points)
    gradient = gradient_estimate(standardized, scores, weights)
    hessian = None
    if settings.estimator not in FIRST_ORDER:
        hessians = distribution.hessian(theta, points)
        hessian = hessian_estimate(standardized, scores, hessians, weights)
    step = descent_step(
        distribution,
        theta,
        gradient,
        hessian,
        direction=ESTIMATORS[settings.estimator],
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


def _displacement(
    distribution: SearchDistribution,
    theta: FloatArray,
    gradient: FloatArray,
    hessian: FloatArray | None,
    direction: Estimator,
    settings: UpdateSettings,
) -> FloatArray:
    """Return step_size * d among the free components; NaN where the algebra breaks down."""
    if not np.isfinite(gradient).all():
        return np.full_like(theta, np.nan)
    free = distribution.free(theta, gradient, settings.theta_bounds)
    face = np.ix_(free, free)
    fisher = distribution.fisher(theta)[face]
    displacement = np.zeros_like(theta)
    with np.errstate(all="ignore"):
        try:
            d = direction(
                gradient[free], None if hessian is None else hessian[face], fisher, settings
            )
        except np.linalg.LinAlgError:
            return np.full_like(theta, np.nan)
        displacement[free] = settings.step_size * d
    return displacement


def _weighted_losses(losses: ArrayLike, weights: ArrayLike, n: int) -> FloatArray:
    f, w = np.asarray(losses, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    _check_shape("losses", f, "(N,)", (n,))
    _check_shape("weights", w, "(N,)", (n,))
    return w * f


def _to_unit_interval(values: FloatArray) -> FloatArray:
    """Map the smallest value to 0 and the largest to 1 (all to 0 if equal) without overflow."""
    scaled = values / max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    shifted = scaled - float(scaled.min())
    largest = float(shifted.max())
    return shifted / largest if largest > 0.0 else shifted


def _check_shape(name: str, array: FloatArray, symbols: str, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {symbols} = {shape}, but got {array.shape}.")
