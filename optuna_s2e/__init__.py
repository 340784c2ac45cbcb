"""optuna_s2e: search sample-selection schedules, and anything else, with Optuna."""

from importlib.metadata import PackageNotFoundError, version

from optuna_s2e.analysis import Generation, Recommendation, generations, recommend, replay
from optuna_s2e.distributions import simplex_params, suggest_simplex
from optuna_s2e.parallel import RayExecutor, optimize_batch
from optuna_s2e.sampler import S2ESampler
from optuna_s2e.schedules import (
    Schedule,
    ScheduleSpace,
    coteaching_schedule,
    standard_schedule,
    table1_schedule,
)
from optuna_s2e.storages import open_storage

__all__ = [
    "Generation",
    "RayExecutor",
    "Recommendation",
    "S2ESampler",
    "Schedule",
    "ScheduleSpace",
    "coteaching_schedule",
    "generations",
    "open_storage",
    "optimize_batch",
    "recommend",
    "replay",
    "simplex_params",
    "standard_schedule",
    "suggest_simplex",
    "table1_schedule",
]

try:
    __version__ = version("optuna-s2e")  # pyproject.toml says it
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+not.installed"
