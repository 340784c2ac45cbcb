r"""The likelihood of losses under a Gaussian process, and which hyper-parameters it prefers.

Notation
    Z           features of the draws                                          (N, n_features)
    y           losses of the draws, standardised                              (N,)
    G           number of parameters; a schedule counts as one                 scalar
    P           number of pairs of draws, N (N - 1) / 2                        scalar
    D_j         squared distances in the features of parameter j               (G, P)
    a_j         log of the relevance of parameter j                            (G,)
    l, s        length scale; noise variance / variance of an observation      scalars
    v           (a, log l, logit s)                                            (G + 2,)
    m           the Matern-5/2 function

The covariance of two observations is k = (1 - s) m(r) + s [same draw], times the variance of an
observation, with :math:`r^2 = \sum_j e^{2 a_j} D_j / l^2`. The variance has a closed form. The
prior on log l is normal around the median distance between draws. Independent Cauchy priors on a_j
leave most parameters alike and let some stand out. The prior on logit s is flat if all parameters
count alike. If relevances are learned, it is normal and wide. With a flat prior, pure noise would
explain the losses as well as a few parameters that matter.

With a = 0, all parameters count alike. (l, s) is then the point of a grid where the posterior
density is largest; it is the same on a processor that rounds differently. Automatic relevance
determination (ARD) climbs from there to a mode with free a. ARD needs far fewer losses to find a
good region if few parameters matter. But a few draws may suggest differences in relevance that do
not exist, and these make the search worse if all parameters matter alike. So a = 0 unless the mode
with free a is e^3 times as probable as the mode with a = 0.

References:
    Neal, "Bayesian Learning for Neural Networks", Springer 1996, 1.2 and 4.3. Rasmussen and
    Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, 2.2, 5.1 and 5.4.1
    (gradient).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.linalg import lapack
from scipy.optimize import minimize
from scipy.spatial.distance import pdist, squareform
from scipy.special import expit, logit

from optuna_s2e._typing import BoolArray, FloatArray, IntArray

LOG_LENGTHS = np.log(np.geomspace(0.1, 6.0, 9))  # grid, in units of the median distance
LOGITS = logit([0.003, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])  # grid
LENGTH_WIDTH = 1.5  # prior standard deviation of log l
PRIOR_WIDTH = 0.5  # scale of the Cauchy prior on a_j
NOISE_MODE, NOISE_WIDTH = -2.0, 2.5  # prior of logit s where relevances are learned
LARGEST = 4.0  # bound of |a_j|
NEEDED = 3.0  # log odds against a = 0
MAX_POINTS = 100  # draws from which ARD learns
MAX_STEPS = 15  # steps of L-BFGS
DIGITS = 2  # of a: on a processor that rounds differently, the same ones are found


class Solved(NamedTuple):
    """Hold what `LogPosterior.solve` returns.

    Attributes:
        value: Minus the log density.
        likelihood: The part of it that is minus the log marginal likelihood, up to a constant.
        cholesky: Lower Cholesky factor L of k, (N, N).
        half: L^-1 y, (N,).
        variance: Estimate of the variance of an observation. Its prior is inverse gamma of one
            pseudo-observation of 1: exact fits stay uncertain.
        r: Distance of each pair of draws, (P,).
        correlation: m(r), (P,).
    """

    value: float
    likelihood: float
    cholesky: FloatArray
    half: FloatArray
    variance: float
    r: FloatArray
    correlation: FloatArray


class _Correlations(NamedTuple):
    """Hold what depends on (a, log l) alone."""

    r: FloatArray  # (P,)
    correlation: FloatArray  # (P,)
    square: FloatArray  # the correlations as a matrix with a diagonal of zeros, (N, N)


class LogPosterior:
    """Minus the log posterior density of v, and its gradient.

    Args:
        squares: D_j of each pair of draws, as `pair_squares` returns them, (G, P).
        y: Standardised losses, (N,).
        noise_width: Standard deviation of the normal prior on logit s, around `NOISE_MODE`.

    Attributes:
        unit: Median squared distance of draws that differ, or 1. l is in units of its root.
    """

    def __init__(self, squares: FloatArray, y: FloatArray, noise_width: float = np.inf) -> None:
        total = squares.sum(axis=0)
        self.unit = float(np.median(total[total > 0.0])) if (total > 0.0).any() else 1.0
        self._squares, self._y = squares / self.unit, y
        self._noise_width = noise_width

    def solve(self, v: FloatArray, at: _Correlations | None = None) -> Solved:
        """Return the density, and the covariance of the losses in a form that solves.

        Args:
            v: (a, log l, logit s).
            at: The correlations at (a, log l), if they are known.
        """
        a, log_length, n = v[:-2], v[-2], len(self._y)
        r, correlation, square = at or self._correlate(v)
        k = (1.0 - expit(v[-1])) * square
        k.reshape(-1)[:: n + 1] = 1.0  # the diagonal, signal and noise
        cholesky, failed = lapack.dpotrf(k.T, lower=True, overwrite_a=True)
        if failed:
            raise linalg.LinAlgError("The covariance of the losses is not positive definite.")
        half = whitened(cholesky, self._y)
        variance = (float(half @ half) + 1.0) / (n + 1)
        likelihood = float(np.log(cholesky.diagonal()).sum() + 0.5 * (n + 1) * np.log(variance))
        prior = 0.5 * (log_length / LENGTH_WIDTH) ** 2 + np.log1p((a / PRIOR_WIDTH) ** 2).sum()
        prior += 0.5 * ((v[-1] - NOISE_MODE) / self._noise_width) ** 2
        value = likelihood + float(prior)
        return Solved(value, likelihood, cholesky, half, variance, r, correlation)

    def _correlate(self, v: FloatArray) -> _Correlations:
        r = np.sqrt(np.exp(2.0 * (v[:-2] - v[-2])) @ self._squares)
        correlation = matern(r)
        return _Correlations(r, correlation, squareform(correlation, checks=False))

    def __call__(self, v: FloatArray) -> tuple[float, FloatArray]:
        """Return minus the log density and its gradient, (G + 2,)."""
        value, _, cholesky, half, variance, r, correlation = self.solve(v)
        s, odd = expit(v[-1]), v[:-2] / PRIOR_WIDTH
        alpha = lapack.dtrtrs(cholesky, half, lower=True, trans=1)[0]
        inverse = lapack.dpotri(cholesky, lower=True, overwrite_c=True)[0]  # its lower triangle
        by_k = squareform(inverse.T - np.outer(alpha, alpha) / variance, checks=False)
        q = np.sqrt(5.0) * r
        by_square = (-5.0 / 6.0 * (1.0 - s)) * by_k * (1.0 + q) * np.exp(-q)
        by_a = 2.0 * np.exp(2.0 * (v[:-2] - v[-2])) * (self._squares @ by_square)
        by_logit = -s * (1.0 - s) * (by_k @ correlation)
        by_logit += (v[-1] - NOISE_MODE) / self._noise_width**2
        by_length = v[-2] / LENGTH_WIDTH**2 - by_a.sum()
        by_a += 2.0 * odd / (1.0 + odd**2) / PRIOR_WIDTH
        return value, np.array([*by_a, by_length, by_logit])

    def best_of_grid(self) -> FloatArray:
        """Return the v with a = 0 and (l, s) on the grid that has the largest density."""
        alike, found = np.zeros(len(self._squares)), []
        for log_length in LOG_LENGTHS:
            grid = [np.array([*alike, log_length, logit_s]) for logit_s in LOGITS]
            at = self._correlate(grid[0])
            found += [(self.solve(v, at).value, v) for v in grid]
        return min(found, key=lambda item: item[0])[1]


def ard_scales(
    features: FloatArray, y: FloatArray, groups: IntArray, numbered: BoolArray | None = None
) -> FloatArray:
    """Return the factors by which ARD multiplies the features before distances are taken.

    Args:
        features: Z, (N, n_features). If N exceeds `MAX_POINTS`, evenly spread draws are used.
        y: Standardised losses, (N,).
        groups: Parameter of each feature, 0 .. G - 1, (n_features,).
        numbered: Which features are numbers of categories, (n_features,). None means none.

    Returns:
        exp(a_j) of each feature's parameter j, (n_features,). The geometric mean over the
        parameters is 1. All are 1 if nothing speaks for differences.

    Raises:
        ValueError: If the algebra breaks down (LinAlgError).

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.surrogate import ard_scales
        >>> z = np.random.default_rng(0).uniform(size=(60, 8))
        >>> y = (z[:, 2] - z[:, 2].mean()) / z[:, 2].std()
        >>> int(ard_scales(z, y, np.arange(8)).argmax())
        2
    """
    n_groups = int(groups.max()) + 1
    if n_groups == 1:
        return np.ones(len(groups))
    used = np.unique(np.linspace(0, len(y) - 1, min(len(y), MAX_POINTS)).round().astype(int))
    weights = np.zeros(len(groups)) if numbered is None else numbered.astype(np.float64)
    squares = [
        pair_squares(features[np.ix_(used, groups == j)], weights[groups == j])
        for j in range(n_groups)
    ]
    posterior = LogPosterior(np.array(squares), y[used], NOISE_WIDTH)
    density, alike = _climb(posterior, posterior.best_of_grid(), 0.0)
    density_apart, apart = _climb(posterior, alike, LARGEST)
    if density - density_apart < NEEDED:
        return np.ones(len(groups))
    a = apart[:n_groups]
    return np.asarray(np.exp((a - a.mean()).round(DIGITS))[groups])


def _climb(posterior: LogPosterior, start: FloatArray, largest: float) -> tuple[float, FloatArray]:
    """Return minus the log density at a mode with |a_j| <= largest, and its v."""
    ends = [(grid.min(), grid.max()) for grid in (LOG_LENGTHS, LOGITS)]
    found = minimize(
        posterior, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS},
        bounds=[(-largest, largest)] * (len(start) - 2) + ends,
    )  # fmt: skip
    return float(found.fun), found.x


def matern(r: FloatArray) -> FloatArray:
    """Return m(r)."""
    q = -np.sqrt(5.0) * r  # few copies: most of the time of a draw is spent here
    decay = np.exp(q)
    square = q * q
    square /= 3.0
    np.subtract(1.0, q, out=q)
    q += square
    q *= decay
    return np.asarray(q)


def whitened(cholesky: FloatArray, values: FloatArray, *, overwrite: bool = False) -> FloatArray:
    """Return L^-1 values. With `overwrite`, values that are stored by columns are replaced."""
    return np.asarray(lapack.dtrtrs(cholesky, values, lower=True, overwrite_b=overwrite)[0])


def pair_squares(features: FloatArray, category_weights: FloatArray) -> FloatArray:
    """Return the squared distance of each pair of points.

    Args:
        features: Points, (N, d).
        category_weights: As in `category_squares`, (d,).

    Returns:
        Squared distances, in the order of `scipy.spatial.distance.pdist`, (P,).
    """
    squares = np.asarray(pdist(features[:, category_weights == 0.0], "sqeuclidean"))
    if category_weights.any():
        among = category_squares(features, features, category_weights)
        squares += squareform(among, checks=False)
    return squares


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
    columns = np.flatnonzero(weights)
    one, other = (np.ascontiguousarray(v[:, columns].T).astype(np.int32) for v in (a, b))
    some_inactive = bool((one < 0).any() or (other < 0).any())
    squares, differ = np.zeros((len(b), len(a))), np.empty((len(b), len(a)), dtype=np.bool_)
    # Where all weights are 1, sums are exact in any order: bytes count up to 255 features.
    alike = bool((weights[columns] == 1.0).all()) and not some_inactive
    at_a_time = 255 if alike else 1
    for first in range(0, len(columns), at_a_time):
        count = np.zeros(squares.shape, dtype=np.uint8)
        for u, v in zip(one[first : first + at_a_time], other[first:], strict=False):
            np.not_equal(u, v[:, None], out=differ)
            count += differ.view(np.uint8)
        each = weights[columns[first]] * count
        if some_inactive:
            one_only = (one[first] < 0) != (other[first][:, None] < 0)
            each = weights[columns[first]] * (count - 0.5 * one_only)
        squares += each
    return np.ascontiguousarray(squares.T)
