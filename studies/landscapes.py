"""Tables of really trained schedules, for what needs thousands of searches.

Question:  where do the good schedules lie, given the share of wrong labels? And, by simulated
           searches on these tables: which sampler, which space and which pick of `recommend`
           need how many trainings?
Tasks:     `TASKS`: part "tune" may be looked at, while part "report" (other data sets) is for
           the final tables only.
Tables:    of each task 256 schedules, half from Eq 1's ranges and half from ranges around the
           noise rate, are trained twice: one training gives the validation error, another one,
           with another seed, the test error. Both are smoothed over R(t) by the package's model.
           A trial of a simulated search returns the smoothed validation error plus the residual
           of one of the 8 nearest trained schedules (root mean square of R(t)), so its noise is
           real. Truth is the smoothed test error.
Run:       python studies/landscapes.py --jobs 2                            (it resumes)
Read:      studies/results/landscapes.json, --report
"""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import runs
import tasks
from optuna.distributions import FloatDistribution
from scipy.spatial.distance import cdist
from scipy.stats import qmc
from sklearn import datasets

from optuna_s2e import ScheduleSpace, surrogate
from optuna_s2e.coteaching import fixed_schedules, last_epochs_mean, train_batch
from optuna_s2e.surrogate import N_POINTS

RESULTS = Path(__file__).parent / "results" / "landscapes.json"
N_TABLE, N_NEAR, FIRST_SEED, GROUP = 256, 8, 9000, 32

Array = np.ndarray


def _synthetic(n_classes: int, seed: int) -> Any:
    return lambda: tasks.synthetic(n_classes, seed)


def _halves() -> tasks.Arrays:
    x, y = tasks.digits()
    return x, (y >= 5).astype(int)


def _shells() -> tasks.Arrays:
    """3,000 points of 10 numbers; the classes are shells around each other."""
    return datasets.make_gaussian_quantiles(  # type: ignore[no-any-return]
        n_samples=3000, n_features=10, n_classes=3, random_state=31
    )


def _animals() -> tasks.Arrays:
    return tasks.images("cifar10", 6000, classes=6, first=4)


def _four() -> tasks.Arrays:
    return tasks.images("cifar10", 6000, classes=4)


def _mnist() -> tasks.Arrays:
    return tasks.images("mnist", 8000)


Task = tasks.Task
TASKS: dict[str, Task] = {
    "digits sym-50": Task("tune", tasks.digits, "symmetric", 0.5, 700, 500, 1e-2, 40),
    "digits pair-45": Task("tune", tasks.digits, "pair", 0.45, 700, 500, 1e-2, 40),
    "digits sym-20 long": Task(
        "tune", tasks.digits, "symmetric", 0.2, 700, 500, 3e-3, 100, network=tasks.mlp256
    ),
    "digits class-dep-35 long": Task(
        "tune", tasks.digits, "class-dependent", 0.35, 700, 500, 5e-3, 200
    ),
    "digits pair-30 deep": Task(
        "tune", tasks.digits, "pair", 0.3, 700, 500, 3e-3, 60, network=tasks.deep_mlp
    ),
    "synthetic-8 pair-40": Task("tune", _synthetic(8, 0), "pair", 0.4, 1500, 1000, 5e-3, 40),
    "synthetic-4 class-dep-40": Task(
        "tune", _synthetic(4, 21), "class-dependent", 0.4, 1200, 1000, 5e-3, 60
    ),
    "synthetic-10 sym-60 short": Task(
        "tune", _synthetic(10, 22), "symmetric", 0.6, 2000, 1000, 1e-2, 20, network=tasks.mlp256
    ),
    "synthetic-3 sym-10": Task(
        "tune", _synthetic(3, 23), "symmetric", 0.1, 1000, 1000, 5e-3, 60, network=tasks.deep_mlp
    ),
    "synthetic-6 sym-30": Task("tune", _synthetic(6, 24), "symmetric", 0.3, 1200, 1000, 3e-3, 50),
    "CIFAR-10 8x8, 6 classes, pair-35": Task(
        "tune", _animals, "pair", 0.35, 1500, 1000, 3e-3, 40, True
    ),
    "CIFAR-10 8x8, 6 classes, sym-45": Task(
        "tune", _animals, "symmetric", 0.45, 1500, 1000, 3e-3, 30, True, tasks.deep_mlp
    ),
    "digits 0-4 or 5-9 sym-35": Task("tune", _halves, "symmetric", 0.35, 400, 500, 1e-2, 40),
    "synthetic-2 sym-30": Task("tune", _synthetic(2, 25), "symmetric", 0.3, 400, 1000, 5e-3, 40),
    "shells-3 pair-25": Task("tune", _shells, "pair", 0.25, 800, 1000, 5e-3, 30),
    **{name: task for name, task in tasks.TASKS.items() if task.part == "report"},
    "MNIST 7x7 class-dep-35": Task(
        "report", _mnist, "class-dependent", 0.35, 1500, 1000, 5e-3, 40, True, tasks.deep_mlp
    ),
    "CIFAR-10 8x8, 4 classes, pair-30": Task(
        "report", _four, "pair", 0.3, 1000, 1000, 3e-3, 60, True, tasks.mlp256
    ),
    "synthetic-7 sym-20": Task(
        "report", _synthetic(7, 78), "symmetric", 0.2, 1500, 1000, 3e-3, 80
    ),
}


