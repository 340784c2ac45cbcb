"""What to pick when a search is over? Ideas for the mean of `recommend`.

Question:  the regret of the schedule that is picked after 12, 18, 24 and 60 trainings of S2E in
           the informed ranges, for each idea; and the same where the losses had no noise, or were
           the truth: what a better pick could gain at most.
Tasks:     simulated trials on the tables of studies/landscapes.py; searches and estimates of the
           noise rate as in studies/twelve_trainings.py. All ideas ran on the part "tune". Those
           that were ahead there (one only on its first twelve tasks), and what they are compared
           with, ran once on the part "report".
Measure:   regret, in points of test error above the lowest of the table; the same searches for
           all ideas.
Run:       python studies/picks.py --jobs 2 --seeds 10            (it resumes; --part report)
Read:      studies/results/picks.json, --report
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import landscapes
import numpy as np
import optuna
import runs
from scipy import linalg
from scipy.spatial.distance import cdist
from twelve_trainings import ERROR, FIRST_SEED, K

from optuna_s2e import S2ESampler, ScheduleSpace, surrogate

RESULTS = Path(__file__).parent / "results" / "picks.json"
BUDGETS = (12, 18, 24, 60)
AHEAD, DEFAULT = "mean, h=.3, towards the middle by s^2", "mean, h=.2"

Array = np.ndarray


@dataclass
class Searched:
    """What is known after a search.

    Attributes:
        rates: The trained schedules, (N, T).
        losses: Their losses, (N,).
        middle: The space's middle, (T,).
        lookup: The table, for what no search knows.
    """

    rates: Array
    losses: Array
    middle: Array
    lookup: landscapes.Lookup

    def __post_init__(self) -> None:
        self.z = landscapes.curves(self.rates)
        self.gp = surrogate.fit(self.z, self.losses)
        self.f, self.deviation = self.gp.predict(self.z)
        self.sigma = surrogate.clip_and_standardize(self.losses).deviation
        self.far = cdist(self.z, landscapes.curves(self.middle[None]))[:, 0]  # from the middle

    def mean(self, h: float, f: Array | None = None, scale: float | None = None) -> Array:
        """Return the mean with weights exp(-(f - min f) / (h scale))."""
        return self.weights(h, f, scale) @ self.rates

    def weights(self, h: float, f: Array | None = None, scale: float | None = None) -> Array:
        """Return these weights."""
        f = self.f if f is None else f
        w = np.exp(-(f - f.min()) / (h * (scale or self.sigma)))
        return np.asarray(w / w.sum())

    def towards(self, share: float, mean: Array) -> Array:
        """Return a mean with a share of the middle."""
        return (1 - share) * mean + share * self.middle

    @cached_property
    def is_best(self) -> Array:
        """Probability of each trained schedule to be the best one, (N,)."""
        s = self.gp.noise_share
        r = np.sqrt(5.0) * cdist(self.z, self.z) / self.gp.length_scale
        k = (1 - s) * (1 + r + r**2 / 3) * np.exp(-r)
        left = k - k @ linalg.solve(k + s * np.eye(len(k)), k, assume_a="pos")
        values, vectors = linalg.eigh(left)
        root = vectors * np.sqrt(np.maximum(values, 0)) * self.gp.noise_deviation / np.sqrt(s)
        rng = np.random.default_rng(0)
        drawn = self.f + rng.normal(size=(2000, len(k))) @ root.T
        return np.bincount(drawn.argmin(axis=1), minlength=len(k)) / len(drawn)

    def explained(self) -> float:
        """Return which share of the spread of f is seen."""
        seen = self.f.var()
        return float(seen / (seen + np.mean(self.deviation**2)))

    def near(self, length: float) -> Array:
        """Return the mean with weights that fall with the distance from the middle."""
        w = self.weights(0.2) * np.exp(-0.5 * (self.far / length) ** 2)
        return np.asarray(w @ self.rates / w.sum())

    def expected_best(self) -> Array:
        """Return the lowest by the model's own expectation of several means and the middle."""
        several = [self.rates[np.argmin(self.f)], self.middle]
        several += [self.mean(h) for h in (0.1, 0.2, 0.4, 0.8)]
        several += [self.towards(0.5, rates) for rates in several]
        return several[int(np.argmin(self.gp.mean(landscapes.curves(np.array(several)))))]

    def prior_mean(self, rise: float, length: float) -> Array:
        """Return the mean by a model whose prior rises with the distance from the middle."""
        prior = rise * self.sigma * np.minimum((self.far / length) ** 2, 9.0)
        return self.mean(0.2, surrogate.fit(self.z, self.losses - prior).mean(self.z) + prior)


