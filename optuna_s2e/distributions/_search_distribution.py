r"""The search distribution p_theta: Dirichlet, Beta and categorical blocks and their product.

S2E minimises :math:`J(\theta) = E_{x \sim p_\theta}[f(x)]` (Eq 6) instead of f. All that the
update rules of `optuna_s2e.estimators.newton` need of p_theta is here, in closed form.

Notation
    ======================  ==========================================  =====================
    theta                   all parameters of p_theta, > 0              (n_theta,)
    X                       a batch of K points, one a row              (K, n_columns)
    log_density             :math:`\log p_\theta(x)`                    (K,)
    score                   :math:`\nabla_\theta \log p_\theta(x)`      (K, n_theta)
    hessian                 :math:`\nabla^2_\theta \log p_\theta(x)`    (K, n_theta, n_theta)
    fisher                  :math:`E[s s^T] = -E[\nabla^2 \log p]`      (n_theta, n_theta)
    S                       the sum of theta over one block             scalar
    :math:`\psi, \psi_1`    digamma, trigamma                           scalar
    ======================  ==========================================  =====================

theta = 1 is the uniform distribution in every block. A family computes on the columns and the
theta of its own block and does not check their shapes; `SearchDistribution` does.

References:
    Yao, Yang, Han, Niu, Kwok. Searching to exploit memorization effect in learning with noisy
    labels. ICML 2020.
    Minka. Estimating a Dirichlet distribution. 2000 (score and Hessian).
    Penny. KL-divergences of normal, gamma, Dirichlet and Wishart densities. 2001.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import block_diag
from scipy.special import digamma, gammaln, zeta

from optuna_s2e._checks import check_int, check_shape
from optuna_s2e._typing import BoolArray, FloatArray, IntArray

MANY_CATEGORIES = 72
"""With more categories in all, steps of theta are looked for in a subspace (`tangents`).

