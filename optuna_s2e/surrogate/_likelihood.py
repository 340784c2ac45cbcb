r"""The likelihood of losses under a Gaussian process, and the hyper-parameters that it prefers.

Notation
    Z           features of the draws                                          (N, n_features)
    G           number of parameters; a schedule counts as one                 scalar
    D_j         squared distances in the features of parameter j               (G, N, N)
    a_j         log of the relevance of parameter j                            (G,)
    l, s        length scale; noise variance / variance of an observation      scalars
    m           the Matern-5/2 function
    P           number of pairs of draws, N (N - 1) / 2                        scalar

The covariance of two observations is k = (1 - s) m(r) + s [same draw], times the variance of an
observation, with :math:`r^2 = \sum_j e^{2 a_j} D_j / l^2`. The variance has a closed form.

`find_mode` returns a mode of the posterior of (a, l, s). Weak normal priors hold log l near the
median distance of the draws and logit s near `LOGIT`: few losses do not show that there is no
noise. Independent Cauchy priors on a_j leave most parameters
alike and let some stand out. This is automatic relevance determination (ARD): with one length
scale for all parameters, many more losses are needed to see that few of them matter. The isotropic
process is the special case a = 0.

With few draws, differences in relevance are easily imagined, and the search pays for them if all
parameters matter alike. So a = 0 unless the mode with free a is e^3 times as probable as the mode
with a = 0.

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
from scipy.special import expit

from optuna_s2e._typing import BoolArray, FloatArray, IntArray

# l in units of the median distance, and logit s: the best of these starts the climb
STARTS = ((0.3, -4.0), (1.0, -2.5), (2.0, -1.0), (2.5, 1.0))
MAX_STEPS = 15  # steps of L-BFGS
MAX_POINTS = 100  # draws from which ARD learns; l and s are those of all draws
LENGTHS = (0.1, 6.0)  # bounds of l, in units of the median distance
LENGTH_WIDTH = 1.5  # prior standard deviation of log l
LOGITS = (-6.0, 2.5)  # bounds of logit s
LOGIT, LOGIT_WIDTH = -2.0, 2.5  # prior mean and standard deviation of logit s
LARGEST = 4.0  # bound of |a_j|
PRIOR_WIDTH = 0.5  # scale of the Cauchy prior on a_j
NEEDED = 3.0  # log odds against a = 0
DIGITS = 3  # of the mode: another processor, which rounds differently, finds the same one


class Mode(NamedTuple):
    """Hold what `find_mode` returns.

    Attributes:
        scales: exp(a_j) of each feature's parameter j, (n_features,). The geometric mean over the
            parameters is 1. All are 1 if nothing speaks for differences.
        length_scale: l, in units of the features times their scales.
        noise_share: s, in (0, 1).
    """

    scales: FloatArray
    length_scale: float
    noise_share: float


def find_mode(features: FloatArray, y: FloatArray, groups: IntArray, numbered: BoolArray) -> Mode:
    """Return the hyper-parameters of largest posterior density.

    Args:
        features: Z, (N, n_features).
        y: Standardised losses, (N,).
        groups: Parameter of each feature, 0 .. G - 1, (n_features,).
        numbered: Which features are numbers of categories, (n_features,).

    Returns:
        The mode. Its relevances come from `MAX_POINTS` evenly spread draws if there are more; then
        l and s follow from all draws at these relevances.

    Raises:
        ValueError: If the algebra breaks down (LinAlgError).
    """
    n_groups = int(groups.max(initial=0)) + 1
    blocks = [(features[:, groups == j], numbered[groups == j]) for j in range(n_groups)]
    used = np.unique(np.linspace(0, len(y) - 1, min(len(y), MAX_POINTS)).round().astype(int))
    squares = np.array([_pair_squares(z[used], categories) for z, categories in blocks])
    total = squares.sum(axis=0)
    unit = float(np.median(total[total > 0.0])) if (total > 0.0).any() else 1.0
    posterior = LogPosterior(squares / unit, y[used])
    starts = [np.array([0.0] * n_groups + [np.log(length), logit]) for length, logit in STARTS]
    density, v = _climb(posterior, min(starts, key=lambda v: posterior(v)[0]))
    if n_groups > 1:
        density_apart, apart = _climb(posterior, v, LARGEST)
        v = apart if density - density_apart >= NEEDED else v
    a, (log_length, logit) = v[:-2] - v[:-2].mean(), v[-2:] - [v[:-2].mean(), 0.0]
    scales = np.exp(a.round(DIGITS))
    if len(used) < len(y):
        pairs = zip(scales**2, blocks, strict=True)
        together = sum(weight * _pair_squares(*block) for weight, block in pairs)[None] / unit
        start = np.array([0.0, log_length, logit])
        log_length, logit = _climb(LogPosterior(together, y), start)[1][1:]
    length_scale = float(np.sqrt(unit) * np.exp(round(log_length, DIGITS)))
    return Mode(scales[groups], length_scale, float(expit(round(logit, DIGITS))))


def _climb(
    posterior: LogPosterior, start: FloatArray, largest: float = 0.0
) -> tuple[float, FloatArray]:
    """Return minus the log density at a mode with |a_j| <= largest, and (a, log l, logit s)."""
    bounds = [(-largest, largest)] * (len(start) - 2) + [tuple(np.log(LENGTHS)), LOGITS]
    found = minimize(
        posterior, start, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": MAX_STEPS},
    )  # fmt: skip
    return float(found.fun), found.x


class LogPosterior:
    """Minus the log posterior density of (a, log l, logit s), and its gradient.

    Args:
        squares: D_j of each pair of draws, in the order of `scipy.spatial.distance`, (G, P).
        y: Standardised losses, (N,).
    """

    def __init__(self, squares: FloatArray, y: FloatArray) -> None:
        self._squares, self._y = squares, y

    def __call__(self, v: FloatArray) -> tuple[float, FloatArray]:
        """Return both at v = (a, log l, logit s), (G + 2,)."""
        a, log_length, logit = v[:-2], float(v[-2]), float(v[-1])
        n, s = len(self._y), float(expit(logit))
        weights = np.exp(2.0 * (a - log_length))
        q = np.sqrt(5.0 * (weights @ self._squares))
        decay = np.exp(-q)
        correlation = (1.0 + q + q * q / 3.0) * decay
        k = squareform((1.0 - s) * correlation, checks=False)
        k.reshape(-1)[:: n + 1] = 1.0  # the diagonal, signal and noise
        cholesky = factored(k.T)
        half = whitened(cholesky, self._y)
        # variance ~ inverse gamma of one pseudo-observation: exact fits stay uncertain
        quadratic = float(half @ half) + 1.0
        value = np.log(np.diag(cholesky)).sum() + 0.5 * (n + 1) * np.log(quadratic)
        alpha = lapack.dtrtrs(cholesky, half, lower=True, trans=1)[0]
        inverse = lapack.dpotri(cholesky, lower=True, overwrite_c=True)[0]  # its lower triangle
        by_k = squareform(inverse.T, checks=False)
        by_k -= (n + 1) / quadratic * squareform(np.outer(alpha, alpha), checks=False)
        by_square = (-5.0 / 6.0 * (1.0 - s)) * by_k * (1.0 + q) * decay
        by_a = 2.0 * weights * (self._squares @ by_square)
        by_logit = -float(by_k @ correlation) * s * (1.0 - s)

        odd, off, over = a / PRIOR_WIDTH, log_length / LENGTH_WIDTH, (logit - LOGIT) / LOGIT_WIDTH
        value += np.log1p(odd**2).sum() + 0.5 * off**2 + 0.5 * over**2
        gradient = np.concatenate([
            by_a + 2.0 * odd / (1.0 + odd**2) / PRIOR_WIDTH,
            [-by_a.sum() + off / LENGTH_WIDTH, by_logit + over / LOGIT_WIDTH],
        ])  # fmt: skip
        return float(value), gradient


def factored(k: FloatArray) -> FloatArray:
    """Return the lower Cholesky factor of k; it replaces a k that is stored by columns."""
    cholesky, info = lapack.dpotrf(k, lower=True, overwrite_a=True)
    if info:
        raise linalg.LinAlgError(f"Leading minor {info} of a covariance is not positive.")
    return np.asarray(cholesky)


def whitened(cholesky: FloatArray, values: FloatArray, *, overwrite: bool = False) -> FloatArray:
    """Return L^-1 values; if told so, it replaces values that are stored by columns."""
    return np.asarray(lapack.dtrtrs(cholesky, values, lower=True, overwrite_b=overwrite)[0])


def category_squares(a: FloatArray, b: FloatArray, weights: FloatArray) -> FloatArray:
    """Return squared distances between numbers of categories.

    Args:
        a: Numbers of categories, (N, d).
        b: Numbers of categories, (M, d).
        weights: Squared distance of two different categories, (d,). An inactive parameter (-1) is
            half as far, as it is among one-hot vectors.

    Returns:
        Squared distances, (N, M).
    """
    squares = np.zeros((len(a), len(b)))
    for one, other, weight in zip(a.T, b.T, weights, strict=True):
        squares += weight * (one[:, None] != other)
        squares -= 0.5 * weight * ((one[:, None] < 0.0) != (other < 0.0))
    return squares


def _pair_squares(z: FloatArray, numbered: BoolArray) -> FloatArray:
    """Return the squared distance of each pair of rows, (P,)."""
    squares = np.asarray(pdist(z[:, ~numbered], "sqeuclidean"))
    if numbered.any():
        categories = z[:, numbered]
        among = category_squares(categories, categories, np.ones(categories.shape[1]))
        squares += squareform(among, checks=False)
    return squares
