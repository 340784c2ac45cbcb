"""Whole searches among many categories: the time of S2E as a multiple of TPE's.

    python tests/benchmarks/bench_categories.py --repeats 5 --json docs/results/categories.json

Each search has 60 trials in memory. The two samplers take turns in one process; the ratio is that
of their CPU times, the median over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna

sys.path.insert(0, str(Path(__file__).parents[1]))
from reports import save

from optuna_s2e import S2ESampler

SPACES = {  # categorical parameters, choices of each, floats
    "200 x 5": (200, 5, 0),
    "1 x 3000": (1, 3000, 0),
    "50 x 20": (50, 20, 0),
    "200 x 2": (200, 2, 0),
    "100 x 5, 20 floats": (100, 5, 20),
}
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "S2E": lambda seed: S2ESampler(seed=seed),
}


def objective(trial: optuna.Trial, n_categorical: int, n_choices: int, n_floats: int) -> float:
    """Return the share of categories that are not the best one, plus a quadratic."""
    choices = list(range(n_choices))
    wrong = sum(
        trial.suggest_categorical(f"c{i:03d}", choices) != i % n_choices
        for i in range(n_categorical)
    )
    numbers = [trial.suggest_float(f"x{i:02d}", 0, 1) for i in range(n_floats)]
    return wrong / n_categorical + sum((x - 0.3) ** 2 for x in numbers)


def seconds(name: str, space: tuple[int, int, int], seed: int, n_trials: int) -> float:
    """Return the CPU time of one search."""
    study = optuna.create_study(sampler=SAMPLERS[name](seed))
    start = time.process_time()
    study.optimize(lambda trial: objective(trial, *space), n_trials=n_trials)
    return time.process_time() - start


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spaces", nargs="+", choices=list(SPACES), default=list(SPACES))
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = []
    for name in args.spaces:
        times: dict[str, list[float]] = {sampler: [] for sampler in SAMPLERS}
        for seed in range(args.repeats):
            for sampler in list(SAMPLERS)[:: 1 if seed % 2 else -1]:
                times[sampler].append(seconds(sampler, SPACES[name], seed, args.trials))
        ratios = [s2e / tpe for s2e, tpe in zip(times["S2E"], times["TPE"], strict=True)]
        medians = {sampler: round(statistics.median(t), 3) for sampler, t in times.items()}
        rows.append(
            {"space": name, **medians, "ratios": [round(ratio, 3) for ratio in sorted(ratios)]}
        )
        print(name, medians, f"ratio {statistics.median(ratios):.2f}", flush=True)
        save(args.json, rows)  # so far


if __name__ == "__main__":
    main()
