"""The model of the loss over a search space, and the acquisition on it.

- `fit` is Gaussian-process regression on features; it returns a `GaussianProcess`.
- `Model` is such a regression on the draws of a `SearchSpace`: it computes their features
  (`featurize`), learns which parameters matter (`ard_scales`) and which parameters are active
  where (`Conditions`).
- `propose` is the acquisition: it returns the point that is most worth a training.
"""

from optuna_s2e.surrogate._acquisition import propose
from optuna_s2e.surrogate._conditions import Condition, Conditions, find_conditions
from optuna_s2e.surrogate._features import N_POINTS, feature_groups, featurize, numbered_features
from optuna_s2e.surrogate._gp import (
    MAX_POINTS,
    GaussianProcess,
    StandardizedLosses,
    clip_and_standardize,
    fit,
)
from optuna_s2e.surrogate._likelihood import ard_scales
from optuna_s2e.surrogate._model import Model

__all__ = [
    "MAX_POINTS",
    "N_POINTS",
    "Condition",
    "Conditions",
    "GaussianProcess",
    "Model",
    "StandardizedLosses",
    "ard_scales",
    "clip_and_standardize",
    "feature_groups",
    "featurize",
    "find_conditions",
    "fit",
    "numbered_features",
    "propose",
]
