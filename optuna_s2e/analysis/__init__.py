"""Looks at a search: its generations, its progress, and which point of it to use.

`Snapshot.of(study)` reads a study once; every view of it takes that snapshot.
"""

from optuna_s2e.analysis._generations import Generation, GenerationRow, closes_generation
from optuna_s2e.analysis._progress import Progress, duration_text
from optuna_s2e.analysis._recommend import Recommendation
from optuna_s2e.analysis._snapshot import Snapshot
from optuna_s2e.analysis._status import Verification, describe, verify
from optuna_s2e.analysis._study import generations, recommend, replay
from optuna_s2e.analysis._theta_summary import Band, Marginal, Proportions, ThetaSummary

__all__ = [
    "Band",
    "Generation",
    "GenerationRow",
    "Marginal",
    "Progress",
    "Proportions",
    "Recommendation",
    "Snapshot",
    "ThetaSummary",
    "Verification",
    "closes_generation",
    "describe",
    "duration_text",
    "generations",
    "recommend",
    "replay",
    "verify",
]
