"""Pictures of a study, in the style of `optuna.visualization`: Plotly figures.

    from optuna_s2e.visualization import plot_schedules
    plot_schedules(study).show()

They only read the study, also while workers write to it, and are legible in light and dark
notebooks. `optuna_s2e.dashboard` shows the same figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.study import Study

from optuna_s2e.analysis import Snapshot
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

    The best and the recommended schedule stand out. If the study has a theta, the figure also
    shows the mean of R(t) under p_theta and the band that holds 90 % of its draws. Works for
    studies of any sampler.

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
    return _figure(figures.schedules(Snapshot.of(study)))


def plot_theta(study: Study) -> go.Figure:
    """Plot p_theta by generation.

    Expected weights of simplexes and probabilities of categories are stacked areas. Each number
    has a row as high as its range: the line is its mean, the band one standard deviation on
    either side. The label shows the newest mean in the parameter's own unit.

    Args:
        study: A study of `S2ESampler`, with any objective.

    Raises:
        ValueError: If S2ESampler drew no trial, or the study has several objectives.
        ImportError: If plotly is missing.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler
        >>> from optuna_s2e.visualization import plot_theta
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(seed=0))
        >>> study.optimize(lambda t: t.suggest_float("x", 0, 1) ** 2, n_trials=8)
        >>> figure = plot_theta(study)  # figure.show()
    """
    return _figure(figures.theta(Snapshot.of(study)))


def plot_generations(study: Study) -> go.Figure:
    """Plot the losses of each generation, their mean, the best so far, the recommended trial.

    Args:
        study: A study of `S2ESampler`, with any objective.

    Raises:
        ValueError: If S2ESampler drew no trial, or the study has several objectives.
        ImportError: If plotly is missing.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler
        >>> from optuna_s2e.visualization import plot_generations
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(seed=0))
        >>> study.optimize(lambda t: t.suggest_float("x", 0, 1) ** 2, n_trials=8)
        >>> figure = plot_generations(study)  # figure.show()
    """
    return _figure(figures.generations(Snapshot.of(study)))


def plot_learning_curves(study: Study) -> go.Figure:
    """Plot the learning curves of the best and the recommended trial against all others.

    The curves are validation error, label precision of the selection and training accuracy, as
    `CoteachingObjective` records them. For other objectives they are what the trials report to
    Optuna (`trial.report`). Works for studies of any sampler.

    Args:
        study: A study with one objective.

    Raises:
        ValueError: If the study has several objectives.
        ImportError: If plotly is missing.

    Example:
        >>> import optuna
        >>> from optuna_s2e.visualization import plot_learning_curves
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", 0, 1)
        ...     for epoch in range(5):
        ...         trial.report(x / (epoch + 1), epoch)
        ...     return x
        >>> study = optuna.create_study()
        >>> study.optimize(objective, n_trials=8)
        >>> figure = plot_learning_curves(study)  # figure.show()
    """
    return _figure(figures.learning_curves(Snapshot.of(study)))


def plot_basis_functions(source: Study | Schedule) -> go.Figure:
    """Plot what a schedule is made of.

    In a space of mixtures, the figure shows the basis functions with their weights, and R(t). In
    other spaces there is one panel per parameter, which moves over its range while the others
    are held.

    Args:
        source: A schedule of a `ScheduleSpace`, or a study, whose recommended schedule is taken;
            of a mean of schedules, that of the space which is nearest.

    Raises:
        ValueError: If there is no schedule, if it has no parameters, or if the study has several
            objectives.
        ImportError: If plotly is missing.

    Example:
        >>> import optuna
        >>> from optuna_s2e import Schedule, ScheduleSpace
        >>> from optuna_s2e.visualization import plot_basis_functions
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study()
        >>> space = ScheduleSpace(n_epochs=20)
        >>> study.optimize(lambda t: space.suggest(t).keep_rates.mean(), n_trials=2)
        >>> figure = plot_basis_functions(Schedule.from_trial(study.trials[0]))  # figure.show()
    """
    if isinstance(source, Schedule):
        return _figure(figures.basis_functions(source))
    snapshot = Snapshot.of(source)
    picked = snapshot.recommended
    if picked is None or picked.schedule is None:
        raise ValueError(f"Study {snapshot.name!r} has no completed trial that holds a schedule.")
    if picked.trial is None:
        nearest = Schedule.from_params(picked.params)
        label = f"R(t) nearest to the mean of {len(picked.mean_of)}"
        return _figure(figures.basis_functions(nearest, label))
    return _figure(figures.basis_functions(picked.schedule, f"R(t) of trial {picked.trial}"))


def _figure(document: figures.Figure) -> go.Figure:
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError('plotly is missing: pip install "optuna-s2e[visualization]"') from error
    return go.Figure(document)
