"""The `s2e label-errors` command."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from optuna_s2e.cli import _common
from optuna_s2e.cli._fitting import (
    DATA,
    TRAINING,
    TrainingData,
    describe_noise,
    fit,
    given_options,
    print_remarks,
)
from optuna_s2e.cli._model_folder import (
    ERRORS,
    ModelFolder,
    check_errors_folder,
    check_no_file_of_a_model,
    is_model,
    write_label_errors,
)
from optuna_s2e.cli._options import JSON, MACHINE, Options, add_table, number, option, whole

if TYPE_CHECKING:
    import pandas as pd

HELP = """\
Two networks have watched every label while they were trained. Labels that they
never agreed with are listed, the worst first, as CSV, as JSON, and as a page
with the worst of each class. DATA is the folder of a fitted model (nothing is
trained then), or data as `s2e fit` takes them.

    s2e label-errors model --number 100
    s2e label-errors customers.csv --label class
    s2e label-errors customers.csv --label class --quick
    s2e label-errors photos --out errors --threshold 0.1

Next: open label-errors.html and look at the worst ones; `index` in the CSV is
the number of the row, from 0, or the file of the image.
"""

OPTIONS: Options = {
    "--number": option(
        "N", "how many labels are listed (default: as many as the noise rate says)",
        kind=whole(0),
    ),
    "--threshold": option(
        "Q", "list the labels of a quality below Q, in [0, 1], instead", kind=number(0, 1)
    ),
    "--out": option(
        "DIR", "folder that the files are written to (default: that of the model, or else "
        "label-errors)", kind=Path,
    ),
    **JSON,
}  # fmt: skip
N_SHOWN = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    parser.usage = "s2e label-errors DATA [--label COLUMN] [options]"
    parser.add_argument("data", metavar="DATA", help="folder of a model, or data to fit one to")
    add_table(parser, OPTIONS)
    add_table(parser, DATA, "data, if DATA is no model")
    add_table(parser, TRAINING, "training, if DATA is no model")
    add_table(parser, MACHINE, "machine")


def run(args: argparse.Namespace) -> int:
    """List the labels, write the files and print the worst."""
    if args.number is not None and args.threshold is not None:
        raise ValueError("--number must be left out if --threshold is given.")
    told = sys.stderr if args.json else sys.stdout
    path = Path(args.data).expanduser()
    folder = args.out or (path if is_model(path) else Path("label-errors"))
    check_no_file_of_a_model(path)
    check_errors_folder(folder)
    if is_model(path):
        unused = given_options(args, DATA | TRAINING)
        if unused:
            print_remarks([f"{args.data!r} is a fitted model, so nothing is trained. Not used: "
                           f"{', '.join(unused)}"])  # fmt: skip
        document, model = ModelFolder(path).load()
        inputs, files, problem = ModelFolder(path).training_inputs(document)
        noise, name = document["noise"]["text"], Path(document["data"]["path"]).name
        if problem:
            print(f"Note: {problem}", file=sys.stderr)
    else:
        data = TrainingData.read(args)
        data.describe(told)
        model = fit(args, data, search=False)
        inputs, files, name = data.samples.x, data.samples.files, data.source.name
        noise = describe_noise(model, data, args.seed)
    print(noise, file=told)
    n_samples = len(model.label_quality_)
    if args.number is not None and args.number > n_samples:
        raise ValueError(
            f"--number must be at most {n_samples}, the number of labels, but got {args.number}."
        )
    errors = model.find_label_errors(n=args.number, threshold=args.threshold)
    write_label_errors(errors, folder, inputs, files, f"Label errors in {name}")
    if is_model(path) and folder.resolve() == path.resolve():
        ModelFolder(path).write_document({**document, "n_label_errors": len(errors)})
    written = [str(folder / file) for file in ERRORS]
    if files is not None:
        errors["index"] = [files[index] for index in errors["index"]]
    if args.json:
        _common.print_json({
            "data": args.data, "n_samples": n_samples, "n": len(errors), "noise": noise,
            "label_errors": errors.to_dict("records"),
            "files": dict(zip(("page", "csv", "json"), written, strict=True)),
        })  # fmt: skip
        return 0
    print(f"{len(errors)} of {n_samples} labels are listed as wrong", end="")
    print(f". The worst {min(N_SHOWN, len(errors))}:" if len(errors) else ".")
    for line in _table(errors.head(N_SHOWN)):
        print(line)
    print(f"Files: {', '.join(written)}")
    return 0


def _in_a_line(name: object) -> str:
    """Return a name; line breaks and what else moves the cursor is escaped."""
    text = str(name)
    return text if text.isprintable() else repr(text)[1:-1]


def _table(errors: pd.DataFrame) -> list[str]:
    """Return a list of labels as lines of columns that fit the terminal."""
    if not len(errors):
        return []
    header = ["index", "given", "suggested", "quality", "evidence"]
    names = ("index", "given_label", "suggested_label")
    rows = [
        [*(_in_a_line(row[name]) for name in names), f"{row['quality']:.3f}", row["evidence"]]
        for row in errors.to_dict("records")
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(4)]
    total = shutil.get_terminal_size((100, 24)).columns
    lines = []
    for row in [header, *rows]:
        cells = [text.rjust(w) if i in (0, 3) else text.ljust(w)
                 for i, (text, w) in enumerate(zip(row[:4], widths, strict=True))]  # fmt: skip
        line = "  ".join([*cells, row[4]])
        lines.append(line if len(line) <= total else line[: total - 3].rstrip() + "...")
    return lines
