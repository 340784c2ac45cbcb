"""The figures as plain dictionaries, Plotly's JSON: each is a pure function of a snapshot.

They need neither plotly.py nor its template of 7 kB.
"""

from optuna_s2e.visualization._loss_figures import generations, learning_curves
from optuna_s2e.visualization._plotly import Figure
from optuna_s2e.visualization._schedule_figures import basis_functions, schedules
from optuna_s2e.visualization._theta_figure import theta

__all__ = [
    "Figure",
    "basis_functions",
    "generations",
    "learning_curves",
    "schedules",
    "theta",
]
