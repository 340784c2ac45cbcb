"""The `s2e worker` command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import optuna

from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.cli import _common
from optuna_s2e.parallel import Objective, Search, is_complete, load_objective, sampler_for

if TYPE_CHECKING:
    from optuna_s2e.dashboard import DashboardReporter

HELP = """\
Join a search from any machine that reaches its storage.

Workers come and go at any time, and there may be as many as you like. A search
that `s2e search` began needs nothing else: its data, network and settings are
kept with the study. An objective of your own is named with --objective.

At SIGTERM the running trial may end within --grace seconds. Ctrl-C or a second
signal stops it at once. No trial is left running.

    s2e worker --storage postgresql://me@db/s2e --study-name mnist-pair45
    s2e worker --storage grpc://proxy:13000 --study-name own \\
        --objective my_module:objective

Next: `s2e status` shows the workers and the time left.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    _common.add_study(parser)
    parser.add_argument(
        "--objective", metavar="MODULE:FUNCTION",
        help="an objective of your own (default: the one that `s2e search` kept with the study)",
    )  # fmt: skip
    _common.add_int(
        parser, "--trials", 1, metavar="N",
        help="stop when the study has N complete trials, other workers' included (default: the "
        "number that `s2e search` was given; without one, go on until a signal)",
    )  # fmt: skip
    _common.add_float(
        parser, "--grace", 0, 1e6, default=20.0, metavar="S",
        help="seconds that the running trial has after SIGTERM (default %(default)g)",
    )  # fmt: skip
    _common.add_machine(parser)
    _common.add_reporter(parser)


def run(args: argparse.Namespace) -> int:
    """Work on the study until it is complete or a signal comes."""
    study = _common.load_study(args, _common.open_for_work(args.storage, create=False))
    n_trials = args.trials if args.trials is not None else Search.read(study).n_trials
    reporter = _common.make_reporter(args, n_trials)
    objective = _find_objective(study, args, reporter)
    study.sampler = sampler_for(study)
    study.sampler.check(study)
    before = len(study.get_trials(deepcopy=False))
    if is_complete(study, n_trials):
        print(f"Study {study.study_name!r} is complete: {n_trials} trials.")
        return 0
    end = "a signal comes" if n_trials is None else f"{n_trials} trials are complete"
    print(f"Working on study {study.study_name!r} until {end}.")
    callbacks = [reporter] if reporter is not None else []
    stopped = _common.optimize(
        study, objective, n_trials, callbacks, grace=args.grace, catch=(Exception,)
    )
    begun = len(study.get_trials(deepcopy=False)) - before
    print(f"{stopped or 'Complete'}: {begun} trials began meanwhile, other workers' included.")
    return _common.EXIT_CODES.get(stopped, 0)


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
        return load_objective(args.objective)
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
    objective.reporter = reporter
    return objective
