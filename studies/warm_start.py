"""Does a search gain from earlier searches on other data?

Question:  the regret of the recommended schedule after 6, 12, 24 and 60 trainings, with and
           without `S2ESampler(source_studies=...)`; also with one source that says the contrary
           (its losses turned around), which must do no harm.
Tasks:     simulated trials on the tables of studies/landscapes.py. Sources are searches of 24
           trainings on up to three other tables with the same number of epochs: the first ones of
           the part "tune", then of "report".
Measure:   regret, in points of test error above the lowest of the table; paired by seed.
Run:       python studies/warm_start.py --jobs 2                      (it resumes)
Read:      studies/results/warm_start.json, --report
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import landscapes
import numpy as np
import optuna
import runs

from optuna_s2e import S2ESampler, ScheduleSpace, recommend

RESULTS = Path(__file__).parent / "results" / "warm_start.json"
K, BUDGETS, FIRST_SEED, ERROR = 6, (6, 12, 24, 60), 31_000, 0.03
N_SOURCE_TRIALS, MAX_SOURCES = 24, 3
SPACES = ("whole", "informed")
WAYS = ("cold", "warm", "contrary")


def sources_of(name: str) -> list[str]:
    """Return the tables that a task's sources are searched on."""
    n_epochs = landscapes.lookup(name).task.n_epochs
    others = [n for n in (*landscapes.names("tune"), *landscapes.names("report")) if n != name]
    return [n for n in others if landscapes.lookup(n).task.n_epochs == n_epochs][:MAX_SOURCES]


def simulate(
    name: str, kind: str, seed: int, n_trials: int, *, sign: float = 1.0, **options: Any
) -> tuple[optuna.Study, list[float], list[float]]:
    """Simulate a search in batches of K.

    Returns:
        The study, and after each budget the regret of the recommended schedule and the mean regret
        of the last K drawn.
    """
    table, rng = landscapes.lookup(name), np.random.default_rng([FIRST_SEED + seed, 1])
    n_epochs = table.task.n_epochs
    estimate = float(np.clip(table.noise_rate + ERROR * rng.normal(), 0.0, 0.9))
    space = ScheduleSpace(n_epochs, noise_rate=estimate if kind == "informed" else None)
    study = optuna.create_study(
        study_name=f"{name} {seed}", sampler=S2ESampler(seed=FIRST_SEED + seed, **options)
    )
    picked, last, n_drawn = [], [], 0
    while n_drawn < n_trials:
        trials = [study.ask() for _ in range(min(K, n_trials - n_drawn))]
        rates = [space.suggest(trial).keep_rates for trial in trials]
        for trial, r in zip(trials, rates, strict=True):
            study.tell(trial, sign * table.observe(r, rng))
        n_drawn += len(trials)
        if n_drawn in BUDGETS and sign > 0:
            schedule = recommend(study).schedule
            assert schedule is not None
            picked.append(round(float(table.regret(schedule.keep_rates)[0]), 3))
            last.append(round(float(table.regret(np.array(rates)).mean()), 3))
    return study, picked, last


def run(job: runs.Job) -> dict[str, Any]:
    """Simulate the sources and one search."""
    warnings.simplefilter("ignore")
    name, kind, way, seed = str(job[0]), str(job[1]), str(job[2]), int(job[3])
    options: dict[str, Any] = {}
    if way == "warm":
        found = [simulate(s, kind, 500 + seed, N_SOURCE_TRIALS) for s in sources_of(name)]
        options["source_studies"] = [study for study, _, _ in found]
    elif way == "contrary":  # it says of its own table that good schedules are bad
        study, _, _ = simulate(name, kind, 500 + seed, N_SOURCE_TRIALS, sign=-1.0)
        options["source_studies"] = [study]
    _, picked, last = simulate(name, kind, seed, BUDGETS[-1], **options)
    return {"picked": picked, "last": last}


def report(results: runs.Results, tasks: list[str], n_seeds: int) -> None:
    """Print mean regrets, and the differences to the search without sources."""
    print("regret in points of error, mean over tasks; minus cold, [95 % interval]")
    print(f"{'space':10}{'way':10}{'measure':9}" + "".join(f"{b:>26}" for b in BUDGETS))
    for kind in SPACES:
        cells: dict[str, list[list[dict[str, Any]]]] = {way: [] for way in WAYS}
        for task in tasks:
            keys = {w: [runs.key_of((task, kind, w, s)) for s in range(n_seeds)] for w in WAYS}
            n = min(next((i for i, k in enumerate(keys[w]) if k not in results), n_seeds)
                    for w in WAYS)  # fmt: skip
            if n >= 2:
                for way in WAYS:
                    cells[way].append([results[k] for k in keys[way][:n]])
        for way in WAYS:
            for measure in ("picked", "last"):
                line = ""
                for b in range(len(BUDGETS)):
                    own, cold = (
                        [np.array([row[measure][b] for row in rows]) for rows in cells[w]]
                        for w in (way, "cold")
                    )
                    if not own:
                        continue
                    line += f"{np.mean([v.mean() for v in own]):7.2f}"
                    if way == "cold":
                        line += " " * 19
                        continue
                    mean, low, high = runs.pooled(
                        [a - c for a, c in zip(own, cold, strict=True)], scale=1.0
                    )
                    line += f" {mean:+.2f} [{low:+.2f},{high:+.2f}]"
                print(f"{kind:10}{way:10}{measure:9}{line}   {len(cells[way])} tasks")


def main() -> None:
    """Simulate what is missing, report."""
    parser = runs.parser(__doc__, seeds=10)
    parser.add_argument("--part", default="report", choices=["tune", "report"])
    options = parser.parse_args()
    names = [n for n in landscapes.names(options.part) if sources_of(n)]
    jobs: list[runs.Job] = [
        (name, kind, way, seed)
        for seed in range(options.seeds)
        for name in names
        for kind in SPACES
        for way in WAYS
    ]
    if not options.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    report(runs.read(RESULTS)["results"], names, options.seeds)


if __name__ == "__main__":
    main()
