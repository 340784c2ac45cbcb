"""Every method of the comparison on images with wrong labels: accuracy by epoch.

Reproduces: Figure 3 of the S2E paper (MNIST: its top row), with more methods; its table is the
            mean of the last 10 % of the epochs. With --settings also those of JoCoR's table.
Data:       MNIST, the published noise vectors (symmetric 20 and 50 %, pair 45 %), 5,000 clean
            validation images split off the training part, test part of 10,000. The published
            noise is the same for all seeds: a spread over seeds is that of weights and orders.
            --data cifar10 or cifar100 (also as cifar100.npz in the data root); --images N cuts
            all parts to their first N, --classes N leaves out all but the first N classes, whose
            labels are then made wrong anew: such runs are marked.
Network:    those of the paper: MLP 784-256-10 for MNIST, 2 convolutions for CIFAR-10, 7 layers for
            CIFAR-100. Adam, learning rate 1e-3 that falls from 40 % of the epochs on, mini-batches
            of 128. All methods share the seeds: they are compared in pairs.
Schedules:  Co-teaching's Eq 1 with the true rate for all methods that obey R(t). "s2e" searches
            Eq 1's ranges around the true rate with --trials trainings of its own, each of all
            epochs, and trains the recommended schedule anew. "s2e-paper" is the paper's own
            method: Table 1, the validation loss, Algorithm 2 with generations of 6, the best
            trial; it has the same number of trainings, which is a reduced search (its program's
            README has 60). "jocor/searched" is JoCoR under the schedule of "s2e".
Deviations: every epoch has all its mini-batches (the authors' program stops after 401); epoch 0 is
            trained; beta1 falls to .1 with the learning rate, as in Co-teaching's program. S2E's
            validation images are clean and of the training part; the follow-up of the paper takes
            5,000 of the test part.
Run:        S2E_DATA_ROOT=~/data python studies/figure3_benchmark.py --jobs 2 --minutes 60
            ... --data cifar100 --classes 10 --images 320 --batch-size 32 --seeds 1   (reduced)
            ... --settings "symmetric 80 %" "asymmetric 40 %" --methods coteaching jocor
            It resumes at the training that it had come to: the trainings of searches are kept
            beside the results in a file .db, all others in a file .rows (Standard serves early
            stopping, too). Within a seed all settings get one method after the other, searches
            last: what is done at any time can be compared. --budget prints what the full run takes
            here. --smoke runs everything in small, on the digits, and keeps nothing. --device cuda
            trains on a GPU (never tried).
Read:       studies/results/figure3_benchmark.json (MNIST), figure3_cifar10.json, ..., --report;
            --picture FILE draws it, --page FILE writes the tables into a page of the docs
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import published
import runs
import tasks
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.trial import TrialState
from scipy import stats

from optuna_s2e import S2ESampler, Schedule, open_storage, optimize_batch, recommend
from optuna_s2e.coteaching import (
    CoteachingObjective,
    NoisyData,
    compared_methods,
    evaluate_schedules,
    load_data,
    title_of,
)
from optuna_s2e.label_noise import flip_labels, transition_matrix

FOLDER = Path(__file__).parent / "results"
FILES = {"mnist": "figure3_benchmark.json"}  # by data set; others: figure3_NAME.json
NETWORKS = {"cifar10": "cnn2", "cifar100": "cnn7"}  # by data set; others: "mlp"
TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
PAPER = {"symmetric 20 %": ("symmetric", 0.2), "symmetric 50 %": ("symmetric", 0.5),
         "pair 45 %": ("pair", 0.45)}  # fmt: skip
SETTINGS = PAPER | {"symmetric 80 %": ("symmetric", 0.8), "asymmetric 40 %": ("asymmetric", 0.4)}
METHODS = (
    "standard", "early-stopping", "decoupling", "f-correction", "f-correction-true", "mentornet",
    "coteaching", "coteaching+", "reweight", "jocor", "bare", "s2e", "mentornet/searched",
    "coteaching+/searched", "jocor/searched", "s2e-paper",
)  # fmt: skip
SEARCHES = {"s2e": "S2E", "s2e-paper": "S2E, the paper's own"}
SEARCH_SEED = 10_000  # the search's seeds follow from this and the seed of the repeat
POPULATION = 6  # of the paper's own method
CUTS = {"n_classes": "classes", "batch_size": "samples in a mini-batch"}  # where less is taken

# JoCoR's class-dependent noise, from its program: which class turns into which
ASYMMETRIC = {
    "mnist": {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}, "cifar10": {9: 1, 2: 0, 3: 5, 5: 3, 4: 7},
    "digits": {7: 1, 2: 7, 5: 6, 6: 5, 3: 8},
}  # fmt: skip


def kept_rate(setting: str) -> float:
    """Return the share of wrong labels, which Co-teaching's schedule drops."""
    noise, rate = SETTINGS[setting]
    return rate / 2 if noise == "asymmetric" else rate  # half of the classes turn


