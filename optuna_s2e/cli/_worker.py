"""The `s2e worker` command, and the loops with a progress bar that `s2e search` uses, too."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna_s2e._attributes import OBJECTIVE_KEY

if TYPE_CHECKING:
    import optuna

    from optuna_s2e.dashboard import DashboardReporter
    from optuna_s2e.parallel import Callback, Objective

HEARTBEAT = 60  # seconds
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}  # as shells have them

HELP = """\
Join a search from any machine that reaches its storage: as many as you like, whenever you like.

A search that `s2e search` began needs nothing else: data, network and settings come with the
study. An objective of one's own is named here, never by the storage. SIGTERM lets the running
trial end within --grace seconds and then stops it; a second signal, or Ctrl-C, stops at once; no
trial is left running.

    s2e worker --storage postgresql+psycopg://me@db/s2e --study-name mnist-pair45
    s2e worker --storage grpc://proxy:13000 --study-name own --objective my_module:objective
"""


def add_options(worker: argparse.ArgumentParser) -> None:
    """Add the options that only this command has."""
    worker.add_argument(
        "--objective", metavar="MODULE:FUNCTION",
        help="an objective of one's own; default: the one that came with the study",
    )  # fmt: skip
    worker.add_argument(
        "--trials", type=int, metavar="N",
        help="completed trials in all, other workers' included (default: as in the search; "
        "where it says nothing, until a signal)",
    )  # fmt: skip
    worker.add_argument(
        "--grace", type=float, default=20.0, metavar="S",
        help="seconds that the running trial has after SIGTERM (default %(default)g)",
    )  # fmt: skip


def join(study: optuna.Study, args: argparse.Namespace) -> int:
    """Work on a study as the command line says; return the exit code."""
    from optuna_s2e.parallel import Search, is_complete, load_objective, sampler_for

    if args.trials is not None and args.trials < 1:
        raise ValueError(f"--trials must be at least 1, but got {args.trials}.")
    if not 0 <= args.grace <= 1e6:
        raise ValueError(f"--grace must be in [0, 1e6], but got {args.grace}.")
    settings = study.user_attrs.get(OBJECTIVE_KEY)
    objective: Objective
    if args.objective is not None and settings is not None:
        raise ValueError(
            f"Study {study.study_name!r} was made by `s2e search`, whose objective comes with the "
            "study: leave out --objective, or use another study."
        )
    n_trials = args.trials if args.trials is not None else Search.read(study).n_trials
    shown = reporter(args, n_trials)
    if args.objective is not None:
        objective = load_objective(args.objective)
    elif isinstance(settings, dict):
        objective = _own_objective(settings, args, shown)
    else:
        raise ValueError(
            f"Study {study.study_name!r} was not made by `s2e search`: name its objective with "
            "--objective module:function."
        )
    study.sampler = sampler_for(study)
    study.sampler.check(study)
    before = len(study.get_trials(deepcopy=False))
    if is_complete(study, n_trials):
        print(f"Study {study.study_name!r} is complete: {n_trials} trials.")
        return 0
    print(f"Working on study {study.study_name!r}, {n_trials or 'any number of'} trials.")
    callbacks = [shown] if shown is not None else []
    stopped = optimize(study, objective, n_trials, callbacks, grace=args.grace, catch=(Exception,))
    after = len(study.get_trials(deepcopy=False))
    print(f"{stopped or 'Complete'}: {after - before} trials were begun meanwhile by all workers.")
    return EXIT_CODES.get(stopped or "", 0)


def _own_objective(
    settings: dict[str, Any], args: argparse.Namespace, shown: DashboardReporter | None
) -> Objective:
    from optuna_s2e.coteaching import CoteachingObjective

    set_threads(args.threads)
    root: Path | None = args.data_root
    objective = CoteachingObjective.from_settings(settings, data_root=root, device=args.device)
    objective.reporter = shown
    return objective


def open_for_work(url: str) -> Any:
    """Open a storage for trials; with a heartbeat, where it can have one."""
    from optuna_s2e import open_storage

    has_one = not url.startswith(("journal:", "grpc:"))
    return open_storage(url, heartbeat_interval=HEARTBEAT if has_one else None)


def reporter(args: argparse.Namespace, n_trials: int | None) -> DashboardReporter | None:
    """Return what draws the dashboard's pages; None if it is not wanted or not installed."""
    from optuna_s2e.dashboard import DashboardReporter, default_artifact_dir, is_available

    if args.no_dashboard or not is_available():
        return None
    folder = args.artifact_dir or default_artifact_dir(args.storage)
    return DashboardReporter(folder, n_trials=n_trials)


def optimize(
    study: optuna.Study,
    objective: Any,
    n_trials: int | None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> str:
    """Run `worker.work` under a progress bar.

    Returns:
        The name of the signal that stopped it; empty if the trials are complete.
    """
    from optuna_s2e.parallel import work

    with _progress_bar(study, n_trials) as after_trial:
        every = [*callbacks, after_trial]
        return work(study, objective, n_trials, callbacks=every, **options) or ""


def optimize_in_batches(
    study: optuna.Study, objective: Any, n_trials: int, callbacks: Sequence[Callback] = ()
) -> str:
    """Run `optimize_batch` under a progress bar until n trials are complete in the study.

    Returns:
        As `optimize`.
    """
    from optuna_s2e import optimize_batch

    with _progress_bar(study, n_trials) as after_trial:
        try:
            while (missing := n_trials - n_complete(study)) > 0:
                optimize_batch(study, objective, missing, callbacks=[*callbacks, after_trial])
        except KeyboardInterrupt:
            return "SIGINT"
        except SystemExit:  # what optimize_batch makes of SIGTERM
            return "SIGTERM"
    return ""


@contextmanager
def _progress_bar(study: optuna.Study, n_trials: int | None) -> Iterator[Callback]:
    """Yield what brings a progress bar up to date after a trial."""
    from tqdm import tqdm

    def shown(n: int) -> int:
        return n if n_trials is None else min(n, n_trials)

    with tqdm(
        total=n_trials, initial=shown(n_complete(study)), unit="trial", mininterval=interval()
    ) as bar:

        def after_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            n = n_complete(study)
            bar.update(shown(n) - bar.n)
            if n:
                best = study.best_trial
                bar.set_postfix_str(f"best {best.value:.4f} (trial {best.number})")

        yield after_trial


def n_complete(study: optuna.Study) -> int:
    """Return how many trials of a study are complete."""
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def interval() -> float:
    """Return the seconds between two updates of a progress bar: fewer lines in a log file."""
    return 0.1 if sys.stderr.isatty() else 30.0


def set_threads(n: int) -> None:
    """Let PyTorch use n CPU threads.

    Raises:
        ValueError: If n is not positive.
    """
    import torch

    if n < 1:
        raise ValueError(f"--threads must be at least 1, but got {n}.")
    torch.set_num_threads(n)
