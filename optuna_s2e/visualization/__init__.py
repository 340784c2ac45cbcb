"""Pictures of a study, in the style of `optuna.visualization`: Plotly figures.

    from optuna_s2e.visualization import plot_schedules
    plot_schedules(study).show()

They read the study only, also while workers write to it, and are legible in light and dark
notebooks. `optuna_s2e.dashboard` shows the same figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.study import Study

from optuna_s2e.analysis import Story
from optuna_s2e.schedules import Schedule
from optuna_s2e.visualization import figures

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "plot_basis_functions",
    "plot_generations",
    "plot_learning_curves",
    "plot_schedules",
    "plot_theta",
]


def plot_schedules(study: Study) -> go.Figure:
    """Plot R(t) of all completed trials, later generations in stronger colours.

    The best and the recommended schedule stand out; where the study has a theta, the mean of
    R(t) under p_theta and the band of 90 % of its draws. Works for studies of any sampler.

    Args:
        study: A study whose objective uses `ScheduleSpace`.

    Raises:
        ValueError: If no trial holds a schedule, or the study has several objectives.
        ImportError: If plotly is missing.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler, ScheduleSpace
        >>> from optuna_s2e.visualization import plot_schedules
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(seed=0))
        >>> space = ScheduleSpace(n_epochs=20)
        >>> study.optimize(lambda t: space.suggest(t).keep_rates.mean(), n_trials=8)
        >>> figure = plot_schedules(study)  # figure.show()
    """
    return _figure(figures.schedules(Story.of(study)))


def plot_theta(study: Study) -> go.Figure:
    """Plot p_theta by generation.

    Expected weights of simplexes and probabilities of categories are stacked areas. Each number
    has a row, its whole range high: the line is its mean, the band one standard deviation; the
    label shows the newest mean in the parameter's own unit.

    Args:
        study: A study of `S2ESampler`, of any objective.

    Raises:
        ValueError: If S2ESampler drew no trial, or the study has several objectives.
        ImportError: If plotly is missing.
    """
    return _figure(figures.theta(Story.of(study)))


def plot_generations(study: Study) -> go.Figure:
    """Plot the losses of each generation, their mean, the best so far, the recommended trial.

    Args:
        study: A study of `S2ESampler`, of any objective.

    Raises:
        ValueError: If S2ESampler drew no trial, or the study has several objectives.
        ImportError: If plotly is missing.
    """
    return _figure(figures.generations(Story.of(study)))


def plot_learning_curves(study: Study) -> go.Figure:
    """Plot the learning curves of the best and the recommended trial against all others.

    Validation error, label precision of the selection and training accuracy, as
    `CoteachingObjective` records them; for other objectives, what they report to Optuna
    (`trial.report`). Works for studies of any sampler.

    Args:
        study: A study.

    Raises:
        ValueError: If the study has several objectives.
        ImportError: If plotly is missing.
    """
    return _figure(figures.learning_curves(Story.of(study)))


def plot_basis_functions(source: Study | Schedule) -> go.Figure:
    """Plot what a schedule is made of.

    In a space of mixtures: the basis functions with their weights, and R(t). In other spaces:
    one panel per parameter, which moves over its range while the others are held.

    Args:
        source: A schedule of a `ScheduleSpace`, or a study, whose recommended one is taken.

    Raises:
        ValueError: If there is no schedule, or one without parameters.
        ImportError: If plotly is missing.
    """
    if isinstance(source, Schedule):
        return _figure(figures.basis_functions(source))
    story = Story.of(source)
    picked = story.recommended
    if picked is None or picked.schedule is None:
        raise ValueError(f"Study {story.name!r} has no completed trial that holds a schedule.")
    return _figure(figures.basis_functions(picked.schedule, f"R(t) of trial {picked.trial}"))


def _figure(document: figures.Figure) -> go.Figure:
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError('plotly is missing: pip install "optuna-s2e[visualization]"') from error
    return go.Figure(document)
