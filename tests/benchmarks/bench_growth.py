"""How the cost of an ask grows with a study, beside Optuna's own samplers.

    python tests/benchmarks/bench_growth.py [--sizes 1000 10000] [--samplers S2E NSGA-II ...]
    python tests/benchmarks/bench_growth.py --sizes 100000 --asks 40
    python tests/benchmarks/bench_growth.py --generations 100000        # K = 1, in memory

Studies are made in memory, put into SQLite in bulk, and asked from there by a process that has
read them once: CPU milliseconds of an ask with its suggestions, SQL statements, bytes per trial,
and what the first ask of a process costs, which reads everything.

Others than S2E search their study themselves (TPE's is random: it would take hours). Beyond
10,000 trials only the last 10,000 are theirs, the rest are trials without any mark, so their
bytes are left out there. S2E's records are made up at every size, K = 6, but complete: every
sixth trial opens a generation.
"""

from __future__ import annotations

import argparse
import gc
import json
import sqlite3
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.trial import FrozenTrial

sys.path.insert(0, str(Path(__file__).parents[1]))
from reports import D, objective, quantiles, save, shown

from optuna_s2e import S2ESampler, generations, open_storage
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.distributions._search_space import SearchSpace
from optuna_s2e.history._ledger import Ledger
from optuna_s2e.history._record import Record, Rules

