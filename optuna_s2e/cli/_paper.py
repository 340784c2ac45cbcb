"""`s2e search --paper`: the set-up of the S2E paper, and the retraining of its best schedule."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import optuna

if TYPE_CHECKING:
    from optuna_s2e.coteaching import NoisyData

SETUP: dict[str, Any] = {
    "published_noise": True,
    "validation": "clean",
    "network": "mlp",
    "epochs": 200,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "metric": "validation_loss",
    "space": "table1",
    "trials": 60,  # the paper does not print K and M; its program's README has 6 and 10
    "population_size": 6,
    "estimator": "paper",
}
NETWORKS = {"cifar10": "cnn2", "cifar100": "cnn7"}


def set_up(
    args: argparse.Namespace, add_options: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Set the options of the paper, but for those that the command line gives, and say so.

    Args:
        args: The command line; it is changed.
        add_options: Adds the options of the command to a parser.
    """
    setup = SETUP | {"network": NETWORKS.get(args.data, SETUP["network"])}
    if args.noise is None and args.data.endswith(".npz"):  # a user's own labels stay
        setup["published_noise"] = False
    parser, missing = argparse.ArgumentParser(add_help=False), object()
    add_options(parser)
    unset = argparse.Namespace(**dict.fromkeys(setup, missing))
    given, _ = parser.parse_known_args(args.argv, unset)
    kept = {name: v for name in setup if (v := getattr(given, name)) is not missing}
    vars(args).update(setup | kept)
    print(f"The paper's set-up: {_line(setup)}, and the best schedule is trained anew.")
    others = {name: value for name, value in kept.items() if value != setup[name]}
    if others:
        there = _line({name: setup[name] for name in others})
        print(f"Unlike the paper: {_line(others)} (the paper: {there}).")


def retrain(args: argparse.Namespace, study: optuna.Study, data: NoisyData) -> int:
    """Train the best schedule anew with fresh seeds, and measure it on the test data."""
    from optuna_s2e.cli._main import main

    if data.x_test is None:
        print(f"The best schedule is not trained anew: {data.name!r} holds no test data.")
        return 0
    options = {
        "rule": "best",
        "storage": args.storage,
        "study-name": study.study_name,
        "device": args.device,
        "threads": args.threads,
    }
    if args.data_root is not None:
        options["data-root"] = args.data_root
    return main(["evaluate", *(f"--{name}={value}" for name, value in options.items())])


def _line(options: dict[str, Any]) -> str:
    """Return options as the command line writes them."""
    words = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words.append(f"--{option} {value}")
    return " ".join(words)
