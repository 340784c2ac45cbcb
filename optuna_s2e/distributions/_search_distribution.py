r"""The search distribution p_theta: a product of independent families.

S2E minimises :math:`J(\theta) = E_{x \sim p_\theta}[f(x)]` (Eq 6) instead of f. This module holds
all that the update rules of `optuna_s2e.estimators.newton` need of p_theta, in closed form. The
formulas of the families are in `_dirichlet` and `_categorical`.

Notation
    ======================  ==========================================  =====================
    theta                   all parameters of p_theta, > 0              (n_theta,)
    X                       a batch of K points, one a row              (K, n_columns)
    log_density             :math:`\log p_\theta(x)`                    (K,)
    score                   :math:`\nabla_\theta \log p_\theta(x)`      (K, n_theta)
    hessian                 :math:`\nabla^2_\theta \log p_\theta(x)`    (K, n_theta, n_theta)
    fisher                  :math:`E[s s^T] = -E[\nabla^2 \log p]`      (n_theta, n_theta)
    ======================  ==========================================  =====================

theta = 1 is the uniform distribution in every block.

References:
    Yao, Yang, Han, Niu, Kwok. Searching to exploit memorization effect in learning with noisy
    labels. ICML 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import block_diag

from optuna_s2e._checks import check_int, check_shape
from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.distributions._categorical import Categorical
from optuna_s2e.distributions._family import Family
from optuna_s2e.distributions._stacks import Block, Stack, blocks_of, moved_by, stacks_of

MANY_CATEGORIES = 72
"""If a space has more categories in all, steps of theta are taken in a subspace (`tangents`).

Up to this number, matrices of all components are fast enough for 400 virtual draws, and they hold
the curvature between blocks, which the subspace leaves out. 72 is the number of categories in the
largest space of the studies. Another number would change thetas, and recorded thetas must replay.
"""


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
        """Return the directions from which a step downhill is made among many categories.

        Args:
            theta: Parameters, (n_theta,).
            gradient: Gradient of J at theta, (n_theta,).
            free: Components that a step may move, (n_theta,).

        Returns:
            At most two directions for each categorical block and all free directions of the other
            blocks. They are orthonormal in the Fisher metric and span the natural gradient.
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
        for stack, own, part in moved_by(basis, self._stacks):
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
        for stack, own, part in moved_by(basis, self._stacks):
            at = stack.theta
            hessians = stack.family.hessian_along(theta[at], stack.points(X), weights, part)
            for columns, of_block in zip(own, hessians, strict=True):
                takes_all = len(columns) == len(along)
                along[... if takes_all else (columns[:, None], columns)] += of_block
        return along

    def kl(self, theta: ArrayLike, other: ArrayLike) -> float:
        """Return KL(p_theta || p_other) >= 0 in nats."""
        theta, other = self._checked_theta("theta", theta), self._checked_theta("other", other)
        return sum(float(s.family.kl(theta[s.theta], other[s.theta]).sum()) for s in self._stacks)

    def mean(self, theta: ArrayLike) -> FloatArray:
        """Return the mean, or for a category the most probable one, (n_columns,)."""
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
    def _blocks(self) -> tuple[Block, ...]:
        return blocks_of(self.families)

    @cached_property
    def _stacks(self) -> tuple[Stack, ...]:
        return stacks_of(self._blocks)

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


def _check_bounds(bounds: tuple[float, float]) -> None:
    if not 0.0 < bounds[0] < bounds[1] < np.inf:
        raise ValueError(f"bounds must be (low, high), 0 < low < high, but got {bounds!r}.")
