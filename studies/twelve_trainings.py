"""How few trainings does a search need? Space x searcher x pick, with 1 to 60 trainings.

Question:  the regret of the schedule that is picked after 1, 6, 12, 24 and 60 trainings, for each
           space (Eq 1's whole ranges; the ranges around an estimate of the noise rate), searcher
           and pick; the best schedule that was drawn at all; the last six trials.
Tasks:     simulated trials on the tables of studies/landscapes.py. Ranges, pick and acquisition
           were chosen on the part "tune"; the part "report" is other data.
Estimate:  the informed ranges are given the true rate plus a normal error of .03, as
           studies/noise_estimate.py measures it. One estimate costs about one training more.
Measure:   regret, in points of test error above the lowest of the table; paired by seed.
Run:       python studies/twelve_trainings.py --jobs 2 --seeds 40           (it resumes)
           ... --algorithms qLogNEI SMAC3 (the extra `studies`)
Read:      studies/results/twelve_trainings.json, --report
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import landscapes
import numpy as np
import optuna
import peers
import runs
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

from optuna_s2e import S2ESampler, ScheduleSpace, recommend

RESULTS = Path(__file__).parent / "results" / "twelve_trainings.json"
K, BUDGETS, FIRST_SEED, ERROR = 6, (1, 6, 12, 24, 60), 11_000, 0.03
SPACES = ("whole", "informed")
RULES = ("best", "smoothed", "mean")

ALGORITHMS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "TPE": lambda seed: TPESampler(seed=seed),
    "S2E": lambda seed: S2ESampler(seed=seed),
    "CMA-ES": lambda seed: CmaEsSampler(seed=seed, popsize=K),
    "GP": lambda seed: GPSampler(seed=seed),
    "qLogNEI": lambda seed: peers.QLogNEISampler(seed=seed),
    "SMAC3": lambda seed: peers.SMACSampler(seed=seed),
}
QUICK = ("random", "TPE", "S2E", "CMA-ES")


def search(name: str, algorithm: str, kind: str, seed: int) -> dict[str, Any]:
    """Simulate a search in batches of K; return the regrets after each budget."""
    table, number = landscapes.lookup(name), FIRST_SEED + seed
    rng = np.random.default_rng([number, 1])
    n_epochs = table.task.n_epochs
    space = ScheduleSpace(n_epochs)
    if kind == "informed":
        estimate = float(np.clip(table.noise_rate + ERROR * rng.normal(), 0.0, 0.9))
        space = ScheduleSpace(n_epochs, noise_rate=estimate)
    study = optuna.create_study(sampler=ALGORITHMS[algorithm](number))
    drawn: list[np.ndarray] = []
    found: dict[str, Any] = {rule: [] for rule in (*RULES, "drawn")}
    for budget in BUDGETS:
        while len(drawn) < budget:
            trials = [study.ask() for _ in range(min(K, budget - len(drawn)))]
            rates = [space.suggest(trial).keep_rates for trial in trials]
            for trial, r in zip(trials, rates, strict=True):
                study.tell(trial, table.observe(r, rng))
            drawn += rates
        for rule in RULES:
            schedule = recommend(study, rule).schedule
            assert schedule is not None
            found[rule].append(round(float(table.regret(schedule.keep_rates)[0]), 3))
        found["drawn"].append(round(float(table.regret(np.array(drawn)).min()), 3))
    found["last"] = round(float(table.regret(np.array(drawn[-K:])).mean()), 3)
    return found


def run(job: runs.Job) -> dict[str, Any]:
    """Simulate one search."""
    warnings.simplefilter("ignore")
    return search(str(job[0]), str(job[1]), str(job[2]), int(job[3]))


def cell(results: runs.Results, task: str, algorithm: str, kind: str, n: int) -> list[Any]:
    """Return the first n searches of a cell, as far as there are any in a row."""
    found = []
    for seed in range(n):
        if (row := results.get(runs.key_of((task, algorithm, kind, seed)))) is None:
            break
        found.append(row)
    return found


def report(results: runs.Results, part: str, n: int) -> None:
    """Print the table of space x searcher x pick, and the paired comparisons."""
    names = landscapes.names(part)
    print(f"\n{part}: {len(names)} tasks; regret in points of error, mean over tasks (s.e.)")
    print(f"{'space':10}{'searcher':10}{'measure':10}"
          + "".join(f"{b:>14}" for b in BUDGETS) + "  searches a task")  # fmt: skip
    regrets: dict[tuple[str, str, str], list[np.ndarray]] = {}  # of each task, (n, budgets)
    for kind in SPACES:
        for algorithm in ALGORITHMS:
            cells = [cell(results, name, algorithm, kind, n) for name in names]
            if min(map(len, cells)) < 2:
                continue
            for measure in (*RULES, "drawn"):
                found = [np.array([row[measure] for row in rows]) for rows in cells]
                regrets[kind, algorithm, measure] = found
                line = ""
                for b in range(len(BUDGETS)):
                    mean, low, _ = runs.pooled([f[:, b] for f in found], scale=1.0)
                    line += f"{mean:8.2f} ({(mean - low) / 1.96:.2f})"
                sizes = {len(f) for f in found}
                print(f"{kind:10}{algorithm:10}{measure:10}{line}  {min(sizes)}")
            last = [np.array([row["last"] for row in rows]) for rows in cells]
            print(f"{'':20}{'last 6':10}{'':56}{runs.pooled(last, scale=1.0)[0]:8.2f}")
    print("\nS2E, informed, mean pick, minus ..., points, [95 % interval]; by task; searches")
    for ours, kind, rules in (
        (12, "whole", ("smoothed", "mean")), (24, "whole", ("smoothed", "mean")),
        (60, "whole", ("smoothed", "mean")), (60, "informed", ("mean",)),
    ):  # fmt: skip
        for algorithm in ALGORITHMS:
            for rule in rules:
                other = regrets.get((kind, algorithm, rule))
                compare(f"{ours} trainings minus {algorithm}, {kind}, {rule}, 60",
                        regrets.get(("informed", "S2E", "mean")), ours, other, 60)  # fmt: skip
    for measure, title in (("mean", "Mean pick"), ("drawn", "Best schedule drawn")):
        print(f"\n{title}: S2E minus ..., the same space and budget")
        for kind in SPACES:
            for algorithm in ALGORITHMS:
                for budget in (12, 24, 60):
                    own, other = (regrets.get((kind, a, measure)) for a in ("S2E", algorithm))
                    compare(f"{kind}, {algorithm}, {budget}", own, budget, other, budget)


def compare(
    what: str, own: list[np.ndarray] | None, ours: int, other: list[np.ndarray] | None, theirs: int
) -> None:
    """Print a paired difference of regrets after some budgets, if both are there."""
    if own is None or other is None or (own is other and ours == theirs):
        return
    a, b = BUDGETS.index(ours), BUDGETS.index(theirs)
    sizes = [min(len(x), len(y)) for x, y in zip(own, other, strict=True)]
    found = [x[:m, a] - y[:m, b] for x, y, m in zip(own, other, sizes, strict=True)]
    mean, low, high = runs.pooled(found, scale=1.0)
    by_task = " ".join(f"{d.mean():+.1f}" for d in found)
    print(f"  {what}: {mean:+.2f} [{low:+.2f}, {high:+.2f}]; {by_task}; {min(sizes)}")


def main() -> None:
    """Simulate what is missing, report."""
    parser = runs.parser(__doc__, seeds=40)
    parser.add_argument("--algorithms", nargs="+", default=QUICK, choices=list(ALGORITHMS))
    parser.add_argument("--part", default="report", choices=["tune", "report"])
    parser.add_argument("--spaces", nargs="+", default=SPACES, choices=SPACES)
    options = parser.parse_args()
    jobs: list[runs.Job] = [
        (name, algorithm, kind, seed)
        for seed in range(options.seeds)
        for name in landscapes.names(options.part)
        for kind in options.spaces
        for algorithm in options.algorithms
    ]
    if not options.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    report(runs.read(RESULTS)["results"], options.part, options.seeds)


if __name__ == "__main__":
    main()
