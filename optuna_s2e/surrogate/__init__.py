"""The model of the loss over a search space, and which point is worth a training.

`fit` is Gaussian-process regression on features, `Model` the same on the points of a
`SearchSpace`, `propose` the acquisition: the point that is most worth a training.
"""

from optuna_s2e.surrogate._acquisition import propose
from optuna_s2e.surrogate._ard import relevance
from optuna_s2e.surrogate._conditions import Conditions, conditions_of
from optuna_s2e.surrogate._features import N_POINTS, features, groups
from optuna_s2e.surrogate._gp import MAX_POINTS, GaussianProcess, fit, standardize
from optuna_s2e.surrogate._model import Model

__all__ = [
    "MAX_POINTS",
    "N_POINTS",
    "Conditions",
    "GaussianProcess",
    "Model",
    "conditions_of",
    "features",
    "fit",
    "groups",
    "propose",
    "relevance",
    "standardize",
]
