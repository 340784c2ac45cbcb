"""From draws and losses to the next theta: pure functions on arrays.

- `ESTIMATORS` lists the estimators by name; `DEFAULT_ESTIMATOR` names the one that is used
  unless another is asked for.
- `UpdateSettings` holds what an update depends on besides the draws; `resolve` fills in an
  estimator's defaults.
- `newton` holds the paper's estimates (Eq 7, Proposition 1), the directions of descent and the
  trust region.
- `surrogate_newton` does the same steps on a model of the loss.
"""

from optuna_s2e.estimators import newton, settings, surrogate_newton
from optuna_s2e.estimators.settings import (
    DEFAULT_ESTIMATOR,
    ESTIMATORS,
    SIGNS,
    Estimator,
    UpdateSettings,
    resolve,
)

__all__ = [
    "DEFAULT_ESTIMATOR",
    "ESTIMATORS",
    "SIGNS",
    "Estimator",
    "UpdateSettings",
    "newton",
    "resolve",
    "settings",
    "surrogate_newton",
]
