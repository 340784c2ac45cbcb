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

`update` does one step. It takes any number of draws of any proposal q. The K draws of one
generation are the special case q = p_theta, in which all weights are 1. If earlier draws join
them, q is the mixture of the thetas that the draws came from.

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

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from optuna_s2e._checks import check_axes, check_shape
from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.distributions import SearchDistribution

NULL_EIGENVALUE = 1e-12
"""Eigenvalues of the Fisher information below this share of the largest count as zero."""

HARD_CASE = 1e-30
"""Stands for a slope of 0 along the lowest eigenvector: far below rounding, yet it has a sign."""

BACKTRACK = 0.85
MAX_BACKTRACKS = 60  # the shortest step tried is 0.85**59 = 7e-5 of the full one


class StepSettings(Protocol):
    """Name the settings that a step reads; `UpdateSettings` has them and explains them."""

    @property
    def step_size(self) -> float:
        """rho of Eq 8."""

    @property
    def max_kl(self) -> float:
        """Radius of the trust region in nats."""

    @property
    def curvature_bounds(self) -> tuple[float, float]:
        """(eta, L) of Assumption 3."""

    @property
    def theta_bounds(self) -> tuple[float, float]:
        """(low, high) of every component of theta."""

    @property
    def max_weight(self) -> float:
        """Upper bound of an importance weight."""

    @property
    def direction(self) -> Direction | None:
        """The direction of the step."""

    @property
    def needs_hessian(self) -> bool:
        """Whether the direction needs a Hessian."""

    @property
    def as_printed(self) -> bool:
        """Whether the step is Algorithm 2's own: raw losses, all components, no trust region."""

    @property
    def sign(self) -> str:
        """The sign of rho H^-1 g in `inverse_direction`: "-" of Eq 9 or "+" of Eq 8."""


Direction = Callable[[FloatArray, FloatArray | None, FloatArray | None, StepSettings], FloatArray]
"""A function (gradient, hessian, fisher, settings) -> d, a step downhill.

Args:
    gradient: Gradient of J, (n_theta,).
    hessian: Hessian of J, (n_theta, n_theta). None for directions that need none.
    fisher: Fisher information of p_theta, (n_theta, n_theta). None stands for the identity.
    settings: `curvature_bounds` are read; the step size is applied later.

Returns:
    d, (n_theta,).
"""


