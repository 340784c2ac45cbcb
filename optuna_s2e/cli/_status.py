"""The `s2e status` command."""

from __future__ import annotations

import argparse

from optuna_s2e.analysis import Snapshot, describe, verify
from optuna_s2e.cli._common import EXIT_MISMATCH, add_study, load_study
from optuna_s2e.parallel import Search

HELP = """\
It prints the trials, the best of them, the workers, the time left and the
generations. It only reads, so it may run at any time, on any machine that
reaches the storage. PyTorch is not needed.

    s2e status
    s2e status --storage postgresql://me@db/s2e --study-name mnist-pair45
    s2e status --verify

Next: `s2e worker` makes a search faster, `s2e evaluate` compares its schedule
on test data.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    add_study(parser)
    parser.add_argument(
        "--verify", action="store_true",
        help="recompute every theta from the recorded trials; the exit code is 1 if one differs",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print where the search stands."""
    study = load_study(args)
    try:
        Search.read(study)
    except ValueError as error:  # the status of a damaged study is still of use
        print(error)
    snapshot = Snapshot.of(study)
    print(describe(snapshot))
    if not args.verify:
        return 0
    sound, message = verify(snapshot)
    print(message)
    return 0 if sound else EXIT_MISMATCH
