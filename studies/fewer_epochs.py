"""Can a search stop the trainings that are lost? Regret against the epochs that a search costs.

Question:  the regret of the schedule that `recommend` returns after 6, 12 and 24 trainings' worth
           of epochs, if lost trainings are stopped early by a rule, and if none is stopped. Does
           any rule reach the regret of full trainings with half of their epochs?
Tasks:     simulated searches on the tables of studies/landscapes.py, of which this study trains
           the validation part again (the same seeds) to have the error of every epoch. A trial
           has the curve of one of the 4 trained schedules that are nearest to its own (root mean
           square of R(t)). Rules were chosen on the part "tune"; the part "report" is other data.
Rules:     full        no training is stopped
           median      Optuna's MedianPruner, from the fifth training and a third of the epochs on
           halving     Optuna's HyperbandPruner, from a ninth of the epochs on
           gain        a training is stopped if its error so far, plus what completed trainings
                       gained from that epoch to the end, is too far above the best
           "counted" behind a rule: stopped trials count in the model of the sampler; those of
           "gain" with the loss that the rule expects at the end.
Measure:   regret, in points of test error above the lowest of the table; paired by seed.
Run:       python studies/fewer_epochs.py --jobs 2 --seeds 20                (it resumes)
Read:      studies/results/fewer_epochs.json, --report
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import landscapes
import numpy as np
import optuna
import runs
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, TrialState
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from optuna_s2e import S2ESampler, ScheduleSpace, recommend
from optuna_s2e.coteaching import last_epochs_mean, train_batch

RESULTS = Path(__file__).parent / "results" / "fewer_epochs.json"
BUDGETS, N_NEAR, FIRST_SEED, ERROR = (6, 12, 24), 4, 15_000, 0.03
RULES = ("full", "median", "median counted", "halving", "gain", "gain counted")
NAMES = {
    "tune": (
        "digits sym-50", "digits pair-45", "synthetic-8 pair-40", "synthetic-6 sym-30",
        "digits 0-4 or 5-9 sym-35",
    ),
    "report": (
        "synthetic-5 sym-50", "breast cancer sym-35", "MNIST 7x7 pair-45", "MNIST 7x7 sym-50",
        "CIFAR-10 8x8, 4 classes, sym-40", "MNIST 7x7 class-dep-35",
    ),
}  # fmt: skip

Array = np.ndarray


def train(name: str) -> dict[str, Any]:
    """Train the schedules of a table; return each epoch's wrong answers of the two networks."""
    task = landscapes.TASKS[name]
    data, rates = task.data(landscapes.FIRST_SEED), landscapes.drawn(task)
    n_validation = len(data.y_val)
    wrong: list[list[int]] = []
    for first in range(0, len(rates), landscapes.GROUP):
        rows = range(first, first + landscapes.GROUP)
        results = train_batch(
            rates[rows], list(rows), data=data, network=task.network, config=task.config,
            device="cpu", evaluate_on="validation",
        )  # fmt: skip
        wrong += [
            np.rint(n_validation * r.curves.error).astype(int).sum(axis=-1).tolist()
            for r in results
        ]
    return {"n_validation": n_validation, "wrong": wrong}


class Curves:
    """A table whose trainings are known epoch by epoch.

    Attributes:
        table: The table.
        error: Mean validation error of the two networks by epoch, (N, T).
    """

    def __init__(self, name: str, trained: dict[str, Any]) -> None:
        self.table = landscapes.lookup(name)
        self.error = np.array(trained["wrong"]) / (2 * trained["n_validation"])
        self._at = landscapes.curves(self.table.keep_rates)

    def observe(self, keep_rates: Array, rng: np.random.Generator) -> Array:
        """Return the error by epoch of one of the nearest trained schedules, (T,)."""
        distance = cdist(landscapes.curves(keep_rates[None]), self._at)[0]
        found: Array = self.error[rng.choice(np.argsort(distance)[:N_NEAR])]
        return found


@cache
def curves_of(name: str) -> Curves:
    """Read the curves of a table from the results."""
    return Curves(name, runs.read(RESULTS)["results"][runs.key_of(("curves", name))])


