"""The `s2e status` command."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from datetime import datetime
from typing import Any

from optuna.trial import TrialState

from optuna_s2e.analysis import GenerationRow, Snapshot, Verification, describe, verify
from optuna_s2e.cli._common import load_study, print_json, recommendation_document
from optuna_s2e.cli._options import JSON, Options, add_table, flag, study_name
from optuna_s2e.parallel import Search

HELP = """\
It prints the trials, the best of them, the workers, the time left and the
generations. It only reads, so it may run at any time, on any machine that
reaches the storage. PyTorch is not needed.

    s2e status
    s2e status --storage postgresql://me@db/s2e --study-name mnist-pair45
    s2e status --verify
    s2e status --json | jq .best.value

Next: `s2e worker` makes a search faster, `s2e evaluate` compares its schedule
on test data.
"""


OPTIONS: Options = {
    **study_name(),
    "--verify": flag(
        "recompute every theta from the recorded trials; the exit code is 1 if one differs"
    ),
    **JSON,
}
EXIT_MISMATCH = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    add_table(parser, OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Print where the search stands."""
    study = load_study(args)
    try:
        Search.read(study)
    except ValueError as error:  # the status of a damaged study is still of use
        print(error, file=sys.stderr if args.json else sys.stdout)
    snapshot = Snapshot.of(study)
    found = verify(snapshot) if args.verify else None
    if args.json:
        print_json(_document(snapshot, found))
    else:
        print(describe(snapshot))
        if found is not None:
            print(found.message)
    return EXIT_MISMATCH if found is not None and not found.sound else 0


def _document(snapshot: Snapshot, found: Verification | None) -> dict[str, Any]:
    """Return the status as docs/command-line.md describes it."""
    states = Counter(t.state for t in snapshot.trials)
    best, recommended, progress = snapshot.best, snapshot.recommended, snapshot.progress
    lags = progress.lags or None
    starts = [t.datetime_start for t in snapshot.trials if t.datetime_start is not None]
    ends = [t.datetime_complete for t in snapshot.trials if t.datetime_complete is not None]
    return {
        "study": snapshot.name,
        "time": _iso(snapshot.moment),
        "first_start": _iso(min(starts, default=None)),
        "last_end": _iso(max(ends, default=None)),
        "metric": snapshot.metric,
        "direction": "maximize" if snapshot.maximize else "minimize",
        "trials": {state.name.lower(): states[state] for state in TrialState},
        "n_trials": snapshot.n_planned,
        "noise": snapshot.noise and snapshot.noise._asdict(),
        "best": best
        and {
            "trial": best.number,
            "value": best.value,
            "params": best.params,
            "end": _iso(best.datetime_complete),
        },
        "recommended": recommended and recommendation_document(recommended),
        "workers": dict(progress.workers),
        "zombies": progress.zombies,
        "trials_per_minute": 60 * progress.rate,
        "seconds_left": progress.seconds_left,
        "lag": lags and {"median": statistics.median(lags), "largest": max(lags)},
        "forks": snapshot.n_forks,
        "generations": [_row(row) for row in snapshot.generation_rows],
        "verify": found and found._asdict(),
    }


def _row(row: GenerationRow) -> dict[str, Any]:
    return {
        "generation": row.index,
        "opener": row.opener,
        "n_trials": row.n_trials,
        "n_complete": row.n_complete,
        "best": row.best,
        "mean": row.mean,
    }


def _iso(time: datetime | None) -> str | None:
    """Return a local time of Optuna's with its zone."""
    return None if time is None else time.astimezone().isoformat(timespec="seconds")
