"""How a trial is shown while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import optuna
from optuna.trial import BaseTrial, Trial

from optuna_s2e.coteaching._training import Metrics
from optuna_s2e.schedules import Schedule

_logger = optuna.logging.get_logger(f"optuna.{__name__}")  # obeys Optuna's verbosity


class TrialReporter(Protocol):
    """Shows a trial while it trains. If it raises, the training goes on without it."""

    def show(
        self,
        trial: Trial,
        schedule: Schedule,
        curves: Mapping[str, Sequence[float]],
        *,
        final: bool = False,
    ) -> None:
        """Show the state of a trial before the first epoch, after each epoch and at the end.

        Args:
            trial: The running trial.
            schedule: The schedule R(t) of the trial.
            curves: For each name of `Metrics`, one value per finished epoch: the mean over both
                networks, NaN if it is unknown.
            final: Whether the training has ended.
        """


def display(
    reporter: TrialReporter | None, trial: BaseTrial, schedule: Schedule
) -> Callable[..., None]:
    """Show a trial before its first epoch.

    Args:
        reporter: What shows it. None shows nothing.
        trial: The trial. One that is not running, but repeated, is not shown.
        schedule: Its schedule.

    Returns:
        A function that shows it again: with the metrics of an epoch, or with final=True.
    """
    if reporter is None or not isinstance(trial, Trial):
        return lambda *args, **options: None
    so_far: dict[str, list[float]] = {name: [] for name in Metrics._fields}
    failed = False

    def show(metrics: Metrics | None = None, *, final: bool = False) -> None:
        nonlocal failed
        if metrics is not None:
            for name, value in metrics._asdict().items():
                so_far[name].append(float(value.mean()))
        try:
            if not failed:
                reporter.show(trial, schedule, so_far, final=final)
        except Exception as error:  # an error of the reporter must not fail the training
            failed = True
            _logger.warning(f"Trial {trial.number} is not shown any more: {error!r}")

    show()
    return show