class GainPruner(BasePruner):
    """Stop a training that is lost: what others gained from here on does not save it.

    At epoch t the loss at the end is expected at e(t) + mean_j (f_j - e_j(t)), over the completed
    trials j, with their errors e smoothed over a tenth of the epochs and their losses f. The trial
    is stopped if that lies `margin` standard deviations of the losses f, and `caution` standard
    deviations of the gains, above the least f.

    Args:
        n_epochs: T.
        margin: In standard deviations of the completed losses.
        caution: In standard deviations of the gains.
        n_completed: Trials that must be complete.
        warm_up: Share of the epochs in which nothing is stopped.
    """

    def __init__(
        self,
        n_epochs: int,
        *,
        margin: float = 0.5,
        caution: float = 1.0,
        n_completed: int = 4,
        warm_up: float = 0.2,
    ) -> None:
        self.n_epochs, self.margin, self.caution = n_epochs, margin, caution
        self.n_completed, self.first = n_completed, int(np.ceil(warm_up * n_epochs))

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Say whether the trial is lost."""
        if trial.last_step is None or trial.last_step < self.first:
            return False
        known = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len(known) < self.n_completed:
            return False
        losses = np.array([t.value for t in known], dtype=np.float64)
        expected, deviation = self.expect(study, trial)
        spread = losses.std(ddof=1)
        return bool(expected - self.caution * deviation > losses.min() + self.margin * spread)

    def expect(self, study: optuna.Study, trial: FrozenTrial) -> tuple[float, float]:
        """Return the loss that the trial would have at the end, and its standard deviation."""
        known = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        assert trial.last_step is not None
        gains = np.array([
            float(t.value or 0.0) - self._recent(t, trial.last_step) for t in known
        ])  # fmt: skip
        expected = self._recent(trial, trial.last_step) + gains.mean()
        return float(expected), float(gains.std(ddof=1) * np.sqrt(1.0 + 1.0 / len(gains)))

    def _recent(self, trial: FrozenTrial, step: int) -> float:
        """Return the mean error of the last tenth of the epochs, up to a step."""
        first = step - max(1, round(0.1 * self.n_epochs)) + 1
        return float(np.mean([
            v for epoch, v in trial.intermediate_values.items() if first <= epoch <= step
        ]))  # fmt: skip


def pruner_of(rule: str, n_epochs: int) -> BasePruner:
    """Return the pruner of a rule."""
    match rule.split()[0]:
        case "median":
            return MedianPruner(n_startup_trials=4, n_warmup_steps=n_epochs // 3)
        case "halving":
            return HyperbandPruner(min_resource=max(1, n_epochs // 9), max_resource=n_epochs)
        case "gain":
            return GainPruner(n_epochs)
        case _:
            return NopPruner()


def search(name: str, rule: str, seed: int, pruner: BasePruner | None = None) -> dict[str, Any]:
    """Simulate a search; return the regret after each budget, and how many trials it had."""
    curves, number = curves_of(name), FIRST_SEED + seed
    table, n_epochs = curves.table, curves.table.task.n_epochs
    rng = np.random.default_rng([number, 1])
    estimate = float(np.clip(table.noise_rate + ERROR * rng.normal(), 0.0, 0.9))
    space = ScheduleSpace(n_epochs, noise_rate=estimate)
    counted = rule.endswith("counted")
    pruner = pruner or pruner_of(rule, n_epochs)
    study = optuna.create_study(
        study_name=f"{rule} {seed}",  # Hyperband draws its brackets by it
        sampler=S2ESampler(seed=number, consider_pruned_trials=counted),
        pruner=pruner,
    )
    spent, found = 0, {"regret": [], "trials": [], "stopped": []}  # type: ignore[var-annotated]
    for budget in BUDGETS:
        while spent < budget * n_epochs:
            spent += _trial(study, space, curves, rng, pruner if counted else None)
        schedule = recommend(study).schedule
        assert schedule is not None
        found["regret"].append(round(float(table.regret(schedule.keep_rates)[0]), 3))
        states = [t.state for t in study.get_trials(deepcopy=False)]
        found["trials"].append(len(states))
        found["stopped"].append(states.count(TrialState.PRUNED))
    return found


def _trial(
    study: optuna.Study,
    space: ScheduleSpace,
    curves: Curves,
    rng: np.random.Generator,
    counting: BasePruner | None,
) -> int:
    """Run a trial; return its epochs."""
    trial = study.ask()
    errors = curves.observe(space.suggest(trial).keep_rates, rng)
    for epoch, error in enumerate(errors):
        trial.report(float(error), epoch)
        if epoch + 1 < len(errors) and trial.should_prune():
            if isinstance(counting, GainPruner):
                frozen = study.get_trials(deepcopy=False)[trial.number]
                trial.report(counting.expect(study, frozen)[0], len(errors))
            study.tell(trial, state=TrialState.PRUNED)
            return epoch + 1
    study.tell(trial, last_epochs_mean(errors))
    return len(errors)


def run(job: runs.Job) -> dict[str, Any]:
    """Train the curves of a table, or simulate one search."""
    warnings.simplefilter("ignore")
    if job[0] == "curves":
        return train(str(job[1]))
    return search(str(job[0]), str(job[1]), int(job[2]))


def foresight(curves: Curves, share: float) -> float:
    """Return the rank correlation of the loss and the error after a share of the epochs.

    Over the schedules of a table whose ranges are around the noise rate, the second half.
    """
    near, n_epochs = curves.error[len(curves.error) // 2 :], curves.error.shape[1]
    step = int(share * n_epochs)
    so_far = near[:, max(0, step - n_epochs // 10) : step + 1].mean(axis=1)
    return float(spearmanr(so_far, [last_epochs_mean(e) for e in near]).statistic)


def report(results: runs.Results, part: str, n: int) -> None:
    """Print regrets, trials and what a rule gains at half of the epochs."""
    names = [name for name in NAMES[part] if runs.key_of((name, RULES[0], 0)) in results]
    if not names:
        return
    print(f"\n{part}: {len(names)} tasks; regret in points of error, mean over tasks (s.e.)")
    head = "".join(f"{f'{b} T epochs':>16}" for b in BUDGETS)
    print(f"{'rule':16}{head}   trials (stopped)")
    regrets: dict[str, list[Array]] = {}
    for rule in RULES:
        cells = [
            [
                results[key]
                for seed in range(n)
                if (key := runs.key_of((name, rule, seed))) in results
            ]
            for name in names
        ]
        if min(map(len, cells)) < 2:
            continue
        regrets[rule] = [np.array([row["regret"] for row in rows]) for rows in cells]
        line = ""
        for b in range(len(BUDGETS)):
            mean, low, _ = runs.pooled([r[:, b] for r in regrets[rule]], scale=1.0)
            line += f"{mean:9.2f} ({(mean - low) / 1.96:.2f})"
        trials, stopped = (
            np.mean([[np.mean([row[what][b] for row in rows]) for b in range(len(BUDGETS))]
                     for rows in cells], axis=0)
            for what in ("trials", "stopped")
        )  # fmt: skip
        counts = ", ".join(f"{t:.0f} ({s:.0f})" for t, s in zip(trials, stopped, strict=True))
        print(f"{rule:16}{line}   {counts}")
    print(
        "\nminus full trainings, points, [95 % interval]: with half of the epochs; with the same"
    )
    for rule, own in regrets.items():
        line = ""
        for ours, theirs in ((6, 12), (12, 24), (12, 12), (24, 24)):
            a, b = BUDGETS.index(ours), BUDGETS.index(theirs)
            sizes = [min(len(x), len(y)) for x, y in zip(own, regrets["full"], strict=True)]
            found = [x[:m, a] - y[:m, b]
                     for x, y, m in zip(own, regrets["full"], sizes, strict=True)]  # fmt: skip
            mean, low, high = runs.pooled(found, scale=1.0)
            line += f"  {ours} - {theirs}: {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        print(f"{rule:16}{line}")


def main() -> None:
    """Train the curves, simulate what is missing, report."""
    parser = runs.parser(__doc__, seeds=20)
    parser.add_argument("--part", default="report", choices=list(NAMES))
    options = parser.parse_args()
    names = [name for name in NAMES[options.part] if landscapes.TASKS[name].available]
    trainings: list[runs.Job] = [("curves", name) for name in names]
    searches: list[runs.Job] = [
        (name, rule, seed) for seed in range(options.seeds) for name in names for rule in RULES
    ]
    if not options.report:
        for jobs in (trainings, searches):
            runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    report(runs.read(RESULTS)["results"], options.part, options.seeds)


if __name__ == "__main__":
    main()
