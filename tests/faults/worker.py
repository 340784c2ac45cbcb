"""A worker of the fault tests: searches a quadratic, and logs what the storage has accepted.

python worker.py URL ACKNOWLEDGED [--plain] [--trials N] [--seconds S] [--sleep LOW HIGH] ...
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import warnings
from pathlib import Path

import optuna

from optuna_s2e import S2ESampler, open_storage

STUDY, D = "storm", 4
TURNED_AWAY = 75  # exit code: no server when the worker began


def objective(trial: optuna.Trial, low: float, high: float) -> float:
    loss = sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(D))
    time.sleep(random.uniform(low, high))
    return loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("acknowledged", type=Path)
    parser.add_argument("--plain", action="store_true", help="Optuna's default storage")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--sleep", type=float, nargs=2, default=[0.02, 0.1])
    parser.add_argument("--heartbeat", type=int)
    parser.add_argument("--patience", type=float, default=300)
    parser.add_argument("--population-size", type=int, default=6)
    args = parser.parse_args()
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage: str | optuna.storages.BaseStorage = args.url
    if args.plain and args.heartbeat:
        storage = optuna.storages.RDBStorage(args.url, heartbeat_interval=args.heartbeat)
    elif not args.plain:
        try:
            storage = open_storage(
                args.url, heartbeat_interval=args.heartbeat, patience=args.patience
            )
        except ConnectionError:  # there is no server at this moment: begin again later
            sys.exit(TURNED_AWAY)
    study = optuna.create_study(
        study_name=STUDY,
        storage=storage,
        sampler=S2ESampler(seed=0, population_size=args.population_size),
        load_if_exists=True,
    )
    log = os.open(args.acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def acknowledged(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        os.write(log, f"{trial.number} {trial.value!r} {time.time()!r}\n".encode())

    study.optimize(
        lambda trial: objective(trial, *args.sleep),
        n_trials=args.trials,
        timeout=args.seconds,
        callbacks=[acknowledged],
    )


if __name__ == "__main__":
    main()
