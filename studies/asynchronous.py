"""What do many workers that never wait cost a search? 1, 6 and 24 at a time, same budget.

Question:  a worker that asks while W - 1 trials run knows less than one that asks last: how much
           worse are the pick and the last trials, for each algorithm?
Tasks:     lookups: 480 uniformly drawn schedules are really trained on a task; a trial returns
           the outcome of one of the 8 nearest of them (R(t), root mean square), so its noise is
           real, too. Truth is the test error smoothed over R(t) by the package's model. (Truth is
           smooth in R(t), as S2E and `recommend` assume: who models R(t) gains from that.)
Time:      simulated: durations are log-normal (sigma 1/2), a worker that is free asks at once.
Budget:    60 trials.
Measure:   truth of the schedule that `recommend(study, "smoothed")` picks, and mean truth of the
           last 12 trials that were begun; both above the lowest truth, in units of the truth's
           standard deviation.
Run:       python studies/asynchronous.py --jobs 2                     (it resumes)
Read:      studies/results/asynchronous.json, --report
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import runs
import tasks
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler

from optuna_s2e import S2ESampler, Schedule, ScheduleSpace, generations, recommend, surrogate
from optuna_s2e.coteaching import last_epochs_mean, train_batch
from optuna_s2e.surrogate import N_POINTS

RESULTS = Path(__file__).parent / "results" / "asynchronous.json"
N_TRIALS, N_LAST, N_TABLE, N_NEAR, FIRST_SEED = 60, 12, 480, 8, 7000
WORKERS = (1, 6, 24)
TASKS = ("digits sym-50", "digits pair-45", "synthetic-8 pair-40", "synthetic-5 sym-50")
ALGORITHMS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "TPE": lambda seed: TPESampler(seed=seed, constant_liar=True),
    "CMA-ES": lambda seed: CmaEsSampler(seed=seed),
    "natural": lambda seed: S2ESampler(seed=seed, estimator="natural"),
    "S2E": lambda seed: S2ESampler(seed=seed),
}


@cache
def drawn(task: tasks.Task) -> np.ndarray:
    """Return the schedules of a lookup, (N, T)."""
    space = ScheduleSpace(task.n_epochs)
    study = optuna.create_study(sampler=RandomSampler(seed=FIRST_SEED))
    return np.stack([space.suggest(study.ask()).keep_rates for _ in range(N_TABLE)])


def curves(keep_rates: np.ndarray) -> np.ndarray:
    """Return schedules (N, T) on a grid, in which distance is the root mean square."""
    epochs = np.linspace(0, keep_rates.shape[1] - 1, N_POINTS).round().astype(int)
    return np.asarray(keep_rates[:, epochs] / np.sqrt(N_POINTS))


def train(name: str) -> dict[str, list[float]]:
    """Train the schedules of a lookup, once for each part: the same trainings."""
    task = tasks.TASKS[name]
    found = {}
    for part in ("validation", "test"):
        results = train_batch(
            drawn(task), range(N_TABLE), data=task.data(FIRST_SEED), network=tasks.mlp64,
            config=task.config, device="cpu", evaluate_on=part,
        )  # fmt: skip
        found[part] = [round(last_epochs_mean(r.curves.error), 5) for r in results]
    return found


class Lookup:
    """A task as a table of trained outcomes."""

    def __init__(self, name: str, table: dict[str, list[float]]) -> None:
        self.space = ScheduleSpace(tasks.TASKS[name].n_epochs)
        self.curves = curves(drawn(tasks.TASKS[name]))
        self.validation = np.array(table["validation"])
        self.model = surrogate.fit(self.curves, np.array(table["test"]))
        truth = self.model.mean(self.curves)
        self.lowest, self.deviation = float(truth.min()), float(truth.std())

    def observe(self, keep_rates: np.ndarray, rng: np.random.Generator) -> float:
        """Return the validation error of one of the nearest trained schedules."""
        distances = np.sum((self.curves - curves(keep_rates[None])) ** 2, axis=1)
        return float(self.validation[rng.choice(np.argsort(distances)[:N_NEAR])])

    def excess(self, keep_rates: np.ndarray) -> float:
        """Return the truth above the lowest, in standard deviations."""
        return float(self.model.mean(curves(keep_rates[None]))[0] - self.lowest) / self.deviation


@cache
def lookup(name: str) -> Lookup:
    """Read a lookup from the results."""
    return Lookup(name, runs.read(RESULTS)["results"][runs.key_of(("table", name))])


def search(name: str, algorithm: str, n_workers: int, seed: int) -> dict[str, Any]:
    """Simulate a search by workers that never wait."""
    task, rng = lookup(name), np.random.default_rng([FIRST_SEED, seed])
    study = optuna.create_study(sampler=ALGORITHMS[algorithm](FIRST_SEED + seed))
    clock, running, begun = 0.0, [], []
    while len(begun) < N_TRIALS or running:
        while len(running) < n_workers and len(begun) < N_TRIALS:
            trial = study.ask()
            begun.append(task.space.suggest(trial).keep_rates)
            end = clock + rng.lognormal(sigma=0.5)
            heapq.heappush(running, (end, trial.number, trial))
        clock, number, trial = heapq.heappop(running)
        study.tell(trial, task.observe(begun[number], rng))
    pick = recommend(study, "smoothed").schedule
    assert isinstance(pick, Schedule)
    is_s2e = isinstance(study.sampler, S2ESampler)
    return {
        "pick": round(task.excess(pick.keep_rates), 4),
        "last": round(float(np.mean([task.excess(r) for r in begun[-N_LAST:]])), 4),
        "generations": len(generations(study)) if is_s2e else None,
    }


def run(job: runs.Job) -> dict[str, Any]:
    """Train a lookup, or search it."""
    if job[0] == "table":
        return train(str(job[1]))
    return search(str(job[1]), str(job[2]), int(job[3]), int(job[4]))


def report(results: runs.Results, n: int) -> None:
    """Print picks and last trials by workers, means over the lookups."""
    print(f"excess over the best known in standard deviations, mean over {len(TASKS)} lookups and "
          f"{n} searches each (standard error): pick | last {N_LAST} trials")  # fmt: skip
    print(f"{'':10}" + "".join(f"{f'{w} workers':^34}" for w in WORKERS) + "generations at 24")
    for algorithm in ALGORITHMS:
        line, opened = f"{algorithm:10}", ""
        for n_workers in WORKERS:
            keys = [[runs.key_of(("search", t, algorithm, n_workers, s)) for s in range(n)]
                    for t in TASKS]  # fmt: skip
            rows = [[results[k] for k in row if k in results] for row in keys]
            if min(map(len, rows)) < n:
                line += f"{'-':^34}"
                continue
            for measure in ("pick", "last"):
                v = np.array([[r[measure] for r in row] for row in rows])
                error = np.sqrt((v.var(axis=1, ddof=1) / n).sum()) / len(TASKS)
                line += f"{v.mean():9.3f} ({error:.3f})"
            counts = [r["generations"] for row in rows for r in row]
            opened = f"{np.mean(counts):6.1f}" if counts[0] is not None else ""
        print(line + opened)


def main() -> None:
    """Train the lookups, search them, report."""
    options = runs.parser(__doc__, seeds=20).parse_args()
    tables: list[runs.Job] = [("table", name) for name in TASKS]
    searches: list[runs.Job] = [
        ("search", name, algorithm, n_workers, seed)
        for seed in range(options.seeds)
        for n_workers in WORKERS
        for name in TASKS
        for algorithm in ALGORITHMS
    ]
    if not options.report:
        for jobs in (tables, searches):
            runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    report(runs.read(RESULTS)["results"], options.seeds)


if __name__ == "__main__":
    main()
