"""What a sampler costs per trial: CPU and SQL, S2E beside Optuna's own samplers.

    python tests/benchmarks/bench_overhead.py                      # 100 and 1,000 trials, memory
    python tests/benchmarks/bench_overhead.py --trials 100 1000 5000 --storage memory sqlite
    python tests/benchmarks/bench_overhead.py --json overhead.json

Each sampler runs its own study of 20 floats to N trials in memory (TPE's is filled with random
trials: it would take minutes); the next trials are timed one by one, alternating between the
samplers. "ask" is create the trial and suggest the first parameter, where a sampler does its
work; "all" adds the other 19 parameters and tell. CPU time of this process in ms, median (and
largest) over the repeats; SQL statements and commits per trial on SQLite, counted on the engine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy

from optuna_s2e import S2ESampler

N_PARAMS = 20
SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "Random": lambda: optuna.samplers.RandomSampler(seed=0),
    "TPE": lambda: optuna.samplers.TPESampler(seed=0),
    "CMA-ES": lambda: optuna.samplers.CmaEsSampler(seed=0),
    "NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=0),
    "S2E": lambda: S2ESampler(seed=0),
}


def objective(trial: optuna.Trial) -> float:
    """Quadratic in 20 dimensions."""
    return sum((trial.suggest_float(f"x{i:02d}", 0, 1) - 0.3) ** 2 for i in range(N_PARAMS))


def filled_study(name: str, n_trials: int, storage: str) -> optuna.Study:
    """Return a study of n_trials that the sampler (or Random, for TPE) has searched."""
    by = SAMPLERS["Random" if name == "TPE" else name]()
    filled = optuna.create_study(sampler=by, pruner=optuna.pruners.NopPruner())
    filled.optimize(objective, n_trials=n_trials)
    if storage == "memory":
        filled.sampler = SAMPLERS[name]()
        return filled
    study = optuna.create_study(storage=storage, sampler=SAMPLERS[name]())
    study.add_trials(filled.trials)
    return study


class SqlCounter:
    """Count statements and commits on the engine of an RDB storage."""

    def __init__(self, study: optuna.Study) -> None:
        self.statements = self.commits = 0
        backend = getattr(study._storage, "_backend", None)
        if backend is not None:
            sqlalchemy.event.listen(backend.engine, "before_cursor_execute", self._statement)
            sqlalchemy.event.listen(backend.engine, "commit", self._commit)

    def _statement(self, *args: Any) -> None:
        self.statements += 1

    def _commit(self, *args: Any) -> None:
        self.commits += 1


def timed_trial(study: optuna.Study, counter: SqlCounter) -> dict[str, float]:
    """Run one trial by ask and tell; CPU ms and SQL of its parts."""
    start = time.process_time(), counter.statements, counter.commits
    trial = study.ask()
    trial.suggest_float("x00", 0, 1)
    asked = time.process_time(), counter.statements, counter.commits
    study.tell(trial, objective(trial))
    end = time.process_time(), counter.statements
    return {
        "ask_ms": 1e3 * (asked[0] - start[0]),
        "ask_sql": asked[1] - start[1],
        "ask_commits": asked[2] - start[2],
        "all_ms": 1e3 * (end[0] - start[0]),
        "all_sql": end[1] - start[1],
    }


def measure(names: list[str], n_trials: int, storage: str, repeats: int) -> list[dict[str, Any]]:
    """Time `repeats` trials of each sampler, alternating."""
    studies = {name: filled_study(name, n_trials, storage) for name in names}
    counters = {name: SqlCounter(study) for name, study in studies.items()}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:
        timed_trial(studies[name], counters[name])  # the cold read of the study
    for _ in range(repeats):
        for name in names:
            runs[name].append(timed_trial(studies[name], counters[name]))
    rows = []
    for name in names:
        row: dict[str, Any] = {"storage": storage, "n_trials": n_trials, "sampler": name}
        for key in runs[name][0]:
            values = [run[key] for run in runs[name]]
            row[key], row[f"{key}_max"] = statistics.median(values), max(values)
        rows.append(row)
    return rows


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--storage", nargs="+", choices=["memory", "sqlite"], default=["memory"])
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--repeats", type=int, default=13, help="timed trials per sampler")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    rows = []
    print(f"{'storage':8}{'trials':>7}  {'sampler':9}{'ask ms':>16}{'all ms':>16}"
          f"{'ask SQL':>9}{'commits':>9}{'all SQL':>9}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for storage in args.storage:
            for n in args.trials:
                url = storage if storage == "memory" else f"sqlite:///{folder}/{n}.db"
                for row in measure(args.samplers, n, url, args.repeats):
                    row["storage"] = storage
                    rows.append(row)
                    print(
                        f"{storage:8}{n:7d}  {row['sampler']:9}"
                        f"{row['ask_ms']:8.2f} ({row['ask_ms_max']:5.1f})"
                        f"{row['all_ms']:8.2f} ({row['all_ms_max']:5.1f})"
                        f"{row['ask_sql']:9.0f}{row['ask_commits']:9.0f}{row['all_sql']:9.0f}",
                        flush=True,
                    )
    if args.json:
        versions = {m.__name__: m.__version__ for m in (optuna, np, sqlalchemy)}
        head = {"python": platform.python_version(), "machine": platform.machine(), **versions}
        args.json.write_text(json.dumps({"versions": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
