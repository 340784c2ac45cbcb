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

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import linalg

from optuna_s2e._checks import check_axes, check_shape
from optuna_s2e._typing import FloatArray

LENGTH_SCALES = np.geomspace(0.1, 6.0, 9)  # in units of the median distance
LENGTH_SCALE_SPREAD = 1.5  # prior standard deviation of log l
NOISE_SHARES = np.array([0.003, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
LARGEST = float(np.finfo(np.float64).max)
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

    def mean(self, features: FloatArray) -> FloatArray:
        """Return the posterior mean of f.

        Args:
            features: Points, (M, d).

        Returns:
            Expected losses without noise, (M,).
        """
        mean = self._kernel(features, self.features) @ self._weights
        return self._in_losses(self._shift + self._deviation * mean)

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
        mean = k @ self._weights
        v = _whitened(self._cholesky, k.T)
        variance = (1.0 - self.noise_share) - (v * v).sum(axis=0)
        if pending is not None and len(pending):
            v_pending = _whitened(self._cholesky, self._kernel(pending, self.features).T)
            between = self._kernel(pending, features) - v_pending.T @ v
            among = self._kernel(pending, pending) - v_pending.T @ v_pending
            among[np.diag_indices_from(among)] += self.noise_share
            u = _whitened(linalg.cholesky(among, lower=True), between)
            variance -= (u * u).sum(axis=0)
        deviation = self._scale * np.sqrt(np.maximum(variance, 0.0))
        mean = self._shift + self._deviation * mean
        return self._in_losses(mean), self._in_losses(self._deviation * deviation)

    def _in_losses(self, values: FloatArray) -> FloatArray:
        """Return numbers in units of the losses, at most the largest float."""
        with np.errstate(over="ignore"):
            return np.clip(values * self.unit, -LARGEST, LARGEST)

    def _kernel(self, a: FloatArray, b: FloatArray) -> FloatArray:
        distances = _distances(a, b, self.category_weights)
        return (1.0 - self.noise_share) * _matern(distances / self.length_scale)


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
    distances = _distances(features, features, weights_of)
    typical = float(np.median(distances[distances > 0])) if np.any(distances > 0) else 1.0
    best: tuple[float, float, float, FloatArray, FloatArray, float] | None = None
    for length_scale in LENGTH_SCALES * typical:
        correlation = _matern(distances / length_scale)
        for share in NOISE_SHARES:
            k = (1.0 - share) * correlation + share * np.eye(len(y))
            cholesky = linalg.cholesky(k, lower=True, overwrite_a=True, check_finite=False)
            whitened = _whitened(cholesky, y)
            # scale^2 ~ inverse gamma of one pseudo-observation: exact fits stay uncertain
            scale2 = (whitened @ whitened + 1.0) / (len(y) + 1.0)
            log_likelihood = -np.log(np.diag(cholesky)).sum() - 0.5 * (len(y) + 1) * np.log(scale2)
            log_prior = -0.5 * (np.log(length_scale / typical) / LENGTH_SCALE_SPREAD) ** 2
            if best is None or log_likelihood + log_prior > best[0]:
                weights = linalg.solve_triangular(
                    cholesky, whitened, trans=1, lower=True, check_finite=False
                )
                best = (
                    float(log_likelihood + log_prior), float(length_scale), float(share),
                    cholesky, weights, float(np.sqrt(scale2)),
                )  # fmt: skip
    assert best is not None
    _, length_scale, share, cholesky, weights, scale = best
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


def _whitened(cholesky: FloatArray, values: FloatArray) -> FloatArray:
    """Return L^-1 values."""
    return np.asarray(linalg.solve_triangular(cholesky, values, lower=True, check_finite=False))


def _matern(r: FloatArray) -> FloatArray:
    a = np.sqrt(5.0) * r
    return np.asarray((1.0 + a + a * a / 3.0) * np.exp(-a))


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


def _distances(a: FloatArray, b: FloatArray, weights: FloatArray) -> FloatArray:
    numbered = weights > 0.0
    categories = category_squares(a, b, weights) if numbered.any() else 0.0
    if numbered.any():
        a, b = a[:, ~numbered], b[:, ~numbered]
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0) + categories))
