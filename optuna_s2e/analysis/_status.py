"""Where a search stands, as text, and whether its thetas follow from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from optuna.trial import TrialState

from optuna_s2e._typing import FloatArray
from optuna_s2e.analysis._generations import GenerationRow
from optuna_s2e.analysis._progress import progress_lines
from optuna_s2e.analysis._recommend import Recommendation
from optuna_s2e.analysis._snapshot import Snapshot

TOLERANCE = 1e-9  # relative; allows for the rounding of another processor


class Verification(NamedTuple):
    """Whether every theta follows from the records, and the line that says so."""

    sound: bool
    message: str


def verify(snapshot: Snapshot) -> Verification:
    """Recompute every theta of a study and compare it with the recorded one.

    A theta that another release's model of the loss moved cannot be recomputed. It counts as
    sound if its record is, and the message names it.

    Args:
        snapshot: The study at one moment.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler
        >>> from optuna_s2e.analysis import Snapshot, verify
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=9)
        >>> verify(Snapshot.of(study)).message
        'verify: 3 generations replay bit for bit.'
    """
    try:
        replayed = snapshot.replayed
    except ValueError as error:
        return Verification(False, f"verify: FAILED: {error}")
    damage = snapshot.ledger.damage()
    if damage:
        more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
        return Verification(False, f"verify: FAILED: {damage[0]}{more}")
    pairs = [
        (a.index, a.theta, b.theta)
        for a, b in zip(snapshot.generations, replayed, strict=True)
        if a.index not in snapshot.as_recorded
    ]
    n = "1 generation replays" if len(pairs) == 1 else f"{len(pairs)} generations replay"
    rest = _as_recorded(snapshot.as_recorded)
    if all(np.array_equal(a, b) for _, a, b in pairs):
        return Verification(True, f"verify: {n} bit for bit.{rest}")
    for index, a, b in pairs:
        if not np.allclose(a, b, rtol=TOLERANCE, atol=0):
            return Verification(
                False,
                f"verify: FAILED: theta of generation {index} is recorded as {_short(a)}, "
                f"but follows as {_short(b)}.",
            )
    return Verification(
        True,
        f"verify: {n} within {TOLERANCE:g}, not bit for bit: they were written on another kind "
        f"of machine.{rest}",
    )


def _as_recorded(generations: Sequence[int]) -> str:
    """Return the sentence on the generations that this release cannot recompute, if any."""
    if not generations:
        return ""
    which = ", ".join(str(g) for g in generations[:10]) + (", ..." if generations[10:] else "")
    return (
        f" {len(generations)} could not be checked ({which}): another release's model of the loss "
        "moved theta there, and this release takes it as recorded."
    )


def describe(snapshot: Snapshot) -> str:
    """Return a page of text: trials by state, the best trial, workers, one line per generation.

    Args:
        snapshot: The study at one moment.

    Example:
        >>> import optuna
        >>> from optuna_s2e.analysis import Snapshot, describe
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(study_name="new")
        >>> describe(Snapshot.of(study)).splitlines()[0]
        "Study 'new': no trials"
    """
    states = Counter(t.state for t in snapshot.trials)
    counts = ", ".join(f"{states[s]} {s.name.lower()}" for s in TrialState if states[s])
    lines = [f"Study {snapshot.name!r}: {counts or 'no trials'}"]
    if snapshot.noise is not None:
        lines.append(str(snapshot.noise))
    if snapshot.best is not None:
        lines.append(f"Best: trial {snapshot.best.number}, value {snapshot.best.value:.6g}")
    if states[TrialState.COMPLETE]:
        lines.append(_recommendation_line(snapshot))
    lines += progress_lines(snapshot.progress)
    if snapshot.n_forks:
        lines.append(
            f"Forks: {snapshot.n_forks} (two workers opened a generation at once; harmless)"
        )
    lines += ["", f"{'generation':>10} {'opener':>7} {'trials':>7} {'complete':>9}"
              f" {'best value':>11} {'mean value':>11}"]  # fmt: skip
    lines += [_row_line(row) for row in snapshot.generation_rows]
    n_others = len(snapshot.trials) - len(snapshot.generation_of)
    if n_others and snapshot.is_s2e:
        lines += [
            "",
            f"Not in the table: {_count(n_others)} (enqueued, or drawn by another sampler "
            "or in another space)",
        ]
    return "\n".join(lines)


def _recommendation_line(snapshot: Snapshot) -> str:
    try:
        picked = snapshot.recommend()
    except ValueError as error:
        return f"Recommended: none ({error})"
    low, high = picked.interval
    return (
        f"Recommended: {picked.source}, expected value {picked.expected_loss:.6g} "
        f"[{low:.6g}, {high:.6g}]{_left_out(picked)}"
    )


def _left_out(picked: Recommendation) -> str:
    """Say what the recommendation does not use, if anything."""
    n_trials = len(picked.left_out_trials)
    parts = [f"{_count(n_trials)} of another space"] if n_trials else []
    parts += picked.left_out_params
    return f", without {', '.join(parts)}" if parts else ""


def _count(n_trials: int) -> str:
    return "1 trial" if n_trials == 1 else f"{n_trials} trials"


def _row_line(row: GenerationRow) -> str:
    opener = "-" if row.opener is None else str(row.opener)
    best, mean = ("-" if v is None else f"{v:.5g}" for v in (row.best, row.mean))
    return (
        f"{row.index:10d} {opener:>7} {row.n_trials:7d} {row.n_complete:9d} {best:>11} {mean:>11}"
    )


def _short(theta: FloatArray) -> str:
    return np.array2string(theta, precision=6, threshold=6, edgeitems=2)
