r"""Directions of descent: from a gradient and a Hessian of J to a step of theta.

References:
    Amari. Natural gradient works efficiently in learning. Neural Computation 1998.
    Nesterov, Polyak. Cubic regularization of Newton method and its global performance.
    Mathematical Programming 2006; Shen et al. Efficient hyper-parameter optimization with cubic
    regularization. NeurIPS 2023 (the cubic model).
    Yao et al. ICML 2020 (Eq 8 and 9, Assumption 3; the full reference is in `newton`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy import optimize

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import whiten
from optuna_s2e.estimators._block_eigh import block_eigh

HARD_CASE = 1e-30
"""Replaces a slope of 0 along the lowest eigenvector: far below rounding, but it has a sign."""


class StepSettings(Protocol):
    """Name the settings that a direction reads; `UpdateSettings` has them."""

    @property
    def curvature_bounds(self) -> tuple[float, float]:
        """(eta, L) of Assumption 3."""

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

    B is :math:`W^T H W` with its eigenvalues clipped to [eta, L]. The paper assumes such a Hessian
    (Assumption 3), but sampled Hessians are indefinite at every K. The bounds mean the same for
    every block and every theta, because in whitened coordinates a step of length r has a KL of
    about r^2 / 2. See `Direction` for the arguments.

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
    curvature, axes = block_eigh(hessian)
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
    curvature, axes = np.linalg.eigh(hessian)  # `block_eigh` may order equal eigenvalues otherwise
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

    H is not changed. A sampled H is indefinite as a rule, and then neither sign goes downhill. If
    H is singular to working precision, it has no inverse. Its pseudo-inverse is used instead: it
    makes no step along directions in which H is 0. See `Direction` for the arguments.

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
    try:
        step = np.asarray(np.linalg.lstsq(_required(hessian), gradient)[0])  # the shortest one
    except np.linalg.LinAlgError:
        return np.full_like(gradient, np.nan)
    return step if settings.sign == "+" else -step


def _whitened(
    gradient: FloatArray, hessian: FloatArray, fisher: FloatArray | None
) -> tuple[FloatArray, FloatArray, Callable[[FloatArray], FloatArray]]:
    """Return gradient and Hessian in Fisher-whitened coordinates, and the map of steps back."""
    if fisher is None:
        return gradient, hessian, lambda step: step
    whitening = whiten(fisher)
    return whitening.T @ gradient, whitening.T @ hessian @ whitening, whitening.__matmul__


def _required(hessian: FloatArray | None) -> FloatArray:
    if hessian is None:
        raise ValueError("hessian must be an array for this direction, but got None.")
    return hessian
