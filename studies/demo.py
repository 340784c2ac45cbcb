"""How many trials does `make demo` need? The same search, looked at after 6 to 60 trials.

Question:  test error of the schedule that `recommend` returns after 6, 12, 18, 24 and 60 trials,
           beside what needs no search.
Task:      that of `make demo`: digits, 50 % symmetric noise, 40 epochs, the preset, an estimate
           of the noise rate; each seed has its own wrong labels.
Measure:   mean of 5 fresh trainings, the same seeds for all schedules of a search.
Run:       python studies/demo.py --jobs 2 --seeds 4                         (it resumes)
Read:      studies/results/demo.json, --report
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import runs

from optuna_s2e import S2ESampler, recommend, suggested_schedule
from optuna_s2e.coteaching import (
    CoteachingObjective,
    evaluate_schedules,
    fixed_schedules,
    load_data,
)

RESULTS = Path(__file__).parent / "results" / "demo.json"
BUDGETS, N_EPOCHS, N_REPEATS, RATE = (6, 12, 18, 24, 60), 40, 5, 0.5
FIXED = ("standard", "coteaching", "suggested")


def run(job: runs.Job) -> dict[str, Any]:
    """Search as `make demo` does, and retrain what was recommended on the way."""
    warnings.simplefilter("ignore")
    seed = int(job[0])
    data = load_data("digits", noise="symmetric", noise_rate=RATE, seed=seed)
    objective = CoteachingObjective(
        data, n_epochs=N_EPOCHS, device="cpu", seed=seed, noise_rate="estimate"
    )
    study = optuna.create_study(sampler=S2ESampler(seed=seed))
    schedules = {n: s.keep_rates for n, s in fixed_schedules(N_EPOCHS, RATE).items()}
    found: dict[str, Any] = {"source": {}}
    for budget in BUDGETS:
        study.optimize(objective, n_trials=budget - len(study.trials))
        picked = recommend(study)
        assert picked.schedule is not None
        schedules[str(budget)] = picked.schedule.keep_rates
        found["source"][budget] = picked.source
    found["noise_rate"] = objective.prepare_study(study).noise_rate
    schedules["suggested"] = suggested_schedule(N_EPOCHS, found["noise_rate"]).keep_rates
    evaluations = evaluate_schedules(
        schedules, data, network=objective.network, config=objective.config,
        n_repeats=N_REPEATS, seed=seed, device="cpu",
    )  # fmt: skip
    found["test_error"] = {
        n: np.round(1.0 - e.final_accuracy, 5).tolist() for n, e in evaluations.items()
    }
    return found


def report(results: runs.Results, n: int) -> None:
    """Print the errors of each search, and how few trials differ from sixty."""
    rows = [results[key] for seed in range(n) if (key := runs.key_of((seed,))) in results]
    names = [*FIXED, *map(str, BUDGETS)]
    errors = np.array([[np.mean(row["test_error"][name]) for name in names] for row in rows])
    print(f"{'seed':>6}" + "".join(f"{name:>12}" for name in names) + "   (test error, %)")
    for seed, row in enumerate(errors):
        print(f"{seed:>6}" + "".join(f"{100 * e:12.2f}" for e in row))
    print(f"{'mean':>6}" + "".join(f"{100 * e:12.2f}" for e in errors.mean(axis=0)))
    print("\n... minus 60 trials, points, [95 % interval over searches]")
    for i, name in enumerate(names[:-1]):
        mean, low, high = runs.over_tasks([d[None] for d in errors[:, i] - errors[:, -1]])
        print(f"  {name:12}{mean:+.2f} [{low:+.2f}, {high:+.2f}]")


def main() -> None:
    """Run what is missing, report."""
    options = runs.parser(__doc__, seeds=4).parse_args()
    jobs: list[runs.Job] = [(seed,) for seed in range(options.seeds)]
    if not options.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    report(runs.read(RESULTS)["results"], options.seeds)


if __name__ == "__main__":
    main()
