"""The model of the loss over a search space: Gaussian-process regression on features."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_s2e._typing import BoolArray, FloatArray
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.surrogate._ard import relevance
from optuna_s2e.surrogate._conditions import Conditions, conditions_of
from optuna_s2e.surrogate._features import features, groups
from optuna_s2e.surrogate._gp import GaussianProcess, fit, standardize


@dataclass(frozen=True)
class Model:
    """A model of the loss over a space.

    Attributes:
        space: What theta describes.
        x: Coordinates of the draws that it was fitted to, (N, d).
        conditions: Which of its parameters the objective asks for where.
        factors: How much each feature matters, (n_features,).
        gp: Fitted to the losses over `features`.
    """

    space: SearchSpace
    x: FloatArray
    conditions: Conditions
    factors: FloatArray
    gp: GaussianProcess

    @classmethod
    def fit(
        cls, space: SearchSpace, x: FloatArray, active: BoolArray, losses: FloatArray
    ) -> Model:
        """Fit a model to draws.

        Args:
            space: What theta describes.
            x: Coordinates of the draws, (N, d).
            active: Which of them the objective asked for, (N, d).
            losses: (N,).

        Raises:
            ValueError: As `fit`.
        """
        z = features(space, x, active)
        factors = relevance(z, standardize(losses)[0], groups(space))
        fitted = fit(z * factors, losses)
        return cls(space, x, conditions_of(space, x, active), factors, fitted)

    def features(self, x: FloatArray, active: BoolArray | None = None) -> FloatArray:
        """Return the features of draws, scaled by how much they matter, (N, n_features).

        Args:
            x: Coordinates, (N, d).
            active: Which of them the objective asked for, (N, d); None if it did not run yet.
        """
        active = self.conditions.active(x) if active is None else active
        return features(self.space, x, active) * self.factors
