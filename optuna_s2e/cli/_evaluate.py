"""The `s2e evaluate` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from optuna_s2e._attributes import OBJECTIVE_KEY, read_noise
from optuna_s2e.cli import _common
from optuna_s2e.cli._interrupt import say_at_ctrl_c
from optuna_s2e.cli._options import (
    JSON,
    MACHINE,
    RULE,
    SEED,
    Options,
    add_table,
    number,
    option,
    study_name,
    whole,
)
from optuna_s2e.schedules import Schedule

if TYPE_CHECKING:
    from optuna_s2e.coteaching import CoteachingObjective, Evaluation, Method

HELP = """\
It is trained anew with fresh seeds, and so are schedules to compare it with:
Standard training (R = 1), Co-teaching's fixed schedule (Eq 1 with the true
noise rate; if that is unknown, with the one that the search has estimated) and
the one that is suggested without a search. The search has never seen the test
data. The table is printed; evaluation.json, evaluation.png and schedule.json
are written.

Each network is kept as soon as it is trained: the same command again trains
only what is missing.

    s2e evaluate
    s2e evaluate --study-name mnist-pair45 --data-root ~/data --repeats 10
    s2e evaluate --study-name own-labels --noise-rate 0.3

Next: `s2e export` writes the schedule alone, `s2e dashboard` shows the search.
"""

MAX_TAU = 0.95  # of Co-teaching's schedule

OPTIONS: Options = {
    **study_name(),
    **RULE,
    "--repeats": option(
        "N", "trainings per schedule, each with a seed of its own", 5, whole(1, 10_000)
    ),
    "--seed": option("N", "the seeds of the trainings follow from it", 0, SEED),
    "--methods": option(
        "NAMES",
        "other methods to compare with, separated by commas, or all (docs/methods.md): "
        "early-stopping, decoupling, f-correction, f-correction-true, mentornet, coteaching+, "
        "reweight, jocor, bare. Those that obey a schedule are trained under Eq 1 and under the "
        "searched one",
    ),
    "--noise-rate": option(
        "E",
        f"noise rate for Co-teaching's schedule, in [0, {MAX_TAU:g}] (default: that of the data; "
        "if it is unknown, the estimate of the search)",
        kind=number(0, MAX_TAU),
    ),
    "--out": option(
        "DIR",
        "folder that the files are written to (default: the name of the study)",
        kind=Path,
    ),
    **JSON,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    add_table(parser, OPTIONS)
    add_table(parser, MACHINE, "machine")


def run(args: argparse.Namespace) -> int:
    """Train the schedules, print the table and write the files."""
    study = _common.load_study(args)
    _common.check_no_classifier(study)
    settings = study.user_attrs.get(OBJECTIVE_KEY)
    if not isinstance(settings, dict):
        raise ValueError(
            f"Study {study.study_name!r} was not made by `s2e search`. Evaluate its schedules "
            "with optuna_s2e.coteaching.evaluate_schedules."
        )
    picked = _common.pick_schedule(study, args.rule)
    told = sys.stderr if args.json else sys.stdout
    print(picked.text, file=told)
    folder = args.out or Path(_common.folder_name(study.study_name))
    kept = folder / "networks.jsonl"
    with _common.naming("--out", folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            _check_replaceable(folder)
        kept.open("a").close()  # now, rather than after the first training
    say_at_ctrl_c(f"Interrupted: networks that were trained to their end are kept in {kept}; "
                  "the same command trains the others.")  # fmt: skip

    from optuna_s2e.coteaching import (
        CoteachingObjective,
        compared_methods,
        evaluation_table,
        fixed_schedules,
        save_evaluation,
        title_of,
    )

    _common.set_threads(args.threads)
    objective = CoteachingObjective.from_settings(
        settings, data_root=args.data_root, device=args.device
    )
    if objective.data.x_test is None:
        raise ValueError(f"An evaluation needs test data, but {objective.data.name!r} holds none.")
    print(f"Data: {objective.data.describe_noise()}", file=told)
    noise = read_noise(study.user_attrs)
    if noise is not None:
        print(noise, file=told)
    estimate = None if noise is None else noise.noise_rate
    true = objective.data.noise_rate if args.noise_rate is None else args.noise_rate
    rate = estimate if true is None else true
    missing = _why_no_coteaching(rate)
    if missing:
        print(f"Co-teaching is left out: {missing}.", file=told)
    fixed = fixed_schedules(objective.n_epochs, None if missing else rate, estimate)
    remarks = {}
    if estimate is not None:
        of_estimate = ["suggested"] if true is not None else ["coteaching", "suggested"]
        remarks = dict.fromkeys(of_estimate, f"estimated rate {estimate:.2f}".replace("0.", "."))
    own = objective.method
    compared = compared_methods(
        _names(args.methods, own.name),
        objective.n_epochs,
        None if missing else rate,
        data=objective.data,
        searched=picked.schedule,
    )
    for name, why in compared.left_out.items():
        if name != "coteaching":  # it was said
            print(f"{title_of(name)} is left out: {why}.", file=told)
    # a row of its own has what the study searches: its schedule is not trained twice
    rows = {row: s for row, s in compared.schedules.items() if row != f"{own.name}/searched"}
    schedules = {**fixed, **rows, "searched": picked.schedule}
    methods: dict[str, str | Method] = {"standard": "standard"}
    methods |= {row: compared.methods[row] for row in rows}
    methods |= {row: own for row in ("suggested", "searched") if row in schedules}
    if own.name != "coteaching":
        for row in ("suggested", "searched"):
            remarks[row] = ", ".join(filter(None, (own.title, remarks.get(row))))
    evaluations = _train(args, objective, schedules, methods, kept)
    print(evaluation_table(evaluations, remarks), file=told)
    document = save_evaluation(
        folder,
        schedules,
        evaluations,
        settings=settings,
        study_name=study.study_name,
        remarks=remarks,
        methods=methods,
    )
    files = {
        name: str(folder / file)
        for name, file in {
            "picture": "evaluation.png",
            "numbers": "evaluation.json",
            "schedule": "schedule.json",
            "networks": kept.name,
        }.items()
    }
    if args.json:
        left_out = compared.left_out | ({"coteaching": missing} if missing else {})
        searched = picked.document
        _common.print_json(
            {
                **document,
                "noise": noise and noise._asdict(),
                "searched": searched,
                "left_out": left_out,
                "files": files,
            }
        )
        return 0
    print("Files: " + "; ".join(f"{name}: {file}" for name, file in files.items()))
    _common.print_next_steps(args, study, {})
    return 0


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder with files that an evaluation would replace, where none has been."""
    for name in ("schedule.json", "evaluation.json", "evaluation.png"):
        if (folder / name).exists():
            raise _common.not_ours("--out", folder / name)


