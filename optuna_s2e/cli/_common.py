"""What several commands share: options, opening a study, progress bars, and what comes next."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e._checks import check_int, check_number
from optuna_s2e.analysis import recommend
from optuna_s2e.parallel import Callback, Objective, optimize_batch, work
from optuna_s2e.schedules import Schedule
from optuna_s2e.storages import absolute_url, mask_url, open_storage

if TYPE_CHECKING:
    from argparse import _ActionsContainer  # a parser or a group of its options

    from optuna_s2e.dashboard import DashboardReporter

EXIT_MISMATCH, EXIT_ERROR = 1, 2
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}  # as shells have them

HEARTBEAT = 60  # seconds between two heartbeats of a running trial
MAX_NAMES = 20  # of studies that a message lists


# --- options ---------------------------------------------------------------------------------


def add_int(
    parser: _ActionsContainer, option: str, low: int, high: int | None = None, **settings: Any
) -> None:
    """Add an option that takes an int of at least `low` and, if given, at most `high`.

    Args:
        parser: A parser or a group of its options.
        option: Name of the option, such as "--trials".
        low: Smallest value.
        high: Largest value. None sets no bound.
        settings: What else `add_argument` takes.
    """
    _add_checked(parser, option, int, lambda value: check_int(option, value, low, high), settings)


def add_float(
    parser: _ActionsContainer,
    option: str,
    low: float,
    high: float = inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    **settings: Any,
) -> None:
    """Add an option that takes a finite number; the arguments are those of `check_number`."""

    def check(value: object) -> float:
        return check_number(option, value, low, high, open_low=open_low, open_high=open_high)

    _add_checked(parser, option, float, check, settings)


def _add_checked(
    parser: _ActionsContainer,
    option: str,
    kind: Callable[[str], object],
    check: Callable[[object], object],
    settings: dict[str, Any],
) -> None:
    def convert(text: str) -> object:
        value: object = text
        with suppress(ValueError):  # the check refuses a text
            value = kind(text)
        try:
            return check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser.add_argument(option, type=convert, **settings)


def add_study(parser: _ActionsContainer, default: str = "the storage's only study") -> None:
    """Add the option that names the study."""
    parser.add_argument(
        "--study-name", metavar="NAME", help=f"name of the study (default: {default})"
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a training runs and where its data are."""
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--data-root", type=Path, metavar="DIR",
        help="folder of MNIST and CIFAR; data that are missing there are downloaded",
    )  # fmt: skip
    machine.add_argument(
        "--device", default="auto", metavar="NAME",
        help="cpu, cuda, cuda:1, ... (default auto: CUDA if there is a GPU, else cpu)",
    )  # fmt: skip
    add_int(
        machine, "--threads", 1, default=1, metavar="N",
        help="CPU threads of this process (default %(default)s: more do not help small networks, "
        "and workers share the cores)",
    )  # fmt: skip


