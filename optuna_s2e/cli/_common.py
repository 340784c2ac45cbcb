"""What several commands share: opening a study, progress bars, and what comes next."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e._attributes import CLASSIFIER_KEY, read_noise
from optuna_s2e.analysis import Recommendation, recommend
from optuna_s2e.cli._interrupt import EXIT_CODES, discard_output
from optuna_s2e.parallel import Callback, Objective, optimize_batch, work
from optuna_s2e.schedules import Schedule
from optuna_s2e.storages import absolute_url, mask_url, open_storage

if TYPE_CHECKING:
    from optuna_s2e.dashboard import DashboardReporter

HEARTBEAT = 60  # seconds between two heartbeats of a running trial
MAX_NAMES = 20  # of studies that a message lists


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


def check_no_classifier(study: optuna.Study) -> None:
    """Refuse the search of a classifier, which only the same fit can go on with.

    Raises:
        ValueError: If the study is one.
    """
    if CLASSIFIER_KEY in study.user_attrs:
        raise ValueError(
            f"Study {study.study_name!r} is the search of `s2e fit` or of a NoisyLabelClassifier, "
            "and only the same fit goes on with it. `s2e status`, `s2e export` and "
            "`s2e dashboard` read it; `s2e search` makes a study of its own."
        )


class Picked(NamedTuple):
    """The schedule that a rule picks, where it comes from, and how good it probably is."""

    schedule: Schedule
    text: str
    document: dict[str, Any]  # the same for JSON


def pick_schedule(study: optuna.Study, rule: str) -> Picked:
    """Return the schedule that a rule picks.

    Raises:
        ValueError: If the trials hold no schedules.
    """
    picked = recommend(study, rule)
    if picked.schedule is None:
        raise ValueError(f"The trials of study {study.study_name!r} hold no schedules.")
    low, high = picked.interval
    return Picked(
        picked.schedule,
        f"Schedule: {picked.source} (rule: {picked.rule}), expected {picked.expected_loss:.4f} "
        f"[{low:.4f}, {high:.4f}]",
        recommendation_document(picked),
    )


def recommendation_document(picked: Recommendation) -> dict[str, Any]:
    """Return a recommendation for JSON, without its schedule."""
    return {
        "rule": picked.rule,
        "trial": picked.trial,
        "mean_of": list(picked.mean_of),
        "params": picked.params,
        "expected_value": picked.expected_loss,
        "interval": list(picked.interval),
    }


def n_complete(study: optuna.Study) -> int:
    """Return how many trials of a study are complete."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def folder_name(study_name: str) -> str:
    """Return a name for the folder of a study: a plain one, for any file system.

    Example:
        >>> folder_name("digits-symmetric-0.5"), folder_name("../a")
        ('digits-symmetric-0.5', 'a-61b4c98b')
    """
    plain = re.sub(r"[^\w.+=@,-]+", "_", study_name)[:60].strip("-._")
    if plain and plain == study_name:
        return plain
    digest = hashlib.sha256(study_name.encode(errors="replace")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest  # two studies never share a folder


@contextmanager
def naming(option: str, path: Path) -> Iterator[None]:
    """Let an error of the file system name the option that the path comes from."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"{option} must be writable, but got {str(path)!r}: {why}.") from error


def not_ours(option: str, path: Path) -> ValueError:
    """Return the error of a file that would be replaced and that `s2e` did not write."""
    return ValueError(
        f"{option} must not replace files of your own, but {str(path)!r} is there and was not "
        "written by this command. Name another one."
    )


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
    with _python_sigint(), _progress_bar(study, n_trials) as after_trial:
        every = [*callbacks, after_trial]
        return work(study, objective, n_trials, callbacks=every, **options) or ""


def optimize_in_batches(
    study: optuna.Study, objective: Objective, n_trials: int, callbacks: Sequence[Callback] = ()
) -> str:
    """Run trials K at a time under a progress bar until n are complete in the study.

    The arguments and what is returned are those of `optimize`.
    """
    with _progress_bar(study, n_trials) as after_trial:

        def run() -> None:
            while (missing := n_trials - n_complete(study)) > 0:
                optimize_batch(study, objective, missing, callbacks=[*callbacks, after_trial])

        return stopped_by(run)


def stopped_by(run: Callable[[], object]) -> str:
    """Call what calls `optimize_batch`; return the name of the signal that stopped it, or ""."""
    logger = logging.getLogger(f"optuna.{optimize_batch.__module__}")
    with _python_sigint():
        logger.disabled = True  # it says what `say_stopped` says
        try:
            run()
        except KeyboardInterrupt:
            return "SIGINT"
        except SystemExit as end:  # optimize_batch raises it at SIGTERM and SIGHUP
            return next(name for name, code in EXIT_CODES.items() if code == end.code)
        finally:
            logger.disabled = False
    return ""


@contextmanager
def _python_sigint() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, for code that tells the running trials of it."""
    ours = signal.getsignal(signal.SIGINT)
    if ours is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, ours)


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
            with suppress(ValueError):  # nothing is complete yet, or keeps its constraints
                best = study.best_trial
                bar.set_postfix_str(f"best {best.value:.4f} (trial {best.number})")

        yield after_trial


@contextmanager
def epoch_bar(what: str, *, delay: float = 0.0) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar after `delay` seconds; yield what is told (epochs done, all epochs)."""
    from tqdm import tqdm

    with tqdm(unit="epoch", desc=what, mininterval=bar_interval(), delay=delay) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def prepare_study(study: optuna.Study, objective: Any) -> None:
    """Have the noise rate estimated if the search follows it and nobody has; say what it is.

    Args:
        study: The study.
        objective: A `CoteachingObjective`.
    """
    # most calls find the estimate recorded, and show nothing
    with epoch_bar("estimating the noise rate", delay=1.0) as progress:
        objective.prepare_study(study, progress)
    if objective.noise_rate == "estimate":
        print(read_noise(study.user_attrs))
    elif objective.noise_rate is not None:
        print(f"Noise rate, as told: {100 * objective.noise_rate:g} % of the labels are wrong")


def bar_interval() -> float:
    """Return the seconds between two updates of a progress bar: a log file gets few lines."""
    return 0.1 if sys.stderr.isatty() else 30.0


# --- what is printed -------------------------------------------------------------------------


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document as JSON, which knows no NaN and no infinity: they become null."""
    print(json.dumps(finite(document), indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.floating):
        return finite(value.item())
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def say_stopped(args: argparse.Namespace, signal_name: str) -> int:
    """Say in one line what is kept and how to go on; return the exit code.

    The storage is not asked: it may be away.
    """
    kept = "Completed trials are kept, interrupted ones are failed"
    line = f"{signal_name}: stopped. {kept}. Go on: {shown(args, ['s2e', *args.argv])}"
    try:
        print(line, flush=True)
    except OSError:  # the terminal was closed
        discard_output()
    return EXIT_CODES[signal_name]


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
