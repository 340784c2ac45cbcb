r"""Automatic relevance determination (ARD): how much each parameter matters to the loss.

Notation
    Z           features of the draws                                          (N, n_features)
    G           number of parameters; a schedule counts as one                 scalar
    D_j         squared distances in the features of parameter j               (G, N, N)
    a_j         log of the inverse length scale of parameter j                 (G,)
    l, s        common length scale and noise share, as in `surrogate.fit`     scalars

A Gaussian process with one length scale for all parameters needs many more losses to see that few
of them matter. Here the squared distance is :math:`\sum_j e^{2 a_j} D_j / l^2`, and (a, l, s) is a
posterior mode. The posterior is the marginal likelihood, with the signal scale in closed form as
in `surrogate.fit`, times independent Cauchy priors on a_j, which leave most parameters alike and
let some stand out.

With few draws, differences in relevance are easily imagined, and the search pays for them if all
parameters matter alike. So all scales are 1 unless the mode with free a is e^3 times as probable
as the mode with a = 0.

References:
    Neal, "Bayesian Learning for Neural Networks", Springer 1996, 1.2 and 4.3. Rasmussen and
    Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, 5.1 and 5.4.1 (gradient).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack
from scipy.optimize import minimize

from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.surrogate._gp import category_squares, factored

MAX_POINTS = 100  # draws used: one evaluation takes about a millisecond
MAX_STEPS = 15  # steps of L-BFGS
STARTS = (1.0, np.e)  # length scales, in units of the median distance
PRIOR_WIDTH = 0.5  # scale of the Cauchy prior on a_j
LARGEST = 4.0  # bound of |a_j|
NEEDED = 3.0  # log odds against a = 0
LENGTHS = (0.1, 6.0)  # bounds of l, in units of the median distance
LOGITS = (-6.0, 2.5)  # bounds of logit s
LOGIT, LOGIT_WIDTH, LOG_LENGTH_WIDTH = -2.0, 2.5, 1.5  # weak normal priors


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
    numbered = np.zeros(len(groups), dtype=bool) if numbered is None else numbered
    posterior = _Posterior(features[used], y[used], groups, n_groups, numbered)
    starts = [np.array([0.0] * n_groups + [np.log(start), LOGIT]) for start in STARTS]
    density, alike = min((_mode(posterior, v, 0.0) for v in starts), key=lambda mode: mode[0])
    density_apart, apart = _mode(posterior, alike, LARGEST)
    if density - density_apart < NEEDED:
        return np.ones(len(groups))
    a = apart[:n_groups]
    return np.asarray(np.exp(a - a.mean())[groups])


def _mode(posterior: _Posterior, start: FloatArray, largest: float) -> tuple[float, FloatArray]:
    """Return minus the log density at a mode with |a_j| <= largest, and (a, log l, logit s)."""
    bounds = [(-largest, largest)] * (len(start) - 2) + [tuple(np.log(LENGTHS)), LOGITS]
    found = minimize(
        posterior, start, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": MAX_STEPS},
    )  # fmt: skip
    return float(found.fun), found.x


class _Posterior:
    """Minus the log posterior density of (a, log l, logit s), and its gradient."""

    def __init__(
        self,
        features: FloatArray,
        y: FloatArray,
        groups: IntArray,
        n_groups: int,
        numbered: BoolArray,
    ) -> None:
        blocks = [(features[:, groups == j], numbered[groups == j]) for j in range(n_groups)]
        self._squares = np.array([
            category_squares(b, b, of_category.astype(float)).ravel() if of_category.any()
            else ((b[:, None] - b) ** 2).sum(axis=2).ravel()
            for b, of_category in blocks
        ])  # (G, N N)  # fmt: skip
        total = self._squares.sum(axis=0)
        self._typical = float(np.median(total[total > 0])) if np.any(total > 0) else 1.0
        self._y, self._eye = y, np.eye(len(y))

    def __call__(self, v: FloatArray) -> tuple[float, FloatArray]:
        a, log_length, logit = v[:-2], float(v[-2]), float(v[-1])
        n, eye = len(self._y), self._eye
        s = 1.0 / (1.0 + np.exp(-logit))
        weights = np.exp(2.0 * (a - log_length)) / self._typical
        q = np.sqrt(5.0 * (weights @ self._squares).reshape(n, n))
        decay = np.exp(-q)
        correlation = (1.0 + q + q * q / 3.0) * decay
        cholesky = factored((1.0 - s) * correlation + s * eye)
        inverse = lapack.dpotrs(cholesky, eye, lower=True)[0]
        alpha = inverse @ self._y
        quadratic = float(self._y @ alpha) + 1.0
        value = np.log(np.diag(cholesky)).sum() + 0.5 * (n + 1) * np.log(quadratic)
        by_k = 0.5 * (inverse - (n + 1) / quadratic * np.outer(alpha, alpha))
        by_square = by_k * (-5.0 / 6.0 * (1.0 - s)) * (1.0 + q) * decay
        by_a = 2.0 * weights * (self._squares @ by_square.ravel())
        by_logit = float((by_k * (eye - correlation)).sum()) * s * (1.0 - s)

        odd, over = a / PRIOR_WIDTH, (logit - LOGIT) / LOGIT_WIDTH
        value += np.log1p(odd**2).sum()
        value += 0.5 * (log_length / LOG_LENGTH_WIDTH) ** 2 + 0.5 * over**2
        gradient = np.concatenate([
            by_a + 2.0 * odd / (1.0 + odd**2) / PRIOR_WIDTH,
            [-by_a.sum() + log_length / LOG_LENGTH_WIDTH**2, by_logit + over / LOGIT_WIDTH],
        ])  # fmt: skip
        return float(value), gradient
