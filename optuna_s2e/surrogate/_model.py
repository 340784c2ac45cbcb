"""The model of the loss over a search space: Gaussian-process regression on features."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_s2e._typing import BoolArray, FloatArray
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.surrogate._ard import relevance
from optuna_s2e.surrogate._conditions import Conditions, conditions_of
from optuna_s2e.surrogate._features import features, groups
from optuna_s2e.surrogate._gp import Surrogate, fit, standardize


@dataclass(frozen=True)
class Model:
    """A model of the loss over a space.

    Attributes:
        space: What theta describes.
        x: Coordinates of the draws that it was fitted to, (N, d).
        conditions: Which of its parameters the objective asks for where.
        factors: How much each feature matters, (n_features,).
        surrogate: Fitted to the losses over `features`.
    """

    space: SearchSpace
    x: FloatArray
    conditions: Conditions
    factors: FloatArray
    surrogate: Surrogate

    @classmethod
    def fit(cls, space: SearchSpace, x: FloatArray, asked: BoolArray, losses: FloatArray) -> Model:
        """Fit a model to draws.

        Args:
            space: What theta describes.
            x: Coordinates of the draws, (N, d).
            asked: Which of them the objective asked for, (N, d).
            losses: (N,).

        Raises:
            ValueError: As `fit`.
        """
        z = features(space, x, asked)
        factors = relevance(z, standardize(losses)[0], groups(space))
        fitted = fit(z * factors, losses)
        return cls(space, x, conditions_of(space, x, asked), factors, fitted)

    def features(self, x: FloatArray, asked: BoolArray | None = None) -> FloatArray:
        """Return the features of draws, scaled by how much they matter, (N, n_features).

        Args:
            x: Coordinates, (N, d).
            asked: Which of them the objective asked for, (N, d); None if it did not run yet.
        """
        asked = self.conditions.asked(x) if asked is None else asked
        return features(self.space, x, asked) * self.factors
