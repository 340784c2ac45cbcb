r"""A model of the loss over points: Gaussian process regression with a few hyper-parameters.

Notation
    Z       features of the points: R(t) on a grid, or coordinates in the unit cube   (N, d)
    y       losses, clipped from above and standardised                              (N,)
    l       length scale, in units of the median distance between points              scalar
    s       noise variance / (signal + noise variance)                                scalar

k(z, z') = (1 - s) m(|z - z'| / l) + s [z is z'] with the Matern-5/2 function m. (l, s) are the
grid point of largest marginal likelihood under a weak prior; the signal scale is solved for in
closed form. Losses far above the median say that a point is bad, not how bad: they are clipped,
because under label noise bad schedules are also the noisiest.

References:
    Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, 2.2 and 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from optuna_s2e._typing import FloatArray

LENGTH_SCALES = np.geomspace(0.1, 6.0, 9)
NOISE_SHARES = np.array([0.003, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
LARGEST = 1e100  # loss: its square is still a number
MAX_POINTS = 500  # the cubic cost of a fit: about half a second


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted model; `predict` gives mean and standard deviation of f, without the noise."""

    features: FloatArray
    length_scale: float  # in units of the features
    noise_share: float
    _cholesky: FloatArray
    _weights: FloatArray
    _scale: float  # prior standard deviation of an observation, standardised
    _shift: float
    _unit: float

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of one observation around f, in units of the losses."""
        return float(np.sqrt(self.noise_share)) * self._scale * self._unit

    def mean(self, features: FloatArray) -> FloatArray:
        """Return the posterior mean of f at points (M, d), (M,)."""
        return self._shift + self._unit * (self._kernel(features, self.features) @ self._weights)

    def predict(
        self, features: FloatArray, pending: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the posterior mean and standard deviation of f at points (M, d), (M,) each.

        Args:
            features: The points.
            pending: Points (P, d) whose losses will be known soon: the deviation is the one that
                will be left then, which does not depend on the losses.
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
        return self._shift + self._unit * mean, self._unit * deviation

    def _kernel(self, a: FloatArray, b: FloatArray) -> FloatArray:
        return (1.0 - self.noise_share) * _matern(_distances(a, b) / self.length_scale)


def fit(features: FloatArray, losses: FloatArray) -> GaussianProcess:
    """Fit a model.

    Args:
        features: Z, (N, d), finite.
        losses: (N,); infinite ones count as the largest (smallest) finite one, and those beyond
            1e100 as that.

    Raises:
        ValueError: If there is no finite loss, or the shapes do not fit.
    """
    if features.ndim != 2 or losses.shape != (len(features),) or not len(losses):
        raise ValueError(
            "features and losses must have shapes (N, d) and (N,), "
            f"but got {features.shape} and {losses.shape}."
        )
    y, shift, unit = standardize(losses)
    distances = _distances(features, features)
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
            log_prior = -0.5 * (np.log(length_scale / typical) / 1.5) ** 2
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
    return GaussianProcess(features, length_scale, share, cholesky, weights, scale, shift, unit)


def standardize(losses: FloatArray) -> tuple[FloatArray, float, float]:
    """Return losses (N,) clipped from above and standardised, their mean and their deviation.

    Raises:
        ValueError: If there is no finite loss.
    """
    finite = np.clip(losses[np.isfinite(losses)], -LARGEST, LARGEST)
    if not finite.size:
        raise ValueError("losses must hold a finite number, but got none.")
    y = np.clip(losses, finite.min(), _ceiling(finite))
    shift, unit = float(np.mean(y)), float(np.std(y)) or 1.0
    return (y - shift) / unit, shift, unit


def _ceiling(finite: FloatArray) -> float:
    """Return where losses are clipped: twice as far above the median as the best is below."""
    median = float(np.median(finite))
    return median + 2.0 * (median - float(finite.min()))


def _whitened(cholesky: FloatArray, values: FloatArray) -> FloatArray:
    """Return L^-1 values."""
    return np.asarray(linalg.solve_triangular(cholesky, values, lower=True, check_finite=False))


def _matern(r: FloatArray) -> FloatArray:
    a = np.sqrt(5.0) * r
    return np.asarray((1.0 + a + a * a / 3.0) * np.exp(-a))


def _distances(a: FloatArray, b: FloatArray) -> FloatArray:
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))
