"""The sampler: reads a study, moves theta and draws the next trial."""

from optuna_s2e.sampler._engine import Engine
from optuna_s2e.sampler._request import Drawn, Plan, Request
from optuna_s2e.sampler._sampler import S2ESampler, engine_of
from optuna_s2e.sampler._update import (
    fit_with_sources,
    next_theta,
    recomputes,
    recorded_theta,
)

__all__ = [
    "Drawn",
    "Engine",
    "Plan",
    "Request",
    "S2ESampler",
    "engine_of",
    "fit_with_sources",
    "next_theta",
    "recomputes",
    "recorded_theta",
]
