"""The `s2e worker` command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import optuna

from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.cli import _common
from optuna_s2e.cli._options import (
    DASHBOARD,
    MACHINE,
    TRIALS,
    Options,
    add_table,
    number,
    option,
    study_name,
)
from optuna_s2e.cli._workers import OPTION, read_devices, run_workers, stop_with_parent
from optuna_s2e.history import extend_search
from optuna_s2e.parallel import Objective, Search, is_complete, load_objective, sampler_for

if TYPE_CHECKING:
    from optuna_s2e.dashboard import DashboardReporter

HELP = """\
Workers come and go at any time, and there may be as many as you like. A search
that `s2e search` began needs nothing else: its data, network and settings are
kept with the study. An objective of your own is named with --objective.

At SIGTERM, or when its terminal is closed (SIGHUP; not under nohup), the
running trial may end within --grace seconds. Ctrl-C or a second signal stops it
at once. No trial is left running.

    s2e worker --storage postgresql://me@db/s2e --study-name mnist-pair45
    s2e worker --storage sqlite:///s2e.db --devices all
    s2e worker --storage grpc://proxy:13000 --study-name own \\
        --objective my_module:objective

Next: `s2e status` shows the workers and the time left.
"""


OPTIONS: Options = {
    **study_name(),
    "--objective": option(
        "MODULE:FUNCTION", "an objective of your own (default: the one that `s2e search` kept "
        "with the study)",
    ),
    "--trials": option(
        "N", "stop when the study has N complete trials, other workers' included; if the search "
        "ends with fewer, it is extended to N (default: the number that the search ends with; "
        "without one, go on until a signal)", kind=TRIALS,
    ),
    OPTION: option(
        "NAMES", "one worker, a process, for each of these devices, such as cuda:0,cuda:1; all: "
        "every GPU (default: one worker, on --device)", kind=read_devices,
    ),
    "--grace": option(
        "S", "seconds that the running trial has after SIGTERM and SIGHUP (default %(default)g)",
        20.0, number(0, 1e6),
    ),
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    add_table(parser, OPTIONS)
    add_table(parser, MACHINE, "machine")
    add_table(parser, DASHBOARD, "dashboard")


def run(args: argparse.Namespace) -> int:
    """Work on the study until it is complete or a signal comes."""
    if args.devices is not None:
        return run_workers(args)
    stop_with_parent()
    study = _common.load_study(args, _common.open_for_work(args.storage, create=False))
    _common.check_no_classifier(study)
    n_trials = args.trials or Search.read(study).n_trials
    reporter = _common.make_reporter(args, n_trials)
    objective = _find_objective(study, args, reporter)
    study.sampler = sampler_for(study)
    study.sampler.check(study)
    if args.trials is not None:
        extend_search(study, args.trials)
    if is_complete(study, n_trials):
        print(f"Study {study.study_name!r} is complete: {_common.n_complete(study)} trials.")
        return 0
    if args.objective is None:
        _common.prepare_study(study, objective)
    callbacks = [reporter] if reporter is not None else []
    before = len(study.get_trials(deepcopy=False))
    while not is_complete(study, n_trials):
        end = "a signal comes" if n_trials is None else f"{n_trials} trials are complete"
        print(f"Working on study {study.study_name!r} until {end}.")
        stopped = _common.optimize(
            study, objective, n_trials, callbacks, grace=args.grace, catch=(Exception,)
        )
        if stopped:
            return _common.say_stopped(args, stopped)
        n_trials = args.trials or Search.read(study).n_trials  # it may have been extended
    begun = len(study.get_trials(deepcopy=False)) - before
    print(f"Complete: {begun} trials began meanwhile, other workers' included.")
    return 0


def _find_objective(
    study: optuna.Study, args: argparse.Namespace, reporter: DashboardReporter | None
) -> Objective:
    """Return the objective that is kept with the study, or the one that the command line names.

    The storage never names code to run: what it keeps are numbers and names of a fixed list.
    """
    settings = study.user_attrs.get(OBJECTIVE_KEY)
    if args.objective is not None:
        if settings is not None:
            raise ValueError(
                f"Study {study.study_name!r} was made by `s2e search` and has an objective "
                "already: leave out --objective, or use another study."
            )
        try:
            return load_objective(args.objective)
        except ValueError:
            raise
        except Exception as error:  # in the module of the user
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"objective {args.objective!r} cannot be imported: {why}.") from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"Study {study.study_name!r} was not made by `s2e search`: name its objective with "
            "--objective module:function."
        )
    from optuna_s2e.coteaching import CoteachingObjective

    _common.set_threads(args.threads)
    objective = CoteachingObjective.from_settings(
        settings, data_root=args.data_root, device=args.device
    )
    print(f"Data: {objective.data.describe_noise()}")
    objective.reporter = reporter
    return objective