def drawn_params(task: Task) -> dict[str, Array]:
    """Return the parameters of a table's schedules by name, (N_TABLE,) each.

    The first half is from Eq 1's ranges: tau in [0, .95], t_k in [1, T], c in [1/4, 4]. The other
    half has tau in [.4, 3] times the noise rate (log), t_k in [T / 20, T].
    """
    u = qmc.Sobol(3, rng=np.random.default_rng(FIRST_SEED)).random(N_TABLE)
    wide, near = np.split(u, 2)
    n_epochs = task.n_epochs
    tau = np.concatenate([
        0.95 * wide[:, 0],
        np.minimum(0.95, 0.4 * task.noise_rate * 7.5 ** near[:, 0]),
    ])  # fmt: skip
    tk = np.concatenate([
        1.0 + (n_epochs - 1.0) * wide[:, 1],
        n_epochs * (0.05 + 0.95 * near[:, 1]),
    ])  # fmt: skip
    c = 0.25 * 16.0 ** np.concatenate([wide[:, 2], near[:, 2]])
    return {"R.tau": tau, "R.tk": np.maximum(tk, 1.0), "R.c": c}


def drawn(task: Task) -> Array:
    """Return the schedules of a table, (N_TABLE, T); the last one is Standard's."""
    params = drawn_params(task)
    params["R.tau"][-1] = 0.0
    return ScheduleSpace(task.n_epochs).curves(params, task.n_epochs)


def curves(keep_rates: Array) -> Array:
    """Return schedules (N, T) on a grid, in which distance is the root mean square."""
    n_epochs = keep_rates.shape[1]
    at, t = np.linspace(0.0, n_epochs - 1.0, N_POINTS), np.arange(n_epochs)
    return np.array([np.interp(at, t, row) for row in keep_rates]) / np.sqrt(N_POINTS)


def train(job: runs.Job) -> dict[str, Any]:
    """Train the schedules of a table on the validation part, and again for the test part."""
    task = TASKS[str(job[0])]
    data, rates = task.data(FIRST_SEED), drawn(task)
    found: dict[str, Any] = {}
    for number, part in enumerate(("validation", "test")):
        errors = []
        for first in range(0, N_TABLE, GROUP):
            rows = range(first, first + GROUP)
            results = train_batch(
                rates[rows], [number * N_TABLE + i for i in rows], data=data,
                network=task.network, config=task.config, device="cpu", evaluate_on=part,
            )  # fmt: skip
            errors += [round(last_epochs_mean(r.curves.error), 4) for r in results]
        found[part] = errors
    assert data.clean_labels is not None
    found["noise_rate"] = round(float((data.noisy_labels != data.clean_labels).double().mean()), 4)
    return found


