"""Which space should schedules be searched in? The paper's, Co-teaching's, and others.

Question:  what does a space cost or gain, whatever searches it; does the choice of the basis
           functions of Table 1 matter; does Eq 4 contain Co-teaching's Eq 1?
Spaces:    studies/spaces.py: Eq 1 (the package's default) and with exponent 1, Table 1 (the
           paper's), each basis of it alone and left out, RBF, MLP, a simplex of four durations,
           Kumaraswamy's distribution.
Tasks:     below; not those of studies/tasks.py. Short (30 epochs) and long (200) trainings of an
           MLP, short ones of a convolutional network.
Protocol:  per space, task and seed 60 uniform draws, each trained once; the pick is the draw of
           lowest validation error (last 10 % of the epochs) smoothed over R(t), as `recommend`
           does it; the same among each 12 of the 60. The seed decides wrong labels, split and
           draws. Nothing in the protocol knows which space it is in.
Measure:   test error of the picks in trainings with fresh seeds (3 for the pick of 60, 1 for each
           of the five picks of 12), because a pick is also a lucky seed. Fresh seeds are the same
           for all spaces, so that differences from Eq 1 are paired by task and seed.
Fits:      distance of the nearest schedule of a space from Eq 1 over a grid of (tau, t_k, c).
Run:       python studies/search_spaces.py --jobs 2 --minutes 8              (it resumes)
Read:      studies/results/search_spaces.json, docs/images/search-spaces.png, --report
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import runs
import tasks
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from spaces import SPACES, Array, fit, smoothed_pick
from torch import nn

from optuna_s2e.coteaching import (
    NoisyData,
    TrainingConfig,
    fixed_schedules,
    last_epochs_mean,
    train_batch,
)
from optuna_s2e.schedules import coteaching_schedule

RESULTS = Path(__file__).parent / "results" / "search_spaces.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "search-spaces.png"
N_TRIALS, N_FEW, N_FRESH = 60, 12, 3
FIRST_SEED, FRESH, CHEAP = 3000, 1_000_000, 2
REFERENCE = "Eq 1 (default)"
FIXED = ("standard", "coteaching")


def conv(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """A convolution of 6 filters, a hidden layer of 32."""
    channels, height, width = input_shape
    n_features = 6 * ((height - 2) // 2) * ((width - 2) // 2)
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(n_features, 32), nn.ReLU(), nn.Linear(32, n_classes)),
    )


@dataclass(frozen=True)
class Case:
    """A task and a network: an MLP on vectors, or a convolutional one on images."""

    task: tasks.Task
    image: tuple[int, ...] | None = None

    @property
    def group(self) -> str:
        """Which table it belongs to."""
        kind = "MLP" if self.image is None else "CNN"
        return f"{kind}, {self.task.n_epochs} epochs"

    def n_seeds(self, n: int) -> int:
        """How many seeds it gets: short trainings of an MLP cost a fifth of the others."""
        return CHEAP * n if self.group == "MLP, 30 epochs" else n

    @property
    def config(self) -> TrainingConfig:
        """Mini-batches of 128."""
        return TrainingConfig(batch_size=128, learning_rate=self.task.learning_rate)

    def data(self, seed: int) -> NoisyData:
        """Draw wrong labels and a split."""
        data = self.task.data(seed)
        if self.image is None:
            return data
        names = ("x", "x_val", "x_test")
        return replace(data, **{n: getattr(data, n).view(-1, *self.image) for n in names})

    def train(self, rates: Array, seeds: Sequence[int], data: NoisyData, on: str) -> Array:
        """Train schedules (N, T); return error, mean of the last 10 % of the epochs (N,)."""
        results = train_batch(
            rates, seeds, data=data, network=tasks.mlp64 if self.image is None else conv,
            config=self.config, device="cpu", evaluate_on=on, backend="fused",
            fused_width=8,
        )  # fmt: skip
        return np.array([last_epochs_mean(result.curves.error) for result in results])


def _task(source: Any, noise: str, rate: float, n: int, lr: float, epochs: int = 30) -> tasks.Task:
    images = isinstance(source, partial) and source.func is tasks.images
    return tasks.Task("report", source, noise, rate, n, 500, lr, epochs, images)


_mnist = partial(tasks.images, "mnist", 2700)
_cifar = partial(tasks.images, "cifar10", 2700, 3)
_synthetic6 = partial(tasks.synthetic, 6, 31)

CASES: dict[str, Case] = {
    "synthetic-6 pair-40": Case(_task(_synthetic6, "pair", 0.4, 1024, 1e-2)),
    "MNIST 7x7 sym-50": Case(_task(_mnist, "symmetric", 0.5, 1024, 1e-2)),
    "digits sym-20": Case(_task(tasks.digits, "symmetric", 0.2, 700, 2e-2)),
    "CIFAR-10 8x8, 3 classes, pair-40": Case(_task(_cifar, "pair", 0.4, 1024, 1e-2)),
    "digits pair-35, long": Case(_task(tasks.digits, "pair", 0.35, 512, 2e-3, 200)),
    "MNIST 7x7 pair-35, CNN": Case(_task(_mnist, "pair", 0.35, 512, 1e-2), (1, 7, 7)),
    "CIFAR-10 8x8, 3 classes, sym-40, CNN": Case(
        _task(_cifar, "symmetric", 0.4, 512, 1e-2), (3, 8, 8)
    ),
    "synthetic-6 sym-50, long": Case(_task(_synthetic6, "symmetric", 0.5, 512, 2e-3, 200)),
}


def search(case: Case, space: str, number: int) -> dict[str, Any]:
    """Train the draws of a space on a task, pick, retrain the picks on the test part."""
    seed = FIRST_SEED + number
    data = case.data(seed)
    fresh = range(FRESH * seed, FRESH * seed + N_FRESH)
    if space in FIXED:
        fixed = fixed_schedules(case.task.n_epochs, case.task.noise_rate)[space].keep_rates
        error = case.train(np.tile(fixed, (N_FRESH, 1)), fresh, data, "test")
        return {"test": [round(float(error.mean()), 5)] * 2}
    rng = np.random.default_rng([seed, *space.encode()])
    u = rng.uniform(size=(N_TRIALS, SPACES[space].n))
    rates = SPACES[space].keep_rates(u, case.task.n_epochs)
    found = case.train(rates, range(N_TRIALS * seed, N_TRIALS * (seed + 1)), data, "validation")
    best = smoothed_pick(rates, found)
    parts = np.arange(N_TRIALS).reshape(-1, N_FEW)
    few = [int(part[smoothed_pick(rates[part], found[part])]) for part in parts]
    chosen = [best] * N_FRESH + few
    seeds = [*fresh, *range(FRESH * seed, FRESH * seed + len(few))]
    error = case.train(rates[chosen], seeds, data, "test")
    means = [float(error[:N_FRESH].mean()), float(error[N_FRESH:].mean())]
    return {
        "test": [round(mean, 5) for mean in means],  # of the pick of 60; mean of the picks of 12
        "validation": np.round(found, 4).tolist(),
        "pick": np.round(rates[best], 3).tolist(),
    }


TAUS, EXPONENTS = (0.2, 0.5, 0.8), (0.5, 1.0, 2.0, 4.0)
TKS = {30: (5, 10, 30), 200: (10, 50, 200)}


def fits(space: str, n_epochs: int) -> list[list[float]]:
    """Return [tau, t_k, c, root mean square, largest distance] of the fits to Eq 1."""
    rows = []
    for tau, tk, c in product(TAUS, TKS[n_epochs], EXPONENTS):
        target = coteaching_schedule(n_epochs, tau, tk, c).keep_rates
        found = fit(SPACES[space], target)
        rows.append([tau, tk, c, round(found.rms, 5), round(found.largest, 5)])
    return rows


def run(job: runs.Job) -> Any:
    """Do one search, or the fits of one space."""
    what, space, number = str(job[0]), str(job[1]), int(job[2])
    return fits(space, number) if what == "fit" else search(CASES[what], space, number)


# Report


def errors_of(results: runs.Results, case: str, n: int) -> dict[str, Array]:
    """Return test errors on a task by space, (n seeds, 2): seeds, else spaces, that are whole."""
    names = [*SPACES, *FIXED]
    found = {
        seed: {x for x in names if runs.key_of((case, x, seed)) in results}
        for seed in range(CASES[case].n_seeds(n))
    }
    seeds = [s for s, present in found.items() if len(present) == len(names)]
    if not seeds and REFERENCE in found[0]:
        seeds, names = [0], [x for x in names if x in found[0]]
    return {
        x: np.array([results[runs.key_of((case, x, s))]["test"] for s in seeds])
        for x in names if seeds
    }  # fmt: skip


def differences(tables: dict[str, dict[str, Array]], space: str, column: int) -> list[Array]:
    """Return per task the differences from Eq 1, one per seed."""
    return [table[space][:, column] - table[REFERENCE][:, column] for table in tables.values()]


def complete(tables: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    """Return the tables of the tasks that all spaces were tried on."""
    return {n: table for n, table in tables.items() if len(table) == len(SPACES) + len(FIXED)}


def groups(tables: dict[str, dict[str, Array]]) -> dict[str, dict[str, dict[str, Array]]]:
    """Return the tables of all tasks, and of each kind."""
    kinds = dict.fromkeys(CASES[name].group for name in tables)
    return {"all tasks": tables} | {
        kind: {n: t for n, t in tables.items() if CASES[n].group == kind} for kind in kinds
    }


def report(tables: dict[str, dict[str, Array]]) -> None:
    """Print test errors per task and comparisons with Eq 1."""
    names = [*SPACES, *FIXED]
    for name, table in tables.items():
        print(f"\n{name} ({CASES[name].group}): test error of the pick in %, mean (s.e.), "
              f"{len(table[REFERENCE])} seed(s)\n"
              f"{'':18}{'pick of 60':>16}{'pick of 12':>16}")  # fmt: skip
        for space in table:
            errors = [table[space][:, i] for i in (0, 1)]
            cells = [runs.mean_and_error(e) if len(e) > 1 else f"{100 * e[0]:.2f}" for e in errors]
            print(f"{space:18}{cells[0]:>16}{cells[1]:>16}")
    for kind, of_kind in groups(complete(tables)).items():
        if not of_kind:
            continue
        print(f"\nMinus Eq 1, {kind}: points of test error [95 % interval]; worst task: points "
              f"above its best space\n{'':18}{'pick of 60':>24}{'pick of 12':>24}"
              f"{'worst task (60)':>17}{'better on':>11}")  # fmt: skip
        for space in names:
            pooled = [runs.over_tasks(differences(of_kind, space, i)) for i in (0, 1)]
            cells = [f"{m:+.2f}" + f" [{low:+.2f}, {high:+.2f}]" * (len(of_kind) > 2)
                     for m, low, high in pooled]  # fmt: skip
            means = np.array([
                [table[x][:, 0].mean() for x in (space, REFERENCE)] +
                [min(table[x][:, 0].mean() for x in SPACES)] for table in of_kind.values()
            ])  # fmt: skip
            worst = 100 * (means[:, 0] - means[:, 2]).max()
            wins = f"{np.sum(means[:, 0] < means[:, 1])} of {len(means)}"
            print(f"{space:18}{cells[0]:>24}{cells[1]:>24}{worst:>17.1f}{wins:>11}")


def report_fits(results: runs.Results) -> None:
    """Print how near each space comes to Eq 1, and Table 1 in detail."""
    print("\nFits to Eq 1 over the grid: mean and largest root mean square, mean and largest "
          "distance at an epoch")  # fmt: skip
    for space in SPACES:
        cells = []
        for n_epochs in TKS:
            rows = results.get(runs.key_of(("fit", space, n_epochs)))
            if rows is not None:
                v = np.array(rows)[:, 3:]
                cells.append(f"T={n_epochs}: {v[:, 0].mean():.3f} {v[:, 0].max():.3f}  "
                             f"{v[:, 1].mean():.3f} {v[:, 1].max():.3f}")  # fmt: skip
        print(f"{space:18}" + "    ".join(cells))
    for n_epochs in TKS:
        rows = results.get(runs.key_of(("fit", "Table 1", n_epochs)), [])
        print(f"\nEq 4 fitted to Eq 1, T = {n_epochs}: root mean square / largest distance")
        print(f"{'tau, t_k':12}" + "".join(f"{f'c = {c:g}':>16}" for c in EXPONENTS))
        for i in range(0, len(rows), len(EXPONENTS)):
            cells = [f"{row[3]:.3f} / {row[4]:.3f}" for row in rows[i : i + len(EXPONENTS)]]
            print(f"{f'{rows[i][0]:g}, {rows[i][1]:g}':12}" + "".join(f"{c:>16}" for c in cells))


def picture(tables: dict[str, dict[str, Array]]) -> Figure:
    """Draw the differences from Eq 1, over tasks and of each, and Eq 1 with its nearest Eq 4."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    both, each, curves = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
    names = [space for space in SPACES if space != REFERENCE]
    at = -np.arange(len(names), dtype=float)
    for column, n_trials in enumerate((N_TRIALS, N_FEW)):
        rows = np.array([runs.over_tasks(differences(tables, s, column)) for s in names])
        mean, low, high = rows.T
        both.errorbar(mean, at + 0.12 - 0.24 * column, xerr=[mean - low, high - mean], fmt="o",
                      ms=4, capsize=2, label=f"pick of {n_trials}")  # fmt: skip
    for j, (kind, of_kind) in enumerate(list(groups(tables).items())[1:]):
        points = 100 * np.array(
            [[d.mean() for d in differences(of_kind, s, 0)] for s in names]
        )  # (spaces, tasks)
        each.plot(points, at + 0.2 - 0.2 * j, "o", color=f"C{j + 2}", ms=4)
        each.plot([], [], "o", color=f"C{j + 2}", label=kind)
    for axis in (both, each):
        axis.axvline(0.0, color="black", lw=0.8)
        axis.set(yticks=at, xlabel="points of test error above Eq 1's pick")
        axis.legend(fontsize=8)
    both.set_yticklabels(names)
    each.set_yticklabels([])
    both.set_title(f"mean of {len(tables)} tasks, 95 % interval")
    each.set_title(f"each task, pick of {N_TRIALS}")
    for color, (tau, tk, c) in zip(
        ("tab:blue", "tab:orange", "tab:green"), ((0.5, 10, 1), (0.5, 50, 2), (0.8, 200, 4)),
        strict=True,
    ):  # fmt: skip
        target = coteaching_schedule(200, tau, tk, c).keep_rates
        nearest = SPACES["Table 1"].keep_rates(fit(SPACES["Table 1"], target).u[None], 200)[0]
        curves.plot(target, color=color, label=f"tau {tau:g}, t_k {tk:g}, c {c:g}")
        curves.plot(nearest, "--", color=color)
    curves.set(xlabel="epoch", ylabel="R(t)", ylim=(0, 1.05))
    curves.set_title("Eq 1 and the nearest Eq 4 (dashed)")
    curves.legend(fontsize=8)
    return figure


def main() -> None:
    """Run what is missing, print the tables, draw the picture."""
    parser = runs.parser(__doc__, seeds=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
                        help=f"run only these: {', '.join(CASES)}")  # fmt: skip
    args = parser.parse_args()
    jobs: list[runs.Job] = [("fit", space, n_epochs) for space in SPACES for n_epochs in TKS]
    jobs += [
        (name, space, seed)
        for seed in range(CHEAP * args.seeds)
        for name, case in CASES.items()
        for space in (*SPACES, *FIXED)
        if name in args.cases and case.task.available and seed < case.n_seeds(args.seeds)
    ]
    if not args.report:
        skipped = [name for name, case in CASES.items() if not case.task.available]
        if skipped:
            print(f"S2E_DATA_ROOT is not set, nothing to train on for: {', '.join(skipped)}")
        runs.run_missing(RESULTS, jobs, run, n_processes=args.jobs, minutes=args.minutes)
    results = runs.read(RESULTS)["results"]
    found = {name: errors_of(results, name, args.seeds) for name in CASES}
    tables = {name: table for name, table in found.items() if table}
    report(tables)
    report_fits(results)
    if len(complete(tables)) > 1:
        picture(complete(tables)).savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
