"""Every method of the comparison on MNIST with wrong labels: accuracy by epoch.

Reproduces: the top row of Figure 3 of the S2E paper, with more methods; its table is the mean of
            the last 10 % of the epochs.
Data:       MNIST, the published noise vectors (symmetric 20 and 50 %, pair 45 %), 5,000 clean
            validation images split off the training part, test part of 10,000. The published
            noise is the same for all seeds: a spread over seeds is that of weights and orders.
Network:    the paper's MLP 784-256-10, Adam, learning rate 1e-3 that falls from 40 % of the epochs
            on, mini-batches of 128. All methods share the seeds: they are compared in pairs.
Schedules:  Co-teaching's Eq 1 with the true rate for all methods that obey R(t). "s2e" searches
            Eq 1's ranges around the true rate with --trials trainings of its own, each of all
            epochs, and trains the recommended schedule anew.
Deviations: every epoch has all its mini-batches (the authors' program stops after 401); epoch 0 is
            trained; beta1 falls to .1 with the learning rate, as in Co-teaching's program.
Run:        S2E_DATA_ROOT=~/data python studies/figure3_benchmark.py --jobs 2 --minutes 60
            It resumes. --budget prints what the full run takes here. --smoke runs everything in
            small, on the digits, and keeps nothing.
Read:       studies/results/figure3_benchmark.json, --report; --picture FILE draws it
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import runs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from optuna_s2e import S2ESampler, recommend
from optuna_s2e.coteaching import (
    CoteachingObjective,
    NoisyData,
    compared_methods,
    evaluate_schedules,
    load_data,
    title_of,
)

RESULTS = Path(__file__).parent / "results" / "figure3_benchmark.json"
SETTINGS = {"symmetric 20 %": ("symmetric", 0.2), "symmetric 50 %": ("symmetric", 0.5),
            "pair 45 %": ("pair", 0.45)}  # fmt: skip
METHODS = (
    "standard", "early-stopping", "decoupling", "f-correction", "f-correction-true", "mentornet",
    "coteaching", "coteaching+", "reweight", "jocor", "bare", "s2e",
)  # fmt: skip
SEARCH_SEED = 10_000  # the search's seeds follow from this and the seed of the repeat


@cache
def load(data: str, setting: str) -> NoisyData:
    """Load the data with the noise of a setting."""
    noise, rate = SETTINGS[setting]
    return load_data(
        data, root=os.environ.get("S2E_DATA_ROOT"), noise=noise, noise_rate=rate, seed=0,
        published_noise=data != "digits",
    )  # fmt: skip


def run(job: runs.Job, *, data: str, n_epochs: int, n_trials: int) -> dict[str, Any]:
    """Train a method with a seed; return its curves on the test data."""
    setting, method, seed = str(job[0]), str(job[1]), int(job[2])
    noisy, rate = load(data, setting), SETTINGS[setting][1]
    objective = CoteachingObjective(
        noisy, n_epochs=n_epochs, seed=SEARCH_SEED + seed, noise_rate=rate, device="cpu"
    )
    start = time.perf_counter()
    if method == "s2e":
        study = optuna.create_study(sampler=S2ESampler(seed=SEARCH_SEED + seed))
        study.optimize(objective, n_trials=n_trials)
        schedules, methods = {method: recommend(study).schedule}, {}
    else:
        schedules, methods, _ = compared_methods([method], n_epochs, rate, data=noisy)
    found = evaluate_schedules(
        {method: schedules[method].keep_rates},
        noisy,
        methods=methods,
        config=objective.config,
        n_repeats=1,
        seed=seed,
        device="cpu",
    )[method]
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "keep_rates": np.round(schedules[method].keep_rates, 4).tolist(),
        "test_accuracy": np.round(found.test_accuracy[0], 5).tolist(),
        "label_precision": [
            round(v, 5) if np.isfinite(v) else None for v in found.label_precision[0].tolist()
        ],
        "final_accuracy": round(float(found.final_accuracy[0]), 6),
    }


def jobs_of(n_seeds: int) -> list[runs.Job]:
    """Return all jobs, seed by seed: what is done at any time can be compared."""
    return [(s, m, seed) for seed in range(n_seeds) for s in SETTINGS for m in METHODS]


def curves(results: runs.Results, setting: str, method: str, name: str) -> np.ndarray:
    """Return the curves of a method, (seeds, T); NaN where unknown."""
    found = [r[name] for key, r in results.items() if key.startswith(f"{setting}|{method}|")]
    return np.array(found, dtype=np.float64)


def report(document: dict[str, Any]) -> str:
    """Return the table: mean and standard deviation over the seeds of the last 10 % of epochs."""
    results = document["results"]
    lines = [
        f"{len(results)} results of {document.get('n_epochs')} epochs; "
        f"{document.get('complete', 'how many there should be is unknown')}",
        "Test accuracy in %, last 10 % of the epochs, mean ± standard deviation (seeds)",
        f"{'method':28}" + "".join(f"{setting:>24}" for setting in SETTINGS),
    ]
    for method in METHODS:
        cells = []
        for setting in SETTINGS:
            v = 100 * curves(results, setting, method, "final_accuracy")
            spread = f" ± {v.std(ddof=1):.2f}" if len(v) > 1 else ""
            cells.append(f"{v.mean():.2f}{spread} ({len(v)})" if len(v) else "-")
        title = "S2E" if method == "s2e" else title_of(method)
        lines.append(f"{title:28}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw accuracy (top) and label precision (bottom) by epoch: mean, and one deviation."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(SETTINGS), sharex=True, sharey="row")
    for column, setting in enumerate(SETTINGS):
        for row, name in enumerate(("test_accuracy", "label_precision")):
            axis = axes[row, column]
            for i, method in enumerate(METHODS):
                found = 100 * curves(document["results"], setting, method, name)
                if not len(found):
                    continue
                color = f"C{i}" if i < 10 else ("black", "gold")[i - 10]
                title = "S2E" if method == "s2e" else title_of(method)
                epochs, mean, sd = np.arange(found.shape[1]), found.mean(0), found.std(0)
                axis.plot(epochs, mean, color=color, label=title, lw=1.5)
                axis.fill_between(epochs, mean - sd, mean + sd, color=color, alpha=0.15, lw=0)
            axis.grid(alpha=0.3)
            if row == 0:
                axis.set_title(f"MNIST, {setting}")
            else:
                axis.set_xlabel("epoch")
            if column == 0:
                axis.set_ylabel(("test accuracy (%)", "label precision (%)")[row])
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=110)


def budget(n_seeds: int, n_processes: int, setup: dict[str, Any]) -> str:
    """Time two epochs of each method here; return what the full run takes."""
    n_epochs, setting = setup["n_epochs"], next(iter(SETTINGS))
    load(setup["data"], setting)
    minutes: dict[str, float] = {}
    for method in METHODS[:-1]:
        found = run((setting, method, 0), **setup | {"n_epochs": 2})
        minutes[method] = found["seconds"] / 60 / 2 * n_epochs
    minutes["s2e"] = (setup["n_trials"] + 1) * minutes["coteaching"]
    hours = sum(minutes.values()) / 60 * n_seeds * len(SETTINGS)
    lines = [f"{method:20}{of_one:8.1f} minutes per run" for method, of_one in minutes.items()]
    lines.append(
        f"{len(jobs_of(n_seeds))} runs of {n_epochs} epochs: {hours:.1f} core hours, "
        f"{hours / n_processes:.1f} hours with {n_processes} processes"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    made = runs.parser(__doc__, seeds=3)
    made.add_argument("--epochs", type=int, default=200, help="of each training")
    made.add_argument("--trials", type=int, default=12, help="trainings of a search")
    made.add_argument("--budget", action="store_true", help="only print what the run takes")
    made.add_argument("--smoke", action="store_true", help="everything in small; keeps nothing")
    made.add_argument("--picture", type=Path, help="file to draw the results into")
    made.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    args: argparse.Namespace = made.parse_args(argv)
    data = "mnist"
    if args.smoke:
        data, args.epochs, args.trials, args.seeds = "digits", 4, 2, 1
        args.results = Path(tempfile.mkdtemp()) / RESULTS.name
        args.picture = args.picture or args.results.with_suffix(".png")
    setup = {"data": data, "n_epochs": args.epochs, "n_trials": args.trials}
    if args.budget:
        print(budget(args.seeds, args.jobs, setup))
        return
    if not args.report:
        document = runs.read(args.results)
        kept = {name: document.get(name, value) for name, value in setup.items()}
        if kept != setup:
            raise SystemExit(f"{args.results} holds runs of {kept}. Name another with --results.")
        _note(args.results, setup, args.seeds)
        runs.run_missing(
            args.results, jobs_of(args.seeds), partial(run, **setup),
            n_processes=args.jobs, minutes=args.minutes,
        )  # fmt: skip
    print(report(runs.read(args.results)))
    if args.picture is not None:
        draw(runs.read(args.results), args.picture)


def _note(path: Path, setup: dict[str, Any], n_seeds: int) -> None:
    """Write the setup into the file of results, and when it is complete."""
    complete = (
        f"complete with {len(jobs_of(n_seeds))} results, of {n_seeds} seeds and "
        f"{setup['n_epochs']} epochs; the paper has 5 seeds of 200 epochs"
    )
    document = runs.read(path) | setup | {"complete": complete}
    path.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
