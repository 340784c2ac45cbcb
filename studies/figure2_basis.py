"""The basis functions of Table 1, the schedules of Eq 4, and how near these come to others.

Reproduces: the figure of the paper that shows what its space holds: each basis function falls and
            may rise again, and their convex combination follows the schedules in use. The paper
            prints no numbers with it.
Data:       none, nothing is trained. T = 200 epochs.
Network:    none.
Schedules:  targets are Co-teaching's Eq 1 for the three noises (t_k = 10, c = 1), the schedule
            that the package suggests for a rate of .5, and one that falls late (tau .5, t_k 50,
            c 2). Each is fitted by each basis alone and by Eq 4, by least squares from the best of
            2,000 draws: the distances are upper bounds. Draws of Eq 4 are uniform (theta = 1).
Deviations: a_1 .. a_4 are in [0, 1], own to each basis, and R(0) = 1 and R <= 1, as in the
            package; the paper leaves open whether the bases share them, and what R > 1 means.
Run:        python studies/figure2_basis.py --picture docs/images/figure2-basis.png
            It resumes. --budget prints what it takes here. --smoke runs all with T = 20 and few
            draws, and keeps nothing.
Read:       studies/results/figure2_basis.json, --report; --picture FILE draws it,
            --page FILE writes the table into a page of the docs
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import runs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from spaces import SPACES, fit

from optuna_s2e import Schedule, coteaching_schedule, suggested_schedule
from optuna_s2e.schedules import SPACES as FORMULAS
from optuna_s2e.schedules import basis_function

RESULTS = Path(__file__).parent / "results" / "figure2_basis.json"
FITTED = ("f1 alone", "f2 alone", "f3 alone", "f4 alone", "Table 1")
FORMULA = (
    r"$e^{-a_2 t^{a_1}} + a_3 (t/T)^{a_4}$",
    r"$e^{-a_2 t^{a_1}} + a_3 \log(1+t^{a_4}) / \log(1+T^{a_4})$",
    r"$(1+a_2 t)^{-a_1} + a_3 (t/T)^{a_4}$",
    r"$(1+a_2 t)^{-a_1} + a_3 \log(1+t^{a_4}) / \log(1+T^{a_4})$",
)
EXAMPLES = ((0.2, 0.2, 0.0, 1.0), (0.5, 0.2, 0.0, 1.0), (0.8, 0.2, 0.3, 1.0), (0.8, 0.5, 0.5, 0.5))
DRAWN, PERCENTILES = "draws", (5, 25, 50, 75, 95)


# name -> function (T) -> the schedule that is fitted; epochs of T = 200 are 200ths of T
TARGETS: dict[str, Callable[[int], Schedule]] = {
    "Co-teaching, 20 % wrong": lambda n: coteaching_schedule(n, 0.2, n / 20),
    "Co-teaching, 45 % wrong": lambda n: coteaching_schedule(n, 0.45, n / 20),
    "Co-teaching, 50 % wrong": lambda n: coteaching_schedule(n, 0.5, n / 20),
    "suggested for 50 % wrong": lambda n: suggested_schedule(n, 0.5),
    "falls late": lambda n: coteaching_schedule(n, 0.5, n / 4, 2.0),
}


def draws(n_epochs: int, n: int) -> dict[str, Any]:
    """Return what uniform draws of Eq 4 look like, before R is clipped."""
    formula, t = FORMULAS["table1"], np.arange(n_epochs, dtype=np.float64)
    rng = np.random.default_rng(0)
    params = {name: rng.uniform(size=(n, 1)) for name in formula.distributions(n_epochs)}
    rates = formula.keep_rates(params, t, n_epochs)[:, 1:]  # R(0) = 1 by definition
    return {
        "percentiles": np.round(np.percentile(rates, PERCENTILES, axis=0), 4).tolist(),
        "share above 1 at an epoch": round(float((rates > 1).any(axis=1).mean()), 4),
        "share of epochs above 1": round(float((rates > 1).mean()), 4),
        "share below 0 at an epoch": round(float((rates < 0).any(axis=1).mean()), 4),
        "share that never rises": round(float((np.diff(rates) <= 1e-12).all(axis=1).mean()), 4),
        "largest": round(float(rates.max()), 3),
    }


def run(job: runs.Job, *, n_epochs: int, n_drawn: int) -> dict[str, Any]:
    """Fit a target by a space, or describe the draws."""
    if job[0] == DRAWN:
        return draws(n_epochs, 10 * n_drawn)
    name, space = str(job[0]), SPACES[str(job[1])]
    found = fit(space, TARGETS[name](n_epochs).keep_rates, n_drawn=n_drawn)
    return {
        "rms": round(found.rms, 5), "largest": round(found.largest, 5),
        "keep_rates": np.round(space.keep_rates(found.u[None], n_epochs)[0], 4).tolist(),
    }  # fmt: skip


def jobs() -> list[runs.Job]:
    """Return all jobs."""
    return [(DRAWN,), *((name, space) for name in TARGETS for space in FITTED)]


def rows_of(results: runs.Results) -> list[list[str]]:
    """Return the distances, a row for each target."""
    rows = []
    for name in TARGETS:
        found = [results.get(runs.key_of((name, space))) for space in FITTED]
        rows.append([name, *(f"{c['rms']:.3f} / {c['largest']:.3f}" if c else "-" for c in found)])
    return rows


def about_draws(results: runs.Results) -> str:
    """Return a line on the draws."""
    shares = {k: v for k, v in results[DRAWN].items() if k != "percentiles"}
    return "Uniform draws of Eq 4 before R is clipped: " + ", ".join(
        f"{k} {v:g}" if k == "largest" else f"{k} {100 * v:.1f} %" for k, v in shares.items()
    )


def report(document: dict[str, Any]) -> str:
    """Return the distances as a table, and what the draws look like."""
    results = document["results"]
    lines = [f"T = {document.get('n_epochs')}; root mean square / largest distance at an epoch"]
    lines += [
        f"{row[0]:26}" + "".join(f"{cell:>16}" for cell in row[1:])
        for row in (["", *FITTED], *rows_of(results))
    ]
    if DRAWN in results:
        lines.append(about_draws(results))
    return "\n".join(lines)


def markdown(document: dict[str, Any]) -> str:
    """Return the table for a page of the docs, and what the draws look like."""
    table = runs.markdown(["nearest to", *FITTED], rows_of(document["results"]))
    return (
        f"T = {document['n_epochs']}; root mean square / largest distance at an epoch:\n\n{table}"
        f"\n\n{about_draws(document['results'])}."
    )


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw the bases (top), draws of Eq 4, and fits (bottom)."""
    results, n_epochs = document["results"], document["n_epochs"]
    t = np.arange(n_epochs, dtype=np.float64)
    figure = Figure(figsize=(14, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    for i, axis in enumerate(axes[0]):
        for a in EXAMPLES:
            label = "a = " + ", ".join(f"{v:g}" for v in a)
            axis.plot(t, basis_function(i + 1, t, n_epochs, a), label=label)
        axis.set_title(f"$f_{i + 1}$ = {FORMULA[i]}", fontsize=10)
    axes[0, 0].legend(fontsize=8)
    if DRAWN in results:
        low, lower, median, upper, high = np.array(results[DRAWN]["percentiles"])
        axis = axes[1, 0]
        axis.fill_between(t[1:], low, high, alpha=0.2, lw=0, color="C0", label="5 to 95 %")
        axis.fill_between(t[1:], lower, upper, alpha=0.35, lw=0, color="C0", label="25 to 75 %")
        axis.plot(t[1:], median, color="C0", label="median")
        axis.axhline(1.0, color="black", lw=0.8)
        axis.set_title("uniform draws of Eq 4", fontsize=10)
        axis.legend(fontsize=8, loc="upper left")
    for axis, name in zip(axes[1, 1:], list(TARGETS)[2:], strict=True):
        rates = TARGETS[name](n_epochs).keep_rates
        axis.plot(t, rates, color="black", lw=2.5, alpha=0.5, label=name)
        for i, space in enumerate(FITTED):
            found = results.get(runs.key_of((name, space)))
            if found:
                style = "-" if space == "Table 1" else ":"
                label = f"{'Eq 4' if space == 'Table 1' else space}, rms {found['rms']:.3f}"
                axis.plot(t, found["keep_rates"], style, color=f"C{i}", label=label)
        axis.set_title(f"nearest to: {name}", fontsize=10)
        axis.legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 1.5)
    for axis in axes[1]:
        axis.set_xlabel("epoch t")
    for axis in axes[:, 0]:
        axis.set_ylabel("R(t)")
    figure.savefig(path, dpi=100)


def budget(n_processes: int, setup: dict[str, Any]) -> str:
    """Time one fit by each space; return what the full run takes."""
    start = time.perf_counter()
    for space in FITTED:
        run((next(iter(TARGETS)), space), **setup)
    minutes = (time.perf_counter() - start) / 60 * len(TARGETS)
    return f"{len(jobs())} runs: {minutes:.1f} core minutes, {minutes / n_processes:.1f} minutes"


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, print the table, draw the picture."""
    args = runs.figure_parser(__doc__, seeds=1, epochs=200, results=RESULTS).parse_args(argv)
    if args.smoke:
        args.epochs = 20
        runs.keep_nothing(args)
    setup = {"n_epochs": args.epochs, "n_drawn": 100 if args.smoke else 2000}
    if args.budget:
        print(budget(args.jobs, setup))
        return
    if not args.report:
        runs.note_setup(args.results, setup)
        runs.run_missing(
            args.results, jobs(), partial(run, **setup), n_processes=args.jobs,
            minutes=args.minutes,
        )  # fmt: skip
    document = runs.read(args.results)
    print(report(document))
    if args.page is not None:
        runs.fill_page(args.page, "figure 2", markdown(document))
    if args.picture is not None:
        draw(document, args.picture)


if __name__ == "__main__":
    main()