class Update(NamedTuple):
    """Hold what `update` returns.

    Attributes:
        theta: The next theta, (n_theta,).
        gradient_norm: Euclidean norm of the estimated gradient of the standardised losses. As
            printed: of the losses, up to a power of two.
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


def z_scores(losses: ArrayLike, *, weights: ArrayLike | None = None) -> FloatArray:
    r"""Return the losses with weighted mean 0 and weighted standard deviation 1.

    An affine change of f moves neither the minimiser of J nor the direction of its gradient. A
    constant baseline b changes neither Eq 7 nor Proposition 1 in expectation, because
    :math:`E[s] = 0` and :math:`E[s s^T + \nabla^2 \log p] = 0`. It only removes variance.

    The mean is weighted because it then estimates J(theta), the baseline that a fresh batch would
    have. The plain mean of old draws estimates the J of their proposal instead. When p_theta has
    moved to better points, nearly all of its losses lie below that plain mean, and the baseline
    would add the noise that it is there to remove. Equal weights give the plain mean.

    Args:
        losses: f(x) of the draws, (N,). +inf counts as the largest finite loss, -inf as the
            smallest.
        weights: Importance weights, finite and >= 0, (N,). None means that all are 1.

    Returns:
        The standardised losses, (N,). They are zeros if the losses of weight > 0 are all equal,
        or if no loss is finite.

    Raises:
        ValueError: If a loss is NaN, or a shape is wrong.

    Example:
        >>> from optuna_s2e.estimators.newton import z_scores
        >>> z_scores([1e308, -1e308, float("inf"), float("-inf")]).tolist()
        [1.0, -1.0, 1.0, -1.0]
    """
    values = _finite_losses(losses)
    w = np.asarray(np.ones_like(values) if weights is None else weights, dtype=np.float64)
    check_shape("weights", w, "(N,)", values.shape)
    total = float(w.sum())
    if total == 0.0:
        return np.zeros_like(values)
    unit = _to_unit_interval(values)
    centred = unit - float((w * unit).sum()) / total
    deviation = float(np.sqrt((w * centred**2).sum() / total))
    return centred / deviation if deviation > 0.0 else np.zeros_like(values)


def importance_weights(
    log_density: ArrayLike, log_density_drawn: ArrayLike, max_weight: float
) -> FloatArray:
    r"""Return :math:`\min(p_\theta(x) / q(x), w_{max})` without overflow.

    A weight is exactly 1 where the densities are equal, so draws of theta itself keep their
    weight.

    Args:
        log_density: :math:`\log p_\theta(x)` of each draw, (N,).
        log_density_drawn: :math:`\log q(x)` of each draw, (N,).
        max_weight: :math:`w_{max}`, > 0.

    Returns:
        Weights in [0, max_weight], (N,).

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> from optuna_s2e.estimators.newton import importance_weights
        >>> importance_weights([0.0, 2000.0], [0.0, 0.0], 10.0).tolist()
        [1.0, 10.0]
    """
    log_p = np.asarray(log_density, dtype=np.float64)
    log_q = np.asarray(log_density_drawn, dtype=np.float64)
    check_shape("log_density_drawn", log_q, "(N,)", log_p.shape)
    bounded = np.exp(np.minimum(log_p - log_q, np.log(max_weight)))
    return np.asarray(np.minimum(bounded, max_weight))  # exp(log(w)) may round to above w


def effective_sample_size(weights: ArrayLike) -> float:
    r"""Return Kish's effective sample size, :math:`(\sum w)^2 / \sum w^2`.

    Args:
        weights: Weights >= 0, (N,).

    Returns:
        A number in [1, N], or 0 if all weights are 0.

    Example:
        >>> from optuna_s2e.estimators.newton import effective_sample_size
        >>> effective_sample_size([2.0, 2.0, 0.0])
        2.0
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.max() == 0.0:
        return 0.0
    scaled = w / w.max()  # tiny weights have no squares
    return float(scaled.sum() ** 2 / (scaled**2).sum())


def gradient_estimate(losses: ArrayLike, scores: ArrayLike, weights: ArrayLike) -> FloatArray:
    r"""Estimate the gradient of J by Eq 7, :math:`\frac{1}{N} \sum_i w_i f(x_i) s_i`.

    Args:
        losses: f(x) of the draws, (N,).
        scores: s of the draws, (N, n_theta).
        weights: w of the draws, (N,).

    Returns:
        The estimate, (n_theta,).

    Raises:
        ValueError: If a shape is wrong.

    Example:
        >>> from optuna_s2e.estimators.newton import gradient_estimate
        >>> gradient_estimate([1.0, -1.0], [[2.0], [1.0]], [1.0, 1.0]).tolist()
        [0.5]
    """
    # The product `weighted @ scores` would depend on BLAS and its threads. Rows are summed in
    # their order and in one memory layout instead, so the bits are always the same.
    scores = np.asarray(scores, dtype=np.float64, order="C")
    weighted = _weighted_losses(losses, weights, len(scores))
    return np.asarray((weighted[:, None] * scores).sum(axis=0) / len(scores))


