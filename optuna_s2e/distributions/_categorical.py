r"""The categorical distribution.

Its Fisher information is a diagonal plus a rank-one matrix, and so are the Hessians of its log
density. What steps among many categories need follows from sums over the categories, without
matrices of them. S is the sum of theta, and 1 the vector of ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from optuna_s2e._checks import check_int
from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.distributions._family import Family

NULL_LENGTH = 1e-9
"""Tangents shorter than this share of their summands are rounding errors."""


@final
@dataclass(frozen=True)
class Categorical(Family):
    r"""Categorical distribution of one column that holds the index 0..n-1 as a float.

    .. math:: p_\theta(c) = \theta_c / S

    Only the ratios of theta matter: :math:`p_{r\theta} = p_\theta` for r > 0. So the score is
    orthogonal to theta, and the Fisher information is singular along theta. `whiten` leaves that
    direction out, so that no update moves along it.

    Args:
        n: Number of categories, at least 1.

    Raises:
        ValueError: If `n` is no int of at least 1.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import Categorical
        >>> weights, first = np.array([2.0, 1.0, 1.0]), np.array([[0.0]])
        >>> np.exp(Categorical(3).log_density(weights, first)).tolist()
        [0.5]
    """

    n: int

    n_columns = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", check_int("n", self.n, 1))

    @property
    def n_theta(self) -> int:
        """Number of categories."""
        return self.n

    def sample(self, theta: FloatArray, rng: np.random.Generator, size: int) -> FloatArray:
        """Draw category indices, (size, 1)."""
        cdf = np.cumsum(theta / _sum(theta))  # rng.choice does the same after many checks
        cdf /= cdf[-1]
        return cdf.searchsorted(rng.random((size, 1)), side="right").astype(np.float64)

    def log_density(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return log(theta_c / S)."""
        return np.asarray(np.log(theta / _sum(theta))[self._index(X)])

    def score(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return e_c / theta_c - 1 / S, with e_c the c-th unit vector."""
        return self._one_hot(X) / theta - 1.0 / _sum(theta)

    def hessian(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return 1 1' / S^2 - e_c e_c' / theta_c^2."""
        return 1.0 / _sum(theta) ** 2 - self._one_hot(X)[:, :, None] * np.diag(theta**-2.0)

    def fisher(self, theta: FloatArray) -> FloatArray:
        """Return diag(1 / (S theta)) - 1 1' / S^2, singular along theta."""
        total = _sum(theta)
        return np.diag(1.0 / (total * theta)) - 1.0 / total**2

    def kl(self, theta: FloatArray, other: FloatArray) -> FloatArray:
        """Return the sum of p log(p / q)."""
        p, q = (t / t.sum(axis=-1, keepdims=True) for t in (theta, other))
        return np.asarray(np.maximum(0.0, (p * np.log(p / q)).sum(axis=-1)))

    def mean(self, theta: FloatArray) -> FloatArray:
        """Return the most probable category, the lowest index if several are, (1,)."""
        return np.array([np.argmax(theta)], dtype=np.float64)

    def project(self, theta: FloatArray, bounds: tuple[float, float]) -> FloatArray:
        """Bring theta into the box [low, high] and keep the ratios that fit into it.

        Only components below low / high times the largest are raised. Then theta is rescaled so
        that its smallest component is `low`, which does not change the probabilities.
        """
        low, high = bounds
        floor = theta.max(axis=-1, keepdims=True) * (low / high)
        none = floor < np.finfo(np.float64).tiny  # no component is positive: all are equal
        floored = np.where(none, 1.0, np.maximum(theta, floor))
        scaled = floored * (low / floored.min(axis=-1, keepdims=True))
        return np.asarray(np.clip(scaled, low, high))

    def free(
        self, theta: FloatArray, gradient: FloatArray, bounds: tuple[float, float]
    ) -> BoolArray:
        """Return True for all. If some were held, a step of the others could run along theta."""
        return np.ones(self.n, dtype=np.bool_)

    def score_sum(self, theta: FloatArray, X: FloatArray, weights: FloatArray) -> FloatArray:
        """Return W_c / theta_c - sum(w) / S, with W_c the sum of the weights of category c."""
        return self._totals(X, weights) / theta - _sum(weights) / _sums(theta)

    def score_along(self, theta: FloatArray, X: FloatArray, basis: FloatArray) -> FloatArray:
        """Return B_c / theta_c - 1' B / S, with B_c the row of the basis of a draw's category."""
        rows = (basis / theta[:, :, None])[np.arange(len(theta))[:, None], self._index(X)]
        return np.asarray(rows - (basis.sum(axis=1) / _sums(theta))[:, None])

    def hessian_along(
        self, theta: FloatArray, X: FloatArray, weights: FloatArray, basis: FloatArray
    ) -> FloatArray:
        """Return sum(w) (B' 1 / S) (1' B / S) - B' diag(W_c / theta_c^2) B."""
        columns = basis.sum(axis=1) / _sums(theta)
        diagonal = self._totals(X, weights) / theta**2
        diagonal_form = (basis.swapaxes(1, 2) * diagonal[:, None]) @ basis
        return np.asarray(_sum(weights) * (columns[:, :, None] * columns[:, None]) - diagonal_form)

    def tangents(
        self, theta: FloatArray, gradient: FloatArray, free: BoolArray
    ) -> list[FloatArray]:
        r"""Return an orthonormal basis of F^+ g and F^+ 1, at most two directions.

        By Proposition 1 the Hessian of this block is :math:`-(g 1^T + 1 g^T) / S`, so a step has
        no other directions.
        """
        total, basis = _sums(theta), list[FloatArray]()
        along = theta / np.sqrt(theta[:, None] @ theta[:, :, None])[:, 0]  # where F is singular

        def orthogonal(v: FloatArray) -> FloatArray:
            return v - along * _sums(along * v)

        def inner(a: FloatArray, b: FloatArray) -> FloatArray:  # a' F b
            a, b = (v - theta * (_sums(v) / total) for v in (a, b))  # the same to p_theta
            return _sums(a * b / theta) / total

        for covector in (gradient, np.ones_like(theta)):
            largest = np.abs(covector).max(axis=1, keepdims=True)
            v = covector / np.where(largest > 0.0, largest, 1.0)
            d = orthogonal(total * theta * orthogonal(v))  # F^+ v
            for _ in range(2):  # Gram and Schmidt; the second pass removes rounding errors
                for b in basis:
                    d = d - b * inner(b, d)
            length = np.sqrt(inner(d, d))
            is_direction = length > NULL_LENGTH * np.sqrt(total * _sums(theta * v * v))
            basis.append(np.where(is_direction, d / np.where(is_direction, length, 1.0), 0.0))
        return [own[:, own.any(axis=0)] for own in np.stack(basis, axis=2)]

    def _index(self, X: FloatArray) -> IntArray:
        if not np.all((np.floor(X) == X) & (X >= 0.0) & np.less(X, self.n)):
            raise self._refusal(f"an index in 0..{self.n - 1}", X)
        return X[..., 0].astype(np.intp)

    def _totals(self, X: FloatArray, weights: FloatArray) -> FloatArray:
        """Return the sum of the weights (K,) of each category of B blocks, (B, n)."""
        index = self._index(X) + self.n * np.arange(len(X))[:, None]
        each = np.broadcast_to(weights, index.shape)
        totals = np.bincount(index.ravel(), each.ravel(), self.n * len(X))
        return totals.astype(np.float64).reshape(-1, self.n)

    def _one_hot(self, X: FloatArray) -> FloatArray:
        return np.asarray(np.eye(self.n)[self._index(X)])


def _sum(vector: FloatArray) -> float:
    return float(vector.sum())


def _sums(rows: FloatArray) -> FloatArray:
    """Return the sum of each row, (B, 1)."""
    return np.asarray(rows.sum(axis=1, keepdims=True))
