"""The first trials of a short search: what should the model know and steer, and from when on?

Question:  the pick, the best schedule drawn and the last six trials after 6, 12 and 24 trainings
           in the informed ranges, for several ways to begin; and several picks of each search.
Tasks:     simulated trials on the tables of studies/landscapes.py, part "tune"; estimates of the
           noise rate as in studies/twelve_trainings.py. The search is written out here, so that
           its beginning can be changed: trials are asked for in batches of six, the first trial
           is the suggested schedule and runs alone.
Measure:   regret, in points of test error above the lowest of the table; paired by seed with the
           search whose model does not know the first trial.
Run:       python studies/first_trials.py --seeds 20            (it resumes)
Read:      studies/results/first_trials.json, --report
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import landscapes
import numpy as np
import picks
import runs
from scipy.stats import qmc
from twelve_trainings import ERROR, FIRST_SEED, K

from optuna_s2e import ScheduleSpace
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.estimators import resolve, surrogate_newton
from optuna_s2e.surrogate import Model, propose

RESULTS = Path(__file__).parent / "results" / "first_trials.json"
BUDGETS = (1, 6, 12, 24)
MEASURES = ("mean", "drawn", "last")
POINTS = np.clip(qmc.Sobol(3, rng=np.random.default_rng(1)).random(256), 1e-6, 1 - 1e-6)


@dataclass(frozen=True)
class Beginning:
    """How a search begins.

    Attributes:
        batches: Sizes of the first batches; the others are of K.
        startup: Number of known losses from which on the model proposes.
        knows_first: Whether the model knows the first trial.
        spread: Whether the uniform draws fill a Latin hypercube.
        learned: Whether the first draws are points that were good on other tables.
    """

    batches: tuple[int, ...] = (1, 5)
    startup: int = K
    knows_first: bool = True
    spread: bool = False
    learned: bool = False


BEGINNINGS: dict[str, Beginning] = {
    "first trial unknown": Beginning(knows_first=False),
    "first trial known": Beginning(),
    "batches of 3 at first": Beginning(batches=(1, 2, 3), startup=3),
    "Latin hypercube": Beginning(spread=True),
    "model from the second trial on": Beginning(startup=1),
    "good on other tables": Beginning(learned=True),
}
BEFORE = next(iter(BEGINNINGS))

IDEAS = {
    "best": picks.IDEAS["best"],
    "smoothed": picks.IDEAS["smoothed"],
    "mean": picks.IDEAS[picks.DEFAULT],
    "mean h=.1": picks.IDEAS["mean, h=.1"],
    "mean h=.3": picks.IDEAS["mean, h=.3"],
    "shrink s^2": picks.IDEAS["mean, h=.2, towards the middle by s^2"],
    "shrink 2/n": lambda s: s.towards(2 / (2 + len(s.f)), s.mean(0.2)),
    "bowl 0.5 0.25": lambda s: s.prior_mean(0.5, 0.25),
    "bowl 1.0 0.25": lambda s: s.prior_mean(1.0, 0.25),
    "bowl 0.5 0.15": lambda s: s.prior_mean(0.5, 0.15),
}


class Searched(NamedTuple):
    """A search: its space, its draws x (N, d), their schedules (N, T) and losses (N,)."""

    space: SearchSpace
    x: np.ndarray
    rates: np.ndarray
    losses: np.ndarray

    def first(self, n: int, table: landscapes.Lookup) -> picks.Searched:
        """Return what is known after n trainings, with the model that `recommend` fits."""
        known = picks.Searched(self.rates[:n], self.losses[:n], self.rates[0], table)
        known.gp = fit(self.space, self.x[:n], self.losses[:n]).gp
        known.f = known.gp.mean_at_draws
        return known


def fit(space: SearchSpace, x: np.ndarray, losses: np.ndarray) -> Model:
    """Fit the model of the loss to draws that have all parameters."""
    return Model.fit(space, x, active=np.ones_like(x, dtype=bool), losses=losses)


def informed(table: landscapes.Lookup, rate: float) -> tuple[ScheduleSpace, SearchSpace]:
    """Return the ranges around a noise rate, and what is searched in them."""
    schedules = ScheduleSpace(table.task.n_epochs, noise_rate=rate)
    searched = {n: d for n, d in schedules.distributions.items() if not d.single()}
    return schedules, SearchSpace.of(searched, schedules.tags)


def middle_of(schedules: ScheduleSpace, space: SearchSpace) -> np.ndarray:
    """Return the suggested schedule as a point, (3,)."""
    assert schedules.middle is not None
    return space.encode(schedules.middle.params or {})


@cache
def regret_of_points(name: str) -> np.ndarray:
    """Return the regret of `POINTS` in a table's ranges and, last, of the suggested schedule.

    In units of the deviation without the highest tenth, (len(POINTS) + 1,).
    """
    table = landscapes.lookup(name)
    schedules, space = informed(table, table.noise_rate)
    x = np.vstack([POINTS, middle_of(schedules, space)])
    regret = table.regret(np.array([schedules.from_params(space.decode(u)).keep_rates for u in x]))
    return np.asarray(regret / np.minimum(regret, np.quantile(regret, 0.9)).std())


@cache
def learned(family: str) -> np.ndarray:
    """Return K - 1 points of which one is good on each table that does not share a family's data.

    Each one is what lowers most the mean regret of the best one so far, at first the suggested
    schedule.
    """
    others = [name for name in landscapes.names("tune") if family_of(name) != family]
    regret = np.array([regret_of_points(name) for name in others])
    lowest, chosen = regret[:, -1], []
    for _ in range(K - 1):
        chosen.append(int(np.minimum(regret[:, :-1], lowest[:, None]).mean(axis=0).argmin()))
        lowest = np.minimum(lowest, regret[:, chosen[-1]])
    return POINTS[chosen]


def family_of(name: str) -> str:
    """Return what the tables of the same data share: digits, synthetic, CIFAR, shells."""
    return name.replace("-", " ").split()[0]


def search(name: str, seed: int, beginning: Beginning) -> Searched:
    """Simulate a search. Its first trial is the suggested schedule."""
    table, number = landscapes.lookup(name), FIRST_SEED + seed
    rng = np.random.default_rng([number, 1])
    estimate = float(np.clip(table.noise_rate + ERROR * rng.normal(), 0.0, 0.9))
    schedules, space = informed(table, estimate)
    n_searched = len(space.names)
    uniform = np.random.default_rng([number, 2]).random((64, n_searched))
    if beginning.spread:
        cube = qmc.LatinHypercube(n_searched, rng=np.random.default_rng([number, 3]))
        uniform = np.concatenate([cube.random(K - 1), uniform])
    if beginning.learned:
        uniform = np.concatenate([learned(family_of(name)), uniform])
    first = middle_of(schedules, space)
    x: list[np.ndarray] = []
    rates: list[np.ndarray] = []
    losses: list[float] = []
    batches, skipped = list(beginning.batches), 0 if beginning.knows_first else 1
    theta = space.distribution.uniform_theta()
    model, generation, n_uniform, used = None, 0, 0, 0
    while len(losses) < BUDGETS[-1]:
        size = min(batches.pop(0) if batches else K, BUDGETS[-1] - len(losses))
        batch = [] if losses else [first]
        known = len(losses) - skipped
        if losses and known >= (used + K if model else beginning.startup):
            used, generation = known, generation + 1
            model = fit(space, np.array(x[skipped:]), np.array(losses[skipped:]))
            moves = np.random.default_rng([number, 4, generation])
            theta = surrogate_newton.update(theta, model, settings=resolve({}), rng=moves).theta
        while len(batch) < size:
            if model is None:
                batch.append(np.clip(uniform[n_uniform], 1e-9, 1 - 1e-9))
                n_uniform += 1
                continue
            batch.append(propose(
                theta, model, pending=np.array(batch).reshape(-1, n_searched),
                failed=np.empty((0, n_searched)), generation=generation,
                rng=np.random.default_rng([number, 5, len(losses) + len(batch)]),
            ))  # fmt: skip
        for point in batch:
            rates.append(schedules.from_params(space.decode(point)).keep_rates)
            losses.append(table.observe(rates[-1], rng))
        x += batch
    return Searched(space, np.array(x), np.array(rates), np.array(losses))


def run(job: runs.Job) -> dict[str, Any]:
    """Simulate one search; return the regret of each pick after each budget."""
    warnings.simplefilter("ignore")
    beginning, name, seed = BEGINNINGS[str(job[0])], str(job[1]), int(job[2])
    table = landscapes.lookup(name)
    searched = search(name, seed, beginning)
    regret = table.regret(searched.rates)
    found: dict[str, Any] = {
        "drawn": [float(regret[:n].min()) for n in BUDGETS],
        "last": [float(regret[max(0, n - K) : n].mean()) for n in BUDGETS],
    }
    known = [searched.first(n, table) for n in BUDGETS[1:]]
    for idea, pick in IDEAS.items():
        found[idea] = [float(table.regret(pick(one))[0]) for one in known]
    return {measure: [round(v, 3) for v in values] for measure, values in found.items()}


def report(results: runs.Results, n: int) -> None:
    """Print the regrets, and what they are above those of the first beginning."""
    names = landscapes.names("tune")

    def values(beginning: str, measure: str) -> list[np.ndarray]:
        keys = [[runs.key_of((beginning, name, s)) for s in range(n)] for name in names]
        rows = [[results[k][measure][-3:] for k in own if k in results] for own in keys]
        return [np.array(own) for own in rows if len(own) > 1]

    for beginning in BEGINNINGS:
        if not values(beginning, "mean"):
            continue
        print(f"\n{beginning}: regret after {BUDGETS[1:]} trainings; minus '{BEFORE}' "
              "[95 % interval]; picks minus its mean")  # fmt: skip
        for measure in (*MEASURES, *(idea for idea in IDEAS if idea != "mean")):
            before = values(BEFORE, measure if measure in MEASURES else "mean")
            line = f"  {measure:14}"
            for b in range(len(BUDGETS) - 1):
                own = [v[:, b] for v in values(beginning, measure)]
                gain = [v - w[: len(v), b] for v, w in zip(own, before, strict=True)]
                mean, low, high = runs.pooled(gain, scale=1.0)
                level = np.mean([v.mean() for v in own])
                line += f"{level:7.2f} ({mean:+.2f} [{low:+.2f}, {high:+.2f}])"
            print(line)


def main() -> None:
    """Simulate what is missing, report."""
    options = runs.parser(__doc__, seeds=20).parse_args()
    jobs: list[runs.Job] = [
        (beginning, name, seed)
        for beginning in BEGINNINGS
        for seed in range(options.seeds)
        for name in landscapes.names("tune")
    ]
    if not options.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    report(runs.read(RESULTS)["results"], options.seeds)


if __name__ == "__main__":
    main()
