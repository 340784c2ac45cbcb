"""Gaussian-process regression of the loss on features.

Notation
    Z       features of the points: R(t) on a grid, or coordinates in the unit cube   (N, d)
    y       losses, clipped from above and standardised                              (N,)
    q       distance of two points times the square root of 5 over the length scale   scalar

`optuna_s2e.surrogate._likelihood` describes the covariance and chooses its hyper-parameters.

Losses far above the median are clipped. They say that a point is bad, but not how bad it is,
because under label noise bad schedules are also the noisiest. Losses may be of any size: they are
divided by a power of two near them, so no square overflows and no digit changes.

References:
    Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.linalg import lapack
from scipy.special import expit

from optuna_s2e._checks import check_axes, check_shape
from optuna_s2e._typing import FloatArray, IntArray
from optuna_s2e.surrogate._likelihood import (
    LogPosterior,
    category_squares,
    matern,
    pair_squares,
    whitened,
)

LARGEST = float(np.finfo(np.float64).max)
BLOCK = 16384  # numbers that are worked on at a time
TILE = 16  # points that BLAS works on at a time, or a multiple
ERROR = 1e-6  # more than the error of a correlation in single precision
FARTHEST = 7000.0  # q^2, beyond which the correlation is too small for single precision
MAX_POINTS = 500  # points to fit at most: the cubic cost is about half a second


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted regression; make one with `fit`.

    Attributes:
        features: Z, the points that it was fitted to, (N, d).
        length_scale: Distance over which the loss changes, in units of the features.
        noise_share: Noise variance as a share of the variance of an observation, in (0, 1).
        unit: A power of two near the losses.
        category_weights: Squared distance of two different categories, for features that are
            numbers of categories; 0 for the others, (d,).
        log_likelihood: Log marginal likelihood of the standardised losses, up to a constant.
    """

    features: FloatArray
    length_scale: float
    noise_share: float
    unit: float
    category_weights: FloatArray
    log_likelihood: float
    _cholesky: FloatArray
    _weights: FloatArray
    _scale: float  # prior standard deviation of an observation, standardised
    _shift: float  # mean and deviation of the losses, in units
    _deviation: float

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of one observation around f, in units of the losses."""
        return float(np.sqrt(self.noise_share)) * self._scale * self._deviation * self.unit

    @cached_property
    def mean_at_draws(self) -> FloatArray:
        """Posterior mean of f at the points that it was fitted to, (N,)."""
        return self.mean(self.features)

    def mean(self, features: FloatArray) -> FloatArray:
        """Return the posterior mean of f.

        Args:
            features: Points, (M, d).

        Returns:
            Expected losses without noise, (M,).
        """
        return self._mean(self._kernel(features, self.features))

    def predict(
        self, features: FloatArray, pending: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the posterior mean and standard deviation of f, without the noise.

        Args:
            features: Points, (M, d).
            pending: Points whose losses are not known yet, (P, d). The deviation returned is the
                one that remains once they are known; it does not depend on what they are. None
                means no such points.

        Returns:
            Mean and standard deviation in units of the losses, (M,) each.
        """
        k = self._kernel(features, self.features)
        return self._mean(k), self._deviation_left(k, features, pending)

    def lowest(
        self,
        features: FloatArray,
        bound: Callable[[FloatArray, FloatArray, IntArray | None], FloatArray],
        pending: FloatArray | None = None,
    ) -> int:
        """Return the point with the lowest bound, the first one of equals.

        The bounds of all points are estimated first: in single precision, as if just the nearest
        of the N draws was known. Only points that may be the lowest then need a prediction.

        Args:
            features: Points, (M, d), M > 0.
            bound: A function `bound(mean, deviation, rows)` of what `predict` returns, (m,) both,
                and of the rows of these points, (m,). It does not fall with the mean and does not
                rise with the deviation. If the rows are None, it returns the least that the
                bounds of all points can be.
            pending: As in `predict`.

        Returns:
            Row of the point.
        """
        least = bound(*self._screen(features), None)
        order = np.argsort(least, kind="stable")
        bounds, n, n_known = np.full(len(least), np.inf), 1, 0
        while n > n_known:
            n = min(-(-n // TILE) * TILE, len(order))  # bits depend on the place in a tile
            rows = np.sort(order[n_known:n])
            bounds[rows] = bound(*self.predict(features[rows], pending), rows)
            n_known, n = n, int(np.count_nonzero(least <= bounds.min()))
        return int(np.argmin(bounds))

    def _screen(self, features: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the least mean and the largest deviation that points (M, d) can have, (M,) each.

        They follow from correlations in single precision, which are within `ERROR`.
        """
        draws, scale = self._screened
        numbers, signal = self.category_weights == 0.0, 1.0 - self.noise_share
        z = features[:, numbers] * scale
        points = np.column_stack([z, (z * z).sum(axis=1), np.ones(len(z))])
        categories = None
        if not numbers.all():
            categories = category_squares(features, self.features, self.category_weights)
        weights = signal * self._weights
        mean, nearest = np.empty(len(z)), np.empty(len(z))
        for rows in _blocks(len(points), len(weights)):
            square = points[rows] @ draws  # q^2
            if categories is not None:
                square += scale**2 * categories[rows]
            nearest[rows] = square.min(axis=1)
            if square.max() > FARTHEST:
                np.minimum(square, FARTHEST, out=square)
            k = square.astype(np.float32)
            np.abs(k, out=k)  # a rounding error of 0 has a sign
            q = np.sqrt(k)
            k /= np.float32(3.0)
            k += q
            k += np.float32(1.0)
            np.negative(q, out=q)
            k *= np.exp(q, out=q)
            mean[rows] = k.astype(np.float64) @ weights
        nearest = signal * matern(np.sqrt(np.maximum(nearest, 0.0) / 5.0))
        mean = self._shift + self._deviation * (mean - ERROR * np.abs(weights).sum())
        return self._in_losses(mean), self._deviation_of(signal - nearest**2 + ERROR)

    @cached_property
    def _screened(self) -> tuple[FloatArray, float]:
        """A matrix whose product with (z, |z|^2, 1) is q^2 of all draws, and the factor of z."""
        scale = math.sqrt(5.0) / self.length_scale
        z = self.features[:, self.category_weights == 0.0] * scale
        return np.vstack([-2.0 * z.T, np.ones(len(z)), (z * z).sum(axis=1)]), scale

    def _mean(self, k: FloatArray) -> FloatArray:
        """Return the posterior mean at points with covariances k (M, N)."""
        return self._in_losses(self._shift + self._deviation * (k @ self._weights))

    def _deviation_left(
        self, k: FloatArray, features: FloatArray, pending: FloatArray | None
    ) -> FloatArray:
        """Return the deviation at points with covariances k (M, N), which are overwritten."""
        v = whitened(self._cholesky, k.T, overwrite=True)
        variance = (1.0 - self.noise_share) - _sums_of_squares(v)
        if pending is not None and len(pending):
            v_pending = whitened(self._cholesky, self._kernel(pending, self.features).T)
            between = self._kernel(pending, features) - v_pending.T @ v
            among = self._kernel(pending, pending) - v_pending.T @ v_pending
            among[np.diag_indices_from(among)] += self.noise_share
            u = whitened(linalg.cholesky(among, lower=True), between)
            variance -= _sums_of_squares(u)
        return self._deviation_of(variance)

    def _deviation_of(self, variance: FloatArray) -> FloatArray:
        deviation = self._scale * np.sqrt(np.maximum(variance, 0.0))
        return self._in_losses(self._deviation * deviation)

    def _in_losses(self, values: FloatArray) -> FloatArray:
        """Return numbers in units of the losses, at most the largest float."""
        with np.errstate(over="ignore"):
            return np.clip(values * self.unit, -LARGEST, LARGEST)

    def _kernel(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """Return the covariances of f at points a (N, d) and b (M, d), (N, M)."""
        numbers, categories = self.category_weights == 0.0, None
        if not numbers.all():
            categories = category_squares(a, b, self.category_weights)
            a, b = a[:, numbers], b[:, numbers]
        a_squares, b_squares = (a * a).sum(axis=1)[:, None], (b * b).sum(axis=1)
        k = a @ (2.0 * b).T
        for rows in _blocks(*k.shape):
            r = a_squares[rows] + b_squares
            r -= k[rows]
            np.maximum(r, 0.0, out=r)
            if categories is not None:
                r += categories[rows]
            np.sqrt(r, out=r)
            r /= self.length_scale
            np.multiply(matern(r), 1.0 - self.noise_share, out=k[rows])
        return k


def fit(
    features: FloatArray, losses: FloatArray, category_weights: FloatArray | None = None
) -> GaussianProcess:
    """Fit a Gaussian process to losses.

    Args:
        features: Z, finite, (N, d).
        losses: Losses at these points, (N,), as in `clip_and_standardize`.
        category_weights: As in `GaussianProcess`, (d,). None: no feature is the number of a
            category.

    Returns:
        The fitted regression.

    Raises:
        ValueError: If there is no finite loss, or a shape is wrong.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.surrogate import fit
        >>> z = np.linspace(0.0, 1.0, 20)[:, None]
        >>> mean, deviation = fit(z, z[:, 0] ** 2).predict(np.array([[0.5], [3.0]]))
        >>> abs(float(mean[0]) - 0.25) < 0.01, bool(deviation[1] > 10 * deviation[0])
        (True, True)
    """
    check_axes("features", features, "(N, d)", may_be_empty=True)
    check_shape("losses", losses, "(N,)", (len(features),))
    weights_of = np.zeros(features.shape[1]) if category_weights is None else category_weights
    y, mean, deviation = clip_and_standardize(losses)
    unit = _power_of_two(max(abs(mean), deviation))
    posterior = LogPosterior(pair_squares(features, weights_of)[None], y)
    v = posterior.best_of_grid()
    solved = posterior.solve(v)
    weights = lapack.dtrtrs(solved.cholesky, solved.half, lower=True, trans=1)[0]
    length_scale, share = float(np.exp(v[-2]) * np.sqrt(posterior.unit)), float(expit(v[-1]))
    return GaussianProcess(
        features, length_scale, share, unit, weights_of, -solved.likelihood, solved.cholesky,
        np.asarray(weights), float(np.sqrt(solved.variance)), mean / unit, deviation / unit,
    )  # fmt: skip


class StandardizedLosses(NamedTuple):
    """Hold what `clip_and_standardize` returns.

    Attributes:
        y: Losses of mean 0 and standard deviation 1 (all 0 if they are equal), (N,).
        mean: Mean of the clipped losses.
        deviation: Standard deviation of the clipped losses; if they are equal, the power of two
            below them.
    """

    y: FloatArray
    mean: float
    deviation: float


def clip_and_standardize(losses: FloatArray) -> StandardizedLosses:
    """Clip losses from above, and standardise them.

    The limit lies twice as far above the median as the lowest loss lies below it. If more than
    half of the losses are equal to the lowest one, the median of the others is used.

    Args:
        losses: Losses, (N,). +inf counts as the largest loss that is not clipped, -inf as the
            smallest finite one.

    Returns:
        The standardised losses, and what was taken out of them.

    Raises:
        ValueError: If there is no finite loss.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.surrogate import clip_and_standardize
        >>> y, mean, deviation = clip_and_standardize(np.array([1.0, 2.0, 900.0]))
        >>> (mean + deviation * y).tolist()
        [1.0, 2.0, 4.0]
    """
    finite = losses[np.isfinite(losses)]
    if not finite.size:
        raise ValueError("losses must hold a finite number, but got none.")
    low = float(finite.min())
    above = finite[finite > low]
    if not above.size:  # their mean may be rounded, so that it differs from them
        return StandardizedLosses(np.zeros(len(losses)), low, _power_of_two(low))
    ordinary = above if 2 * len(above) < len(finite) else finite
    middle = float(np.sort(ordinary)[len(ordinary) // 2])
    unit = _power_of_two(max(abs(low), abs(middle)))
    with np.errstate(over="ignore"):  # losses so far above are clipped
        scaled, above, ordinary = losses / unit, above / unit, ordinary / unit
    low, median = low / unit, float(np.median(ordinary))
    y = np.clip(scaled, low, max(median + 2.0 * (median - low), float(above.min())))
    mean, deviation = float(np.mean(y)), float(np.std(y))
    return StandardizedLosses((y - mean) / deviation, mean * unit, deviation * unit)


def _power_of_two(size: float) -> float:
    """Return the power of two next below |size|, a divisor that changes no digit; 1 for 0."""
    return float(np.ldexp(1.0, np.frexp(size)[1] - 1)) if size else 1.0


def _blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield blocks of rows that are small enough to stay in the cache."""
    size = max(1, BLOCK // max(1, n_columns))
    for start in range(0, n_rows, size):
        yield slice(start, start + size)


def _sums_of_squares(v: FloatArray) -> FloatArray:
    """Return the sum of squares of each column of v (N, M), (M,)."""
    sums = np.empty(v.shape[1])
    for columns in _blocks(*v.T.shape):
        part = v[:, columns]
        sums[columns] = (part * part).sum(axis=0)
    return sums
