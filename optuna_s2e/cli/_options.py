"""Options as tables: by name, what `add_argument` takes. Here are those that commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from optuna_s2e._attributes import MAX_TRIALS
from optuna_s2e._checks import check_int, check_number

Options = dict[str, dict[str, Any]]
T = TypeVar("T")

# --- kinds of options ------------------------------------------------------------------------


def option(
    metavar: str, text: str, default: object = None, kind: Callable[[str], object] = str
) -> dict[str, Any]:
    """Return the settings of an option that takes a value.

    Args:
        metavar: What the help calls the value.
        text: What the help says. The default follows, unless the text has it.
        default: The value if the option is missing.
        kind: Turns the text of the command line into the value, such as `whole(1)`.
    """
    return {"metavar": metavar, "default": default, "type": kind, "help": _help(text, default)}


def choice(choices: Sequence[str], text: str, default: str | None = None) -> dict[str, Any]:
    """Return the settings of an option that takes one of some names."""
    return {"choices": list(choices), "default": default, "help": _help(text, default)}


def flag(text: str) -> dict[str, Any]:
    """Return the settings of an option that takes no value."""
    return {"action": "store_true", "help": text}


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return what reads an int of at least `low` and, if given, at most `high`."""
    return _reader(int, lambda value: check_int("", value, low, high))


def number(
    low: float, high: float = inf, *, open_low: bool = False, open_high: bool = False
) -> Callable[[str], float]:
    """Return what reads a finite number; the arguments are those of `check_number`."""
    ends = {"open_low": open_low, "open_high": open_high}
    return _reader(float, lambda value: check_number("", value, low, high, **ends))


def _help(text: str, default: object) -> str:
    shown = default is None or "(default" in text
    return text if shown else f"{text} (default %(default)s)"


def _reader(kind: Callable[[str], object], check: Callable[[object], T]) -> Callable[[str], T]:
    def read(text: str) -> T:
        value: object = text
        with suppress(ValueError):  # the check refuses a text
            value = kind(text)
        try:
            return check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).strip()) from None

    return read


def add_table(parser: argparse.ArgumentParser, options: Options, title: str = "") -> None:
    """Add the options of a table, in a group of their own if it has a title."""
    target = parser.add_argument_group(title) if title else parser
    for name, settings in options.items():
        target.add_argument(name, **settings)


# --- options of several commands -------------------------------------------------------------


def study_name(default: str = "the storage's only study") -> Options:
    """Return the option that names the study."""
    about = f"name of the study (default: {default})"
    return {"--study-name": option("NAME", about, kind=_name)}


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty; without it, the default is taken")
    return text


def _folder(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, but {text!r} is a file")
    return path


MAX_SEED = 2**64 - 1  # that a study keeps for its workers

SEED = whole(0, MAX_SEED)
TRIALS = whole(1, MAX_TRIALS)

MACHINE: Options = {
    "--data-root": option(
        "DIR", "folder of MNIST and CIFAR; data that are missing there are downloaded", kind=Path
    ),
    "--device": option(
        "NAME", "cpu, cuda, cuda:1, ... (default auto: CUDA if there is a GPU, else cpu)", "auto"
    ),
    "--threads": option(
        "N", "CPU threads of this process (default %(default)s: more do not help small networks, "
        "and workers share the cores)", 1, whole(1, 1024),
    ),
}  # fmt: skip

RULE: Options = {
    "--rule": choice(
        ["auto", "mean", "smoothed", "theta", "best"],
        "which schedule is used. mean: the mean of the trained schedules that are best once the "
        "luck of single trainings is smoothed out, by weight; smoothed: that of the best such "
        "trial; theta: the mean of p_theta; best: that of the trial with the lowest value; auto "
        "(default): mean, or smoothed if more than one schedule is searched",
        "auto",
    ),
}

ARTIFACTS: Options = {
    "--artifact-dir": option(
        "DIR", "folder of the trials' pictures (default: FILE.artifacts beside a database file, "
        "s2e-artifacts for a database server)", kind=_folder,
    ),
}  # fmt: skip

DASHBOARD: Options = {
    "--no-dashboard": flag(
        "draw nothing for `s2e dashboard` (default: draw if optuna-dashboard is installed)"
    ),
    **ARTIFACTS,
}

JSON: Options = {
    "--json": flag("print one JSON document and nothing else (docs/command-line.md has its keys)")
}
