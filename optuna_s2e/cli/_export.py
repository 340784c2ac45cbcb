"""The `s2e export` command."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from optuna_s2e.cli._common import add_rule, add_study, load_study, pick_schedule

HELP = """\
The file holds R(t) of every epoch. PyTorch is not needed.

    s2e export --out schedule.json
    s2e export --study-name mnist-pair45 --rule best --out best.json

Next: train with it. In Python, `Schedule.load("schedule.json").keep_rates` is
R(t) as an array; `s2e evaluate` trains with it on the data of the search.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    parser.usage = "s2e export [options] --out FILE.json"
    add_study(parser)
    add_rule(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.json", help="the file to write (required)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the schedule."""
    schedule, source = pick_schedule(load_study(args), args.rule)
    schedule.save(args.out)
    rates = np.array2string(schedule.keep_rates, precision=3, threshold=8, edgeitems=3)
    print(f"{source}\nR(t) = {rates}, written to {args.out}")
    return 0
