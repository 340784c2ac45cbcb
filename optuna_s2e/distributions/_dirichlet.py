r"""The Dirichlet distribution, and the Beta distribution as its case of two weights.

The weights of a Beta are (x, 1 - x). S is the sum of theta; :math:`\psi` and :math:`\psi_1` are
the digamma and the trigamma function.

References:
    Minka. Estimating a Dirichlet distribution. 2000 (score and Hessian).
    Penny. KL-divergences of normal, gamma, Dirichlet and Wishart densities. 2001.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.special import digamma, gammaln, zeta

from optuna_s2e._checks import check_int
from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions._family import EPSILON, Family


class _Concentration(Family):
    r"""What Beta and Dirichlet have in common.

    .. math:: \log p_\theta(x) = \sum_i (\theta_i - 1) \log w_i(x) - A(\theta), \qquad
              A(\theta) = \sum_i \log\Gamma(\theta_i) - \log\Gamma(S)

    It is an exponential family, so score, Hessian, Fisher information and KL follow from A.
    """

    @abstractmethod
    def _log_weights(self, X: FloatArray) -> FloatArray:
        """Return log w of each point's weights w, (K, n_theta)."""

    def log_density(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return the sum of (theta_i - 1) log w_i, less A(theta)."""
        return _dot(self._log_weights(X), theta - 1.0) - _log_normaliser(theta)

    def score(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return log w - E[log w]."""
        return self._log_weights(X) - _expected_log_weights(theta)

    def hessian(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return minus the Fisher information for every X, as a read-only broadcast."""
        return np.broadcast_to(-self.fisher(theta), (len(X), self.n_theta, self.n_theta))

    def fisher(self, theta: FloatArray) -> FloatArray:
        """Return the Hessian of A: diag(psi_1(theta)) - psi_1(S)."""
        # The trigamma function is Hurwitz's zeta(2, .), which scipy evaluates faster.
        return np.diag(zeta(2.0, theta)) - float(zeta(2.0, theta.sum()))

    def kl(self, theta: FloatArray, other: FloatArray) -> FloatArray:
        """Return A(other) - A(theta) - (other - theta) . grad A(theta), a Bregman divergence."""
        slope = ((other - theta) * _expected_log_weights(theta)).sum(axis=-1)
        kl = _log_normaliser(other) - _log_normaliser(theta) - slope
        return np.asarray(np.maximum(0.0, kl))

    def mean(self, theta: FloatArray) -> FloatArray:
        """Return theta / S of each column: a / (a + b) of a Beta."""
        return np.asarray(theta[: self.n_columns] / theta.sum())

    def hessian_along(
        self, theta: FloatArray, X: FloatArray, weights: FloatArray, basis: FloatArray
    ) -> FloatArray:
        """Return minus the sum of the weights times basis' F basis."""
        blocks = zip(theta, basis, strict=True)
        return np.stack([-weights.sum() * (own.T @ self.fisher(t) @ own) for t, own in blocks])


@final
@dataclass(frozen=True)
class Beta(_Concentration):
    r"""Beta distribution of one column x in (0, 1), theta = (a, b).

    .. math:: p_\theta(x) = \frac{\Gamma(a + b)}{\Gamma(a) \Gamma(b)} x^{a-1} (1 - x)^{b-1}

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import Beta
        >>> Beta().mean(np.array([3.0, 1.0])).tolist()
        [0.75]
    """

    n_columns = 1
    n_theta = 2

    def sample(self, theta: FloatArray, rng: np.random.Generator, size: int) -> FloatArray:
        """Draw from Beta(a, b) and clip to [EPSILON, 1 - EPSILON], (size, 1)."""
        return np.clip(rng.beta(theta[0], theta[1], size=(size, 1)), EPSILON, 1.0 - EPSILON)

    def _log_weights(self, X: FloatArray) -> FloatArray:
        if not np.all((X > 0.0) & (X < 1.0)):
            raise self._refusal("strictly between 0 and 1", X)
        return np.concatenate([np.log(X), np.log1p(-X)], axis=1)


@final
@dataclass(frozen=True)
class Dirichlet(_Concentration):
    r"""Dirichlet distribution of k columns, weights > 0 that sum to one; theta: k concentrations.

    .. math:: p_\theta(w) = \frac{\Gamma(S)}{\prod_i \Gamma(\theta_i)} \prod_i w_i^{\theta_i - 1}

    The density is with respect to Lebesgue measure of the first k - 1 weights.

    Args:
        k: Number of weights, at least 2.

    Raises:
        ValueError: If `k` is no int of at least 2.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import Dirichlet
        >>> Dirichlet(3).mean(np.array([2.0, 1.0, 1.0])).tolist()
        [0.5, 0.25, 0.25]
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", check_int("k", self.k, 2))

    @property
    def n_columns(self) -> int:
        """Number of weights."""
        return self.k

    @property
    def n_theta(self) -> int:
        """Number of concentrations."""
        return self.k

    def sample(self, theta: FloatArray, rng: np.random.Generator, size: int) -> FloatArray:
        """Draw from Dirichlet(theta), raise to EPSILON, divide by the new sum, (size, k)."""
        floored = np.maximum(rng.dirichlet(theta, size=size), EPSILON)
        return np.asarray(floored / floored.sum(axis=1, keepdims=True))

    def _log_weights(self, X: FloatArray) -> FloatArray:
        if not np.all(X > 0.0) or not np.all(np.abs(X.sum(axis=1) - 1.0) < 1e-6):
            raise self._refusal("> 0 and sum to 1 in each row", X)
        return np.log(X)


def _dot(matrix: FloatArray, vector: FloatArray) -> FloatArray:
    """Return matrix @ vector, summed column by column.

    BLAS may treat the last rows of a batch differently. Here a row's bits are the same in every
    batch, so the importance weight of a draw of theta itself is exactly 1.
    """
    total = np.zeros(len(matrix))
    for column, factor in zip(matrix.T, vector, strict=True):
        total += factor * column
    return total


def _log_normaliser(theta: FloatArray) -> FloatArray:
    return np.asarray(gammaln(theta).sum(axis=-1) - gammaln(theta.sum(axis=-1)))


def _expected_log_weights(theta: FloatArray) -> FloatArray:
    return np.asarray(digamma(theta) - digamma(theta.sum(axis=-1, keepdims=True)))
