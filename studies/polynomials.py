"""Losses whose mean under p_theta is known: polynomials of the coordinates.

The mean of a monomial under a product of Beta and Dirichlet distributions is a ratio of gamma
functions, so J(theta), its gradient and its Hessian need no sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import digamma, gammaln, zeta

from optuna_s2e.distributions import (
    Beta,
    Dirichlet,
    Family,
    SearchDistribution,
)

Array = np.ndarray


@dataclass(frozen=True)
class Polynomial:
    r"""A polynomial :math:`f(x) = \sum_j c_j \prod_i w_i^{p_{ji}}` and its mean J.

    w are the weights that theta belongs to: the columns of a Dirichlet; x and 1 - x of a Beta.

    Args:
        families: The blocks of p_theta.
        coefficients: c, (n_terms,).
        powers: p, (n_terms, n_theta).
        best: The w with f = 0, (n_theta,).
    """

    families: tuple[Family, ...]
    coefficients: Array
    powers: Array
    best: Array

    @cached_property
    def distribution(self) -> SearchDistribution:
        """Return p_theta."""
        return SearchDistribution(self.families)

    @cached_property
    def blocks(self) -> Array:
        """Return which theta is in which block, (n_blocks, n_theta), 0 or 1."""
        sizes = [family.n_theta for family in self.families]
        return np.repeat(np.eye(len(sizes)), sizes, axis=1)

    def losses(self, X: Array) -> Array:
        """Return f of each row, (K,)."""
        columns = np.cumsum([family.n_columns for family in self.families])[:-1]
        parts = [p if p.shape[1] > 1 else np.hstack([p, 1 - p]) for p in np.hsplit(X, columns)]
        weights = np.hstack(parts)[:, None, :]
        return np.asarray(np.prod(weights**self.powers, axis=2) @ self.coefficients)

    def _rise(self, function: Callable[[Array], Array], theta: Array) -> tuple[Array, Array]:
        """Return what the powers add to function(theta) and to function(sums over the blocks)."""
        sums = self.blocks @ theta
        raised = function(sums + self.powers @ self.blocks.T) - function(sums)
        return function(theta + self.powers) - function(theta), raised

    def _moments(self, theta: Array) -> Array:
        """Return c_j E[monomial j], a ratio of gamma functions, (n_terms,)."""
        own, joint = self._rise(gammaln, theta)
        return np.asarray(self.coefficients * np.exp(own.sum(axis=1) - joint.sum(axis=1)))

    def _slopes(self, theta: Array) -> Array:
        """Return the gradients of log E[monomial j], (n_terms, n_theta)."""
        own, joint = self._rise(digamma, theta)
        return np.asarray(own - joint @ self.blocks)

    def J(self, theta: Array) -> float:
        """Return E[f], Eq 6."""
        return float(self._moments(theta).sum())

    def gradient(self, theta: Array) -> Array:
        """Return the gradient of J, (n_theta,)."""
        return np.asarray(self._moments(theta) @ self._slopes(theta))

    def hessian(self, theta: Array) -> Array:
        """Return the Hessian of J, (n_theta, n_theta)."""
        moments, slopes = self._moments(theta), self._slopes(theta)
        own, joint = self._rise(lambda z: zeta(2.0, z), theta)  # trigamma
        same_block = self.blocks.T @ self.blocks
        curvature = np.diag(moments @ own) - (moments @ joint @ self.blocks) * same_block
        return np.asarray((slopes * moments[:, None]).T @ slopes + curvature)


def quadratic(families: tuple[Family, ...], centre: list[float], A: Array) -> Polynomial:
    """Return f = (x - centre)' A (x - centre) over the columns."""
    first = np.cumsum([0] + [f.n_theta for f in families])
    own = [first[b] + i for b, f in enumerate(families) for i in range(f.n_columns)]
    unit, c = np.eye(first[-1])[own], np.array(centre)
    best = np.ones(first[-1])
    best[own] = c
    for b, family in enumerate(families):
        if family.n_columns == 1:
            best[first[b] + 1] = 1.0 - best[first[b]]
    pairs = [(i, j) for i in range(len(c)) for j in range(len(c)) if A[i, j] != 0.0]
    powers = [unit[i] + unit[j] for i, j in pairs] + list(unit) + [np.zeros(first[-1])]
    coefficients = np.concatenate([[A[i, j] for i, j in pairs], -2 * A @ c, [c @ A @ c]])
    return Polynomial(families, coefficients, np.array(powers), best)


def linear(family: Family, costs: list[float]) -> Polynomial:
    """Return f = costs . w, one of the costs 0; its minimum is a corner (taken 1e-9 off it)."""
    best = np.where(np.array(costs) == 0.0, 1.0, 1e-9)
    return Polynomial((family,), np.array(costs), np.eye(family.n_theta), best)


PAPER = (Dirichlet(4), *[Beta()] * 16)
PROBLEMS: dict[str, Polynomial] = {
    "slope": linear(Beta(), [1.0, 0.0]),
    "bowl": quadratic((Beta(), Beta()), [0.3, 0.8], np.array([[1, 0.5], [0.5, 1]])),
    "simplex": linear(Dirichlet(4), [2 / 3, 1 / 3, 0.0, 1.0]),
    "three numbers": quadratic(
        (Beta(),) * 3, [0.6, 0.1, 0.5], np.array([[1, 0.5, 0], [0.5, 1, 0.3], [0, 0.3, 0.5]])
    ),
    "paper's space": quadratic(
        PAPER, [0.1, 0.2, 0.3, 0.4, *np.linspace(0.1, 0.9, 16)], np.eye(20) / 20
    ),
}
"""2, 4, 4, 6 (the Eq 1 space) and 36 (the paper's) components of theta."""