Up to here the matrices of all components, for 400 virtual draws at a time, are quick enough.
Between blocks they hold more than the subspace does, and recorded thetas must be found again. 72
is the largest space of the studies.
"""

NULL_LENGTH = 1e-9
"""Tangents shorter than this share of their summands are rounding errors."""

EPSILON = 1e-6
"""Draws keep this distance from the boundary, where the score of a Beta is infinite."""


class Family(ABC):
    """One independent block of p_theta.

    Implementations are `Beta`, `Dirichlet` and `Categorical`. Arrays are as in the notation of
    `SearchDistribution`, with the columns and the theta of this block alone. What steps among many
    categories need is computed for B equal blocks at a time, with one array for all of them.
    """

    @property
    @abstractmethod
    def n_columns(self) -> int:
        """Number of columns of X that the block owns."""

    @property
    @abstractmethod
    def n_theta(self) -> int:
        """Number of components of theta that the block owns."""

    @abstractmethod
    def sample(self, theta: FloatArray, rng: np.random.Generator, size: int) -> FloatArray:
        """Draw `size` points that keep off the boundary, (size, n_columns)."""

    @abstractmethod
    def log_density(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return log p_theta of each row, (K,)."""

    @abstractmethod
    def score(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return the gradient of log p_theta by theta for each row, (K, n_theta)."""

    @abstractmethod
    def hessian(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return the Hessian of log p_theta by theta for each row, (K, n_theta, n_theta)."""

    @abstractmethod
    def fisher(self, theta: FloatArray) -> FloatArray:
        """Return the Fisher information of one draw, (n_theta, n_theta)."""

    @abstractmethod
    def kl(self, theta: FloatArray, other: FloatArray) -> FloatArray:
        """Return KL(p_theta || p_other) >= 0 in nats, (...,) for thetas (..., n_theta)."""

    @abstractmethod
    def mean(self, theta: FloatArray) -> FloatArray:
        """Return the mean, or the most probable category, (n_columns,)."""

    def score_sum(self, theta: FloatArray, X: FloatArray, weights: FloatArray) -> FloatArray:
        """Return the sum of weights (K,) times scores, (B, n_theta).

        Args:
            theta: theta of B blocks, (B, n_theta).
            X: Their columns, (B, K, n_columns).
            weights: Weights of the points, (K,).
        """
        return np.stack([weights @ self.score(t, x) for t, x in zip(theta, X, strict=True)])

    def score_along(self, theta: FloatArray, X: FloatArray, basis: FloatArray) -> FloatArray:
        """Return the scores times a basis of each block (B, n_theta, m), (B, K, m)."""
        blocks = zip(theta, X, basis, strict=True)
        return np.stack([self.score(t, x) @ own for t, x, own in blocks])

    @abstractmethod
    def hessian_along(
        self, theta: FloatArray, X: FloatArray, weights: FloatArray, basis: FloatArray
    ) -> FloatArray:
        """Return basis' (sum of weights times Hessians) basis of each block, (B, m, m)."""

    @abstractmethod
    def tangents(
        self, theta: FloatArray, gradient: FloatArray, free: BoolArray
    ) -> list[FloatArray]:
        """Return the bases of B blocks for `SearchDistribution.tangents`, (n_theta, m) each."""

    def project(self, theta: FloatArray, bounds: tuple[float, float]) -> FloatArray:
        """Bring finite theta (..., n_theta) of any sign into the box [low, high]."""
        return np.clip(theta, *bounds)

    def free(
        self, theta: FloatArray, gradient: FloatArray, bounds: tuple[float, float]
    ) -> BoolArray:
        """Return which components a step along -gradient does not push out of the box."""
        low, high = bounds
        return ~(((theta <= low) & (gradient > 0.0)) | ((theta >= high) & (gradient < 0.0)))


class _Concentration(Family):
    r"""What Beta and Dirichlet have in common: a Beta is the Dirichlet of (x, 1 - x).

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
        return np.diag(zeta(2.0, theta)) - float(zeta(2.0, _sum(theta)))

    def hessian_along(
        self, theta: FloatArray, X: FloatArray, weights: FloatArray, basis: FloatArray
    ) -> FloatArray:
        """Return minus the sum of the weights times basis' F basis."""
        blocks = zip(theta, basis, strict=True)
        return np.stack([-weights.sum() * (own.T @ self.fisher(t) @ own) for t, own in blocks])

    def tangents(
        self, theta: FloatArray, gradient: FloatArray, free: BoolArray
    ) -> list[FloatArray]:
        """Return a basis of all free components."""
        bases = list[FloatArray]()
        for own_theta, own in zip(theta, free, strict=True):
            eigenvalues, axes = np.linalg.eigh(self.fisher(own_theta)[np.ix_(own, own)])
            basis = np.zeros((self.n_theta, len(eigenvalues)))
            basis[own] = axes / np.sqrt(eigenvalues)
            bases.append(basis)
        return bases

    def kl(self, theta: FloatArray, other: FloatArray) -> FloatArray:
        """Return A(other) - A(theta) - (other - theta) . grad A(theta), a Bregman divergence."""
        slope = ((other - theta) * _expected_log_weights(theta)).sum(axis=-1)
        kl = _log_normaliser(other) - _log_normaliser(theta) - slope
        return np.asarray(np.maximum(0.0, kl))


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

    def mean(self, theta: FloatArray) -> FloatArray:
        """Return a / (a + b), (1,)."""
        return theta[:1] / _sum(theta)

    def _log_weights(self, X: FloatArray) -> FloatArray:
        if not np.all((X > 0.0) & (X < 1.0)):
            raise ValueError(_outside("a Beta", "strictly between 0 and 1", X))
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

    def mean(self, theta: FloatArray) -> FloatArray:
        """Return theta / S, (k,)."""
        return theta / _sum(theta)

    def _log_weights(self, X: FloatArray) -> FloatArray:
        if not np.all(X > 0.0) or not np.all(np.abs(X.sum(axis=1) - 1.0) < 1e-6):
            raise ValueError(_outside("a Dirichlet", "> 0 and sum to 1 in each row", X))
        return np.log(X)


@final
@dataclass(frozen=True)
class Categorical(Family):
    r"""Categorical distribution of one column that holds the index 0..n-1 as a float.

    .. math:: p_\theta(c) = \theta_c / S

    Only the ratios of theta matter: :math:`p_{r\theta} = p_\theta` for r > 0. So the score is
    orthogonal to theta and the Fisher information is singular along theta. An update must not
    move along that direction; `optuna_s2e.estimators.newton` whitens with a pseudo-inverse.

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
        cdf = np.cumsum(theta / _sum(theta))  # as in rng.choice, without its checks
        cdf /= cdf[-1]
        return cdf.searchsorted(rng.random((size, 1)), side="right").astype(np.float64)

    def log_density(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return log(theta_c / S)."""
        return np.asarray(np.log(theta / _sum(theta))[self._index(X)])

    def score(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return e_c / theta_c - 1 / S, with e_c the c-th unit vector."""
        return self._one_hot(X) / theta - 1.0 / _sum(theta)

    def hessian(self, theta: FloatArray, X: FloatArray) -> FloatArray:
        """Return 1 / S^2 - e_c e_c' / theta_c^2."""
        return 1.0 / _sum(theta) ** 2 - self._one_hot(X)[:, :, None] * np.diag(theta**-2.0)

    def fisher(self, theta: FloatArray) -> FloatArray:
        """Return diag(1 / (S theta)) - 1 / S^2, singular along theta."""
        total = _sum(theta)
        return np.diag(1.0 / (total * theta)) - 1.0 / total**2

    def score_sum(self, theta: FloatArray, X: FloatArray, weights: FloatArray) -> FloatArray:
        """Return the sum over the draws of each category, without their scores."""
        return self._totals(X, weights) / theta - _sum(weights) / _sums(theta)

    def score_along(self, theta: FloatArray, X: FloatArray, basis: FloatArray) -> FloatArray:
        """Return one row of the basis per draw, without its score."""
        rows = (basis / theta[:, :, None])[np.arange(len(theta))[:, None], self._index(X)]
        return np.asarray(rows - (basis.sum(axis=1) / _sums(theta))[:, None])

    def hessian_along(
        self, theta: FloatArray, X: FloatArray, weights: FloatArray, basis: FloatArray
    ) -> FloatArray:
        """Return the sum of a rank-one and a diagonal form, without their matrices."""
        columns = basis.sum(axis=1) / _sums(theta)
        diagonal = self._totals(X, weights) / theta**2
        diagonal_form = (basis.swapaxes(1, 2) * diagonal[:, None]) @ basis
        return np.asarray(_sum(weights) * (columns[:, :, None] * columns[:, None]) - diagonal_form)

    def tangents(
        self, theta: FloatArray, gradient: FloatArray, free: BoolArray
    ) -> list[FloatArray]:
        r"""Return an orthonormal basis of F^+ g and F^+ 1.

        By Proposition 1 the Hessian of this block is :math:`-(g 1^T + 1 g^T) / S`, so a step has
        no other directions.
        """
        along = theta / np.sqrt(theta[:, None] @ theta[:, :, None])[:, 0]

        def orthogonal(v: FloatArray) -> FloatArray:  # to theta, along which F is singular
            return v - along * _sums(along * v)

        def inner(a: FloatArray, b: FloatArray) -> FloatArray:  # a' F b
            a, b = (v - theta * (_sums(v) / total) for v in (a, b))  # the same to p_theta
            return _sums(a * b / theta) / total

        total, basis = _sums(theta), list[FloatArray]()
        for covector in (gradient, np.ones_like(theta)):
            largest = np.abs(covector).max(axis=1, keepdims=True)
            v = covector / np.where(largest > 0.0, largest, 1.0)
            d = orthogonal(total * theta * orthogonal(v))  # F^+ v
            for _ in range(2):  # Gram and Schmidt, twice because the first time leaves a rest
                for b in basis:
                    d = d - b * inner(b, d)
            length = np.sqrt(inner(d, d))
            is_direction = length > NULL_LENGTH * np.sqrt(total * _sums(theta * v * v))
            basis.append(np.where(is_direction, d / np.where(is_direction, length, 1.0), 0.0))
        return [own[:, own.any(axis=0)] for own in np.stack(basis, axis=2)]

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
        none = floor < np.finfo(np.float64).tiny  # is positive: nothing to prefer
        floored = np.where(none, 1.0, np.maximum(theta, floor))
        scaled = floored * (low / floored.min(axis=-1, keepdims=True))
        return np.asarray(np.clip(scaled, low, high))

    def free(
        self, theta: FloatArray, gradient: FloatArray, bounds: tuple[float, float]
    ) -> BoolArray:
        """Return True for all: if some were held, the others' step could run along theta."""
        return np.ones(self.n, dtype=np.bool_)

    def _index(self, X: FloatArray) -> IntArray:
        if not np.all((np.floor(X) == X) & (X >= 0.0) & np.less(X, self.n)):
            raise ValueError(_outside("a Categorical", f"an index in 0..{self.n - 1}", X))
        return X[..., 0].astype(np.intp)

    def _totals(self, X: FloatArray, weights: FloatArray) -> FloatArray:
        """Return the sum of the weights (K,) of each category of B blocks, (B, n)."""
        index = self._index(X) + self.n * np.arange(len(X))[:, None]
        each = np.broadcast_to(weights, index.shape)
        totals = np.bincount(index.ravel(), each.ravel(), self.n * len(X))
        return totals.astype(np.float64).reshape(-1, self.n)

    def _one_hot(self, X: FloatArray) -> FloatArray:
        return np.asarray(np.eye(self.n)[self._index(X)])


class _Block(NamedTuple):
    family: Family
    columns: slice
    theta: slice


class _Stack(NamedTuple):
    """B equal blocks: numbers (B,), components of theta (B, n_theta), columns (B, n_columns)."""

    family: Family
    blocks: IntArray
    theta: IntArray
    columns: IntArray

    def points(self, X: FloatArray) -> FloatArray:
        """Return the columns of each block, (B, K, n_columns)."""
        return X[:, self.columns].swapaxes(0, 1)


class Tangents(NamedTuple):
    """Hold what `SearchDistribution.tangents` returns.

    Attributes:
        basis: B with B' F B = I, (n_theta, m).
        part: One number for each categorical block, and one for all other blocks together, (m,).
    """

    basis: FloatArray
    part: IntArray


@dataclass(frozen=True)
class SearchDistribution:
    r"""Product of independent families, the p_theta of S2E.

    .. math:: p_\theta(x) = \prod_b p_{\theta_b}(x_b)

    The columns of X and the components of theta follow the order of `families`. The paper's
    space is one `Dirichlet(4)` and sixteen `Beta()`: 20 columns, 36 components of theta.

    Args:
        families: The blocks, at least one.

    Raises:
        ValueError: If `families` is no non-empty tuple of `Family`. Every method raises it, too,
            if an argument has another shape than its docstring says, if theta is not finite
            and > 0, or if a point is outside the support.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import Beta, Dirichlet, SearchDistribution
        >>> distribution = SearchDistribution((Dirichlet(4), Beta(), Beta()))
        >>> distribution.n_columns, distribution.n_theta
        (6, 8)
        >>> theta = distribution.uniform_theta()
        >>> X = distribution.sample(theta, np.random.default_rng(0), 5)
        >>> X.shape, distribution.score(theta, X).shape
        ((5, 6), (5, 8))
    """

    families: tuple[Family, ...]

    def __post_init__(self) -> None:
        families = self.families
        if not isinstance(families, tuple) or not all(isinstance(f, Family) for f in families):
            raise ValueError(f"families must be a tuple of Family, but got {families!r}.")
        if not families:
            raise ValueError("families must be non-empty, but got ().")

    @cached_property
    def n_columns(self) -> int:
        """Number of columns of a point."""
        return sum(family.n_columns for family in self.families)

    @cached_property
    def n_theta(self) -> int:
        """Number of components of theta."""
        return sum(family.n_theta for family in self.families)

    def uniform_theta(self) -> FloatArray:
        """Return theta = 1, the uniform distribution, (n_theta,)."""
        return np.ones(self.n_theta)

    def sample(self, theta: ArrayLike, rng: np.random.Generator, size: int) -> FloatArray:
        """Draw points of p_theta.

        Args:
            theta: Parameters, (n_theta,).
            rng: Generator of the draws.
            size: Number of points, at least 0.

        Returns:
            Points, (size, n_columns), about `EPSILON` or more off the boundary.
        """
        theta, size = self._checked_theta("theta", theta), check_int("size", size, 0)
        draws = [b.family.sample(theta[b.theta], rng, size) for b in self._blocks]
        return np.concatenate(draws, axis=1)

    def log_density(self, theta: ArrayLike, X: ArrayLike) -> FloatArray:
        """Return log p_theta of each row, (K,). A row's bits do not depend on the other rows."""
        theta, X = self._checked_theta("theta", theta), self._checked_points(X)
        total = np.zeros(len(X))
        for family, columns, block in self._blocks:
            total += family.log_density(theta[block], X[:, columns])
        return total

    def score(self, theta: ArrayLike, X: ArrayLike) -> FloatArray:
        """Return the gradient of log p_theta by theta for each row, (K, n_theta)."""
        theta, X = self._checked_theta("theta", theta), self._checked_points(X)
        scores = [b.family.score(theta[b.theta], X[:, b.columns]) for b in self._blocks]
        return np.concatenate(scores, axis=1)

    def hessian(self, theta: ArrayLike, X: ArrayLike) -> FloatArray:
        """Return the Hessian of log p_theta for each row, (K, n_theta, n_theta)."""
        theta, X = self._checked_theta("theta", theta), self._checked_points(X)
        hessians = np.zeros((len(X), self.n_theta, self.n_theta))
        for family, columns, block in self._blocks:
            hessians[:, block, block] = family.hessian(theta[block], X[:, columns])
        return hessians

    def fisher(self, theta: ArrayLike) -> FloatArray:
        """Return the Fisher information, block diagonal, (n_theta, n_theta)."""
        theta = self._checked_theta("theta", theta)
        fisher = np.zeros((self.n_theta, self.n_theta))
        for family, _, block in self._blocks:
            fisher[block, block] = family.fisher(theta[block])
        return fisher

    @cached_property
    def has_many_categories(self) -> bool:
        """Whether there are more than `MANY_CATEGORIES` categories in all."""
        return sum(f.n for f in self.families if isinstance(f, Categorical)) > MANY_CATEGORIES

    def unseen(self, X: ArrayLike) -> list[IntArray]:
        """Return which components of theta belong to categories that no row has, by block."""
        X = self._checked_points(X)
        return [
            b.theta.start + np.setdiff1d(np.arange(b.family.n), X[:, b.columns])
            for b in self._blocks
            if isinstance(b.family, Categorical)
        ]

    def tangents(self, theta: ArrayLike, gradient: ArrayLike, free: BoolArray) -> Tangents:
        """Return the directions among which a step downhill is looked for.

        Args:
            theta: Parameters, (n_theta,).
            gradient: Gradient of J at theta, (n_theta,).
            free: Components that a step may move, (n_theta,).

        Returns:
            Two directions of each categorical block and all free ones of the others, orthonormal
            in the Fisher metric. The natural gradient lies in their span.
        """
        theta = self._checked_theta("theta", theta)
        slope = self._checked_theta("gradient", gradient, positive=False)
        bases = dict[int, FloatArray]()
        for stack in self._stacks:
            at = stack.theta
            found = stack.family.tangents(theta[at], slope[at], free[at])
            bases.update(zip(stack.blocks.tolist(), found, strict=True))
        parts = [
            i if isinstance(b.family, Categorical) else -1 for i, b in enumerate(self._blocks)
        ]
        in_order = [bases[i] for i in range(len(parts))]
        return Tangents(block_diag(*in_order), np.repeat(parts, [b.shape[1] for b in in_order]))

    def score_sum(self, theta: ArrayLike, X: ArrayLike, weights: FloatArray) -> FloatArray:
        """Return the sum of weights (K,) times `score`, (n_theta,)."""
        theta, X = self._checked_theta("theta", theta), self._checked_points(X)
        sums = np.empty_like(theta)
        for stack in self._stacks:
            at = stack.theta
            sums[at] = stack.family.score_sum(theta[at], stack.points(X), weights)
        return sums

    def score_along(self, theta: ArrayLike, X: ArrayLike, basis: FloatArray) -> FloatArray:
        """Return `score` times a basis (n_theta, m), (K, m)."""
        theta, X = self._checked_theta("theta", theta), self._checked_points(X)
        along = np.zeros((basis.shape[1], len(X)))
        for stack, own, part in self._moving(basis):
            scores = stack.family.score_along(theta[stack.theta], stack.points(X), part)
            for columns, of_block in zip(own, scores, strict=True):
                takes_all = len(columns) == len(along)
                along[... if takes_all else columns] += of_block.T
        return np.ascontiguousarray(along.T)

    def hessian_along(
        self, theta: ArrayLike, X: ArrayLike, weights: FloatArray, basis: FloatArray
    ) -> FloatArray:
        """Return basis' (sum of weights (K,) times `hessian`) basis, (m, m)."""
        theta, X = self._checked_theta("theta", theta), self._checked_points(X)
        along = np.zeros((basis.shape[1], basis.shape[1]))
        for stack, own, part in self._moving(basis):
            at = stack.theta
            hessians = stack.family.hessian_along(theta[at], stack.points(X), weights, part)
            for columns, of_block in zip(own, hessians, strict=True):
                takes_all = len(columns) == len(along)
                along[... if takes_all else (columns[:, None], columns)] += of_block
        return along

    def _moving(self, basis: FloatArray) -> Iterator[tuple[_Stack, IntArray, FloatArray]]:
        """Yield blocks, the columns of the basis that they take (B, m), and their rows of these.

        Categories take the columns that move them. Of other families, one block at a time takes
        all: with fewer, BLAS would round differently.
        """
        for stack in self._stacks:
            part = basis[stack.theta]
            if isinstance(stack.family, Categorical):
                moves = np.asarray(part.any(axis=1))
                numbers = moves.sum(axis=1)
                together = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
            else:
                moves = np.ones((len(part), basis.shape[1]), dtype=np.bool_)
                together = list(np.arange(len(part))[:, None])
            for some in together:
                own = np.nonzero(moves[some])[1].reshape(len(some), moves[some[0]].sum())
                some_blocks = _Stack(stack.family, *(a[some] for a in stack[1:]))
                yield some_blocks, own, np.take_along_axis(part[some], own[:, None], axis=2)

    def kl(self, theta: ArrayLike, other: ArrayLike) -> float:
        """Return KL(p_theta || p_other) >= 0 in nats."""
        theta, other = self._checked_theta("theta", theta), self._checked_theta("other", other)
        return sum(float(s.family.kl(theta[s.theta], other[s.theta]).sum()) for s in self._stacks)

    def mean(self, theta: ArrayLike) -> FloatArray:
        """Return the mean; the most probable category in a categorical column, (n_columns,)."""
        theta = self._checked_theta("theta", theta)
        return np.concatenate([b.family.mean(theta[b.theta]) for b in self._blocks])

    def project(self, theta: ArrayLike, bounds: tuple[float, float]) -> FloatArray:
        """Bring theta into the box [low, high] per component, (n_theta,).

        Args:
            theta: Finite numbers of any sign, such as the end of a step, (n_theta,).
            bounds: (low, high) with 0 < low < high.

        Returns:
            theta inside the box. A categorical block keeps the ratios that fit into it.
        """
        theta = self._checked_theta("theta", theta, positive=False)
        _check_bounds(bounds)
        projected = np.empty_like(theta)
        for stack in self._stacks:
            projected[stack.theta] = stack.family.project(theta[stack.theta], bounds)
        return projected

    def free(
        self, theta: ArrayLike, gradient: ArrayLike, bounds: tuple[float, float]
    ) -> BoolArray:
        """Return which components a step along -gradient does not push out of the box.

        The other components sit on a bound and would leave the box. The components of a
        categorical block are always free, because its scale does not matter.

        Args:
            theta: Parameters inside the box, (n_theta,).
            gradient: Finite gradient at theta, (n_theta,).
            bounds: (low, high) with 0 < low < high.

        Returns:
            Whether each component is free, (n_theta,).
        """
        theta = self._checked_theta("theta", theta)
        slope = self._checked_theta("gradient", gradient, positive=False)
        _check_bounds(bounds)
        free = [b.family.free(theta[b.theta], slope[b.theta], bounds) for b in self._blocks]
        return np.concatenate(free)

    @cached_property
    def _blocks(self) -> tuple[_Block, ...]:
        columns = list(accumulate((f.n_columns for f in self.families), initial=0))
        thetas = list(accumulate((f.n_theta for f in self.families), initial=0))
        return tuple(
            _Block(family, slice(*columns[i : i + 2]), slice(*thetas[i : i + 2]))
            for i, family in enumerate(self.families)
        )

    @cached_property
    def _stacks(self) -> tuple[_Stack, ...]:
        """The blocks by family."""
        stacks = []
        for family in dict.fromkeys(self.families):
            own = [i for i, other in enumerate(self.families) if other == family]
            columns, theta = (
                np.array([range(at.start, at.stop) for at in slices])
                for slices in zip(*(self._blocks[i][1:] for i in own), strict=True)
            )
            stacks.append(_Stack(family, np.array(own), theta, columns))
        return tuple(stacks)

    def _checked_theta(self, name: str, theta: ArrayLike, *, positive: bool = True) -> FloatArray:
        array = np.asarray(theta, dtype=np.float64)
        check_shape(name, array, "(n_theta,)", (self.n_theta,))
        good = np.isfinite(array) & (array > 0.0) if positive else np.isfinite(array)
        if not good.all():
            at, condition = int(np.argmin(good)), "finite and > 0" if positive else "finite"
            raise ValueError(f"{name}[{at}] must be {condition}, but got {float(array[at])!r}.")
        return array

    def _checked_points(self, X: ArrayLike) -> FloatArray:
        array = np.asarray(X, dtype=np.float64)
        n_rows = len(array) if array.ndim == 2 else 1
        check_shape("X", array, "(K, n_columns)", (n_rows, self.n_columns))
        return array


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


def _sum(vector: FloatArray) -> float:
    return float(vector.sum())


def _sums(rows: FloatArray) -> FloatArray:
    """Return the sum of each row, (B, 1)."""
    return np.asarray(rows.sum(axis=1, keepdims=True))


def _outside(what: str, condition: str, X: FloatArray) -> str:
    values = f"values in [{float(X.min())!r}, {float(X.max())!r}]"
    return f"The columns of {what} must be {condition}, but got {values}."


def _check_bounds(bounds: tuple[float, float]) -> None:
    if not 0.0 < bounds[0] < bounds[1] < np.inf:
        raise ValueError(f"bounds must be (low, high), 0 < low < high, but got {bounds!r}.")