def add_rule(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which schedule of a search is used."""
    parser.add_argument(
        "--rule", default="smoothed", choices=["smoothed", "theta", "best"],
        help="which schedule is used. smoothed (default): that of the trial that is best once "
        "the luck of single trainings is smoothed out; theta: the mean of p_theta; best: that of "
        "the trial with the lowest value",
    )  # fmt: skip


def add_reporter(parser: argparse.ArgumentParser) -> None:
    """Add the options of what a search draws for the dashboard."""
    shown = parser.add_argument_group("dashboard")
    shown.add_argument(
        "--no-dashboard", action="store_true",
        help="draw nothing for `s2e dashboard` (default: draw if optuna-dashboard is installed)",
    )  # fmt: skip
    add_artifact_dir(shown)


def add_artifact_dir(parser: _ActionsContainer) -> None:
    """Add the option that says where the pictures are."""
    parser.add_argument(
        "--artifact-dir", type=Path, metavar="DIR",
        help="folder of the trials' pictures (default: FILE.artifacts beside a database file, "
        "s2e-artifacts for a database server)",
    )  # fmt: skip


# --- studies ---------------------------------------------------------------------------------


def open_for_work(url: str, *, create: bool) -> BaseStorage:
    """Open a storage that trials are written to, with a heartbeat if it can have one."""
    interval = None if url.startswith(("journal:", "grpc:")) else HEARTBEAT
    return open_storage(url, create=create, heartbeat_interval=interval)


def load_study(args: argparse.Namespace, storage: BaseStorage | None = None) -> optuna.Study:
    """Load the study that the command line names, or else the only one of its storage.

    Args:
        args: The command line.
        storage: The opened storage. None opens it to read.

    Raises:
        ValueError: If there is no such study, or the name is missing and there are several.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(args.storage, create=False) if storage is None else storage
    names = optuna.get_all_study_names(storage)
    name = args.study_name or (names[0] if len(names) == 1 else None)
    if name not in names:
        problem = f"Study {name!r} does not exist" if name else "--study-name is needed"
        close = get_close_matches(name or "", names, n=MAX_NAMES)
        listed = [*close, *sorted(set(names) - set(close))]
        found = ", ".join(map(repr, listed[:MAX_NAMES])) or "no studies"
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        raise ValueError(
            f"{problem}: the storage {mask_url(absolute_url(args.storage))} holds {found}{more}."
        )
    return optuna.load_study(study_name=name, storage=storage)


def pick_schedule(study: optuna.Study, rule: str) -> tuple[Schedule, str]:
    """Return the schedule that a rule picks, and a line that says where it comes from.

    Raises:
        ValueError: If the trials hold no schedules.
    """
    picked = recommend(study, rule)
    if picked.schedule is None:
        raise ValueError(f"The trials of study {study.study_name!r} hold no schedules.")
    source = "the mean of p_theta" if picked.trial is None else f"trial {picked.trial}"
    low, high = picked.interval
    return picked.schedule, (
        f"Schedule: {source} (rule: {picked.rule}), expected {picked.expected_loss:.4f} "
        f"[{low:.4f}, {high:.4f}]"
    )


def n_complete(study: optuna.Study) -> int:
    """Return how many trials of a study are complete."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


# --- running trials --------------------------------------------------------------------------


def make_reporter(args: argparse.Namespace, n_trials: int | None) -> DashboardReporter | None:
    """Return what draws the dashboard's pages; None if it is not wanted or not installed."""
    if args.no_dashboard:
        return None
    from optuna_s2e.dashboard import DashboardReporter, default_artifact_dir, is_available

    if not is_available():
        return None
    folder = args.artifact_dir or default_artifact_dir(args.storage)
    return DashboardReporter(folder, n_trials=n_trials)


def set_threads(n: int) -> None:
    """Let PyTorch use n CPU threads."""
    import torch

    torch.set_num_threads(n)


def optimize(
    study: optuna.Study,
    objective: Objective,
    n_trials: int | None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> str:
    """Run trials one by one under a progress bar until n are complete in the study.

    Args:
        study: The study, with its sampler.
        objective: The objective.
        n_trials: Complete trials, other workers' included. None goes on until a signal.
        callbacks: Called after each trial.
        options: Further options of `optuna_s2e.parallel.work`.

    Returns:
        The name of the signal that stopped it, or "" if the trials are complete.
    """
    with _progress_bar(study, n_trials) as after_trial:
        every = [*callbacks, after_trial]
        return work(study, objective, n_trials, callbacks=every, **options) or ""


def optimize_in_batches(
    study: optuna.Study, objective: Objective, n_trials: int, callbacks: Sequence[Callback] = ()
) -> str:
    """Run trials K at a time under a progress bar until n are complete in the study.

    The arguments and what is returned are those of `optimize`.
    """
    with _progress_bar(study, n_trials) as after_trial:
        try:
            while (missing := n_trials - n_complete(study)) > 0:
                optimize_batch(study, objective, missing, callbacks=[*callbacks, after_trial])
        except KeyboardInterrupt:
            return "SIGINT"
        except SystemExit:  # optimize_batch raises it at SIGTERM
            return "SIGTERM"
    return ""


@contextmanager
def _progress_bar(study: optuna.Study, n_trials: int | None) -> Iterator[Callback]:
    """Show a progress bar; yield the callback that brings it up to date after a trial."""
    from tqdm import tqdm

    def shown(n: int) -> int:
        return n if n_trials is None else min(n, n_trials)

    start = shown(n_complete(study))
    with tqdm(total=n_trials, initial=start, unit="trial", mininterval=bar_interval()) as bar:

        def after_trial(study: optuna.Study, trial: FrozenTrial) -> None:
            n = n_complete(study)
            bar.update(shown(n) - bar.n)
            if n:
                best = study.best_trial
                bar.set_postfix_str(f"best {best.value:.4f} (trial {best.number})")

        yield after_trial


def bar_interval() -> float:
    """Return the seconds between two updates of a progress bar: a log file gets few lines."""
    return 0.1 if sys.stderr.isatty() else 30.0


# --- what comes next -------------------------------------------------------------------------


def study_options(args: argparse.Namespace, study: optuna.Study) -> str:
    """Return the options with which another command finds a study, without a password."""
    return shown(args, ["--storage", args.storage, "--study-name", study.study_name])


def shown(args: argparse.Namespace, argv: Sequence[str]) -> str:
    """Return a command line without the password of the storage."""
    return shlex.join(word.replace(args.storage, mask_url(args.storage)) for word in argv)


def print_next_steps(
    args: argparse.Namespace, study: optuna.Study, steps: Mapping[str, str]
) -> None:
    """Print commands that come next, the dashboard and the export last.

    Args:
        args: The command line.
        study: The study that they are about.
        steps: Commands by what they are for, as `shown` returns them.
    """
    last = {
        "look at it": shown(args, ["s2e", "dashboard", "--storage", args.storage]),
        "take the schedule": f"s2e export {study_options(args, study)} --out schedule.json",
    }
    print("Next:")
    for purpose, command in {**steps, **last}.items():
        print(f"  {purpose + ':':22}{command}")
