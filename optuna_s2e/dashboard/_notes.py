"""The status page of a study and the notes of its trials, in Markdown.

Strings of the database (names, values, parameters) stand in code spans or code blocks: nothing in
them is markup, a link or a picture. A person's own text around the marked block survives.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import COMMAND_KEY, N_TRIALS_KEY
from optuna_s2e.analysis import Story
from optuna_s2e.schedules import Schedule

BEGIN = "[s2e-begin]: # (kept up to date by optuna_s2e: write above or below, not in between)"
END = "[s2e-end]: # (end of what optuna_s2e keeps up to date)"
MAX_ROWS = 30  # generations in the table
MAX_LINE = 95  # characters of a command
_BLOCK = re.compile(r"\[s2e-begin\]: #[^\n]*\n.*?\[s2e-end\]: #[^\n]*(?:\n|$)", re.DOTALL)
_STRAY = re.compile(r"^\[s2e-(?:begin|end)\]: #[^\n]*(?:\n|$)", re.MULTILINE)
_GAP = "\N{EM SPACE}"  # the dashboard's tables have no space between columns
_SECRET = re.compile(r"pass|secret|token", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(\w*(?:pass|secret|token)\w*=)[^&\s]*", re.IGNORECASE)
_CURVES = {  # name of a curve -> what its last value is called
    "error": "validation error",
    "loss": "validation loss",
    "label_precision": "label precision",
    "train_accuracy": "training accuracy",
}


def merge(note: str, block: str) -> str:
    """Put a block into a note in place of the earlier one; all other text is kept."""
    marked = f"{BEGIN}\n\n{block.strip()}\n\n{END}\n"
    before, found, after = note, False, ""
    first = _BLOCK.search(note)
    if first is not None:
        before, found, after = note[: first.start()], True, note[first.end() :]
    before, after = (_STRAY.sub("", _BLOCK.sub("", part)) for part in (before, after))
    if not found and before and not before.endswith("\n\n"):
        before = before.rstrip("\n") + "\n\n"
    return before + marked + after


def code(value: object, max_length: int = 200) -> str:
    """Return a string of the database as a code span on one line."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    if len(shown) > max_length:
        shown = shown[: max_length - 1] + "\N{HORIZONTAL ELLIPSIS}"
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    return f"{fence} {shown or '-'} {fence}"


def code_block(lines: Sequence[str]) -> str:
    """Return lines as a code block; control characters are replaced."""
    shown = [
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        for line in lines
    ]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *shown, fence])


def masked(url: str) -> str:
    """Return a storage URL with *** in place of passwords, and a file's whole path."""
    scheme, found, path = url.partition(":///")
    if found and scheme == "journal":
        return f"journal:///{os.path.abspath(path)}"
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return _SECRET_VALUE.sub(r"\1***", url.rpartition("@")[2])
    file = parsed.database
    is_file = parsed.get_backend_name() == "sqlite" and file not in (None, "", ":memory:")
    if is_file and file is not None and not file.startswith("file:"):
        parsed = parsed.set(database=os.path.abspath(file))
    query = {k: "***" if _SECRET.search(k) else v for k, v in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True).replace("%2A" * 3, "***")


