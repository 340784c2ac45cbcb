"""What `s2e fit` and `s2e label-errors` share: the options of data and training, and the fit."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from optuna_s2e._attributes import RecordedNoise
from optuna_s2e._checks import check_choice
from optuna_s2e.cli import _common
from optuna_s2e.cli._options import Options, choice, flag, number, option, whole
from optuna_s2e.cli._samples import Samples, Source, Texts, check_labels, read_new, to_classes
from optuna_s2e.label_noise import NOISES

if TYPE_CHECKING:
    from optuna_s2e.classifier import NoisyLabelClassifier

DATA: Options = {
    "--label": option(
        "COLUMN", "the column of a table that holds the labels: its name, or its number (1 is "
        "the first column, -1 the last one)",
    ),
    "--drop": {
        "metavar": "COLUMN", "action": "append", "default": [],
        "help": "a column of a table that is not used, such as a name, an id or a date; may be "
        "given several times",
    },
    "--no-header": flag("the first line of a table is data; its columns are called 1, 2, 3, ..."),
    "--image-size": option(
        "PIXELS", "resize all images to PIXELS x PIXELS (default: they have one size already)",
        kind=whole(2, 4096),
    ),
    "--val": option(
        "DATA", "samples with clean labels, in the form of the training data: the estimate of "
        "the noise, the search and the accuracy are better with them", kind=Path,
    ),
    "--noise": choice(NOISES, "how labels of a data set with a name are made wrong, as in "
                      "`s2e search`"),
    "--noise-rate": option("E", "how many of them, in [0, 1) (default: 0.5)",
                           kind=number(0, 1, open_high=True)),
}  # fmt: skip

TRAINING: Options = {
    "--network": option(
        "NAME", "auto (two hidden layers for tables and small images, cnn2 for images), mlp, "
        "cnn2, cnn7, cnn9, resnet18, ...", "auto",
    ),
    "--epochs": option(
        "T", "epochs of each training (default: 20 for tables, 40 for other data)", kind=whole(2)
    ),
    "--known-noise-rate": option(
        "E", "the share of labels that are wrong, in [0, 1), if you know it (default: estimated)",
        kind=number(0, 1, open_high=True),
    ),
    "--quick": flag(
        "no search and no training of its own: the networks of the noise's estimate are the model "
        "and judge the labels, in about a third of the time of --no-search"
    ),
    "--seed": option("N", "seed of all random numbers: the same one repeats them", 0,
                     whole(0, 2**32 - 1)),
}  # fmt: skip


class TrainingData(NamedTuple):
    """What a model is fitted to.

    Attributes:
        source: What the command line says of the data.
        samples: The training data.
        y: Their labels, as the model knows them, (N,).
        validation: Inputs and clean labels; None if there are none.
        clean: What the clean labels are, for the summary; "" if there are none.
        val_digest: What tells the file of --val from others.
    """

    source: Source
    samples: Samples
    y: npt.NDArray[Any]
    validation: tuple[Any, npt.NDArray[Any]] | None
    clean: str
    val_digest: str | None

    @classmethod
    def read(cls, args: argparse.Namespace) -> TrainingData:
        """Read the data that the command line names, and refuse what nobody can learn from.

        Raises:
            ValueError: If they cannot be used. The message says what to do.
            OSError: If they cannot be read.
        """
        source = Source.of(args)
        samples = source.read()
        if samples.y is None:
            raise ValueError(f"{source.data!r} must hold labels, y, beside x.")
        label = samples.form.get("label")
        where = f"Column {label!r}" if label else f"{source.name!r}"
        samples.remarks.extend(check_labels(samples.y, where))
        validation, clean, digest = samples.validation, "", None
        if validation is not None:
            clean = f"{len(validation[1])} clean labels that {source.name!r} holds"
        if args.val is not None:
            own = read_new(str(args.val), samples.form, args.data_root)
            if own.y is None:
                column = f", the column {label!r}" if label else ""
                raise ValueError(
                    f"--val must hold labels{column}, but {str(args.val)!r} does not."
                )
            validation, clean = (own.x, own.y), f"{len(own.y)} clean labels of {str(args.val)!r}"
            digest = own.digest
        y = to_classes(samples.y)
        if validation is not None:
            _check_known(validation[1], samples.y, args.val or source.name)
            validation = validation[0], validation[1].astype(y.dtype)
        return cls(source, samples, y, validation, clean, digest)

    def describe(self, told: Any) -> None:
        """Print what they are, and the remarks."""
        counts = np.unique(self.y, return_counts=True)[1]
        print(f"Data: {self.samples.about}, {len(counts)} classes of {counts.min()} to "
              f"{counts.max()} samples", file=told)  # fmt: skip
        print_remarks(self.samples.remarks)


def given_options(args: argparse.Namespace, options: Options) -> list[str]:
    """Return which of some options the command line has, other than by their defaults."""
    given = []
    for name, settings in options.items():
        value = getattr(args, name.removeprefix("--").replace("-", "_"))
        if value is not False and value != settings.get("default"):
            given.append(name)
    return given


def print_remarks(remarks: list[str]) -> None:
    """Print what a user should know of how data were read, to stderr."""
    for remark in remarks:
        print(f"Note: {remark}", file=sys.stderr)


def fit(args: argparse.Namespace, data: TrainingData, **arguments: Any) -> NoisyLabelClassifier:
    """Fit a model under a progress bar.

    Args:
        args: The command line.
        data: What it is fitted to.
        arguments: Further arguments of `NoisyLabelClassifier`.
    """
    from optuna_s2e.classifier import NoisyLabelClassifier
    from optuna_s2e.coteaching import NETWORKS, find_device

    if args.quick and args.known_noise_rate is not None:
        raise ValueError(
            f"--known-noise-rate must be left out if --quick is given, but got "
            f"{args.known_noise_rate:g}: the networks of the estimate are the model."
        )
    check_choice("network", args.network, ["auto", *sorted(NETWORKS)])
    find_device(args.device)  # before anything is written
    _common.set_threads(args.threads)
    model = NoisyLabelClassifier(
        network=args.network, n_epochs=args.epochs, noise_rate=args.known_noise_rate,
        n_pairs=0 if args.quick else 1, device=args.device, random_state=args.seed, **arguments,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The noise rate cannot be estimated")  # we say it
        return model.fit(data.samples.x, data.y, *(data.validation or (None, None)))


def describe_noise(model: NoisyLabelClassifier, data: TrainingData, seed: int) -> str:
    """Return a line that says how many labels are wrong."""
    if model.noise_rate is not None:
        return f"Noise rate, as told: {100 * model.noise_rate_:g} % of the labels are wrong"
    if model.noise_interval_ is None:
        remedy = "--known-noise-rate E" + (" without --quick" if model.n_pairs == 0 else "")
        return (
            "Noise rate: unknown, there are too few samples to estimate it. Nothing is left out "
            f"of the training; {remedy} changes that"
        )
    is_clean = data.validation is not None
    found = RecordedNoise(model.noise_rate_, model.noise_interval_, None, is_clean, seed)
    return str(found)


def _check_known(found: Texts, labels: Texts, where: object) -> None:
    unknown = sorted(set(found.tolist()) - set(labels.tolist()))
    if unknown:
        raise ValueError(
            f"The clean labels must be classes of the training data, but {str(where)!r} holds "
            f"{unknown[0]!r}. Correct it, or leave such samples out."
        )