class Lookup:
    """A task as a table of trained outcomes.

    Attributes:
        task: The task.
        noise_rate: The share of wrong labels.
        keep_rates: The trained schedules, (N, T).
        validation: The validation error of each, (N,).
        truth: The smoothed test error of each, (N,).
    """

    def __init__(self, name: str, table: dict[str, Any]) -> None:
        self.name, self.task = name, TASKS[name]
        self.noise_rate = float(table["noise_rate"])
        self.keep_rates = drawn(self.task)
        self._curves = curves(self.keep_rates)
        self.validation = np.array(table["validation"])
        self.test = np.array(table["test"])

    @cached_property
    def _test(self) -> surrogate.GaussianProcess:
        return surrogate.fit(self._curves, self.test)

    @cached_property
    def _validation(self) -> surrogate.GaussianProcess:
        return surrogate.fit(self._curves, self.validation)

    @cached_property
    def _residuals(self) -> Array:
        return self.validation - self._validation.mean(self._curves)

    @cached_property
    def truth(self) -> Array:
        """The smoothed test error of the trained schedules, (N,)."""
        return self._test.mean(self._curves)

    @cached_property
    def deviations(self) -> Array:
        """Standard deviation of what is open about the truth of these schedules, (N,)."""
        return self._test.predict(self._curves)[1]

    @cached_property
    def lowest(self) -> float:
        """The lowest smoothed test error."""
        return float(self.truth.min())

    def observe(self, keep_rates: Array, rng: np.random.Generator) -> float:
        """Return a validation error: the smoothed one, and a residual of a near schedule."""
        return float(self.observe_all(np.atleast_2d(keep_rates), rng)[0])

    def observe_all(self, keep_rates: Array, rng: np.random.Generator) -> Array:
        """Return a validation error of each of several schedules (N, T), (N,)."""
        z = curves(keep_rates)
        near = np.argsort(cdist(z, self._curves), axis=1)[:, :N_NEAR]
        chosen = near[np.arange(len(z)), rng.integers(N_NEAR, size=len(z))]
        return np.clip(self._validation.mean(z) + self._residuals[chosen], 0.0, 1.0)

    def smoothed(self, keep_rates: Array) -> Array:
        """Return the smoothed validation error of schedules (N, T), (N,)."""
        return self._validation.mean(curves(keep_rates))

    def regret(self, keep_rates: Array) -> Array:
        """Return the truth of schedules (N, T) above the lowest, in points of error, (N,)."""
        return 100.0 * (self._test.mean(curves(np.atleast_2d(keep_rates))) - self.lowest)


@cache
def lookup(name: str) -> Lookup:
    """Read a lookup from the results."""
    return Lookup(name, runs.read(RESULTS)["results"][name])


def names(part: str) -> list[str]:
    """Return the tasks of a part that are trained already."""
    trained = runs.read(RESULTS)["results"]
    return [name for name, task in TASKS.items() if task.part == part and name in trained]


def report() -> None:
    """Print what needs no search, and what the best schedules of each table have in common."""
    print("| task | part | T | wrong, % | least error | in the ranges | by validation | "
          "Standard | Co-teaching | suggested | of the best 20: tau / rate | t_k / T | c |"
          "\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---|---|")  # fmt: skip
    for name in [*names("tune"), *names("report")]:
        table, n_epochs = lookup(name), TASKS[name].n_epochs
        fixed = fixed_schedules(n_epochs, table.noise_rate)
        params = drawn_params(table.task)
        inside = np.full(N_TABLE, True)
        space = ScheduleSpace(n_epochs, noise_rate=table.noise_rate)
        for parameter, d in space.distributions.items():
            if isinstance(d, FloatDistribution):
                inside &= (params[parameter] >= d.low) & (params[parameter] <= d.high)
        errors = [
            100 * table.truth[inside].min(),
            100 * table.truth[np.argmin(table.smoothed(table.keep_rates))],
        ]
        errors += [
            100 * table.lowest + table.regret(fixed[method].keep_rates)[0]
            for method in ("standard", "coteaching", "suggested")
        ]
        best = np.argsort(table.truth)[:20]
        spread = [
            " .. ".join(f"{q:.2f}" for q in np.quantile(v[best], [0.1, 0.5, 0.9]))
            for v in (
                params["R.tau"] / table.noise_rate, params["R.tk"] / n_epochs, params["R.c"],
            )
        ]  # fmt: skip
        cells = " | ".join(f"{error:.1f}" for error in (100 * table.lowest, *errors))
        print(f"| {name} | {table.task.part} | {n_epochs} | {100 * table.noise_rate:.0f} | "
              f"{cells} | " + " | ".join(spread) + " |")  # fmt: skip


def main() -> None:
    """Train the tables, report."""
    options = runs.parser(__doc__, seeds=1).parse_args()
    jobs: list[runs.Job] = [(name,) for name, task in TASKS.items() if task.available]
    if not options.report:
        runs.run_missing(RESULTS, jobs, train, n_processes=options.jobs, minutes=options.minutes)
    report()


if __name__ == "__main__":
    main()
