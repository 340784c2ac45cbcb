"""What a sampler costs per trial: CPU and SQL, S2E beside Optuna's own samplers.

    python tests/benchmarks/bench_overhead.py       # 100 and 1,000 trials, 4 and 20 floats, memory
    python tests/benchmarks/bench_overhead.py --trials 200 2000 10000 --params 4 \
        --storage memory sqlite open_storage --samplers Random TPE S2E --json overhead.json

Each sampler runs its own study of some floats in memory, once, to the largest number of trials
(TPE's is filled with random trials: it would take minutes). Its first N trials are put into the
storage at once; the next ones are timed one by one, alternating between the samplers. "ask" is
create the trial and suggest the first parameter, where a sampler does its work; "all" adds the
other parameters and tell. CPU time of this process in ms, median (and largest) over the repeats;
statements and commits per trial as SQLite itself counts them. In the rows, `more_ms` is the ask
without what it is with RandomSampler. "sqlite" is Optuna's own storage of a URL.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench_growth import put
from reports import save

from optuna_s2e import S2ESampler, open_storage

SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "Random": lambda: optuna.samplers.RandomSampler(seed=0),
    "TPE": lambda: optuna.samplers.TPESampler(seed=0),
    "CMA-ES": lambda: optuna.samplers.CmaEsSampler(seed=0),
    "NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=0),
    "S2E": lambda: S2ESampler(seed=0),
}
STORAGES = ("memory", "sqlite", "open_storage")


def objective(trial: optuna.Trial, n_params: int) -> float:
    """Quadratic."""
    return sum((trial.suggest_float(f"x{i:02d}", 0, 1) - 0.3) ** 2 for i in range(n_params))


def searched(name: str, n_params: int, n_trials: int) -> list[FrozenTrial]:
    """Return the trials of a search in memory by the sampler (or Random, for TPE)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # in a process of a pool
    by = SAMPLERS["Random" if name == "TPE" else name]()
    study = optuna.create_study(sampler=by, pruner=optuna.pruners.NopPruner())
    study.optimize(lambda trial: objective(trial, n_params), n_trials=n_trials)
    return study.trials


def filled_study(name: str, trials: list[FrozenTrial], kind: str, folder: str) -> optuna.Study:
    """Return a study that holds these trials.

    Args:
        name: The sampler that goes on with it.
        trials: Its trials.
        kind: The storage.
        folder: Where SQLite files are made.
    """
    sampler = SAMPLERS[name]()
    if kind == "memory":
        study = optuna.create_study(sampler=sampler)
        study.add_trials(trials)
        return study
    path = Path(folder) / f"{kind}-{name}-{len(trials[0].params)}-{len(trials)}.db"
    put(path, trials, {})
    url = f"sqlite:///{path}"
    storage = url if kind == "sqlite" else open_storage(url)
    return optuna.load_study(study_name="s", storage=storage, sampler=sampler)


class SqlCounter:
    """Count statements and commits of an SQLite database, as SQLite reports them."""

    def __init__(self, study: optuna.Study) -> None:
        self.statements = self.commits = 0
        layer: Any = study._storage
        while layer is not None and not hasattr(layer, "engine"):
            layer = getattr(layer, "_backend", None)
        if layer is not None:
            layer.engine.dispose()  # connections made from here on are traced
            sqlalchemy.event.listen(layer.engine, "connect", self._trace)

    def _trace(self, connection: sqlite3.Connection, *_: Any) -> None:
        connection.set_trace_callback(self._count)

    def _count(self, statement: str) -> None:
        self.commits += statement == "COMMIT"
        self.statements += statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))


def timed_trial(study: optuna.Study, counter: SqlCounter, n_params: int) -> dict[str, float]:
    """Run one trial by ask and tell; CPU ms and SQL of its parts."""
    start = time.process_time(), counter.statements, counter.commits
    trial = study.ask()
    trial.suggest_float("x00", 0, 1)
    asked = time.process_time(), counter.statements, counter.commits
    study.tell(trial, objective(trial, n_params))
    end = time.process_time(), counter.statements
    return {
        "ask_ms": 1e3 * (asked[0] - start[0]),
        "ask_sql": asked[1] - start[1],
        "ask_commits": asked[2] - start[2],
        "all_ms": 1e3 * (end[0] - start[0]),
        "all_sql": end[1] - start[1],
    }


def measure(studies: dict[str, optuna.Study], n_params: int, repeats: int) -> list[dict[str, Any]]:
    """Time `repeats` trials of each sampler, alternating."""
    names = list(studies)
    counters = {name: SqlCounter(study) for name, study in studies.items()}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:
        timed_trial(studies[name], counters[name], n_params)  # the cold read of the study
    for _ in range(repeats):
        for name in names:
            runs[name].append(timed_trial(studies[name], counters[name], n_params))
    rows: list[dict[str, Any]] = []
    for name in names:
        row: dict[str, Any] = {"n_params": n_params, "sampler": name}
        for key in runs[name][0]:
            values = [run[key] for run in runs[name]]
            row[key] = round(statistics.median(values), 3)
            row[f"{key}_max"] = round(max(values), 3)
        rows.append(row)
    random = next((row["ask_ms"] for row in rows if row["sampler"] == "Random"), None)
    return [row if random is None else row | {"more_ms": round(row["ask_ms"] - random, 3)}
            for row in rows]  # fmt: skip


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--params", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--storage", nargs="+", choices=STORAGES, default=["memory"])
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--repeats", type=int, default=13, help="timed trials per sampler")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    rows = []
    print(f"{'storage':12}{'params':>7}{'trials':>7}  {'sampler':9}{'ask ms':>16}{'all ms':>16}"
          f"{'ask SQL':>9}{'commits':>9}{'all SQL':>9}")  # fmt: skip
    searches = list(product(args.samplers, args.params))
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = pool.map(
            searched, *zip(*searches, strict=True), [max(args.trials)] * len(searches)
        )
        trials = dict(zip(searches, found, strict=True))
    for kind, p, n in product(args.storage, args.params, args.trials):
        with tempfile.TemporaryDirectory() as folder:
            studies = {s: filled_study(s, trials[s, p][:n], kind, folder) for s in args.samplers}
            for row in measure(studies, p, args.repeats):
                rows.append({"storage": kind, "n_trials": n, **row})
                print(
                    f"{kind:12}{p:7d}{n:7d}  {row['sampler']:9}"
                    f"{row['ask_ms']:8.2f} ({row['ask_ms_max']:5.1f})"
                    f"{row['all_ms']:8.2f} ({row['all_ms_max']:5.1f})"
                    f"{row['ask_sql']:9.0f}{row['ask_commits']:9.0f}{row['all_sql']:9.0f}",
                    flush=True,
                )
        save(args.json, rows)  # so far


if __name__ == "__main__":
    main()