def _names(methods: str | None, own: str) -> list[str]:
    """Return the names of the methods to compare with: those asked for, and the study's own."""
    names = [] if methods is None else [name.strip() for name in methods.split(",")]
    is_there = own == "coteaching" or own in names or names == ["all"]
    return names if is_there else [*names, own]


def _why_no_coteaching(noise_rate: float | None) -> str:
    """Say why Co-teaching's schedule cannot be compared with; "" if it can."""
    if noise_rate is None:
        return "it needs the true noise rate, which is unknown; --noise-rate E adds it"
    if noise_rate == 0:
        return "the noise rate is 0, and its schedule is Standard's; --noise-rate E sets another"
    if noise_rate > MAX_TAU:
        return (
            f"its schedule takes noise rates up to {MAX_TAU:g}, and the rate is {noise_rate:g}; "
            f"--noise-rate {MAX_TAU:g} adds it"
        )
    return ""


def _train(
    args: argparse.Namespace,
    objective: CoteachingObjective,
    schedules: dict[str, Schedule],
    methods: dict[str, str | Method],
    kept: Path,
) -> dict[str, Evaluation]:
    """Train every schedule with every seed under a progress bar."""
    from optuna_s2e.coteaching import evaluate_schedules

    with _common.epoch_bar("retraining") as progress:
        return evaluate_schedules(
            {name: schedule.keep_rates for name, schedule in schedules.items()},
            objective.data,
            network=objective.network,
            config=objective.config,
            n_repeats=args.repeats,
            seed=args.seed,
            device=args.device,
            progress=progress,
            keep=kept,
            methods=methods,
        )
