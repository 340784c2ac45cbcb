"""How a search goes: who works on it, what seems dead, how far behind draws are, when it ends."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import WORKER_KEY
from optuna_s2e.history import Ledger, Rules

_RECENT = 50  # completed trials that the rate is measured over
_DEAD_FACTOR, _DEAD_SECONDS = 5, 60.0  # a trial that runs for longer than both is taken for dead
_MAX_NAME = 60


class Progress(NamedTuple):
    """What the trials of a study say of its workers.

    Attributes:
        workers: Trials that are running, by worker ("host:pid", or "?" where none is recorded).
        zombies: Numbers of RUNNING trials whose worker is dead, as far as one can tell: it has
            begun another trial since, or the trial has run for five times as long as any that
            completed (and at least a minute).
        lags: For each member of the chain, from how many updates before the one that used it its
            theta came.
        rate: Completed trials per second lately; NaN if fewer than two completed.
        seconds_left: Until `n_trials` are complete at that rate; NaN if unknown.
    """

    workers: Counter[str]
    zombies: tuple[int, ...]
    lags: tuple[int, ...]
    rate: float
    seconds_left: float


def measure_progress(study: Study, n_trials: int | None, now: datetime | None = None) -> Progress:
    """Measure how a search goes.

    Args:
        study: A study with one objective.
        n_trials: Completed trials after which the search ends; None if unknown.
        now: The time by the clock of the workers; default: this machine's.
    """
    now = now or datetime.now()
    trials = study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    zombies = _zombies(trials, complete, now)
    running = [t for t in trials if t.state == TrialState.RUNNING and t.number not in zombies]
    rate = _rate(complete, now)
    left = max(0, n_trials - len(complete)) if n_trials is not None else np.nan
    return Progress(
        Counter(_worker_of(t) or "?" for t in running),
        tuple(sorted(zombies)),
        _lags(study),
        rate,
        0.0 if left == 0 else float(left / rate) if rate > 0 else np.nan,
    )


def _worker_of(trial: FrozenTrial) -> str | None:
    """Return "host:pid" of the worker of a trial, printable; None if none is recorded."""
    attr: Any = trial.system_attrs.get(WORKER_KEY)
    if not isinstance(attr, dict):
        return None
    host, pid = attr.get("host"), attr.get("pid")
    if not isinstance(host, str) or not isinstance(pid, int) or not 0 <= pid < 2**32:
        return None
    return f"{ascii(host[:_MAX_NAME])[1:-1]}:{pid}"


def _zombies(trials: list[FrozenTrial], complete: list[FrozenTrial], now: datetime) -> set[int]:
    durations = [t.duration.total_seconds() for t in complete if t.duration is not None]
    longest = max([_DEAD_SECONDS, *(_DEAD_FACTOR * d for d in durations)])
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
            or (complete and now - (_optuna.began_at(t) or now) > timedelta(0, longest))
        )
    }


def _rate(complete: list[FrozenTrial], now: datetime) -> float:
    ends = (_optuna.completed_at(t) for t in complete)
    times = sorted(end for end in ends if end is not None)[-_RECENT:]
    if len(times) < 2:
        return float("nan")
    gap = (times[-1] - times[0]).total_seconds() / (len(times) - 1)
    silent = (now - times[-1]).total_seconds()  # longer than usual: the rate falls
    return 1 / max(gap, silent / len(times), 1e-9)


def _lags(study: Study) -> tuple[int, ...]:
    ledger = Ledger(Rules.of(study)).read(_optuna.all_trials(study))
    chain = ledger.state(1).chain
    if chain is None:
        return ()
    return tuple(
        max(0, opener.generation - 1 - ledger.draws[n].record.generation)
        for opener in chain.openers
        for n in opener.members
        if n in ledger.draws
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
        rate = 60 * progress.rate
        eta = f", {_duration(progress.seconds_left)} left" if progress.seconds_left > 0 else ""
        lines.append(f"Rate: {rate:.3g} complete per minute{eta}")
    if any(progress.lags):
        lags = np.array(progress.lags)
        lines.append(
            f"Lag: draws are {np.median(lags):g} updates old when they are used (median; "
            f"largest {lags.max()})"
        )
    return lines


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
