"""The `s2e evaluate` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.cli import _common
from optuna_s2e.schedules import Schedule

if TYPE_CHECKING:
    from optuna_s2e.coteaching import CoteachingObjective, Evaluation

HELP = """\
It is trained anew with fresh seeds, and so are two schedules to compare it
with: Standard training (R = 1) and Co-teaching's fixed schedule (Eq 1 with the
true noise rate). The search has never seen the test data. The table is
printed; evaluation.json, evaluation.png and schedule.json are written.

    s2e evaluate
    s2e evaluate --study-name mnist-pair45 --data-root ~/data --repeats 10

Next: `s2e export` writes the schedule alone, `s2e dashboard` shows the search.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    _common.add_study(parser)
    _common.add_rule(parser)
    _common.add_int(
        parser, "--repeats", 1, default=5, metavar="N",
        help="trainings per schedule, each with a seed of its own (default %(default)s)",
    )  # fmt: skip
    _common.add_int(
        parser, "--seed", 0, default=0, metavar="N",
        help="the seeds of the trainings follow from it (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder that the files are written to (default: the name of the study)",
    )  # fmt: skip
    _common.add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Train the schedules, print the table and write the files."""
    study = _common.load_study(args)
    settings = study.user_attrs.get(OBJECTIVE_KEY)
    if not isinstance(settings, dict):
        raise ValueError(
            f"Study {study.study_name!r} was not made by `s2e search`. Evaluate its schedules "
            "with optuna_s2e.coteaching.evaluate_schedules."
        )
    searched, source = _common.pick_schedule(study, args.rule)
    print(source)
    _evaluate(args, study, settings, searched)
    _common.print_next_steps(args, study, {})
    return 0


def _evaluate(
    args: argparse.Namespace, study: optuna.Study, settings: dict[str, Any], searched: Schedule
) -> None:
    from optuna_s2e.coteaching import (
        CoteachingObjective,
        evaluation_table,
        fixed_schedules,
        save_evaluation,
    )

    _common.set_threads(args.threads)
    objective = CoteachingObjective.from_settings(
        settings, data_root=args.data_root, device=args.device
    )
    fixed = fixed_schedules(objective.space.n_epochs, objective.data.noise_rate or 0.0)
    schedules = {**fixed, "searched": searched}
    evaluations = _train(args, objective, schedules)
    folder = args.out or Path(study.study_name.replace("/", "_"))
    save_evaluation(folder, schedules, evaluations, settings=settings, study_name=study.study_name)
    print(evaluation_table(evaluations))
    print(f"Picture: {folder / 'evaluation.png'}; numbers: {folder / 'evaluation.json'}; "
          f"schedule: {folder / 'schedule.json'}")  # fmt: skip


def _train(
    args: argparse.Namespace, objective: CoteachingObjective, schedules: dict[str, Schedule]
) -> dict[str, Evaluation]:
    """Train every schedule with every seed under a progress bar."""
    from tqdm import tqdm

    from optuna_s2e.coteaching import evaluate_schedules

    with tqdm(unit="epoch", desc="retraining", mininterval=_common.bar_interval()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return evaluate_schedules(
            {name: schedule.keep_rates for name, schedule in schedules.items()},
            objective.data,
            network=objective.network,
            config=objective.config,
            n_repeats=args.repeats,
            seed=args.seed,
            device=args.device,
            progress=progress,
        )
