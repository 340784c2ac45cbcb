"""The OptunaHub package `visualization/plot_s2e_schedules`: what a search of schedules found."""

from optuna_s2e import ScheduleSpace
from optuna_s2e.visualization import (
    plot_basis_functions,
    plot_generations,
    plot_schedules,
    plot_theta,
)

__all__ = [
    "ScheduleSpace",
    "plot_basis_functions",
    "plot_generations",
    "plot_schedules",
    "plot_theta",
]