def shown_command(argv: Sequence[str]) -> str:
    """Return a command line without passwords, to be run from any folder."""
    line = []
    for argument in argv:
        option = re.match(r"--[\w-]+=|", argument)[0]  # type: ignore[index]
        url = argument.removeprefix(option)
        line.append(option + masked(url) if "://" in url else argument)
    return shlex.join(line)


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
        schedule: Its R(t).
        curves: One value per finished epoch by name; NaN where unknown.
        generation: That it was drawn from, if S2ESampler drew it.
        picture: Path of its picture on the dashboard.
        running: Whether it is still training.
    """
    rates = schedule.keep_rates
    n_done = max((len(c) for c in curves.values()), default=0)
    lines = [f"![R(t)]({picture})", ""] if picture else []
    state = f"epoch {n_done} of {len(rates)}" if running else f"{n_done} epochs"
    numbers = [f"**generation {generation}**"] if generation is not None else []
    numbers += [state, f"final R {rates[-1]:.3f}", f"mean R {rates.mean():.3f}"]
    lines.append(" · ".join(numbers))
    known = {n: c for n, c in curves.items() if n in _CURVES and len(c) and math.isfinite(c[-1])}
    if known:
        lines += ["", "| | first epoch | best | last |", "|---|---:|---:|---:|"]
    for name, label in _CURVES.items():
        if name in known:
            curve = np.asarray(known[name])
            best = np.nanmin(curve) if name in ("error", "loss") else np.nanmax(curve)
            values = (curve[0], best, curve[-1])
            lines.append(f"| {label} | " + " | ".join(f"{_GAP}{v:.4f}" for v in values) + " |")
    return "\n".join(lines)


# --- a study -----------------------------------------------------------------------------------


def study_note(
    story: Story,
    *,
    study_id: int,
    url: str | None,
    pictures: Mapping[int, str],
    baselines: Sequence[tuple[int, str]],
    now: datetime,
) -> str:
    """Return the status page of a study.

    Args:
        story: The study.
        study_id: Its identifier on the dashboard.
        url: Of its storage.
        pictures: Paths of the pictures of the best and the recommended trial, by number.
        baselines: Identifiers and names of studies to compare with.
        now: Time of writing, with its zone.
    """
    planned = story.attrs.get(N_TRIALS_KEY)
    n_trials = planned if isinstance(planned, int) and planned > 0 else None
    parts = [_headline(story, n_trials, now), _best(story, study_id, pictures)]
    if story.is_s2e:
        parts.append(_generations(story))
    parts.append(_compare(story, study_id, baselines))
    parts.append(_commands(story, url))
    return "\n\n".join(part for part in parts if part)


def _headline(story: Story, n_trials: int | None, now: datetime) -> str:
    states = Counter(t.state for t in story.trials)
    done = states[TrialState.COMPLETE]
    size = story.population_size
    ended = n_trials is not None and done >= n_trials
    first = []
    if story.is_s2e and size:
        generation = story.generations[-1].index
        of = f" of {max(-(-n_trials // size), generation + 1)}" if n_trials else ""
        first.append(f"{generation + 1}{of} generations" if ended else
                     f"Generation {generation + 1}{of}")  # fmt: skip
    first.append(f"{done}{f' of {n_trials}' if n_trials else ''} trials")
    if ended:
        first.append("finished")
    else:
        first += _remaining(story, n_trials, now)
    others = [f"{states[s]} {s.name.lower()}" for s in TrialState
              if states[s] and s != TrialState.COMPLETE]  # fmt: skip
    when = now.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    second = ", ".join([f"Updated {when}", *others])
    return f"## {' · '.join(first)}\n\n{second}."


def _remaining(story: Story, n_trials: int | None, now: datetime) -> list[str]:
    """Estimate the end from the pace of the last 20 completed trials, of all workers together."""
    ends = (_optuna.completed_at(t) for t in story.complete)
    times = sorted(end for end in ends if end is not None)
    steps = sorted(b - a for a, b in pairwise(times[-21:]))[:-1]  # the longest: a night's rest
    if n_trials is None or len(steps) < 2:
        return []
    pace = sum(steps, timedelta(0)) / len(steps)
    left = pace * max(0, n_trials - len(story.complete))
    if not timedelta(0) < left < timedelta(days=365):
        return []
    return [f"about {_duration(left)} left (until {(now + left).strftime('%d %b %H:%M')})"]


def _duration(time: timedelta) -> str:
    minutes = time.total_seconds() / 60
    if minutes < 1.5:
        return f"{time.total_seconds():.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _best(story: Story, study_id: int, pictures: Mapping[int, str]) -> str:
    best, picked = story.best, story.recommended
    if best is None:
        return "No trial is complete yet."
    rows = [("best", best, f"{best.value:.5g}")]
    if picked is not None and picked.trial is not None:
        low, high = picked.interval
        expected = f"{picked.expected_loss:.5g}, 95 % interval {low:.4g} to {high:.4g}"
        rows.append(("**recommended**", story.trials[picked.trial], expected))
    lines = ["| | trial | value | parameters |", "|---|---|---|---|"]
    for what, trial, value in rows:
        link = f"[#{trial.number}]({_trial_path(study_id, trial.number)})"
        lines.append(f"| {what} | {_GAP}{link} | {_GAP}{value} | {_GAP}{_params(trial)} |")
    shown = dict.fromkeys(t.number for _, t, _ in rows if t.number in pictures)
    images = " ".join(
        f"[![R(t) of trial {n}]({pictures[n]})]({_trial_path(study_id, n)})" for n in shown
    )
    if picked is not None and picked.trial != best.number:
        lines += ["", "The best trial is partly luck; the recommended one is best after smoothing "
                  "over similar trials."]  # fmt: skip
    return "\n".join([*lines, "", images]) if images else "\n".join(lines)


def _trial_path(study_id: int, number: int) -> str:
    return f"/dashboard/studies/{study_id}/trials?numbers={number}"


def _params(trial: FrozenTrial) -> str:
    free = {n: v for n, v in trial.params.items() if not trial.distributions[n].single()}
    if len(free) > 6:
        return f"{len(free)} numbers, see the trial"
    shown = (f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in free.items())
    # a bar would end the table's cell, also within a code span
    return ", ".join(code(s.replace("|", "\N{BROKEN BAR}"), 60) for s in shown)


def _generations(story: Story) -> str:
    lines = ["### Generations", "", "| m | opened by | trials | complete | best | mean |",
             "|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    sign = -1.0 if story.maximize else 1.0
    for g in story.generations[-MAX_ROWS:]:
        losses = g.losses[np.isfinite(g.losses)]
        values = [f"{sign * v:.5g}" for v in (losses.min(), losses.mean())] if losses.size else []
        opener = "-" if g.opener is None else f"#{g.opener}"
        cells = [g.index, opener, len(g.trials), losses.size, *(values or ["-", "-"])]
        lines.append("| " + " | ".join(f"{_GAP}{cell}" for cell in cells) + " |")
    left_out = len(story.generations) - MAX_ROWS
    if left_out > 0:
        lines += ["", f"The first {left_out} generations are not shown (`s2e status` shows them)."]
    return "\n".join(lines)


def _compare(story: Story, study_id: int, baselines: Sequence[tuple[int, str]]) -> str:
    if not baselines:
        return ""
    ids = ",".join(str(i) for i in [study_id, *(i for i, _ in baselines)])
    names = ", ".join(code(name, 60) for _, name in baselines)
    return f"[Compare](/dashboard/compare-studies?ids={ids}) with {names}, of the same objective."


def _commands(story: Story, url: str | None) -> str:
    command = story.attrs.get(COMMAND_KEY)
    lines = []
    if isinstance(command, str):
        lines += ["# resume", command, ""]
    else:
        lines += ["# resume: run your script again (load_if_exists=True)", ""]
    if url is not None:
        where = f"--storage {shlex.quote(masked(url))}"
        which = f"{where} --study-name {shlex.quote(story.name)}"
        objective = "" if isinstance(command, str) else " --objective MODULE:FUNCTION"
        lines += ["# one more worker, here or elsewhere", f"s2e worker {which}{objective}", ""]
        if isinstance(command, str):
            lines += ["# compare on test data with fresh seeds", f"s2e evaluate {which}", ""]
        if story.schedule_space is not None:
            lines += ["# take the schedule", f"s2e export {which} --out schedule.json", ""]
        lines += ["# where it stands; whether every theta replays", f"s2e status {which} --verify"]
    return "\n".join(["### Go on", "", code_block([w for line in lines for w in _wrapped(line)])])


def _wrapped(line: str) -> list[str]:
    """Return a long command line over several lines, broken before its options."""
    try:
        words = shlex.split(line)
    except ValueError:  # no command line at all
        return [line]
    if len(line) <= MAX_LINE or line.startswith("#"):
        return [line]
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--") and len(shlex.join([*lines[-1], word])) > MAX_LINE - 25:
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(words) for words in lines).split("\n")


def value_now(curves: Mapping[str, Any], metric: str) -> float | None:
    """Return what a trial would return now: the mean of the last 10 % of the finished epochs."""
    name = {"validation_loss": "loss"}.get(metric, "error")
    curve = [v for v in curves.get(name, ()) if math.isfinite(v)]
    return float(np.mean(curve[-max(1, len(curve) // 10) :])) if curve else None
