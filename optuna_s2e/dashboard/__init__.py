"""Shows a search on optuna-dashboard, and keeps the pages up to date while it runs.

    from optuna_s2e.dashboard import DashboardReporter, serve

    reporter = DashboardReporter("artifacts")
    objective = CoteachingObjective(data, reporter=reporter)
    with serve(study, "artifacts") as address:
        study.optimize(objective, n_trials=60, callbacks=[reporter])

`s2e search` reports by itself, and `s2e dashboard` starts the server. docs/dashboard.md shows the
pages.
"""

from optuna_s2e.dashboard._artifacts import ArtifactFolder
from optuna_s2e.dashboard._folders import default_artifact_dir, find_artifact_dir
from optuna_s2e.dashboard._painter import Painter
from optuna_s2e.dashboard._reporter import DashboardReporter, is_available
from optuna_s2e.dashboard._server import serve

__all__ = [
    "ArtifactFolder",
    "DashboardReporter",
    "Painter",
    "default_artifact_dir",
    "find_artifact_dir",
    "is_available",
    "serve",
]
