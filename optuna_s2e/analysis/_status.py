"""Where a search stands, as text: trials by state, generations, and whether the thetas replay."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from optuna.study import Study
from optuna.trial import TrialState

from optuna_s2e.analysis._generations import Generation, compare, count_forks, generations
from optuna_s2e.analysis._progress import measure_progress, progress_lines
from optuna_s2e.analysis._recommend import recommend

TOLERANCE = 1e-9  # relative: another processor's rounding, not another theta


class Verification(NamedTuple):
    """Whether every theta follows from the records, and what to print."""

    sound: bool
    message: str


def verify(study: Study) -> Verification:
    """Replay a study and compare every theta with the recorded one."""
    try:
        told, computed, damage = compare(study)
    except ValueError as error:
        return Verification(False, f"verify: FAILED: {error}")
    if damage:
        more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
        return Verification(False, f"verify: FAILED: {damage[0]}{more}")
    pairs = [(a.index, a.theta, b.theta) for a, b in zip(told, computed, strict=True)]
    if all(np.array_equal(a, b) for _, a, b in pairs):
        return Verification(True, f"verify: {len(pairs)} generations replay bit for bit.")
    for index, a, b in pairs:
        if not np.allclose(a, b, rtol=TOLERANCE, atol=0):
            return Verification(
                False,
                f"verify: FAILED: theta of generation {index} is recorded as {_short(a)}, "
                f"but follows as {_short(b)}.",
            )
    return Verification(
        True,
        f"verify: {len(pairs)} generations replay within {TOLERANCE:g}, not bit for bit: they "
        "were written on another kind of machine.",
    )


def describe(study: Study, n_trials: int | None = None) -> str:
    """Return a page of text: trials by state, the best, workers, one line per generation.

    Args:
        study: A study.
        n_trials: Completed trials after which the search ends; None if unknown.
    """
    trials = study.get_trials(deepcopy=False)
    states = Counter(t.state for t in trials)
    counts = ", ".join(f"{states[s]} {s.name.lower()}" for s in TrialState if states[s])
    lines = [f"Study {study.study_name!r}: {counts or 'no trials'}"]
    if states[TrialState.COMPLETE]:
        best = study.best_trial
        lines.append(f"Best: trial {best.number}, value {best.value:.6g}")
        lines.append(_recommendation(study))
    lines += progress_lines(measure_progress(study, n_trials))
    told = generations(study)
    forks = count_forks(study)
    if forks:
        lines.append(f"Forks: {forks} (two workers opened a generation at once; harmless)")
    lines += ["", f"{'generation':>10} {'opener':>7} {'trials':>7} {'complete':>9}"
              f" {'best loss':>11} {'mean loss':>11}"]  # fmt: skip
    return "\n".join(lines + [_line(g) for g in told])


def _recommendation(study: Study) -> str:
    try:
        picked = recommend(study)
    except ValueError as error:
        return f"Recommended: none ({error})"
    low, high = picked.interval
    return (
        f"Recommended: trial {picked.trial}, expected value {picked.expected_loss:.6g} "
        f"[{low:.6g}, {high:.6g}]"
    )


def _line(g: Generation) -> str:
    losses = g.losses[np.isfinite(g.losses)]
    numbers = [f"{v:11.5g}" for v in (losses.min(), losses.mean())] if losses.size else ["-"] * 2
    opener = "-" if g.opener is None else str(g.opener)
    return (
        f"{g.index:10d} {opener:>7} {len(g.trials):7d} {losses.size:9d} "
        f"{numbers[0]:>11} {numbers[1]:>11}"
    )


def _short(theta: np.ndarray) -> str:
    return np.array2string(theta, precision=6, threshold=6, edgeitems=2)
