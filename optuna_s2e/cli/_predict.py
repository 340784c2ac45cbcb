"""The `s2e predict` command."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optuna_s2e.cli import _common
from optuna_s2e.cli._fitting import print_remarks
from optuna_s2e.cli._model_folder import PREDICTIONS_HEADER, ModelFolder, check_replaceable
from optuna_s2e.cli._options import JSON, Options, add_table, flag, option, whole
from optuna_s2e.cli._samples import read_new

HELP = """\
MODEL is the folder that `s2e fit` wrote. NEW is data like those that it was
fitted to: a table with the same columns in any order (other columns are
passed over), a folder of images or one image, or a file.npz with x. Without
--out, the predictions are printed as CSV: index (the number of the row, from 0,
or the file of the image), prediction, probability.

    s2e predict model new.csv --out predictions.csv
    s2e predict model photos --proba --out predictions.csv
    s2e predict model new.csv | head

Next: `s2e label-errors` shows which labels the model never agreed with.
"""

OPTIONS: Options = {
    "--out": option("FILE.csv", "the file to write (default: print)", kind=Path),
    "--proba": flag("add the probability of each class"),
    "--data-root": option("DIR", "folder of MNIST and CIFAR, if NEW is such a name", kind=Path),
    "--threads": option("N", "CPU threads of this process", 1, whole(1, 1024)),
    **JSON,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    parser.usage = "s2e predict MODEL NEW [options]"
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a fitted model")
    parser.add_argument("new", metavar="NEW", help="what is predicted")
    add_table(parser, OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Predict, and write or print the predictions."""
    if args.out is not None:
        if args.out.is_dir():
            raise ValueError(f"--out must be a file, but got the folder {str(args.out)!r}.")
        check_replaceable("--out", args.out, PREDICTIONS_HEADER)
        if not args.out.absolute().parent.is_dir():
            raise ValueError(
                f"--out must be in a folder that exists, but got {str(args.out)!r}. Make "
                f"{str(args.out.parent)!r} first."
            )
    folder = ModelFolder(args.model)
    samples = read_new(args.new, folder.read()["fitted_to"]["form"], args.data_root)
    print_remarks(samples.remarks)
    _, model = folder.load()
    _common.set_threads(args.threads)
    probabilities = model.predict_proba(samples.x)
    best = probabilities.argmax(axis=1)
    predicted = [str(model.classes_[i]) for i in best]
    known = np.array([]) if samples.y is None else np.flatnonzero(samples.y != "")
    if samples.y is not None and len(known):
        agreed = float(np.mean((samples.y == np.array(predicted))[known]))
        print(f"Note: the labels that {args.new} holds agree with {100 * agreed:.1f} % of the "
              "predictions.", file=sys.stderr)  # fmt: skip
    index: list[Any] = samples.files or [*range(len(best))]
    classes = [str(name) for name in model.classes_]
    rows = _rows(index, predicted, probabilities, best, classes if args.proba else [])
    if args.out is not None:
        with (
            _common.naming("--out", args.out),
            args.out.open("w", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file).writerows(rows)
    if args.json:
        header, *listed = _rows(index, model.classes_[best].tolist(), probabilities, best,
                                classes if args.proba else [])  # fmt: skip
        _common.print_json({
            "model": str(folder), "data": args.new, "file": args.out, "n": len(best),
            "predictions": [dict(zip(header, row, strict=True)) for row in listed],
        })  # fmt: skip
    elif args.out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    else:
        counts = {name: predicted.count(name) for name in classes}
        shown = ", ".join(f"{name!r} {n}" for name, n in list(counts.items())[:10])
        print(f"{len(best)} predictions written to {args.out} ({shown}"
              f"{', ...' if len(counts) > 10 else ''})")  # fmt: skip
    return 0


def _rows(
    index: list[Any], predicted: list[Any], probabilities: Any, best: Any, classes: list[str]
) -> Iterator[list[Any]]:
    """Yield the header and the row of each sample; with the classes, all probabilities."""
    yield [*PREDICTIONS_HEADER.split(","), *(f"probability of {name}" for name in classes)]
    for i, name in enumerate(predicted):
        every = [round(float(p), 6) for p in probabilities[i]]
        yield [index[i], name, every[best[i]], *(every if classes else [])]
