"""The `s2e fit` command."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from optuna_s2e.analysis import recommend
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
from optuna_s2e.cli._interrupt import say_at_ctrl_c
from optuna_s2e.cli._model_folder import ERRORS, MODEL, RESULTS, SCHEDULE, ModelFolder
from optuna_s2e.cli._options import JSON, MACHINE, Options, add_table, flag, option
from optuna_s2e.storages import absolute_url, mask_url

if TYPE_CHECKING:
    from optuna_s2e.classifier import NoisyLabelClassifier

HELP = """\
It estimates how many labels are wrong, searches a schedule (in which epoch how
many samples of large loss are left out), trains two networks with it, and
lists the labels that are most likely wrong. DATA is one of

    a table     CSV with any separator and encoding, .parquet or .feather;
                numbers, categories and empty cells are taken as they are
    a folder    that holds a folder of images per class
    a file.npz  with x and y, and x_val and y_val if there are clean labels
    a name      digits, mnist, cifar10 or cifar100, with noise to try this out

The data are only read. The model, the list and what was found are written to a
new folder. The search is kept in the storage: after Ctrl-C, the same command
goes on with it.

    s2e fit customers.csv --label class --out model
    s2e fit photos --out model --image-size 32
    s2e fit customers.csv --label class --out model --no-search
    s2e fit customers.csv --label class --out model --quick
    s2e fit digits --noise pair --noise-rate 0.3 --out model

