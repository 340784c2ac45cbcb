"""What an update of theta costs, and a draw: CPU ms by estimator, space and length of the study.

    python tests/benchmarks/bench_update.py                        # 60, 200 and 1,000 trials
    python tests/benchmarks/bench_update.py --json docs/results/update.json

A study in memory is searched to N trials; then 36 trials are asked one by one. Every sixth opens
a generation: it updates theta and draws; the others draw. CPU time of this process, of ask and
the suggestions: median (and largest) in ms.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import scipy

from optuna_s2e import S2ESampler, ScheduleSpace, coteaching_schedule, generations
from optuna_s2e.estimators import ESTIMATORS

TARGET = coteaching_schedule(40, 0.5, 10).keep_rates
Suggest = Callable[[optuna.Trial], float]


def fit(kind: str) -> Suggest:
    """Return a distance to a schedule."""
    space = ScheduleSpace(40, kind)
    return lambda trial: float(np.mean((space.suggest(trial).keep_rates - TARGET) ** 2))


def bowl(trial: optuna.Trial) -> float:
    """Twenty floats."""
    return sum((trial.suggest_float(f"x{i:02d}", 0, 1) - 0.3) ** 2 for i in range(20))


SPACES: dict[str, Suggest] = {
    "eq1, 6 thetas": fit("eq1"),
    "table1, 36 thetas": fit("table1"),
    "20 floats, 40 thetas": bowl,
}


def measure(space: str, estimator: str, n_trials: int) -> dict[str, float]:
    """Return medians and largest CPU ms of openers and of other draws."""
    objective = SPACES[space]
    study = optuna.create_study(sampler=S2ESampler(seed=0, estimator=estimator))
    study.optimize(objective, n_trials=n_trials)
    times = {}
    for _ in range(36):
        start = time.process_time()
        trial = study.ask()
        loss = objective(trial)
        times[trial.number] = 1e3 * (time.process_time() - start)
        study.tell(trial, loss)
    openers = {g.opener for g in generations(study)}
    updates = [ms for number, ms in times.items() if number in openers]
    draws = [ms for number, ms in times.items() if number not in openers]
    return {
        "update": statistics.median(updates), "update_max": max(updates),
        "draw": statistics.median(draws), "draw_max": max(draws),
    }  # fmt: skip


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[60, 200, 1000])
    names = list(ESTIMATORS)
    parser.add_argument("--estimators", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = []
    print(f"{'space':22}{'estimator':12}" + "".join(f"{n:>17} trials" for n in args.trials))
    print(f"{'':34}" + f"{'update':>14}{'draw':>10}" * len(args.trials))
    for space in SPACES:
        for estimator in args.estimators:
            print(f"{space:22}{estimator:12}", end="")
            for n in args.trials:
                row = measure(space, estimator, n)
                rows.append({"space": space, "estimator": estimator, "n_trials": n, **row})
                print(f"{row['update']:7.1f} ({row['update_max']:4.0f}){row['draw']:10.1f}",
                      end="", flush=True)  # fmt: skip
            print()
    if args.json:
        versions = {m.__name__: m.__version__ for m in (optuna, np, scipy)}
        head = {"python": platform.python_version(), "machine": platform.machine(), **versions}
        args.json.write_text(json.dumps({"versions": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
