"""How networks are trained: one trial at a time, or several side by side."""

from optuna_s2e.coteaching.backends._base import Lanes, Setting
from optuna_s2e.coteaching.backends._choice import BACKENDS, Backend, find_backend

__all__ = [
    "BACKENDS",
    "Backend",
    "Lanes",
    "Setting",
    "find_backend",
]
