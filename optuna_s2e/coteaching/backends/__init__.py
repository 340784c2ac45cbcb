"""Backends: the ways to train the trials of a batch, one after the other or side by side."""

from optuna_s2e.coteaching.backends._base import Trainer, TrainingSetup
from optuna_s2e.coteaching.backends._choice import BACKENDS, Backend, check_method, find_backend

__all__ = [
    "BACKENDS",
    "Backend",
    "Trainer",
    "TrainingSetup",
    "check_method",
    "find_backend",
]
