"""From draws and losses to the next theta: pure functions on arrays.

`newton` holds Eq 7, Proposition 1 and the directions of descent, `surrogate_newton` the same on a
model of the loss, `settings` what an update depends on besides the draws.
"""

from optuna_s2e.estimators import newton, settings, surrogate_newton
from optuna_s2e.estimators.settings import UpdateSettings, resolve

__all__ = [
    "UpdateSettings",
    "newton",
    "resolve",
    "settings",
    "surrogate_newton",
]
