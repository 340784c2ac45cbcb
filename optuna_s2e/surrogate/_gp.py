r"""Gaussian-process regression of the loss on features, with a few hyper-parameters.

Notation
    Z       features of the points: R(t) on a grid, or coordinates in the unit cube   (N, d)
    y       losses, clipped from above and standardised                              (N,)
    l       length scale                                                             scalar
    s       noise variance / (signal + noise variance)                               scalar

The covariance of two observations is k(z, z') = (1 - s) m(|z - z'| / l) + s [z is z'], times the
variance of an observation, with the Matern-5/2 function m. (l, s) is the grid point of the largest
marginal likelihood under a weak normal prior on log l, centred on the median distance between
points. The variance has a closed form.

Losses far above the median say that a point is bad, not how bad: under label noise bad schedules
are also the noisiest. Such losses are clipped. Losses may be of any size: all is computed in units
of a power of two near them, so no square overflows and no digit changes.

References:
    Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, 2.2 and 5.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.linalg import lapack

from optuna_s2e._checks import check_axes, check_shape
from optuna_s2e._typing import FloatArray

LENGTH_SCALES = np.geomspace(0.1, 6.0, 9)  # in units of the median distance
LENGTH_SCALE_SPREAD = 1.5  # prior standard deviation of log l
NOISE_SHARES = np.array([0.003, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
LARGEST = float(np.finfo(np.float64).max)
BLOCK = 8192  # numbers that are worked on at a time
TILE = 16  # points that BLAS works on at a time, or a multiple
ROUNDING = 1e-9  # more than the rounding error of a variance
MAX_POINTS = 500  # points to fit at most: the cubic cost is about half a second


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted regression; make one with `fit`.

    Attributes:
        features: Z, the points that it was fitted to, (N, d).
        length_scale: l, in units of the features.
        noise_share: s, in (0, 1).
        unit: A power of two near the losses.
        category_weights: Squared distance of two different categories, for features that are
            numbers of categories; 0 for the others, (d,).
    """

    features: FloatArray
    length_scale: float
    noise_share: float
    unit: float
    category_weights: FloatArray
    _cholesky: FloatArray
    _weights: FloatArray
    _scale: float  # prior standard deviation of an observation, standardised
    _shift: float  # mean and deviation of the losses, in units
    _deviation: float

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of one observation around f, in units of the losses."""
        return float(np.sqrt(self.noise_share)) * self._scale * self._deviation * self.unit

    @property
    def log_evidence(self) -> float:
        """Log marginal likelihood of the standardised losses at (l, s), up to a constant."""
        n = len(self.features)
        logs = np.log(np.diag(self._cholesky)).sum() + (n + 1) * np.log(self._scale)
        return -float(logs)

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
            pending: Points whose losses will be known soon, (P, d). The deviation is the one that
                will be left then; it does not depend on the losses. None means no such points.

        Returns:
            Mean and standard deviation in units of the losses, (M,) each.
        """
        k = self._kernel(features, self.features)
        return self._mean(k), self._deviation_left(k, features, pending)

    def lowest(
        self,
        features: FloatArray,
        bound: Callable[[FloatArray, FloatArray], FloatArray],
        pending: FloatArray | None = None,
    ) -> int:
        """Return the point with the lowest `bound(mean, deviation)`, the first one of equals.

        The deviations are what costs most of `predict`. They are computed only for the points that
        would have the lowest bound if just the nearest of the N draws were known.

        Args:
            features: Points, (M, d), M > 0.
            bound: A function of what `predict` returns, (M,) both, that does not rise with the
                deviation.
            pending: As in `predict`.

        Returns:
            Row of the point.
        """
        k = self._kernel(features, self.features)
        mean, deviation = self._mean(k), np.zeros(len(k))
        most = self._deviation_of((1.0 - self.noise_share) - k.max(axis=1) ** 2 + ROUNDING)
        lowest, highest = bound(mean, most), bound(mean, deviation)
        n = int(np.count_nonzero(lowest <= highest.min()))
        n = min(-(-n // TILE) * TILE, len(k))  # the bits of a column depend on its place in a tile
        rows = np.sort(np.argpartition(lowest, n - 1)[:n])
        deviation[rows] = self._deviation_left(k[rows], features[rows], pending)
        return int(np.argmin(bound(mean, deviation)))

    def _mean(self, k: FloatArray) -> FloatArray:
        """Return the posterior mean at points with covariances k (M, N)."""
        return self._in_losses(self._shift + self._deviation * (k @ self._weights))

    def _deviation_left(
        self, k: FloatArray, features: FloatArray, pending: FloatArray | None
    ) -> FloatArray:
        """Return the deviation at points with covariances k (M, N), which are overwritten."""
        v = _whitened(self._cholesky, k.T, overwrite=True)
        variance = (1.0 - self.noise_share) - _sums_of_squares(v)
        if pending is not None and len(pending):
            v_pending = _whitened(self._cholesky, self._kernel(pending, self.features).T)
            between = self._kernel(pending, features) - v_pending.T @ v
            among = self._kernel(pending, pending) - v_pending.T @ v_pending
            among[np.diag_indices_from(among)] += self.noise_share
            u = _whitened(linalg.cholesky(among, lower=True), between)
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
        def covariance(distances: FloatArray) -> FloatArray:
            return (1.0 - self.noise_share) * _matern(distances / self.length_scale)

        return _of_distances(covariance, a, b, self.category_weights)


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
    distances = _of_distances(np.asarray, features, features, weights_of)
    apart = distances[distances > 0]
    typical = float(np.median(apart)) if len(apart) else 1.0
    # LAPACK reads columns: it works on k.T in place if k holds the transpose.
    distances = np.ascontiguousarray(distances.T)
    correlation, k, spare = (np.empty_like(distances) for _ in range(3))
    best: tuple[float, float, float, FloatArray, FloatArray, float] | None = None
    for length_scale in LENGTH_SCALES * typical:
        for rows in _blocks(distances):
            correlation[rows] = _matern(distances[rows] / length_scale)
        for share in NOISE_SHARES:
            np.multiply(1.0 - share, correlation, out=k)
            k.reshape(-1)[:: len(y) + 1] += share  # the diagonal
            cholesky = factored(k.T)
            whitened = _whitened(cholesky, y)
            # scale^2 ~ inverse gamma of one pseudo-observation: exact fits stay uncertain
            scale2 = (whitened @ whitened + 1.0) / (len(y) + 1.0)
            log_likelihood = -np.log(np.diag(cholesky)).sum() - 0.5 * (len(y) + 1) * np.log(scale2)
            log_prior = -0.5 * (np.log(length_scale / typical) / LENGTH_SCALE_SPREAD) ** 2
            if best is None or log_likelihood + log_prior > best[0]:
                best = (
                    float(log_likelihood + log_prior), float(length_scale), float(share),
                    cholesky, whitened, float(np.sqrt(scale2)),
                )  # fmt: skip
                k, spare = spare, k  # the best factor is kept, the one before is not
    assert best is not None
    _, length_scale, share, cholesky, whitened, scale = best
    weights = linalg.solve_triangular(cholesky, whitened, trans=1, lower=True, check_finite=False)
    return GaussianProcess(
        features, length_scale, share, unit, weights_of,
        cholesky, weights, scale, mean / unit, deviation / unit,
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

    They are clipped twice as far above the median as the lowest loss is below it. If more than
    half of the losses tie at the lowest one, the median is that of the others: it says how much
    worse a loss is if it is worse.

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


def factored(k: FloatArray) -> FloatArray:
    """Return the lower Cholesky factor of k; it replaces a k that is stored by columns."""
    cholesky, info = lapack.dpotrf(k, lower=True, overwrite_a=True)
    if info:
        raise linalg.LinAlgError(f"Leading minor {info} of a covariance is not positive.")
    return np.asarray(cholesky)


def _whitened(cholesky: FloatArray, values: FloatArray, *, overwrite: bool = False) -> FloatArray:
    """Return L^-1 values; if told so, it replaces values that are stored by columns."""
    return np.asarray(lapack.dtrtrs(cholesky, values, lower=True, overwrite_b=overwrite)[0])


def _blocks(values: FloatArray) -> Iterator[slice]:
    """Yield blocks of rows that are small enough to stay in the cache."""
    size = max(1, BLOCK // max(1, values.shape[1]))
    for start in range(0, len(values), size):
        yield slice(start, start + size)


def _matern(r: FloatArray) -> FloatArray:
    """Return m(r); r is overwritten."""
    a: FloatArray = np.sqrt(5.0) * r
    bend = a * a
    bend /= 3.0
    decay = np.negative(a, out=r)
    a += 1.0
    a += bend
    a *= np.exp(decay, out=decay)
    return a


def _sums_of_squares(v: FloatArray) -> FloatArray:
    """Return the sum of squares of each column of v (N, M), (M,)."""
    sums = np.empty(v.shape[1])
    for columns in _blocks(v.T):
        part = v[:, columns]
        sums[columns] = (part * part).sum(axis=0)
    return sums


def category_squares(a: FloatArray, b: FloatArray, weights: FloatArray) -> FloatArray:
    """Return squared distances between categories.

    Args:
        a: Points, (N, d).
        b: Points, (M, d).
        weights: Squared distance of two different categories, 0 for other features, (d,). An
            inactive parameter (-1) is half as far, as it is among one-hot vectors.

    Returns:
        Squared distances, (N, M).
    """
    squares = np.zeros((len(a), len(b)))
    for j in np.flatnonzero(weights):
        one, other = a[:, j, None], b[:, j]
        differ = (one != other).astype(np.float64)
        if (one < 0).any() or (other < 0).any():
            differ -= 0.5 * ((one < 0) != (other < 0))
        squares += weights[j] * differ
    return squares


def _of_distances(
    function: Callable[[FloatArray], FloatArray],
    a: FloatArray,
    b: FloatArray,
    weights: FloatArray,
) -> FloatArray:
    """Return a function, which works on single numbers, of all distances, (N, M).

    Args:
        function: The function.
        a: Points, (N, d).
        b: Points, (M, d).
        weights: As `category_weights` in `GaussianProcess`, (d,).
    """
    numbered = weights > 0.0
    categories = category_squares(a, b, weights) if numbered.any() else None
    if categories is not None:
        a, b = a[:, ~numbered], b[:, ~numbered]
    a_squares, b_squares = (a * a).sum(axis=1)[:, None], (b * b).sum(axis=1)
    values = a @ b.T
    for rows in _blocks(values):
        squares = a_squares[rows] + b_squares
        squares -= 2.0 * values[rows]
        np.maximum(squares, 0.0, out=squares)
        if categories is not None:
            squares += categories[rows]
        values[rows] = function(np.sqrt(squares, out=squares))
    return values
