"""The sampler: reads a study, moves theta and draws the next trial."""

from optuna_s2e.sampler._engine import Drawing, Request
from optuna_s2e.sampler._sampler import S2ESampler
from optuna_s2e.sampler._update import next_theta, recorded_theta

__all__ = [
    "Drawing",
    "Request",
    "S2ESampler",
    "next_theta",
    "recorded_theta",
]
