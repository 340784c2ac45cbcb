"""Many workers: batches on any executor, and workers that join a search (docs/parallel.md)."""

from optuna_s2e.history import Search
from optuna_s2e.parallel._executors import RayExecutor
from optuna_s2e.parallel._optimize_batch import optimize_batch
from optuna_s2e.parallel._sampler_change import find_sampler_change, warn_of_sampler_change
from optuna_s2e.parallel._worker import (
    Callback,
    Objective,
    is_complete,
    load_objective,
    sampler_for,
    work,
)

__all__ = [
    "Callback",
    "Objective",
    "RayExecutor",
    "Search",
    "find_sampler_change",
    "is_complete",
    "load_objective",
    "optimize_batch",
    "sampler_for",
    "warn_of_sampler_change",
    "work",
]
