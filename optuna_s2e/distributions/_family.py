"""What one independent block of p_theta must be able to compute."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from optuna_s2e._typing import BoolArray, FloatArray
from optuna_s2e.distributions._whitening import whiten

EPSILON = 1e-6
"""Draws keep this distance from the boundary, where the score of a Beta is infinite."""


class Family(ABC):
    """One independent block of p_theta: a `Beta`, a `Dirichlet` or a `Categorical`.

    X holds the columns of this block alone, and theta its components alone. `SearchDistribution`
    explains the arrays and checks their shapes. The last four methods take B equal blocks at once,
    because one call for all of them is much faster than one call for each.
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
        """Draw `size` points that do not lie on the boundary, (size, n_columns)."""

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

    def project(self, theta: FloatArray, bounds: tuple[float, float]) -> FloatArray:
        """Bring finite theta (..., n_theta) of any sign into the box [low, high]."""
        return np.clip(theta, *bounds)

    def free(
        self, theta: FloatArray, gradient: FloatArray, bounds: tuple[float, float]
    ) -> BoolArray:
        """Return which components a step along -gradient does not push out of the box."""
        low, high = bounds
        return ~(((theta <= low) & (gradient > 0.0)) | ((theta >= high) & (gradient < 0.0)))

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

    def tangents(
        self, theta: FloatArray, gradient: FloatArray, free: BoolArray
    ) -> list[FloatArray]:
        """Return a basis of the free directions of each block, (n_theta, m) each.

        Each basis is orthonormal in the Fisher metric, and the natural gradient lies in its span.
        """
        bases = list[FloatArray]()
        for own_theta, own in zip(theta, free, strict=True):
            whitening = whiten(self.fisher(own_theta)[np.ix_(own, own)])
            bases.append(np.zeros((self.n_theta, whitening.shape[1])))
            bases[-1][own] = whitening
        return bases

    def _refusal(self, condition: str, X: FloatArray) -> ValueError:
        """Return the error for points outside the support."""
        values = f"values in [{float(X.min())!r}, {float(X.max())!r}]"
        name = type(self).__name__
        return ValueError(f"The columns of a {name} must be {condition}, but got {values}.")
