"""Who finds the best schedule in 60 trainings? All estimators, random search, Optuna's samplers.

Question:  after 60 real Co-teaching trainings in batches of 6, how good is the schedule that
           `recommend` ("smoothed") picks for each algorithm, and how good are the trials?
Tasks:     studies/tasks.py. Settings were chosen on digits and synthetic data; the tasks of part
           "report" were run afterwards, with seeds that were never used before.
Measure:   test error of the pick, mean of 8 fresh trainings; differences paired by seed (same
           wrong labels, same split, same seeds of the fresh trainings); validation error of the
           last generation's trials, above the best known: the lowest smoothed error of any pick
           of the same task and seed, or, where the picks were retrained on the validation part,
           the pick that is best in half of 8 fresh trainings, valued by the other half.
Budget:    60 trials of T epochs; Hyperband, which prunes, gets as many epochs in all. "S2E, 12
           trainings" is what the defaults do now: the noise rate is estimated (about 1.3 trainings
           more), 12 trials from the ranges around it, and the mean that `recommend` picks.
Run:       python studies/search_algorithms.py --seeds 40 --jobs 2 --minutes 60      (it resumes)
           ... --seeds 120 --algorithms random TPE S2E                              (more of some)
           ... --part report --algorithms "S2E, 12 trainings"
Read:      studies/results/search_algorithms.json, --report (tables, and the picture)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import runs
import tasks
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

from optuna_s2e import S2ESampler, ScheduleSpace, recommend
from optuna_s2e.coteaching import (
    Evaluation,
    Metrics,
    NoisyData,
    estimate_noise,
    evaluate_schedules,
    fixed_schedules,
    last_epochs_mean,
    train_batch,
)

RESULTS = Path(__file__).parent / "results" / "search_algorithms.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "search-algorithms.png"
COLORS = [*TABLEAU_COLORS, "black", "gold", "navy", "teal"]
K, N_TRIALS, N_REPEATS, FIRST_SEED = 6, 60, 8, 2000
FEW = 10  # searches: with fewer an algorithm is not drawn
RULES = ("smoothed", "best", "theta")
FEW_TRAININGS = "S2E, 12 trainings"
N_FEW = 12
MAIN = ("random", "TPE", "S2E")  # the first to run, and those whose rules are compared
OURS = ("S2E", "S2E, Table 1")  # compared with all others
MAIN_AND_PEERS = (*MAIN, "CMA-ES", "GP")
ASKED = (*MAIN_AND_PEERS, FEW_TRAININGS)  # --seeds searches each; others a quarter

ALGORITHMS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "TPE": lambda seed: TPESampler(seed=seed),
    "S2E": lambda seed: S2ESampler(seed=seed),
    "CMA-ES": lambda seed: CmaEsSampler(seed=seed, popsize=K),
    "GP": lambda seed: GPSampler(seed=seed),
    "Hyperband": lambda seed: RandomSampler(seed=seed),
    "natural": lambda seed: S2ESampler(seed=seed, estimator="natural"),
    "newton": lambda seed: S2ESampler(seed=seed, estimator="newton"),
    "newton, memoryless": lambda seed: S2ESampler(seed=seed, estimator="newton", reuse=0),
    "cubic": lambda seed: S2ESampler(seed=seed, estimator="cubic"),
    "gradient": lambda seed: S2ESampler(seed=seed, estimator="gradient"),
    "random, Table 1": lambda seed: RandomSampler(seed=seed),
    "TPE, Table 1": lambda seed: TPESampler(seed=seed),
    "S2E, Table 1": lambda seed: S2ESampler(seed=seed),
    "paper, Table 1": lambda seed: S2ESampler(seed=seed, estimator="paper"),
    FEW_TRAININGS: lambda seed: S2ESampler(seed=seed),
}
SIXTY = [algorithm for algorithm in ALGORITHMS if algorithm != FEW_TRAININGS]


class Search:
    """One search: K asked, trained together, told."""

    def __init__(self, task: tasks.Task, algorithm: str, seed: int) -> None:
        self.task, self.seed = task, FIRST_SEED + seed
        self.data = task.data(self.seed)
        kind = "table1" if algorithm.endswith("Table 1") else "eq1"
        self.is_few = algorithm == FEW_TRAININGS
        self.noise_rate = self._estimate() if self.is_few else None
        self.space = ScheduleSpace(task.n_epochs, kind, noise_rate=self.noise_rate)
        pruner = optuna.pruners.HyperbandPruner(min_resource=3, max_resource=task.n_epochs)
        self.prunes = algorithm == "Hyperband"
        self.study = optuna.create_study(
            study_name=f"{algorithm} {self.seed}",
            sampler=ALGORITHMS[algorithm](self.seed),
            pruner=pruner if self.prunes else optuna.pruners.NopPruner(),
        )
        self.epochs_left = (N_FEW if self.is_few else N_TRIALS) * task.n_epochs

    def _estimate(self) -> float:
        """Return the noise rate as `s2e search` estimates it, by the task's training."""
        return estimate_noise(
            self.data, network=tasks.mlp64, config=self.task.config,
            n_epochs=min(15, 3 * self.task.n_epochs // 8), seed=self.seed, device="cpu",
        ).noise_rate  # fmt: skip

    def run(self) -> optuna.Study:
        """Search until the epochs are spent."""
        while self.epochs_left >= self.task.n_epochs:
            self._batch()
        return self.study

    def _batch(self) -> None:
        trials = [self.study.ask() for _ in range(K)]
        rates = np.stack([self.space.suggest(trial).keep_rates for trial in trials])

        def on_epoch(k: int, epoch: int, metrics: Metrics) -> bool:
            if not self.prunes or epoch == self.task.n_epochs - 1:
                return False
            trials[k].report(float(metrics.error.mean()), epoch + 1)
            return trials[k].should_prune()

        results = train_batch(
            rates, [10_000 * self.seed + t.number for t in trials], data=self.data,
            network=tasks.mlp64, config=self.task.config, device="cpu", on_epoch=on_epoch,
        )  # fmt: skip
        for trial, result in zip(trials, results, strict=True):
            self.epochs_left -= result.n_epochs
            if result.failure is not None:
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            elif result.n_epochs < self.task.n_epochs:
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                self.study.tell(trial, last_epochs_mean(result.curves.error))


def run(job: runs.Job) -> dict[str, Any]:
    """Search, pick by every rule, retrain the picks."""
    task_name, algorithm, number = str(job[0]), str(job[1]), int(job[2])
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    task = tasks.TASKS[task_name]
    search = Search(task, algorithm, number)
    study = search.run()
    is_s2e = isinstance(study.sampler, S2ESampler)
    rules = ("mean",) if search.is_few else RULES
    picks = {rule: recommend(study, rule) for rule in rules if rule != "theta" or is_s2e}
    schedules = {r: p.schedule.keep_rates for r, p in picks.items() if p.schedule is not None}
    if algorithm == "random":  # once per task and seed: the baselines
        fixed = fixed_schedules(task.n_epochs, task.noise_rate)
        schedules |= {name: schedule.keep_rates for name, schedule in fixed.items()}

    if search.space.middle is not None:
        schedules["suggested"] = search.space.middle.keep_rates

    def retrained(schedules: dict[str, np.ndarray], data: NoisyData) -> dict[str, Evaluation]:
        return evaluate_schedules(
            schedules, data, network=tasks.mlp64, config=task.config, n_repeats=N_REPEATS,
            seed=search.seed, device="cpu",
        )  # fmt: skip

    evaluations = retrained(schedules, search.data)
    found: dict[str, Any] = {}
    if search.is_few:
        found["noise_rate"] = search.noise_rate
    else:
        validation = replace(search.data, x_test=search.data.x_val, y_test=search.data.y_val)
        known = retrained({"smoothed": schedules["smoothed"]}, validation)["smoothed"]
        found["validation"] = [round(float(1 - a), 5) for a in known.final_accuracy]
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    values = np.array([t.value for t in complete])
    return found | {
        "test_error": {
            n: round(float(1 - e.final_accuracy.mean()), 5) for n, e in evaluations.items()
        },
        "expected": {r: [round(v, 5) for v in (p.expected_loss, *p.interval)]
                     for r, p in picks.items()},
        "values": [round(float(v), 5) for v in values],
        "n_trials": len(study.trials),
    }  # fmt: skip


def rows_of(results: runs.Results, task: str, algorithm: str, n: int) -> list[dict[str, Any]]:
    """Return the first n searches of a cell, as far as there are any in a row."""
    rows = []
    for seed in range(n):
        if (row := results.get(runs.key_of((task, algorithm, seed)))) is None:
            break
        rows.append(row)
    return rows


def report(results: runs.Results, n: int) -> None:
    """Print a table per task, and the paired comparisons pooled over the tasks of each part."""
    for name in tasks.TASKS:
        cells = {a: rows_of(results, name, a, n) for a in ALGORITHMS}
        if not cells["random"]:
            continue
        fixed = ", ".join(
            f"{method} {runs.mean_and_error([r['test_error'][method] for r in cells['random']])}"
            for method in ("standard", "coteaching")
        )
        print(f"\n{name} ({tasks.TASKS[name].part}): test error in %, mean (s.e.); {fixed}")
        print(f"{'':28}{'smoothed pick':>16}{'best trial':>16}{'theta mean':>16}"
              f"{'last 6 trials':>18}{'searches':>9}")  # fmt: skip
        for algorithm, rows in cells.items():
            if rows:
                picked = [
                    runs.mean_and_error([r["test_error"][rule] for r in rows])
                    if rule in rows[0]["test_error"] else "-"
                    for rule in RULES
                ]  # fmt: skip
                last = runs.mean_and_error([np.mean(r["values"][-K:]) for r in rows])
                print(f"{algorithm:28}{picked[0]:>16}{picked[1]:>16}{picked[2]:>16}"
                      f"{last:>18}{len(rows):9}")  # fmt: skip
    compare_rules(results, n)
    for part in ("tune", "report"):
        for ours in OURS:
            compare(results, part, n, ours)
        compare_last(results, part, n)
        compare_few(results, part, n)


def compare_rules(results: runs.Results, n: int) -> None:
    """Print how the smoothed pick differs from the other rules' picks, pooled over all tasks."""
    print("\nSmoothed pick minus ..., test error, points, [95 % interval]")
    for algorithm in MAIN:
        for rule in RULES[1:]:
            cells = [rows_of(results, task, algorithm, n) for task in tasks.TASKS]
            differences = [
                np.array([r["test_error"]["smoothed"] - r["test_error"][rule] for r in rows])
                for rows in cells
                if len(rows) > 1 and rule in rows[0]["test_error"]
            ]
            if differences:
                mean, low, high = runs.pooled(differences)
                print(f"  {rule:10}{algorithm:10}{mean:+.2f} [{low:+.2f}, {high:+.2f}]")


def best_known(results: runs.Results, task: str, n: int) -> np.ndarray:
    """Return the lowest smoothed validation error of any algorithm's pick, one per seed."""
    cells = [rows_of(results, task, algorithm, n) for algorithm in SIXTY]
    return np.array([
        min(rows[seed]["expected"]["smoothed"][0] for rows in cells if len(rows) > seed)
        for seed in range(max(map(len, cells)))
    ])  # fmt: skip


def compare(results: runs.Results, part: str, n: int, ours: str) -> None:
    """Print ours minus each other algorithm, smoothed picks, pooled over the tasks of a part."""
    names = [t for t in tasks.TASKS if tasks.TASKS[t].part == part]
    if not any(rows_of(results, t, ours, n) for t in names):
        return
    print(f"\n{ours} minus ..., {part}: test error of the smoothed pick, points, [95 % interval];")
    print("    excess of the last 6 trials over the best known, as a share of the other's")
    best = {t: best_known(results, t, n) for t in names}
    for other in SIXTY:
        excess = []
        pairs_of = differences(results, names, other, n, ours)
        for name in names:
            own, theirs = rows_of(results, name, ours, n), rows_of(results, name, other, n)
            pairs = list(zip(own, theirs, strict=False))
            if len(pairs) < 2 or other == ours:
                continue
            last = np.array([[np.mean(r["values"][-K:]) for r in pair] for pair in pairs])
            over = (last - best[name][: len(pairs), None]).mean(axis=0)
            excess.append(over[0] / over[1])
        if pairs_of and other != ours:
            mean, low, high = runs.pooled(pairs_of)
            sizes = "+".join(str(len(d)) for d in pairs_of)
            print(f"  {other:28}{mean:+.2f} [{low:+.2f}, {high:+.2f}]  last: {np.mean(excess):.2f}"
                  f"   ({len(pairs_of)} tasks, {sizes} searches)")  # fmt: skip


def compare_few(results: runs.Results, part: str, n: int) -> None:
    """Print what twelve trainings give, and how that differs from sixty of each algorithm."""
    names = [t for t in tasks.TASKS if tasks.TASKS[t].part == part]
    names = [t for t in names if rows_of(results, t, FEW_TRAININGS, n)]
    if not names:
        return
    print(f"\n{FEW_TRAININGS}, {part}: test error in %, mean (s.e.); estimate of the noise rate")
    for name in names:
        rows = rows_of(results, name, FEW_TRAININGS, n)
        cells = [
            f"{rule} {runs.mean_and_error([r['test_error'][rule] for r in rows])}"
            for rule in ("mean", "suggested")
        ]
        rates = np.array([r["noise_rate"] for r in rows])
        print(f"  {name:34}{'   '.join(cells)}   {rates.mean():.2f} ({rates.std():.2f})   "
              f"{len(rows)} searches")  # fmt: skip
    pairs = [[rows_of(results, t, a, n) for a in (FEW_TRAININGS, "random")] for t in names]
    for fixed in ("suggested", "coteaching", "standard"):  # the last two were run with "random"
        found = [
            np.array([
                a["test_error"]["mean"] - (b["test_error"] | a["test_error"])[fixed]
                for a, b in zip(*pair, strict=False)
            ])
            for pair in pairs
        ]  # fmt: skip
        mean, low, high = runs.pooled(found)
        print(f"  mean pick minus {fixed}: {mean:+.2f} [{low:+.2f}, {high:+.2f}]")
    for rule in ("mean", "suggested"):
        print(f"\nIts {rule} pick minus the smoothed one of 60 trainings, points, [95 %]")
        for other in MAIN_AND_PEERS:
            found = differences(results, names, other, n, FEW_TRAININGS, rule)
            if found:
                mean, low, high = runs.pooled(found)
                by_task = "  ".join(f"{100 * d.mean():+.2f}" for d in found)
                print(f"  {other:10}{mean:+.2f} [{low:+.2f}, {high:+.2f}]   by task: {by_task}")


def retrained_best(rows: Sequence[dict[str, Any]]) -> float:
    """Return the validation error of the best of several picks, from 8 fresh trainings of each.

    The pick that is lowest in one half of the trainings is valued by the other half, both ways,
    so that its luck does not count.
    """
    halves = np.array([r["validation"] for r in rows]).reshape(len(rows), 2, -1).mean(axis=2)
    return float(np.mean([halves[np.argmin(halves[:, half]), 1 - half] for half in (0, 1)]))


def compare_last(results: runs.Results, part: str, n: int) -> None:
    """Print the excess of the last generation where all picks of a search were retrained."""
    excess = []  # per task, (searches, algorithms)
    for name in (t for t in tasks.TASKS if tasks.TASKS[t].part == part):
        cells = [rows_of(results, name, algorithm, n) for algorithm in MAIN]
        rows = [row for row in zip(*cells, strict=False) if all("validation" in r for r in row)]
        last = [[np.mean(r["values"][-K:]) for r in row] for row in rows]
        if len(rows) > 1:
            best = np.array([retrained_best(row) for row in rows])
            excess.append(100 * (np.array(last) - best[:, None]))
    if not excess:
        return
    sizes = "+".join(str(len(e)) for e in excess)
    print(f"\nLast 6 trials, {part}: points of validation error above the best retrained pick "
          f"({sizes} searches)")  # fmt: skip
    table = np.array([e.mean(axis=0) for e in excess])  # (tasks, algorithms)
    for algorithm, cells in zip(MAIN, table.T, strict=True):
        print(f"  {algorithm:10}{cells.mean():6.2f}   {'  '.join(f'{c:.2f}' for c in cells)}")
    rng = np.random.default_rng(0)
    means = np.array([
        np.mean([rng.choice(e, len(e)).mean(axis=0) for e in excess], axis=0) for _ in range(2000)
    ])  # fmt: skip
    own = MAIN.index("S2E")
    for other in (a for a in range(len(MAIN)) if a != own):
        share = table[:, own].mean() / table[:, other].mean()
        low, high = np.percentile(means[:, own] / means[:, other], [2.5, 97.5])
        print(f"  S2E's as a share of that of {MAIN[other]}: {share:.2f} "
              f"[{low:.2f}, {high:.2f}]")  # fmt: skip


def picture(results: runs.Results, n: int) -> Figure:
    """Draw the mean error of each generation, the best so far, and the paired differences."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    means, incumbents, forest = figure.subplots(1, 3, width_ratios=[1, 1, 1.3])
    names = [t for t in tasks.TASKS if tasks.TASKS[t].part == "report"]
    names = [t for t in names if rows_of(results, t, "S2E", n)]
    best = {t: best_known(results, t, n) for t in names}
    enough = [a for a in SIXTY if min(len(rows_of(results, t, a, n)) for t in names) >= FEW]
    compared = [a for a in enough if a != "Hyperband"]  # its trials are of unequal length
    for color, algorithm in zip(COLORS, compared, strict=False):
        width = 2.2 if algorithm in MAIN else 1.0
        first = {t: rows_of(results, t, algorithm, FEW) for t in names}  # the same of each
        values = {t: np.array([r["values"][:N_TRIALS] for r in rows]) for t, rows in first.items()}
        over = [100 * (v - best[t][: len(v), None]).mean(axis=0) for t, v in values.items()]
        generation = np.mean(over, axis=0).reshape(-1, K).mean(axis=1)
        means.plot(np.arange(len(generation)), generation, color=color, lw=width, label=algorithm)
        low = [np.minimum.accumulate(v, axis=1) - best[t][: len(v), None]
               for t, v in values.items()]  # fmt: skip
        curve = 100 * np.mean([v.mean(axis=0) for v in low], axis=0)
        incumbents.plot(np.arange(1, N_TRIALS + 1), curve, color=color, lw=width)
    means.set(xlabel="generation of 6", ylabel="points above the best known",
              title="validation error, mean of a generation", ylim=(0, None))  # fmt: skip
    figure.legend(*means.get_legend_handles_labels(), fontsize=8, ncols=7,
                  loc="outside lower center")  # fmt: skip
    incumbents.axhline(0.0, color="black", lw=0.8)
    incumbents.set(xlabel="trials", title="lowest validation error so far (lucky)")
    offsets = {"random": -0.18, "TPE": 0.18}
    for row, task in enumerate([*names, "pooled"]):
        for other, offset in offsets.items():
            pairs = differences(results, names if task == "pooled" else [task], other, n)
            mean, low_end, high_end = runs.pooled(pairs)
            forest.errorbar(
                mean, row + offset, xerr=[[mean - low_end], [high_end - mean]], fmt="o", ms=4,
                color=COLORS[compared.index(other)], label=f"S2E - {other}" if row == 0 else None,
            )  # fmt: skip
    forest.axvline(0.0, color="black", lw=0.8)
    forest.set_yticks(range(len(names) + 1), [*names, "pooled"], fontsize=8)
    forest.invert_yaxis()
    forest.set(xlabel="points; left: S2E is better", title="test error of the pick, fresh seeds")
    forest.locator_params(axis="x", nbins=7)
    forest.legend(fontsize=8)
    return figure


def differences(
    results: runs.Results, names: list[str], other: str, n: int, ours: str = "S2E",
    rule: str = "smoothed",
) -> list[np.ndarray]:  # fmt: skip
    """Return our pick minus another algorithm's smoothed one, test errors, per task by seed."""
    found = []
    for name in names:
        pairs = zip(
            rows_of(results, name, ours, n), rows_of(results, name, other, n), strict=False
        )
        found.append(np.array(
            [a["test_error"][rule] - b["test_error"]["smoothed"] for a, b in pairs]
        ))  # fmt: skip
    return [d for d in found if len(d) > 1]


def main() -> None:
    """Run what is missing, save after each search, report."""
    args = runs.parser(__doc__, seeds=40)
    args.add_argument("--part", choices=["tune", "report"], help="only these tasks")
    args.add_argument(
        "--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS, metavar="NAME",
        help=f"only these: {', '.join(ALGORITHMS)}",
    )  # fmt: skip
    options = args.parse_args()
    names = [n for n, t in tasks.TASKS.items()
             if t.available and options.part in (None, t.part)]  # fmt: skip
    jobs: list[runs.Job] = [
        (task, algorithm, seed)
        for seed in range(options.seeds)
        for task in names
        for algorithm in options.algorithms
        if algorithm in ASKED or 4 * seed < options.seeds
    ]
    jobs.sort(key=lambda j: (j[1] not in MAIN, j[1] not in ASKED, j[2]))  # what decides first
    if not options.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    results = runs.read(RESULTS)["results"]
    report(results, options.seeds)
    picture(results, options.seeds).savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