IDEAS: dict[str, Callable[[Searched], Array]] = {
    "best": lambda s: s.rates[np.argmin(s.losses)],
    "smoothed": lambda s: s.rates[np.argmin(s.f)],
    "middle (no search)": lambda s: s.middle,
    "mean, h=.1": lambda s: s.mean(0.1),
    DEFAULT: lambda s: s.mean(0.2),
    "mean, h=.3": lambda s: s.mean(0.3),
    "mean, h=.5": lambda s: s.mean(0.5),
    "h=.2 of the sd of f": lambda s: s.mean(0.2, scale=float(s.f.std()) or 1.0),
    "h=.3 of the sd of f": lambda s: s.mean(0.3, scale=float(s.f.std()) or 1.0),
    "h=.8 of the sd of the noise": lambda s: s.mean(0.8, scale=s.gp.noise_deviation),
    "probability to be the best": lambda s: s.is_best @ s.rates,
    "weights fall from the middle, .2": lambda s: s.near(0.2),
    "weights fall from the middle, .3": lambda s: s.near(0.3),
    "h=.2, 15 % the middle": lambda s: s.towards(0.15, s.mean(0.2)),
    "h=.2, 30 % the middle": lambda s: s.towards(0.3, s.mean(0.2)),
    "h=.2, middle like 3 trials": lambda s: s.towards(3 / (3 + len(s.f)), s.mean(0.2)),
    "h=.3, middle by what is unexplained": lambda s: s.towards(1 - s.explained(), s.mean(0.3)),
    "mean, h=.2, towards the middle by s^2": lambda s: s.towards(s.gp.noise_share**2, s.mean(0.2)),
    AHEAD: lambda s: s.towards(s.gp.noise_share**2, s.mean(0.3)),
    "mean, h=.3, towards the middle by s": lambda s: s.towards(s.gp.noise_share, s.mean(0.3)),
    "what the model expects least of": lambda s: s.expected_best(),
    "prior mean rises from the middle": lambda s: s.prior_mean(0.5, 0.25),
    "(no noise in the losses, h=.2)": lambda s: s.mean(0.2, s.lookup.smoothed(s.rates)),
    "(losses are the truth, h=.2)": lambda s: s.mean(0.2, s.lookup.regret(s.rates) / 100),
    "(the best that was drawn)": lambda s: s.rates[np.argmin(s.lookup.regret(s.rates))],
}
NO_NOISE, TRUTH, DRAWN = list(IDEAS)[-3:]
SOFTER = ("mean, h=.3", "mean, h=.5")
REPORTED = (
    "best", "smoothed", "middle (no search)", DEFAULT, *SOFTER, AHEAD, NO_NOISE, TRUTH, DRAWN
)  # fmt: skip


def search(name: str, seed: int) -> tuple[Array, Array, Array]:
    """Simulate a search of 60; return its schedules, their losses and the space's middle."""
    table, number = landscapes.lookup(name), FIRST_SEED + seed
    rng = np.random.default_rng([number, 1])
    estimate = float(np.clip(table.noise_rate + ERROR * rng.normal(), 0.0, 0.9))
    space = ScheduleSpace(table.task.n_epochs, noise_rate=estimate)
    study = optuna.create_study(sampler=S2ESampler(seed=number))
    rates: list[Array] = []
    batches = [1, K - 1] + [K] * (BUDGETS[-1] // K - 1)  # the first trial alone is the middle
    for n in batches:
        trials = [study.ask() for _ in range(n)]
        batch = [space.suggest(trial).keep_rates for trial in trials]
        for trial, r in zip(trials, batch, strict=True):
            study.tell(trial, table.observe(r, rng))
        rates += batch
    middle = space.middle
    assert middle is not None
    return np.array(rates), np.array([t.value for t in study.trials]), middle.keep_rates


def run(job: runs.Job) -> dict[str, Any]:
    """Simulate one search; return the regret of each idea after each budget."""
    warnings.simplefilter("ignore")
    name, seed = str(job[0]), int(job[1])
    table = landscapes.lookup(name)
    rates, losses, middle = search(name, seed)
    ideas = IDEAS if table.task.part == "tune" else {idea: IDEAS[idea] for idea in REPORTED}
    found: dict[str, Any] = {idea: [] for idea in ideas}
    for n in BUDGETS:
        searched = Searched(rates[:n], losses[:n], middle, table)
        picks = np.array([pick(searched) for pick in ideas.values()])
        for idea, regret in zip(ideas, table.regret(picks), strict=True):
            found[idea].append(round(float(regret), 3))
        found.setdefault("noise share", []).append(round(searched.gp.noise_share, 3))
    return found


def report(results: runs.Results, part: str, n: int) -> None:
    """Print the regret of each idea, and where the model sees little."""
    names = landscapes.names(part)
    keys = [[runs.key_of((name, s)) for s in range(n)] for name in names]
    rows = [[results[k] for k in own if k in results] for own in keys]
    rows = [own for own in rows if len(own) > 1]
    if not rows:
        return
    share = [np.array([r["noise share"] for r in own]) for own in rows]
    flat = np.concatenate([s.ravel() for s in share]) >= 0.7
    print(f"\n{part}: {len(rows)} tasks, {min(map(len, rows))} searches each; regret in points;"
          f"\nlast column: where s >= .7 ({flat.sum()} of {len(flat)})"
          f"\n{'':38}" + "".join(f"{b:>7}" for b in BUDGETS)
          + f"   minus '{DEFAULT}', all budgets   s >= .7")  # fmt: skip
    before = [np.array([r[DEFAULT] for r in own]) for own in rows]
    for idea in IDEAS if part == "tune" else REPORTED:
        regrets = [np.array([r[idea] for r in own]) for own in rows]
        means = np.mean([r.mean(axis=0) for r in regrets], axis=0)
        gain = [(a - b).mean(axis=1) for a, b in zip(regrets, before, strict=True)]
        mean, low, high = runs.pooled(gain, scale=1.0)
        line = "".join(f"{m:7.2f}" for m in means) + f"   {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        where = np.concatenate([r.ravel() for r in regrets])[flat].mean() if flat.any() else np.nan
        print(f"{idea:38}{line}{where:16.2f}")


def main() -> None:
    """Simulate what is missing, report."""
    parser = runs.parser(__doc__, seeds=10)
    parser.add_argument("--part", default="tune", choices=["tune", "report"])
    options = parser.parse_args()
    names = landscapes.names(options.part)
    jobs: list[runs.Job] = [(name, seed) for seed in range(options.seeds) for name in names]
    if not options.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    for part in ("tune", "report"):
        report(runs.read(RESULTS)["results"], part, options.seeds)


if __name__ == "__main__":
    main()