@cache
def load(
    data: str, setting: str, n_images: int | None = None, n_classes: int | None = None
) -> NoisyData:
    """Load data with the noise of a setting; keep the first images of the first classes."""
    noise, rate = SETTINGS[setting]
    root = os.environ.get("S2E_DATA_ROOT")
    file = Path(root or ".") / f"{data}.npz"
    is_published = noise != "asymmetric" and n_classes is None
    loaded = load_data(
        str(file.absolute()) if file.exists() else data, root=root, seed=0,
        noise=noise if is_published else "none", noise_rate=rate if is_published else 0.0,
        published_noise=is_published and data != "digits",
    )  # fmt: skip
    if not is_published:
        loaded = tasks.first_classes(loaded, n_classes)
        if noise == "asymmetric":
            matrix = np.eye(loaded.n_classes)
            for i, j in ASYMMETRIC[data].items():
                matrix[i, i], matrix[i, j] = 1 - rate, rate
        else:
            matrix = transition_matrix(noise, rate, loaded.n_classes)
        clean = loaded.noisy_labels
        noisy = torch.from_numpy(flip_labels(clean.numpy(), matrix, np.random.default_rng(0)))
        loaded = replace(loaded, noisy_labels=noisy, clean_labels=clean, settings=None)
    return tasks.first_images(loaded, n_images)


def searched(
    method: str, objective: CoteachingObjective, n_trials: int, storage: str, name: str
) -> Schedule:
    """Search a schedule; return the one that is recommended.

    A search of this name in the storage goes on: it comes to the same end as an undisturbed one.
    """
    if method == "s2e-paper":
        sampler = S2ESampler(
            seed=objective.seed, estimator="paper", population_size=min(POPULATION, n_trials)
        )
    else:
        sampler = S2ESampler(seed=objective.seed)
    study = optuna.create_study(
        storage=open_storage(storage), study_name=name, sampler=sampler, load_if_exists=True
    )
    left = n_trials - len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if left > 0:
        with ThreadPoolExecutor(1) as one:  # a training is kept when it ends, not with its batch
            optimize_batch(study, objective, n_trials=left, executor=one)
    found = recommend(study, "best") if method == "s2e-paper" else recommend(study)
    assert found.schedule is not None
    return found.schedule


