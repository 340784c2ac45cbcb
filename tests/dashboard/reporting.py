"""An objective as a user writes it, which shows its trials on the dashboard."""

from collections.abc import Callable

import optuna

from optuna_s2e import ScheduleSpace
from optuna_s2e.dashboard import DashboardReporter

Objective = Callable[[optuna.Trial], float]


def make_objective(
    reporter: DashboardReporter,
    n_epochs: int = 8,
    kind: str = "eq1",
    on_epoch: Callable[[optuna.Trial, int], None] = lambda trial, epoch: None,
) -> Objective:
    """Return an objective as a user writes it: shows its trial after every epoch."""
    space = ScheduleSpace(n_epochs, kind)

    def objective(trial: optuna.Trial) -> float:
        schedule = space.suggest(trial)
        curves: dict[str, list[float]] = {"error": [], "label_precision": []}
        reporter.show(trial, schedule, curves)
        for epoch, rate in enumerate(schedule.keep_rates):
            curves["error"].append(abs(float(rate) - 0.5) / (epoch + 1))
            curves["label_precision"].append(1 - float(rate) / 2)
            reporter.show(trial, schedule, curves)
            on_epoch(trial, epoch)
        reporter.show(trial, schedule, curves, final=True)
        return curves["error"][-1]

    return objective
