"""Which estimator should be S2ESampler's default? Every estimator, random search, TPE, CMA-ES.

Question:  at 60 trials, which update rule leaves the best trials and the best last generation?
Tasks:     studies/functions.py. "tune" are those that settings were chosen on, the others have
           other seeds. Schedule tasks: distance (RMSE over 200 epochs) of R(t) to a target
           schedule, in Co-teaching's space and in the paper's. "noisy or large" were written after
           exploration had been changed for the sake of noise; that the default fell behind on
           "sparse" and "branches" led to learned relevance (chosen on "tune") and to conditional
           parameters in theta. "conditional" were written after that. "sparse" and "forty" also
           led to candidates near the best draws (chosen on "tune", the last five of which were
           added then); "many dimensions" were written after that.
Measure:   value without noise of the trial that looked best, and its mean over the last 12 trials;
           both above the least possible value, as the ratio to random search on the same task
           (geometric mean over the tasks; 95 % interval by bootstrap over seeds).
Run:       python studies/estimators.py --seeds 20 --jobs 2       (results are kept: it resumes)
Read:      studies/results/estimators.json, python studies/estimators.py --report
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import runs
from functions import TASKS

from optuna_s2e import S2ESampler

RESULTS = Path(__file__).parent / "results" / "estimators.json"
N_TRIALS, N_LAST = 60, 12
LEAST_RATIO = 1e-3  # a task that is solved exactly counts as this
FIRST_SEED = {"tune": 1000, "held out": 5000, "noisy or large": 9000,
              "conditional": 12_000, "many dimensions": 15_000}  # fmt: skip

ALGORITHMS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "TPE (5.0 default)": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "CMA-ES (popsize 6)": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, popsize=6),
    "newton, memoryless": lambda seed: S2ESampler(seed=seed, estimator="newton", reuse=0),
    "newton": lambda seed: S2ESampler(seed=seed, estimator="newton"),
    "gradient": lambda seed: S2ESampler(seed=seed, estimator="gradient"),
    "cubic": lambda seed: S2ESampler(seed=seed, estimator="cubic"),
    "natural, memoryless": lambda seed: S2ESampler(seed=seed, estimator="natural", reuse=0),
    "natural, step 1": lambda seed: S2ESampler(seed=seed, estimator="natural", step_size=1.0),
    "natural": lambda seed: S2ESampler(seed=seed, estimator="natural"),
    "surrogate": lambda seed: S2ESampler(seed=seed, estimator="surrogate"),
    "paper": lambda seed: S2ESampler(seed=seed, estimator="paper"),
    "paper, Eq 8's sign": lambda seed: S2ESampler(seed=seed, estimator="paper", sign="+"),
    "paper, theta >= 1": lambda seed: S2ESampler(
        seed=seed, estimator="paper", theta_bounds=(1.0, 1000.0)
    ),
}


def run(job: runs.Job) -> list[float]:
    """Search one task with one algorithm and one seed.

    Returns:
        The true value of the best trial, followed by the mean true values of each 12 trials.
    """
    part, task, algorithm, seed = str(job[0]), str(job[1]), str(job[2]), int(job[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=ALGORITHMS[algorithm](FIRST_SEED[part] + seed))
        study.optimize(TASKS[part][task], n_trials=N_TRIALS)
    found = np.array([t.user_attrs.get("true", t.value) for t in study.trials])
    means = found.reshape(-1, N_LAST).mean(axis=1)
    return [float(f"{v:.5g}") for v in (found[study.best_trial.number], *means)]


def summarise(values: runs.Results, part: str, n: int) -> list[str]:
    """Return a table: ratios to random search of best and last, with 95 % intervals."""
    rng, seeds = np.random.default_rng(0), range(n)

    def scores(algorithm: str) -> np.ndarray:  # (tasks, seeds, 2)
        rows = [[values[f"{part}|{t}|{algorithm}|{s}"] for s in seeds] for t in TASKS[part]]
        return np.array(rows)[:, :, [0, -1]]

    def ratio(own: np.ndarray, base: np.ndarray) -> np.ndarray:
        ratios = own.mean(axis=-2) / base.mean(axis=-2)
        return np.exp(np.mean(np.log(np.maximum(ratios, LEAST_RATIO)), axis=0))

    if any(f"{part}|{t}|random|{s}" not in values for t in TASKS[part] for s in seeds):
        return [f"{part}: not run yet"]
    base = scores("random")
    lines = [f"{part}: {len(TASKS[part])} tasks, {len(seeds)} seeds, {N_TRIALS} trials; ratio to "
             "random search (1 = random, lower is better), 95 % interval",
             f"{'':28}{'best trial':>22}{'last 12 trials':>24}"]  # fmt: skip
    for algorithm in ALGORITHMS:
        if any(f"{part}|{t}|{algorithm}|{s}" not in values for t in TASKS[part] for s in seeds):
            continue  # not run yet
        own = scores(algorithm)
        i = rng.integers(0, len(seeds), (1000, len(seeds)))  # bootstrap
        low, high = np.percentile(ratio(own[:, i], base[:, i]), [2.5, 97.5], axis=0)
        cells = [f"{m:.3f} [{a:.3f}, {b:.3f}]"
                 for m, a, b in zip(ratio(own, base), low, high, strict=True)]  # fmt: skip
        lines.append(f"{algorithm:28}{cells[0]:>22}{cells[1]:>24}")
    return lines


def by_task(values: runs.Results, part: str, n: int) -> list[str]:
    """Return a table: ratio to random search of the best trial, task by task."""
    names = ["TPE (5.0 default)", "CMA-ES (popsize 6)", "natural", "surrogate"]
    lines = [f"{part}: best trial, ratio to random search of the means over {n} seeds",
             f"{'':30}" + "".join(f"{name:>20}" for name in names)]  # fmt: skip
    for task in TASKS[part]:
        rows = {a: [values.get(f"{part}|{task}|{a}|{s}") for s in range(n)]
                for a in ("random", *names)}  # fmt: skip
        if any(row is None for found in rows.values() for row in found):
            continue
        mean = {a: np.mean([row[0] for row in found if row]) for a, found in rows.items()}
        lines.append(f"{task:30}" + "".join(f"{mean[a] / mean['random']:20.3f}" for a in names))
    return lines


def main() -> None:
    """Run what is missing, save, report."""
    options = runs.parser(__doc__, seeds=20).parse_args()
    jobs: list[runs.Job] = [
        (part, task, algorithm, seed)
        for part, tasks in TASKS.items()
        for task in tasks
        for seed in range(options.seeds)
        for algorithm in ALGORITHMS
    ]
    if not options.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    values = runs.read(RESULTS)["results"]
    for part in TASKS:
        print("\n".join(summarise(values, part, options.seeds)), end="\n\n")
        print("\n".join(by_task(values, part, options.seeds)), end="\n\n")


if __name__ == "__main__":
    main()