def hessian_estimate(
    losses: ArrayLike, scores: ArrayLike, log_density_hessians: ArrayLike, weights: ArrayLike
) -> FloatArray:
    r"""Estimate the Hessian of J by Proposition 1.

    .. math:: \frac{1}{N} \sum_i w_i f(x_i) (s_i s_i^T + \nabla^2 \log p_\theta(x_i))

    If the losses have weighted mean 0, the part of :math:`\nabla^2 \log p` that does not depend
    on x cancels. For Beta and Dirichlet that is all of it, and N draws give a Hessian of rank N
    at most.

    Args:
        losses: f(x) of the draws, (N,).
        scores: s of the draws, (N, n_theta).
        log_density_hessians: Hessians of log p_theta, (N, n_theta, n_theta).
        weights: w of the draws, (N,).

    Returns:
        A symmetric matrix, (n_theta, n_theta). It is indefinite as a rule.

    Raises:
        ValueError: If a shape is wrong.

    Example:
        >>> from optuna_s2e.estimators.newton import hessian_estimate
        >>> hessian_estimate([1.0, -1.0], [[2.0], [1.0]], [[[0.0]], [[0.0]]], [1.0, 1.0]).tolist()
        [[1.5]]
    """
    scores = np.asarray(scores, dtype=np.float64, order="C")
    hessians = np.asarray(log_density_hessians, dtype=np.float64)
    n, n_theta = scores.shape
    check_shape("log_density_hessians", hessians, "(N, n_theta, n_theta)", (n, n_theta, n_theta))
    weighted = _weighted_losses(losses, weights, n)
    terms = scores[:, :, None] * scores[:, None, :] + hessians
    hessian = (weighted[:, None, None] * terms).sum(axis=0) / n
    return np.asarray((hessian + hessian.T) / 2.0)


def gradient_direction(
    gradient: FloatArray,
    hessian: FloatArray | None,
    fisher: FloatArray | None,
    settings: StepSettings,
) -> FloatArray:
    """Return -g: plain stochastic gradient descent. See `Direction` for the arguments.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.estimators import newton, resolve
        >>> g, F = np.array([1.0, -2.0]), np.diag([4.0, 1.0])
        >>> newton.gradient_direction(g, None, F, resolve({})).tolist()
        [-1.0, 2.0]
    """
    return -gradient


def natural_gradient_direction(
    gradient: FloatArray,
    hessian: FloatArray | None,
    fisher: FloatArray | None,
    settings: StepSettings,
) -> FloatArray:
    """Return -F^+ g: the steepest descent if length is measured by KL (Amari 1998).

    See `Direction` for the arguments.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.estimators import newton, resolve
        >>> g, F = np.array([1.0, -2.0]), np.diag([4.0, 1.0])
        >>> newton.natural_gradient_direction(g, None, F, resolve({})).tolist()
        [-0.25, 2.0]
    """
    if fisher is None:
        return -gradient
    whitening = whiten(fisher)
    return -(whitening @ (whitening.T @ gradient))


def newton_direction(
    gradient: FloatArray,
    hessian: FloatArray | None,
    fisher: FloatArray | None,
    settings: StepSettings,
) -> FloatArray:
    r"""Return :math:`-W B^{-1} W^T g`, the Newton step in Fisher-whitened coordinates.

    B is :math:`W^T H W` with its eigenvalues clipped to [eta, L]. Assumption 3 supposes such a
    Hessian; sampled ones are indefinite at every K. In whitened coordinates the bounds mean the
    same for every block and every theta: a step of length r has a KL of about r^2 / 2. See
    `Direction` for the arguments.

    Raises:
        ValueError: If `hessian` is None.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.estimators import newton, resolve
        >>> g, H = np.array([1.0, -2.0]), np.diag([4.0, 999.0])  # L = 10 bounds the curvature
        >>> newton.newton_direction(g, H, np.eye(2), resolve({})).round(9).tolist()
        [-0.25, 0.2]
    """
    slope, hessian, back = _whitened(gradient, _required(hessian), fisher)
    curvature, axes = _eigh(hessian)
    curvature = np.clip(curvature, *settings.curvature_bounds)  # Assumption 3
    step = axes @ ((axes.T @ slope) / curvature)
    return np.asarray(-back(step))  # "-" as in Eq 9; Eq 8 prints "+", which ascends