def run(
    job: runs.Job, *, data: str, n_epochs: int, n_trials: int, n_images: int | None = None,
    n_classes: int | None = None, batch_size: int | None = None, kept: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Train a method with a seed; return its curves on the test data.

    Args:
        job: Setting, method and seed.
        data: Name of the data.
        n_epochs: T.
        n_trials: Trainings of a search.
        n_images, n_classes: As in `load`.
        batch_size: Samples of a mini-batch. None takes those of the paper.
        kept: The file of results, beside which all that was trained is kept, or None.
        device: Where to train.
    """
    setting, method, seed = str(job[0]), str(job[1]), int(job[2])
    noisy, rate = load(data, setting, n_images, n_classes), kept_rate(setting)
    network = NETWORKS.get(data, "mlp")
    space: dict[str, Any] = {"noise_rate": rate}
    if method == "s2e-paper":
        space = {"kind": "table1", "metric": "validation_loss"}
    objective = CoteachingObjective(
        noisy, network=network, n_epochs=n_epochs, seed=SEARCH_SEED + seed, device=device,
        batch_size=batch_size, **space,
    )  # fmt: skip
    start = time.perf_counter()
    row = "coteaching/searched" if method in SEARCHES else method
    found = None
    if row.endswith("/searched"):
        search = search_of(job)
        cut = f"{n_images or 'all'} images" + (f" of {n_classes} classes" if n_classes else "")
        name = runs.key_of((data, *search, f"{n_epochs} epochs", cut))
        found = searched(str(search[1]), objective, n_trials, storage_of(kept), name)
    trained = row.removesuffix("/searched")
    compared = compared_methods([trained], n_epochs, rate, data=noisy, searched=found)
    keep_rates = compared.schedules[row].keep_rates
    evaluation = evaluate_schedules(
        {row: keep_rates},
        noisy,
        network=network,
        methods={row: compared.methods[row]},
        config=objective.config,
        n_repeats=1,
        seed=seed,
        device=device,
        keep=kept and kept.with_suffix(".rows"),
    )[row]
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "keep_rates": np.round(keep_rates, 4).tolist(),
        "test_accuracy": np.round(evaluation.test_accuracy[0], 5).tolist(),
        "label_precision": [
            round(v, 5) if np.isfinite(v) else None for v in evaluation.label_precision[0].tolist()
        ],
        "final_accuracy": round(float(evaluation.final_accuracy[0]), 6),
    }


def search_of(job: runs.Job) -> runs.Job:
    """Return the job whose search a job needs; itself if it needs no other's."""
    setting, method, seed = job
    return (setting, "s2e", seed) if str(method).endswith("/searched") else job


def storage_of(results: Path | None) -> str:
    """Return the URL of the storage that keeps the searches, beside a file of results."""
    return f"sqlite:///{results.absolute().with_suffix('.db') if results else ':memory:'}"


def jobs_of(
    n_seeds: int, settings: Sequence[str] = tuple(PAPER), methods: Sequence[str] = METHODS
) -> list[runs.Job]:
    """Return all jobs: seed by seed, then method by method, with all settings of each."""
    return [(s, m, seed) for seed in range(n_seeds) for m in methods for s in settings]


def shown(results: runs.Results) -> list[str]:
    """Return the settings that there are results of, and those of the paper."""
    return [s for s in SETTINGS if s in PAPER or any(key.startswith(f"{s}|") for key in results)]


def title(method: str) -> str:
    """Return the name of a row."""
    return SEARCHES.get(method) or title_of(method)


def by_seed(results: runs.Results, setting: str, method: str, name: str) -> dict[int, Any]:
    """Return what is known of a method, by seed."""
    start = f"{setting}|{method}|"
    return {int(k.removeprefix(start)): r[name] for k, r in results.items() if k.startswith(start)}


def curves(results: runs.Results, setting: str, method: str, name: str) -> np.ndarray:
    """Return the curves of a method, (seeds, T); NaN where unknown."""
    found = list(by_seed(results, setting, method, name).values())
    return np.array(found, dtype=np.float64)


def accuracy(results: runs.Results, setting: str, method: str) -> str:
    """Return mean and standard deviation over the seeds of the last 10 % of epochs, in %."""
    v = 100 * curves(results, setting, method, "final_accuracy")
    spread = f" ± {v.std(ddof=1):.2f}" if len(v) > 1 else ""
    return f"{v.mean():.2f}{spread} ({len(v)})" if len(v) else "-"


def difference(results: runs.Results, setting: str, method: str, ours: str = "s2e") -> str:
    """Return ours minus a method in points, paired by seed, with its 95 % interval (t).

    With less than three seeds there is no interval.
    """
    own = by_seed(results, setting, ours, "final_accuracy")
    other = by_seed(results, setting, method, "final_accuracy")
    d = 100 * np.array([own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())])
    if not len(d):
        return "-"
    if len(d) < 3:
        return f"{d.mean():+.2f} ({len(d)} of 3 seeds)"
    reach = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return f"{d.mean():+.2f} [{d.mean() - reach:+.2f}, {d.mean() + reach:+.2f}]"


