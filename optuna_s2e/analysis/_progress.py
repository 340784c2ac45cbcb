"""How a search goes: who works on it, which trials seem dead, how fast it is, when it ends.

All functions here are pure: they take trials and a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import WORKER_KEY

_RECENT = 50  # completed trials over which the rate is measured
_STOPPED = 60.0  # seconds without any trial after which a search counts as stopped
_DEAD_FACTOR, _DEAD_SECONDS = 5, 60.0  # a trial that runs for longer than both is taken for dead
_MAX_NAME = 60


class Progress(NamedTuple):
    """How a search goes at one moment.

    Attributes:
        workers: Number of running trials by worker: "host:pid", or "?" if none is recorded.
        zombies: Numbers of the RUNNING trials whose worker seems dead: it has begun another
            trial since, or the trial has run for five times as long as any that completed (and
            for at least a minute).
        lags: How many updates old each member of the chain was when it was used.
        rate: Completed trials per second over the last 50 trials. NaN if fewer than two
            completed.
        seconds_left: Seconds until the planned trials are complete at that rate. NaN if unknown.
    """

    workers: Counter[str]
    zombies: tuple[int, ...]
    lags: tuple[int, ...]
    rate: float
    seconds_left: float


def measure_progress(
    trials: Sequence[FrozenTrial],
    *,
    n_trials: int | None = None,
    lags: Sequence[int] = (),
    now: datetime,
) -> Progress:
    """Measure how a search goes.

    Args:
        trials: All trials of a study, by number.
        n_trials: Number of completed trials that the search ends with. None if unknown.
        lags: As `member_lags` returns them; they are passed on.
        now: Local time by the clock of the workers.
    """
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    zombies = _zombies(trials, complete, now)
    running = [t for t in trials if t.state == TrialState.RUNNING and t.number not in zombies]
    rate = _rate(trials, complete, now)
    left = max(0, n_trials - len(complete)) if n_trials is not None else np.nan
    return Progress(
        workers=Counter(_worker_of(t) or "?" for t in running),
        zombies=tuple(sorted(zombies)),
        lags=tuple(lags),
        rate=rate,
        seconds_left=0.0 if left == 0 else float(left / rate) if rate > 0 else np.nan,
    )


def progress_lines(progress: Progress) -> list[str]:
    """Return the lines of `s2e status`."""
    lines = []
    if progress.workers:
        names = sorted(progress.workers)
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        n_running = sum(progress.workers.values())
        lines.append(f"Working: {n_running} trials, by {len(names)} workers ({shown})")
    if progress.zombies:
        numbers = ", ".join(map(str, progress.zombies[:8]))
        more = ", ..." if len(progress.zombies) > 8 else ""
        lines.append(
            f"Zombies: {len(progress.zombies)} trials are RUNNING, but their workers seem dead "
            f"({numbers}{more}); they hold up nothing"
        )
    if np.isfinite(progress.rate):
        left = progress.seconds_left
        more = f", {duration_text(left)} left" if left > 0 else ""
        lines.append(f"Rate: {60 * progress.rate:.3g} complete per minute{more}")
    if any(progress.lags):
        lags = np.array(progress.lags)
        lines.append(
            f"Lag: draws are {np.median(lags):g} updates old when they are used (median; "
            f"largest {lags.max()})"
        )
    return lines


def duration_text(seconds: float) -> str:
    """Return a duration in words.

    Example:
        >>> [duration_text(s) for s in (12.3, 300, 5000, 9000)]
        ['12 s', '5 min', '83 min', '2 h 30 min']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _worker_of(trial: FrozenTrial) -> str | None:
    """Return "host:pid" of the worker of a trial, printable. None if none is recorded."""
    attr: Any = trial.system_attrs.get(WORKER_KEY)
    if not isinstance(attr, dict):
        return None
    host, pid = attr.get("host"), attr.get("pid")
    if not isinstance(host, str) or not isinstance(pid, int) or not 0 <= pid < 2**32:
        return None
    return f"{ascii(host[:_MAX_NAME])[1:-1]}:{pid}"


def _zombies(
    trials: Sequence[FrozenTrial], complete: Sequence[FrozenTrial], now: datetime
) -> set[int]:
    durations = [s.total_seconds() for t in complete if (s := _duration(t)) is not None]
    longest = timedelta(seconds=max([_DEAD_SECONDS, *(_DEAD_FACTOR * d for d in durations)]))
    newest: dict[str, int] = {}
    for trial in trials:
        worker = _worker_of(trial)
        if worker is not None:
            newest[worker] = trial.number
    return {
        t.number
        for t in trials
        if t.state == TrialState.RUNNING
        and (
            t.number < newest.get(_worker_of(t) or "", -1)
            or (complete and now - (_optuna.began_at(t) or now) > longest)
        )
    }


def _duration(trial: FrozenTrial) -> timedelta | None:
    began, ended = _optuna.began_at(trial), _optuna.completed_at(trial)
    return ended - began if began is not None and ended is not None else None


def _rate(trials: Sequence[FrozenTrial], complete: Sequence[FrozenTrial], now: datetime) -> float:
    """Return completed trials per second, lately and while the search was not stopped."""
    ends = sorted(end for t in complete if (end := _optuna.completed_at(t)) is not None)
    ends = ends[-_RECENT:]
    if len(ends) < 2:
        return float("nan")
    seconds = (ends[-1] - ends[0]).total_seconds() - _stopped_seconds(trials, ends[0], ends[-1])
    silent = (now - ends[-1]).total_seconds()  # longer than usual: the rate falls
    return 1 / max(seconds / (len(ends) - 1), silent / len(ends), 1e-9)


def _stopped_seconds(trials: Sequence[FrozenTrial], start: datetime, end: datetime) -> float:
    """Return how long no trial ran between two times, in pauses of more than a minute.

    A night between two runs of the same search must not count as slowness.
    """
    runs = [
        (began, ended)
        for t in trials
        if (began := _optuna.began_at(t)) is not None
        and (ended := _optuna.completed_at(t)) is not None
        and ended > start
    ]
    stopped, covered = 0.0, start
    for began, ended in sorted(runs):
        pause = (min(began, end) - covered).total_seconds()
        if pause > _STOPPED:
            stopped += pause
        covered = max(covered, ended)
    return stopped