K, OWN = 6, 10_000
SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "Random": lambda: optuna.samplers.RandomSampler(seed=0),
    "TPE": lambda: optuna.samplers.TPESampler(seed=0),
    "NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=0, population_size=K),
    "CMA-ES": lambda: optuna.samplers.CmaEsSampler(seed=0),
    "S2E natural": lambda: S2ESampler(seed=0, estimator="natural"),
    "S2E surrogate": lambda: S2ESampler(seed=0, estimator="surrogate"),
}
DISTRIBUTIONS = {f"x{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(D)}


# --- studies ---------------------------------------------------------------------------------


def made_up_trials(n: int, sampler: S2ESampler) -> list[FrozenTrial]:
    """Return n trials as S2E would have drawn them one after the other; thetas are made up."""
    size = sampler.population_size
    space = SearchSpace.of(DISTRIBUTIONS)
    first = optuna.create_study(sampler=sampler)
    first.optimize(objective, n_trials=size)
    rng, trials = np.random.default_rng(0), first.trials
    for number in range(size, n):
        x = space.sample(space.distribution.uniform_theta(), rng)
        opener = number - number % size
        record = Record(number, number // size, opener=opener, x=tuple(x.tolist()))
        if opener == number:
            record = Record(
                number, number // size, opener=number, x=record.x, settings=sampler.settings,
                parent=number - size if number > size else None,
                members=tuple(range(number - size, number)),
                theta=tuple(1 + rng.random(space.distribution.n_theta)), space=space.fingerprint,
            )  # fmt: skip
        trials.append(trial(number, space.decode(x), {DRAW_KEY: record.to_attr()}))
    return trials


def trial(number: int, params: dict[str, Any], system_attrs: dict[str, Any]) -> FrozenTrial:
    value = sum((v - 0.3) ** 2 for v in params.values())
    made = optuna.trial.create_trial(
        params=params, distributions=DISTRIBUTIONS, value=value, system_attrs=system_attrs
    )
    made.number = number
    return made


def filled(name: str, n: int) -> tuple[list[FrozenTrial], dict[str, Any]]:
    """Return the trials of a study of n trials, and its system attributes."""
    sampler = SAMPLERS[name]()
    if isinstance(sampler, S2ESampler):
        return made_up_trials(n, sampler), {}
    source = optuna.create_study(sampler=SAMPLERS["Random"]() if name == "TPE" else sampler)
    source.optimize(objective, n_trials=min(n, OWN))
    rng, n_plain = np.random.default_rng(1), max(0, n - OWN)
    plain = [trial(i, dict(zip(DISTRIBUTIONS, rng.random(D), strict=True)), {})
             for i in range(n_plain)]  # fmt: skip
    own = source.trials
    for t in own:
        t.number += n_plain
    attrs = source._storage.get_study_system_attrs(source._study_id)
    for key, ids in attrs.items():  # NSGA-II's parents, by trial identifier
        if ":parent:" in key:
            attrs[key] = [i + n_plain + 1 for i in ids]
    return plain + own, attrs


def put(path: Path, trials: list[FrozenTrial], study_attrs: dict[str, Any]) -> None:
    """Write trials into a new SQLite study at once, as Optuna would have done one by one."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    study = optuna.create_study(study_name="s", storage=storage)
    for key, value in study_attrs.items():
        study._storage.set_study_system_attr(study._study_id, key, value)
    storage.engine.dispose()
    to_json = optuna.distributions.distribution_to_json
    ids = [t.number + 1 for t in trials]
    rows: dict[str, list[tuple[Any, ...]]] = {
        "trials (trial_id, number, study_id, state, datetime_start, datetime_complete)": [
            (i, t.number, 1, t.state.name, str(t.datetime_start), str(t.datetime_complete))
            for i, t in zip(ids, trials, strict=True)
        ],
        "trial_values (trial_id, objective, value, value_type)": [
            (i, 0, t.value, "FINITE") for i, t in zip(ids, trials, strict=True)
        ],
        "trial_params (trial_id, param_name, param_value, distribution_json)": [
            (i, name, t.distributions[name].to_internal_repr(v), to_json(t.distributions[name]))
            for i, t in zip(ids, trials, strict=True)
            for name, v in t.params.items()
        ],
        "trial_system_attributes (trial_id, key, value_json)": [
            (i, key, json.dumps(v))
            for i, t in zip(ids, trials, strict=True)
            for key, v in t.system_attrs.items()
        ],
    }
    with sqlite3.connect(path) as connection:
        for table, values in rows.items():
            if values:
                marks = ", ".join("?" * len(values[0]))
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
    connection.close()


# --- measurements ----------------------------------------------------------------------------


def growth(name: str, size: int, n_asks: int, folder: Path) -> dict[str, Any]:
    """Measure the asks of a sampler in a study of that size."""
    path = folder / f"{name}-{size}.db"
    put(path, *filled(name, size))
    gc.collect()
    storage = open_storage(f"sqlite:///{path}")
    study = optuna.load_study(study_name="s", storage=storage, sampler=SAMPLERS[name]())
    first = timed_ask(study)  # reads everything; sampling is lazy, so it has to suggest
    engine = storage._backend._backend.engine  # type: ignore[attr-defined]
    n_statements = 0

    def count(*_: Any) -> None:
        nonlocal n_statements
        n_statements += 1

    sqlalchemy.event.listen(engine, "before_cursor_execute", count)
    n_bytes = path.stat().st_size / size
    times = [timed_ask(study) for _ in range(n_asks)]
    own = name.startswith("S2E") or size <= OWN
    row = {
        "sampler": name,
        "trials": size,
        "ask_cpu": quantiles(times),
        "asks": n_asks,
        "sql_per_trial": round(n_statements / n_asks, 1),
        "bytes_per_trial": round(n_bytes) if own else None,
        "first_ask_cpu_s": round(first, 2),
    }
    path.unlink()
    return row


def timed_ask(study: optuna.Study) -> float:
    start = time.process_time()
    asked = study.ask()
    value = objective(asked)
    seconds = time.process_time() - start
    study.tell(asked, value)
    return seconds


def many_generations(n: int, n_asks: int) -> dict[str, Any]:
    """Measure a study in memory in which every trial opened a generation."""
    sampler = S2ESampler(population_size=1, estimator="newton", reuse=1, seed=0)
    trials = made_up_trials(n, sampler)
    start = time.process_time()
    chain = Ledger(Rules()).read(trials).state(1).chain
    read = time.process_time() - start
    assert chain is not None
    assert len(chain.openers) == n - 1
    study = optuna.create_study(sampler=sampler)
    study.add_trials(trials)
    study.optimize(objective, n_trials=1)
    times = [timed_ask(study) for _ in range(n_asks)]
    start = time.process_time()
    told = generations(study)
    listed = time.process_time() - start
    assert len(told) == n + 1 + n_asks
    return {
        "sampler": "S2E newton, K = 1",
        "generations": n,
        "ask_cpu": quantiles(times),
        "read_anew_cpu_s": round(read, 2),
        "listed_cpu_s": round(listed, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--asks", type=int, default=120, help="asks that are timed")
    parser.add_argument("--generations", type=int, help="instead: generations of K = 1")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = []
    if args.generations:
        rows.append(many_generations(args.generations, args.asks))
        print(shown(rows[-1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            for size in args.sizes:
                for name in args.samplers:
                    rows.append(growth(name, size, args.asks, Path(folder)))
                    print(shown(rows[-1]), flush=True)
    save(args.json, rows)


if __name__ == "__main__":
    main()
