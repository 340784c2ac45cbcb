"""The `s2e export` command."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from optuna_s2e.cli._common import load_study, naming, not_ours, pick_schedule, print_json
from optuna_s2e.cli._options import JSON, RULE, Options, add_table, option, study_name
from optuna_s2e.schedules import Schedule

HELP = """\
The file holds R(t) of every epoch. PyTorch is not needed.

    s2e export --out schedule.json
    s2e export --study-name mnist-pair45 --rule best --out best.json
    s2e export --json | jq .schedule

Next: train with it. In Python, `Schedule.load("schedule.json").keep_rates` is
R(t) as an array; `s2e evaluate` trains with it on the data of the search.
"""


OPTIONS: Options = {
    **study_name(),
    **RULE,
    "--out": option("FILE.json", "the file to write (required without --json)", kind=Path),
    **JSON,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    parser.usage = "s2e export [options] --out FILE.json"
    add_table(parser, OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Write the schedule."""
    if args.out is None and not args.json:
        raise ValueError("--out is needed: the file to write. --json prints the schedule.")
    if args.out is not None and (args.out.is_dir() or not args.out.name):
        raise ValueError(f"--out must be a file, but got the folder {str(args.out)!r}.")
    if args.out is not None:
        with naming("--out", args.out):
            _check_replaceable(args.out)
    study = load_study(args)
    picked = pick_schedule(study, args.rule)
    if args.out is not None:
        with naming("--out", args.out):
            picked.schedule.save(args.out)
    if args.json:
        print_json(
            {
                "study": study.study_name,
                **picked.document,
                "schedule": json.loads(picked.schedule.to_json()),
                "file": args.out,
            }
        )
    else:
        rates = np.array2string(picked.schedule.keep_rates, precision=3, threshold=8, edgeitems=3)
        print(f"{picked.text}\nR(t) = {rates}, written to {args.out}")
    return 0


def _check_replaceable(path: Path) -> None:
    """Refuse to replace a file that holds anything but a schedule."""
    if path.is_file() and path.stat().st_size:
        try:
            Schedule.load(path)
        except ValueError as error:
            raise not_ours("--out", path) from error
