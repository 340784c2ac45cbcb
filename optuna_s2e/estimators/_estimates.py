r"""Estimates of the gradient and the Hessian of J from draws and their losses.

`newton` has the notation. The draws may come from any proposal q; importance weights correct
for it. The K draws of one generation are the special case q = p_theta: all weights are 1.

References:
    Yao, Yang, Han, Niu, Kwok. Searching to exploit memorization effect in learning with noisy
    labels. ICML 2020 (Eq 7, Proposition 1).
    Owen, Zhou. Safe and effective importance sampling. JASA 2000 (mixture proposals).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from optuna_s2e._checks import check_axes, check_shape
from optuna_s2e._typing import FloatArray


def z_scores(losses: ArrayLike, *, weights: ArrayLike | None = None) -> FloatArray:
    r"""Return the losses with weighted mean 0 and weighted standard deviation 1.

    An affine change of f moves neither the minimiser of J nor the direction of its gradient. A
    constant baseline b changes neither Eq 7 nor Proposition 1 in expectation, because
    :math:`E[s] = 0` and :math:`E[s s^T + \nabla^2 \log p] = 0`. It only removes variance.

    The weighted mean estimates J(theta), the mean loss of fresh draws. The plain mean of old draws
    estimates the J of their proposal instead. When p_theta has moved to better points, nearly all
    of its losses lie below that plain mean. As a baseline, it would add noise instead of removing
    it. Equal weights give the plain mean.

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
    values = finite_losses(losses)
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
    # The bits of `weighted @ scores` depend on BLAS and its threads. A sum of the rows in their
    # order and in one memory layout always has the same bits.
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


def finite_losses(losses: ArrayLike) -> FloatArray:
    """Replace infinite losses by the largest or smallest finite one; return zeros if none is."""
    values = np.asarray(losses, dtype=np.float64)
    check_axes("losses", values, "(N,)")
    if np.isnan(values).any():
        at = int(np.argmax(np.isnan(values)))
        raise ValueError(f"losses[{at}] must be a number, but got nan. Drop failed draws.")
    finite = values[np.isfinite(values)]
    return np.clip(values, finite.min(), finite.max()) if len(finite) else np.zeros_like(values)


def _weighted_losses(losses: ArrayLike, weights: ArrayLike, n: int) -> FloatArray:
    f, w = np.asarray(losses, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    check_shape("losses", f, "(N,)", (n,))
    check_shape("weights", w, "(N,)", (n,))
    return w * f


def _to_unit_interval(values: FloatArray) -> FloatArray:
    """Map the smallest value to 0 and the largest to 1 (all to 0 if equal) without overflow."""
    scaled = values / max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    shifted = scaled - float(scaled.min())
    largest = float(shifted.max())
    return shifted / largest if largest > 0.0 else shifted