Next: `s2e predict` predicts new data, `s2e label-errors` lists more or fewer
labels, `s2e dashboard` shows the search.
"""

SEARCH: Options = {
    "--budget": option(
        "N|TIME", "length of the search: a number of trainings, or a time such as '90 s', "
        "'10 min' or '2 h'", "12",
    ),
    "--no-search": flag(
        "train the schedule that is suggested at the noise rate: many times as fast"
    ),
}  # fmt: skip
_GOES_ON = "Interrupted: completed trials are kept in {}; the same command goes on with them."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    parser.usage = "s2e fit DATA [--label COLUMN] --out DIR [options]"
    parser.add_argument("data", metavar="DATA", help="what is fitted to")
    out = option("DIR", "a new folder for the model and the list of label errors", kind=Path)
    add_table(parser, {"--out": {**out, "required": True}, **JSON})
    add_table(parser, DATA, "data")
    add_table(parser, SEARCH, "search")
    add_table(parser, TRAINING, "training")
    add_table(parser, MACHINE, "machine")


def run(args: argparse.Namespace) -> int:
    """Fit the model, write the folder and say what was found."""
    told = sys.stderr if args.json else sys.stdout
    data, folder = TrainingData.read(args), ModelFolder(args.out)
    data.describe(told)
    fitted_to = _fitted_to(args, data)
    document = folder.prepare(fitted_to)
    if document is not None:
        print(f"{str(folder)!r} holds this model already; nothing is trained.", file=told)
    else:
        start = time.monotonic()
        model = _fit(args, data)
        if isinstance(model, int):
            return model
        document = _document(args, data, model, folder) | {
            "fitted_to": fitted_to, "seconds": round(time.monotonic() - start, 1)
        }  # fmt: skip
        title = f"Label errors in {data.source.name}"
        folder.write(document, model, data.samples, title)
    if args.json:
        _common.print_json(document)
    else:
        _print_summary(args, document, folder)
    return 0


def _fit(args: argparse.Namespace, data: TrainingData) -> NoisyLabelClassifier | int:
    """Return the fitted model, or the exit code after a signal."""
    if args.no_search or args.quick:
        if "--budget" in given_options(args, SEARCH):
            print_remarks(["Nothing is searched, so --budget is not used."])
        return fit(args, data, search=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    say_at_ctrl_c(_GOES_ON.format(mask_url(absolute_url(args.storage))))
    budget = int(args.budget) if args.budget.isdecimal() else args.budget
    model = None

    def run() -> None:
        nonlocal model
        model = fit(args, data, storage=args.storage, budget=budget)

    signal_name = _common.stopped_by(run)
    return model or _common.say_stopped(args, signal_name)


def _fitted_to(args: argparse.Namespace, data: TrainingData) -> dict[str, Any]:
    """Return what the model depends on: another fit is refused where this one lies."""
    searches = not (args.no_search or args.quick)
    return {
        "quick": args.quick or None,  # older folders do not hold it
        "data": data.samples.digest,
        "form": dict(data.samples.form),
        "clean_labels": data.val_digest,
        "search": searches,
        "budget": args.budget if searches else None,
        "network": args.network,
        "epochs": args.epochs,
        "known_noise_rate": args.known_noise_rate,
        "seed": args.seed,
    }


# --- what was found --------------------------------------------------------------------------


def _document(
    args: argparse.Namespace, data: TrainingData, model: NoisyLabelClassifier, folder: ModelFolder
) -> dict[str, Any]:
    """Return what was found, as docs/command-line.md describes it."""
    study = model.study_
    names = {"model": MODEL, "label_errors": ERRORS[1], "page": ERRORS[0],
             "schedule": SCHEDULE, "results": RESULTS}  # fmt: skip
    return {
        "data": {
            "path": data.source.data,
            "source": {**data.source._asdict(), "drop": list(data.source.drop)},
            "about": data.samples.about,
            "classes": model.classes_.tolist(),
            "n_samples": len(data.y),
        },
        "noise": {
            "rate": model.noise_rate_,
            "interval": model.noise_interval_,
            "used_clean_labels": data.validation is not None,
            "text": describe_noise(model, data, args.seed),
        },
        "validation": _validation(args, data),
        "accuracy": _accuracy(model, data),
        "n_label_errors": len(model.find_label_errors()),
        "search": study and {
            "storage": mask_url(absolute_url(args.storage)),
            "study": study.study_name,
            "n_trials": _common.n_complete(study),
        },
        "files": {name: str(folder.file(file)) for name, file in names.items()},
    }  # fmt: skip


def _validation(args: argparse.Namespace, data: TrainingData) -> str:
    """Say which labels the search and the estimate were validated with."""
    if data.validation is not None:
        return data.clean
    if args.no_search or args.quick:
        return "none, nothing was searched"
    return "a fifth of the samples, with their labels as they were given"


def _accuracy(model: NoisyLabelClassifier, data: TrainingData) -> dict[str, Any] | None:
    """Return how often the model is probably right; None if nothing says it.

    Without clean labels, the share of held-out labels that the best schedules' networks agree with
    is a lower bound: wrong labels among them count as errors.
    """
    if data.samples.test is not None:
        return _share_right(model, *data.samples.test, "test data")
    if data.validation is not None:
        seen = "" if model.study_ is None else ", which the search has seen"
        return _share_right(model, *data.validation, f"clean labels{seen}")
    if model.study_ is None or not _common.n_complete(model.study_):
        return None
    agreed = 1.0 - recommend(model.study_).expected_loss
    return {"measured_on": "held-out labels as given", "value": agreed, "interval": None}


def _share_right(
    model: NoisyLabelClassifier, inputs: Any, labels: Any, what: str
) -> dict[str, Any]:
    from scipy.stats import binomtest

    is_right = model.predict(inputs).astype(np.str_) == labels.astype(np.str_)
    n_right, n = int(is_right.sum()), len(labels)
    low, high = binomtest(n_right, n).proportion_ci(method="wilson")
    return {"measured_on": what, "value": n_right / n, "interval": [float(low), float(high)]}


# --- what is printed -------------------------------------------------------------------------


def _print_summary(
    args: argparse.Namespace, document: Mapping[str, Any], folder: ModelFolder
) -> None:
    files, search = document["files"], document["search"]
    print(document["noise"]["text"])
    print(f"Validation labels: {document['validation']}")
    print(_accuracy_line(document["accuracy"]))
    print(f"Label errors: {document['n_label_errors']} of {document['data']['n_samples']} labels "
          f"are listed in {files['page']} (and .csv, .json)")  # fmt: skip
    print(f"Model: {files['model']}")
    named = shlex.quote(str(folder))
    ending = Path(document["data"]["path"]).suffix
    steps = {
        "predict": f"s2e predict {named} NEW{ending} --out predictions.csv",
        "list other labels": f"s2e label-errors {named} --threshold 0.5",
    }
    if search is not None:
        storage = _common.shown(args, ["--storage", args.storage])
        steps["look at the search"] = f"s2e dashboard {storage}"
    print("Next:")
    for purpose, command in steps.items():
        print(f"  {purpose + ':':20}{command}")


def _accuracy_line(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return "Accuracy: not measured. Give samples with clean labels: --val DATA"
    percent = f"{100 * accuracy['value']:.1f} %"
    if accuracy["interval"] is None:
        return (
            f"Accuracy: networks agree with {percent} of the labels that the search held out. "
            "Wrong ones\namong these count as errors, so the accuracy is probably higher. "
            "--val DATA measures it."
        )
    low, high = (f"{100 * end:.1f}" for end in accuracy["interval"])
    return f"Accuracy: {percent} [{low}, {high}] on the {accuracy['measured_on']}"