def heading(document: dict[str, Any]) -> str:
    """Return what was run: how much of it is done, and what was reduced."""
    n_images, n_epochs = document.get("n_images"), document.get("n_epochs")
    cut = [f"{n_epochs} of 200 epochs"] if n_epochs != 200 else []
    cut += [f"the first {n_images} images"] if n_images else []
    cut += [f"{value} {what}" for name, what in CUTS.items() if (value := document.get(name))]
    return (
        f"{len(document['results'])} results of {n_epochs} epochs; "
        f"{document.get('complete', 'how many there should be is unknown')}. "
        f"{'Reduced: ' + ', '.join(cut) if cut else 'Nothing is reduced'}; a search has "
        f"{document.get('n_trials')} trainings."
    )


def tables(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the tables, each with what it shows, its header and its rows."""
    results, settings = document["results"], shown(document["results"])
    made = [(
        "Test accuracy in %, last 10 % of the epochs, mean ± standard deviation (seeds)",
        ["method", *settings],
        [[title(m), *(accuracy(results, s, m) for s in settings)] for m in METHODS],
    )]  # fmt: skip
    for ours in SEARCHES:
        if any(f"|{ours}|" in key for key in results):
            rows = [
                [title(m), *(difference(results, s, m, ours) for s in settings)]
                for m in METHODS if m != ours
            ]  # fmt: skip
            about = f"{title(ours)} minus the other, points, paired by seed [95 % interval]"
            made.append((about, ["method", *settings], rows))
    rows = []
    for source, methods, values in published.TABLES.get(document.get("data", "mnist"), ()):
        for s in filter(values.__contains__, settings):
            for m, value in zip(methods, values[s], strict=True):
                v = 100 * curves(results, s, m, "final_accuracy")
                gap = f"{v.mean() - value:+.2f}" if len(v) else "-"
                own = accuracy(results, s, m)
                rows.append([f"{s}, {title(m)}", f"{value:.2f}", own, gap, source])
    if rows:
        about = "Published (200 epochs, all images) beside ours, in %"
        made.append((about, ["setting, method", "published", "ours", "difference", "from"], rows))
    return made


def report(document: dict[str, Any]) -> str:
    """Return the tables as text."""
    lines = [heading(document)]
    for about, header, rows in tables(document):
        widths = [max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)]
        lines += ["", about]
        lines += [
            row[0].ljust(widths[0])
            + "".join(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))
            for row in (header, *rows)
        ]
    return "\n".join(lines)


def markdown(document: dict[str, Any]) -> str:
    """Return the tables for a page of the docs."""
    parts = [heading(document)]
    for about, header, rows in tables(document):
        parts += [f"{about}:", runs.markdown(header, rows)]
    return "\n\n".join(parts)


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw accuracy (top) and label precision (bottom) by epoch: mean, and one deviation."""
    results = document["results"]
    settings = [s for s in SETTINGS if any(key.startswith(f"{s}|") for key in results)]
    figure = Figure(figsize=(1 + 5 * len(settings), 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(settings), sharex=True, sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    own = [method for method in METHODS if not method.endswith("/searched")]  # have a colour
    for column, setting in enumerate(settings):
        for row, name in enumerate(("test_accuracy", "label_precision")):
            axis = axes[row, column]
            for method in METHODS:
                found = 100 * curves(results, setting, method, name)
                if not len(found):
                    continue
                i = own.index(method.removesuffix("/searched"))
                color = f"C{i}" if i < 10 else ("gold", "black", "navy")[i - 10]
                style = "-" if method in own else "--"
                epochs, mean, sd = np.arange(found.shape[1]), found.mean(0), found.std(0)
                width = 2.2 if method in SEARCHES else 1.3
                handles[title(method)] = axis.plot(epochs, mean, style, color=color, lw=width)[0]
                axis.fill_between(epochs, mean - sd, mean + sd, color=color, alpha=0.15, lw=0)
            axis.grid(alpha=0.3)
            axis.xaxis.get_major_locator().set_params(integer=True)
            if row == 0:
                data = document.get("data", "mnist")
                cut = " (reduced)" if document.get("n_images") else ""
                axis.set_title(f"{TITLES.get(data, data)}, {setting}{cut}")
            else:
                axis.set_xlabel("epoch")
            if column == 0:
                axis.set_ylabel(("test accuracy (%)", "label precision (%)")[row])
    names = [name for name in map(title, METHODS) if name in handles]
    figure.legend(
        [handles[n] for n in names], names, loc="outside lower center", frameon=False,
        ncols=2 * len(settings),
    )  # fmt: skip
    figure.savefig(path, dpi=90)


def budget(jobs: list[runs.Job], n_processes: int, setup: dict[str, Any]) -> str:
    """Time two epochs of each method here; return what the full run takes."""
    n_epochs = setup["n_epochs"]
    setting = str(jobs[0][0])
    load(setup["data"], setting, setup["n_images"], setup.get("n_classes"))
    run((setting, "coteaching", 0), **setup | {"data": "digits", "n_epochs": 2})  # what is once
    minutes: dict[str, float] = {}
    for method in dict.fromkeys(str(job[1]) for job in jobs):
        timed = "coteaching" if method in SEARCHES else method.removesuffix("/searched")
        found = run((setting, timed, 0), **setup | {"n_epochs": 2})
        trainings = setup["n_trials"] + 1 if method in SEARCHES else 1
        minutes[method] = trainings * found["seconds"] / 60 / 2 * n_epochs
    hours = sum(minutes[str(job[1])] for job in jobs) / 60
    lines = [f"{method:22}{of_one:8.1f} minutes per run" for method, of_one in minutes.items()]
    lines.append(
        f"{len(jobs)} runs of {n_epochs} epochs: {hours:.1f} core hours, "
        f"{hours / n_processes:.1f} hours with {n_processes} processes"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    made = runs.figure_parser(__doc__, seeds=3, epochs=200, results=None)
    made.add_argument("--data", choices=TITLES, default="mnist", help="data set")
    made.add_argument("--images", type=int, help="only the first N images; default: all")
    made.add_argument("--classes", type=int, help="only the first N classes; default: all")
    made.add_argument("--batch-size", type=int, help="samples of a mini-batch; default: 128")
    made.add_argument("--trials", type=int, default=12, help="trainings of a search")
    made.add_argument("--device", default="cpu", help="to train on: cpu, cuda, ...")
    for name, known, default in (("settings", SETTINGS, PAPER), ("methods", METHODS, METHODS)):
        made.add_argument(
            f"--{name}", nargs="+", choices=known, default=list(default), metavar="NAME",
            help=f"only these: {', '.join(known).replace('%', '%%')}",
        )  # fmt: skip
    args: argparse.Namespace = made.parse_args(argv)
    if "asymmetric 40 %" in args.settings and (args.classes or args.data not in ASYMMETRIC):
        made.error(f"--settings: which of these {args.data} classes turn into which is not known.")
    args.results = args.results or FOLDER / FILES.get(args.data, f"figure3_{args.data}.json")
    if args.smoke:
        args.data, args.epochs, args.trials, args.seeds = "digits", 4, 2, 1
        runs.keep_nothing(args)
    setup = {
        "data": args.data, "n_epochs": args.epochs, "n_trials": args.trials,
        "n_images": args.images, "n_classes": args.classes, "batch_size": args.batch_size,
    }  # fmt: skip
    jobs = jobs_of(args.seeds, args.settings, args.methods)
    if args.budget:
        print(budget(jobs, args.jobs, setup | {"device": args.device}))
        return
    if not args.report:
        every = jobs_of(args.seeds, args.settings, METHODS)
        complete = (
            f"complete with {len(every)} results, of {args.seeds} seeds and {args.epochs} epochs; "
            "the paper has 5 seeds of 200 epochs"
        )
        runs.note_setup(args.results, setup, complete=complete)
        of_job = partial(run, **setup, device=args.device, kept=args.results)
        runs.run_missing(
            args.results, jobs, of_job, n_processes=args.jobs, minutes=args.minutes,
            apart=search_of,
        )  # fmt: skip
    document = runs.read(args.results)
    print(report(document))
    if args.page is not None:
        runs.fill_page(args.page, document["data"], markdown(document))
    if args.picture is not None:
        draw(document, args.picture)


if __name__ == "__main__":
    main()
