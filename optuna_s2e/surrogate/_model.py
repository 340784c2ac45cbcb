"""The model of the loss over a search space: Gaussian-process regression on features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optuna_s2e._typing import BoolArray, FloatArray
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.surrogate._conditions import Conditions, find_conditions
from optuna_s2e.surrogate._features import feature_groups, featurize, numbered_features
from optuna_s2e.surrogate._gp import GaussianProcess, clip_and_standardize, fit
from optuna_s2e.surrogate._likelihood import ard_scales


@dataclass(frozen=True)
class Model:
    """A model of the loss over a space; make one with `Model.fit`.

    Attributes:
        space: Space of the draws.
        x: Coordinates of the draws that it was fitted to, (N, d).
        conditions: Where each parameter of the space is active.
        scales: Factors of the features, from `ard_scales`, (n_features,). Numbers of categories
            stay as they are; `gp.category_weights` has the squares of their factors.
        gp: Regression of the losses on `featurize(x)`.

    Example:
        >>> import numpy as np
        >>> from optuna.distributions import FloatDistribution
        >>> from optuna_s2e.distributions import SearchSpace
        >>> from optuna_s2e.surrogate import Model
        >>> space = SearchSpace.of({"a": FloatDistribution(0, 1)})
        >>> x = np.linspace(0.1, 0.9, 9)[:, None]
        >>> model = Model.fit(space, x, active=x > 0, losses=x[:, 0] ** 2)
        >>> abs(float(model.gp.mean(model.featurize(np.array([[0.5]])))[0]) - 0.25) < 0.02
        True
    """

    space: SearchSpace
    x: FloatArray
    conditions: Conditions
    scales: FloatArray
    gp: GaussianProcess

    @classmethod
    def fit(
        cls, space: SearchSpace, x: FloatArray, *, active: BoolArray, losses: FloatArray
    ) -> Model:
        """Fit a model to draws.

        Args:
            space: Space of the draws.
            x: Coordinates of the draws, (N, d).
            active: Which coordinates the objective asked for, (N, d).
            losses: Losses of the draws, (N,), as in `surrogate.fit`.

        Returns:
            The fitted model.

        Raises:
            ValueError: If there is no finite loss, a shape is wrong, the space's tags name an
                unknown schedule space, or the algebra breaks down (LinAlgError).
        """
        z, numbered = featurize(space, x, active), numbered_features(space)
        y = clip_and_standardize(losses).y
        scales = ard_scales(z, y, feature_groups(space), numbered)
        weights = np.where(numbered, scales**2, 0.0)
        scales = np.where(numbered, 1.0, scales)
        gp = fit(z * scales, losses, weights)
        return cls(space, x, find_conditions(space, x, active), scales, gp)

    def featurize(self, x: FloatArray, active: BoolArray | None = None) -> FloatArray:
        """Return the features of draws, times `scales`.

        Args:
            x: Coordinates of the draws, (N, d).
            active: Which coordinates the objective asked for, (N, d). None takes what the
                conditions predict, for draws that were not trained.

        Returns:
            Features as the regression takes them, (N, n_features).
        """
        active = self.conditions.active(x) if active is None else active
        return featurize(self.space, x, active) * self.scales
