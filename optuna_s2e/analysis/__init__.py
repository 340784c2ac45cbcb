"""Looks at a search: its generations, progress, status, and which point of it to use."""

from optuna_s2e.analysis._generations import Generation, generations, replay
from optuna_s2e.analysis._recommend import Recommendation, recommend
from optuna_s2e.analysis._snapshot import Marginal, Shares, Story, closes_generation
from optuna_s2e.analysis._status import describe, verify

__all__ = [
    "Generation",
    "Marginal",
    "Recommendation",
    "Shares",
    "Story",
    "closes_generation",
    "describe",
    "generations",
    "recommend",
    "replay",
    "verify",
]