def cubic_direction(
    gradient: FloatArray,
    hessian: FloatArray | None,
    fisher: FloatArray | None,
    settings: StepSettings,
) -> FloatArray:
    r"""Return W d, d the global minimiser of the cubic model in Fisher-whitened coordinates.

    :math:`m(d) = g^T d + d^T H d / 2 + L |d|^3 / 6`, with L of `curvature_bounds` as the Lipschitz
    constant of the Hessian (Nesterov, Polyak 2006). An indefinite H needs no repair: the minimiser
    is the d with :math:`(H + \frac{L}{2} |d| I) d = -g` and :math:`H + \frac{L}{2} |d| I \succeq
    0`, and :math:`|d|` is the root of one decreasing function. If g has no part along the lowest
    eigenvector of an indefinite H (the "hard case"), either sign of d along it is a minimiser,
    and one is taken. See `Direction` for the arguments.

    Raises:
        ValueError: If `hessian` is None.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.estimators import newton, resolve
        >>> g, H = np.array([5.0]), np.array([[0.0]])  # L = 10: |d| = sqrt(2 |g| / L)
        >>> newton.cubic_direction(g, H, np.eye(1), resolve({})).round(9).tolist()
        [-1.0]
    """
    slope, hessian, back = _whitened(gradient, _required(hessian), fisher)
    curvature, axes = np.linalg.eigh(hessian)  # its order of equal ones sets the order of sums
    slope = axes.T @ slope
    if not (np.isfinite(curvature).all() and np.isfinite(slope).all()):
        return np.full_like(gradient, np.nan)

    # In units of this length L / 2 is 1, and no slope or curvature is larger than 1.
    half = settings.curvature_bounds[1] / 2.0
    steepest, sharpest = (float(np.max(np.abs(v), initial=0.0)) for v in (slope, curvature))
    unit = max(float(np.sqrt(steepest / half)), sharpest / half) or 1.0
    slope, curvature = slope / unit / unit / half, curvature / unit / half

    # |d| = pole + shift. All digits of the shift, the distance from the pole, are needed.
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

    def shift_for(size: FloatArray) -> float:  # the largest s with (above + s) (pole + s) = size
        twice = above + pole + np.sqrt((above - pole) ** 2 + 4.0 * size)
        return float(np.max(2.0 * (size - above * pole) / twice))

    shift = shift_for(np.abs(slope))  # where the first component alone is as long as |d|
    if excess(np.log(shift)) > 0.0:
        high = 2.0 * shift_for(np.sqrt(len(slope)) * np.abs(slope))
        shift = float(np.exp(optimize.brentq(excess, np.log(shift), np.log(high))))
    return np.asarray(-unit * back(axes @ (slope / (above + shift))))


def inverse_direction(
    gradient: FloatArray,
    hessian: FloatArray | None,
    fisher: FloatArray | None,
    settings: StepSettings,
) -> FloatArray:
    r"""Return :math:`-H^{-1} g` (Eq 9) or, if `settings.sign` is "+", :math:`H^{-1} g` (Eq 8).

    H is taken as it is. A sampled H is indefinite as a rule, and then neither sign is downhill.
    If H is singular to working precision, the paper's inverse does not exist, and its
    pseudo-inverse takes its place: components of g that H does not see cause no step. See
    `Direction` for the arguments.

    Raises:
        ValueError: If `hessian` is None.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.estimators import newton, resolve
        >>> g, H = np.array([1.0, -2.0]), np.diag([4.0, -1.0])
        >>> settings = resolve({"estimator": "paper"})
        >>> newton.inverse_direction(g, H, np.eye(2), settings).round(9).tolist()
        [-0.25, -2.0]
    """
    step = np.asarray(np.linalg.lstsq(_required(hessian), gradient)[0], np.float64)  # shortest
    return step if settings.sign == "+" else -step


def whiten(fisher: FloatArray) -> FloatArray:
    """Return W with W W' = F^+, the map to coordinates in which the Fisher information is I.

    Directions in which p_theta does not change (a categorical block along its theta) are left
    out, so no step goes there.

    Args:
        fisher: F, symmetric and positive semi-definite, (n_theta, n_theta).

    Returns:
        W, (n_theta, rank of F).

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.estimators.newton import whiten
        >>> whiten(np.diag([4.0, 0.0])).tolist()
        [[0.5], [0.0]]
    """
    eigenvalues, axes = np.linalg.eigh(fisher)
    kept = eigenvalues > NULL_EIGENVALUE * np.max(eigenvalues, initial=0.0)
    return np.asarray(axes[:, kept] / np.sqrt(eigenvalues[kept]))


def _whitened(
    gradient: FloatArray, hessian: FloatArray, fisher: FloatArray | None
) -> tuple[FloatArray, FloatArray, Callable[[FloatArray], FloatArray]]:
    """Return gradient and Hessian in Fisher-whitened coordinates, and the map of steps back."""
    if fisher is None:
        return gradient, hessian, lambda step: step
    whitening = whiten(fisher)
    return whitening.T @ gradient, whitening.T @ hessian @ whitening, whitening.__matmul__


