"""The text of the dashboard's pages: the status page of a study, and the note of a trial."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e._attributes import CLASSIFIER_KEY, COMMAND_KEY
from optuna_s2e.analysis import Recommendation, Snapshot, duration_text
from optuna_s2e.dashboard._markdown import code, code_block, table
from optuna_s2e.schedules import Schedule, ScheduleSpace, find_space
from optuna_s2e.storages import absolute_url, mask_url

MAX_ROWS = 30  # generations in the table
MAX_LINE = 95  # characters of a command
MAX_DAYS = 365  # a longer estimate of the time left is not shown
_CURVES = {  # name of a curve -> its label in the note of a trial
    "error": "validation error",
    "loss": "validation loss",
    "label_precision": "label precision",
    "train_accuracy": "training accuracy",
}


# --- a trial -----------------------------------------------------------------------------------


def trial_note(
    schedule: Schedule,
    curves: Mapping[str, Sequence[float]],
    *,
    generation: int | None,
    picture: str | None,
    running: bool,
) -> str:
    """Return the note of a trial: its picture and key numbers.

    Args:
        schedule: R(t) of the trial.
        curves: One value per finished epoch, by name. NaN where unknown.
        generation: The generation that it was drawn from. None if S2ESampler did not draw it.
        picture: Path of its picture on the dashboard. None if it has no picture.
        running: Whether it is still training.
    """
    rates = schedule.keep_rates
    n_done = max((len(c) for c in curves.values()), default=0)
    state = f"epoch {n_done} of {len(rates)}" if running else f"{n_done} epochs"
    numbers = [f"**generation {generation}**"] if generation is not None else []
    numbers += [state, f"final R {rates[-1]:.3f}", f"mean R {rates.mean():.3f}"]
    parts = [f"![R(t)]({picture})"] if picture else []
    parts.append(" · ".join(numbers))
    rows = []
    for name, label in _CURVES.items():
        curve = np.asarray(curves.get(name, ()), dtype=np.float64)
        if len(curve) and math.isfinite(curve[-1]):
            best = np.nanmin(curve) if name in ("error", "loss") else np.nanmax(curve)
            rows.append([label, *(f"{v:.4f}" for v in (curve[0], best, curve[-1]))])
    if rows:
        parts.append(table(["", "first epoch", "best", "last"], rows, "---:"))
    with suppress(ValueError):  # it is an array
        parts.append(_formula(find_space(schedule.params or {})))
    return "\n\n".join(parts)


def value_now(curves: Mapping[str, Any], metric: str) -> float | None:
    """Return what a trial would return now: the mean of the last 10 % of the finished epochs.

    Args:
        curves: One value per finished epoch, by name. NaN where unknown.
        metric: Name of the study's value.
    """
    name = {"validation_loss": "loss"}.get(metric, "error")
    curve = [v for v in curves.get(name, ()) if math.isfinite(v)]
    return float(np.mean(curve[-max(1, len(curve) // 10) :])) if curve else None


# --- a study -----------------------------------------------------------------------------------


def study_note(
    snapshot: Snapshot,
    *,
    study_id: int,
    url: str | None,
    pictures: Mapping[int, str],
    baselines: Sequence[tuple[int, str]],
) -> str:
    """Return the status page of a study.

    Args:
        snapshot: The study at one moment.
        study_id: Its identifier on the dashboard.
        url: URL of its storage. None if it has none; the page then shows fewer commands.
        pictures: Paths of the pictures of the best and the recommended trial, by number.
        baselines: Identifiers and names of studies to compare with.
    """
    parts = [_headline(snapshot, study_id)]
    if snapshot.noise is not None:
        parts.append(f"{snapshot.noise}.")
    parts.append(_best(snapshot, study_id, pictures))
    if snapshot.schedule_space is not None:
        parts.append(_formula(snapshot.schedule_space))
    if snapshot.is_s2e:
        parts.append(_generations(snapshot))
    parts += [_comparison(study_id, baselines), _commands(snapshot, url)]
    return "\n\n".join(part for part in parts if part)


def _has_ended(snapshot: Snapshot) -> bool:
    n_complete = sum(t.state == TrialState.COMPLETE for t in snapshot.trials)
    return snapshot.n_planned is not None and n_complete >= snapshot.n_planned


def _headline(snapshot: Snapshot, study_id: int) -> str:
    states = Counter(t.state for t in snapshot.trials)
    n_complete, n_planned = states[TrialState.COMPLETE], snapshot.n_planned
    ended = _has_ended(snapshot)
    size = snapshot.population_size
    first = []
    if size is not None:
        n = snapshot.generations[-1].index + 1
        of = f" of {max(-(-n_planned // size), n)}" if n_planned else ""
        first.append(f"{n}{of} generations" if ended else f"Generation {n}{of}")
    first.append(f"{n_complete}{f' of {n_planned}' if n_planned else ''} trials")
    first += ["finished"] if ended else _time_left(snapshot)
    others = [f"{states[s]} {s.name.lower()}" for s in TrialState
              if states[s] and s != TrialState.COMPLETE]  # fmt: skip
    when = snapshot.moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    page = f"/dashboard/studies/{study_id}"
    links = f"[Plots]({page}), [trials]({page}/trials)"
    return f"## {' · '.join(first)}\n\n{links}. {', '.join([f'Updated {when}', *others])}."


def _time_left(snapshot: Snapshot) -> list[str]:
    seconds = snapshot.progress.seconds_left
    if not 0 < seconds < MAX_DAYS * 86_400:  # also if it is NaN
        return []
    end = snapshot.moment + timedelta(seconds=seconds)
    return [f"about {duration_text(seconds)} left (until {end.strftime('%d %b %H:%M')})"]


def _best(snapshot: Snapshot, study_id: int, pictures: Mapping[int, str]) -> str:
    best, picked = snapshot.best, snapshot.recommended
    if best is None:
        return "No trial is complete yet."
    chosen = [best]
    rows = [("best", *_trial_cells(best, study_id), "", _params(best.params, best))]
    if picked is not None:
        low, high = picked.interval
        expected = f"{picked.expected_loss:.4g} ({low:.4g} to {high:.4g})"
        if picked.trial is not None:
            source = snapshot.trials[picked.trial]
            cells = _trial_cells(source, study_id)
            chosen.append(source)
        else:
            source = snapshot.trials[picked.mean_of[0]]
            cells = f"a mean of {len(picked.mean_of)}", ""
        rows.append(("**recommended**", *cells, expected, _params(picked.params, source)))
    parts = [table(["", "trial", "value", "expected (95 %)", "parameters"], rows)]
    if picked is not None:
        parts.append(_why_recommended(picked, best.number))
    shown = dict.fromkeys(t.number for t in chosen if t.number in pictures)
    images = " ".join(
        f"[![R(t) of trial {n}]({pictures[n]})]({_trial_path(study_id, n)})" for n in shown
    )
    return "\n\n".join([*parts, images] if images else parts)


def _trial_cells(trial: FrozenTrial, study_id: int) -> tuple[str, str]:
    link = f"[#{trial.number}]({_trial_path(study_id, trial.number)})"
    return link, f"{trial.value:.5g}"


def _why_recommended(picked: Recommendation, best: int) -> str:
    if picked.trial == best:
        return (
            f"Trial #{best} has the best value, and is also the best after smoothing over similar "
            "trials: `s2e evaluate` and `s2e export` use it."
        )
    luck = f"Trial #{best} has the best value, which is partly luck."
    if picked.trial is None:
        return (
            f"{luck} Recommended is the mean of the {len(picked.mean_of)} trained schedules that "
            "are best after smoothing over similar trials, by weight: `s2e evaluate` and `s2e "
            "export` use it. The parameters are those of the nearest schedule of the space."
        )
    return (
        f"{luck} Trial #{picked.trial} is the best after smoothing over similar trials: "
        "`s2e evaluate` and `s2e export` use it."
    )


def _formula(space: ScheduleSpace) -> str:
    """Return what R(t) and its parameters are; the formula as code."""
    formula, _, parameters = space.about.partition(": ")
    return f"{code(formula)}: {parameters}."


def _trial_path(study_id: int, number: int) -> str:
    return f"/dashboard/studies/{study_id}/trials?numbers={number}"


def _params(params: Mapping[str, Any], trial: FrozenTrial) -> str:
    """Show parameters that a trial has, without those for which it had no choice."""
    free = {n: v for n, v in params.items() if not trial.distributions[n].single()}
    if len(free) > 6:
        return f"{len(free)} parameters, see the trial"
    shown = (f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in free.items())
    # a bar would end the table's cell, also within a code span
    return ", ".join(code(s.replace("|", "\N{BROKEN BAR}"), 60) for s in shown)


def _generations(snapshot: Snapshot) -> str:
    rows = [
        (
            row.index,
            "-" if row.opener is None else f"#{row.opener}",
            row.n_trials,
            row.n_complete,
            *("-" if v is None else f"{v:.5g}" for v in (row.best, row.mean)),
        )
        for row in snapshot.generation_rows
    ]
    columns = ["m", "opened by", "trials", "complete", "best", "mean"]
    parts = ["### Generations", table(columns, rows[-MAX_ROWS:], "---:")]
    n_left_out = len(rows) - MAX_ROWS
    if n_left_out > 0:
        parts.append(
            f"The first {n_left_out} generations are not shown here; `s2e status` shows them."
        )
    return "\n\n".join(parts)


def _comparison(study_id: int, baselines: Sequence[tuple[int, str]]) -> str:
    if not baselines:
        return ""
    ids = ",".join(str(i) for i in [study_id, *(i for i, _ in baselines)])
    names = ", ".join(code(name, 60) for _, name in baselines)
    return (
        f"[Compare](/dashboard/compare-studies?ids={ids}) with {names}, which search the same "
        "objective."
    )


# --- commands ----------------------------------------------------------------------------------


def _commands(snapshot: Snapshot, url: str | None) -> str:
    command = snapshot.attrs.get(COMMAND_KEY)
    ended = _has_ended(snapshot)
    lines = []
    of_classifier = CLASSIFIER_KEY in snapshot.attrs
    if of_classifier:
        lines += ["# search on: the same `s2e fit`, or your script, again", ""]
    elif not isinstance(command, str):
        more = ", for more trials" if ended else ""
        lines += [f"# search on: run your script again (load_if_exists=True){more}", ""]
    elif ended:
        lines += ["# search on", _with_trials(command, 2 * (snapshot.n_planned or 1)), ""]
    else:
        lines += ["# resume the search", command, ""]
    if url is not None:
        where = f"--storage {shlex.quote(mask_url(absolute_url(url)))}"
        which = f"{where} --study-name {shlex.quote(snapshot.name)}"
        objective = "" if isinstance(command, str) else " --objective MODULE:FUNCTION"
        if not ended and not of_classifier:
            lines += ["# add a worker, here or elsewhere", f"s2e worker {which}{objective}", ""]
        if isinstance(command, str):
            lines += ["# compare on test data with fresh seeds", f"s2e evaluate {which}", ""]
        if snapshot.schedule_space is not None:
            lines += ["# take the schedule", f"s2e export {which} --out schedule.json", ""]
        lines += ["# see where it stands, and whether every theta replays",
                  f"s2e status {which} --verify"]  # fmt: skip
    return "\n".join(["### Go on", "", code_block([w for line in lines for w in _wrapped(line)])])


def _with_trials(command: str, n: int) -> str:
    """Return a search's command line with another number of trials."""
    changed, found = re.subn(r"(?<=--trials[ =])\d+", str(n), command)
    return changed if found else f"{command} --trials {n}"


def _wrapped(line: str) -> list[str]:
    """Return a long command line over several lines, broken before its options."""
    try:
        words = shlex.split(line)
    except ValueError:  # it is no command line
        return [line]
    if len(line) <= MAX_LINE or line.startswith("#"):
        return [line]
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--") and len(shlex.join([*lines[-1], word])) > MAX_LINE - 25:
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(words) for words in lines).split("\n")


def shown_command(argv: Sequence[str]) -> str:
    """Return a command line without passwords, which can be run from any folder."""
    line = []
    for argument in argv:
        option = re.match(r"--[\w-]+=|", argument)[0]  # type: ignore[index]
        url = argument.removeprefix(option)
        line.append(option + mask_url(absolute_url(url)) if "://" in url else argument)
    return shlex.join(line)