def _eigh(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the eigenvalues of a symmetric matrix, rising, and its axes.

    The two directions of each of many categorical blocks make a matrix of blocks of 2 x 2. They
    are solved by themselves, which gives the same bits and does not take cubic time.
    """
    first = np.flatnonzero(np.diagonal(matrix, 1))
    n_inside = np.count_nonzero(np.diagonal(matrix)) + 2 * len(first)
    if np.diff(first).min(initial=2) < 2 or np.count_nonzero(matrix) > n_inside:
        found = np.linalg.eigh(matrix)
        return found.eigenvalues, found.eigenvectors
    eigenvalues, axes = np.diagonal(matrix).copy(), np.eye(len(matrix))
    pairs = np.stack([first, first + 1], axis=1)
    blocks = pairs[:, :, None], pairs[:, None]
    eigenvalues[pairs], axes[blocks] = np.linalg.eigh(matrix[blocks])
    order = np.argsort(eigenvalues, kind="stable")
    return eigenvalues[order], np.take(axes, order, axis=1)


def descent_step(
    distribution: SearchDistribution,
    theta: FloatArray,
    gradient: FloatArray,
    hessian: FloatArray | None,
    *,
    direction: Direction,
    reference: FloatArray,
    settings: StepSettings,
) -> Step:
    """Step from theta inside the box and the trust region.

    Components that sit on a bound and would leave the box are held, and the direction is taken
    among the free ones (projected Newton, Bertsekas 1982). At theta = 1 with low = 1, half of the
    components are held. Clipping a step of all components instead can undo a descent. Take
    f(x) = x, one Beta and exact estimates: the Newton step from (1, 1) is (-8.0, -2.3). It goes
    downhill, yet the box would hold theta at (1, 1) for ever. If `settings.as_printed`, all
    components take part all the same, and there is no trust region: the step is clipped.

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
        with KL(p_candidate || p_reference) <= max_kl. If there is none, or if an input or the
        direction is not finite, theta itself with scale 0.

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
    displacement = _displacement(distribution, theta, gradient, hessian, direction, settings)
    return _backtrack(distribution, theta, displacement, reference, settings)


def subspace_step(
    distribution: SearchDistribution,
    theta: FloatArray,
    points: FloatArray,
    weighted_losses: FloatArray,
    *,
    direction: Direction,
    needs_hessian: bool,
    reference: FloatArray,
    settings: StepSettings,
    alike: Sequence[IntArray] = (),
) -> tuple[FloatArray, Step]:
    r"""Estimate the gradient and do a step among many categories, without large matrices.

    The direction is taken in the subspace of `SearchDistribution.tangents`, with basis B: it sees
    the gradient :math:`B^T g`, the Hessian :math:`B^T H B` and the Fisher information
    :math:`B^T F B = I`. For one categorical block, and for natural gradients, this is the step of
    `descent_step`. Time and memory grow with the number of categories, not with its square.
    Hessian terms between a categorical block and others are left out: its directions follow from
    the losses of the same draws, so the terms would be fitted to noise and stop the other blocks.

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
    free = _free(distribution, theta, gradient, settings)
    if direction is gradient_direction:  # needs no metric, and leaves the subspace
        displacement = np.where(free, -settings.step_size * gradient, 0.0)
        return gradient, _backtrack(distribution, theta, displacement, reference, settings)
    basis, part = distribution.tangents(theta, gradient, free)
    hessian = None
    if needs_hessian:
        scores = distribution.score_along(theta, points, basis)
        hessian = (weighted_losses * scores.T) @ scores
        hessian += distribution.hessian_along(theta, points, weighted_losses, basis)
        hessian = (hessian + hessian.T) / (2.0 * n)
        hessian = np.where(part[:, None] == part, hessian, 0.0)
    with np.errstate(all="ignore"):  # a displacement that is not finite keeps theta
        d = direction(basis.T @ gradient, hessian, None, settings)
        displacement = settings.step_size * (basis * d).sum(axis=1)
    return gradient, _backtrack(distribution, theta, displacement, reference, settings)


def update(
    distribution: SearchDistribution,
    theta: ArrayLike,
    points: ArrayLike,
    *,
    losses: ArrayLike,
    log_density_drawn: ArrayLike,
    settings: StepSettings,
) -> Update:
    """Do one step: estimate, choose a direction, stay in the trust region.

    If `settings.as_printed`, it is that of the paper's Algorithm 2: Eq 7 and Proposition 1 with
    the losses as they are, and all of the step, clipped to the box.

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

    weights = importance_weights(log_density, drawn, settings.max_weight)
    f = _scaled(losses) if settings.as_printed else z_scores(losses, weights=weights)
    if distribution.has_many_categories:
        gradient, step = subspace_step(
            distribution,
            theta,
            np.asarray(points, np.float64),
            weights * f,
            direction=settings.direction,
            needs_hessian=settings.needs_hessian,
            reference=theta,
            settings=settings,
        )
    else:
        scores = distribution.score(theta, points)
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


def _backtrack(
    distribution: SearchDistribution,
    theta: FloatArray,
    displacement: FloatArray,
    reference: FloatArray,
    settings: StepSettings,
) -> Step:
    """Return the longest step tried that stays in the trust region, or theta itself."""
    scale = 1.0
    for _ in range(MAX_BACKTRACKS if np.isfinite(displacement).all() else 0):
        candidate = distribution.project(theta + scale * displacement, settings.theta_bounds)
        kl = distribution.kl(candidate, reference)
        if kl <= settings.max_kl or settings.as_printed:
            return Step(candidate, kl, scale)
        scale *= BACKTRACK
    return Step(theta.copy(), distribution.kl(theta, reference), 0.0)


def _free(
    distribution: SearchDistribution,
    theta: FloatArray,
    gradient: FloatArray,
    settings: StepSettings,
) -> BoolArray:
    """Return which components of theta a step may move."""
    if settings.as_printed:
        return np.ones(len(theta), dtype=np.bool_)
    return distribution.free(theta, gradient, settings.theta_bounds)


def _displacement(
    distribution: SearchDistribution,
    theta: FloatArray,
    gradient: FloatArray,
    hessian: FloatArray | None,
    direction: Direction,
    settings: StepSettings,
) -> FloatArray:
    """Return step_size * d among the free components; NaN where the algebra breaks down."""
    if not np.isfinite(gradient).all():
        return np.full_like(theta, np.nan)
    free = _free(distribution, theta, gradient, settings)
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


def _required(hessian: FloatArray | None) -> FloatArray:
    if hessian is None:
        raise ValueError("hessian must be an array for this direction, but got None.")
    return hessian


def _weighted_losses(losses: ArrayLike, weights: ArrayLike, n: int) -> FloatArray:
    f, w = np.asarray(losses, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    check_shape("losses", f, "(N,)", (n,))
    check_shape("weights", w, "(N,)", (n,))
    return w * f


def _finite_losses(losses: ArrayLike) -> FloatArray:
    """Return the losses with infinite ones at the largest (smallest) finite one, else zeros."""
    values = np.asarray(losses, dtype=np.float64)
    check_axes("losses", values, "(N,)")
    if np.isnan(values).any():
        at = int(np.argmax(np.isnan(values)))
        raise ValueError(f"losses[{at}] must be a number, but got nan. Drop failed draws.")
    finite = values[np.isfinite(values)]
    return np.clip(values, finite.min(), finite.max()) if len(finite) else np.zeros_like(values)


def _scaled(losses: ArrayLike) -> FloatArray:
    """Return the losses over a power of two: it cancels in H^-1 g, and none overflows."""
    values = _finite_losses(losses)
    return np.ldexp(values, -int(np.frexp(np.abs(values).max())[1]))


def _to_unit_interval(values: FloatArray) -> FloatArray:
    """Map the smallest value to 0 and the largest to 1 (all to 0 if equal) without overflow."""
    scaled = values / max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    shifted = scaled - float(scaled.min())
    largest = float(shifted.max())
    return shifted / largest if largest > 0.0 else shifted
