"""Networks learn right labels first and wrong ones later, whatever the training; R(t) stops them.

Reproduces: Figure 1 of the S2E paper, which shows training and test accuracy by epoch for several
            data sets, networks, optimisers and their settings; its numbers are not printed. Here
            each is also trained under schedules that leave samples out.
Data:       the digits, MNIST and CIFAR-10 with 50 % symmetric noise (the published vectors but for
            the digits), clean validation images split off, the test part. --images N trains on the
            first N images, and tests on as many.
Network:    one thing at a time is changed in the base: MNIST, the paper's MLP, Adam, learning rate
            1e-3 that falls from 40 % of the epochs on, mini-batches of 128.
Schedules:  "none" (R = 1), "random" (a uniform draw of Eq 4, another for each seed), "Co-teaching"
            (Eq 1 with the true rate), "suggested" (for the true rate, no search), and with
            --trials N "searched" (S2E, N trainings around the true rate).
Deviations: the paper does not say with which settings its panels differ; those here are a factor
            of 10 in the learning rate and of 4 in the mini-batch. SGD has a learning rate of .1.
            Memorised: the share of the wrong labels that the networks learned for good, that is,
            predicted from that epoch to the end, each time that the sample was in a mini-batch.
Run:        S2E_DATA_ROOT=~/data python studies/figure1_memorization.py --jobs 2 --minutes 60
            It resumes. --budget prints what the full run takes here. --smoke runs everything in
            small, on the digits, and keeps nothing.
Read:       studies/results/figure1_memorization.json, --report; --picture FILE draws it,
            --page FILE writes the table into a page of the docs
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import runs
import tasks
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from optuna_s2e import S2ESampler, ScheduleSpace, coteaching_schedule, recommend, standard_schedule
from optuna_s2e import suggested_schedule as suggested
from optuna_s2e.coteaching import (
    CoteachingObjective,
    NoisyData,
    TrainingConfig,
    last_epochs_mean,
    load_data,
    train_batch,
)

RESULTS = Path(__file__).parent / "results" / "figure1_memorization.json"
NOISE_RATE = 0.5
SEED = 20_000  # of trainings; those of a search follow from it and the seed of the repeat
SCHEDULES = ("none", "random", "Co-teaching", "suggested", "searched")


@dataclass(frozen=True)
class Case:
    """What is trained: data, network, configuration."""

    data: str = "mnist"
    network: str = "mlp"
    config: TrainingConfig = field(default_factory=TrainingConfig)


_digits = TrainingConfig(batch_size=64, learning_rate=1e-2)  # the package's own for the digits
PANELS: dict[str, dict[str, Case]] = {
    "data set": {
        "digits": Case("digits", config=_digits), "MNIST": Case(),
        "CIFAR-10": Case("cifar10", "cnn2"),
    },
    "network": {
        "MLP": Case(), "2 convolutions": Case(network="cnn2"), "7 layers": Case(network="cnn7"),
    },
    "optimiser": {
        "Adam": Case(), "SGD": Case(config=TrainingConfig(optimizer="sgd", learning_rate=0.1)),
        "RMSprop": Case(config=TrainingConfig(optimizer="rmsprop", momentum=0.0)),
    },
    "learning rate": {
        f"{rate:g}": Case(config=TrainingConfig(learning_rate=rate)) for rate in (1e-4, 1e-3, 1e-2)
    },
    "mini-batch": {
        f"{size}": Case(config=TrainingConfig(batch_size=size)) for size in (32, 128, 512)
    },
}  # fmt: skip
CASES: dict[Case, str] = {}  # the base is in every panel, and is run once
for _panel, _of in PANELS.items():
    for _name, _case in _of.items():
        CASES.setdefault(_case, f"{_panel}: {_name}")


@cache
def load(data: str, n_images: int | None) -> NoisyData:
    """Load the data with their noise; leave out all but the first images."""
    loaded = load_data(
        data, root=os.environ.get("S2E_DATA_ROOT"), noise="symmetric", noise_rate=NOISE_RATE,
        seed=0, published_noise=data != "digits",
    )  # fmt: skip
    return tasks.first_images(loaded, n_images)


def schedule(name: str, case: Case, data: NoisyData, setup: dict[str, Any], seed: int) -> Any:
    """Return R(t) of a schedule, (T,)."""
    n_epochs = setup["n_epochs"]
    if name == "searched":
        seed += SEED
        objective = CoteachingObjective(
            data, network=case.network, config=case.config, n_epochs=n_epochs, seed=seed,
            noise_rate=NOISE_RATE, device="cpu",
        )  # fmt: skip
        study = optuna.create_study(sampler=S2ESampler(seed=seed))
        study.optimize(objective, n_trials=setup["n_trials"])
        return recommend(study).schedule.keep_rates
    if name == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
        trial = optuna.create_study(sampler=sampler).ask()
        return ScheduleSpace(n_epochs, "table1").suggest(trial).keep_rates
    fixed = {
        "none": standard_schedule(n_epochs), "suggested": suggested(n_epochs, NOISE_RATE),
        "Co-teaching": coteaching_schedule(n_epochs, NOISE_RATE),
    }  # fmt: skip
    return fixed[name].keep_rates


def run(job: runs.Job, **setup: Any) -> dict[str, Any]:
    """Train a case under a schedule with a seed; return its curves."""
    panel, _, name = str(job[0]).partition(": ")
    case, seed = PANELS[panel][name], int(job[2])
    if setup["data"]:  # in small
        case = replace(case, data=setup["data"], network="mlp")
    data = load(case.data, setup["n_images"])
    start = time.perf_counter()
    rates = schedule(str(job[1]), case, data, setup, seed)
    (found,) = train_batch(
        [rates], [SEED + seed], data=data, network=case.network, config=case.config, device="cpu",
        evaluate_on="test", watch_samples=True,
    )  # fmt: skip
    if found.failure is not None:
        raise found.failure
    assert found.samples is not None
    assert data.clean_labels is not None
    wrong = (data.noisy_labels != data.clean_labels).numpy()
    learned = found.samples.learned_at[wrong]
    epochs = np.arange(setup["n_epochs"])
    curves = found.curves
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "keep_rates": np.round(rates, 4).tolist(),
        "test_accuracy": np.round(1 - curves.error.mean(axis=1), 4).tolist(),
        "train_accuracy": np.round(curves.train_accuracy.mean(axis=1), 4).tolist(),
        "memorised": [round(float((learned <= t).mean()), 4) for t in epochs],
        "final_accuracy": round(1 - last_epochs_mean(curves.error), 5),
    }


def jobs_of(n_seeds: int, n_trials: int, cases: list[str]) -> list[runs.Job]:
    """Return all jobs, seed by seed: what is done at any time can be compared."""
    schedules = SCHEDULES if n_trials else SCHEDULES[:-1]
    return [(c, s, seed) for seed in range(n_seeds) for c in cases for s in schedules]


def curves_of(results: runs.Results, case: str, schedule: str, name: str) -> np.ndarray:
    """Return the curves of a case under a schedule, (seeds, T)."""
    return np.array([r[name] for k, r in results.items() if k.startswith(f"{case}|{schedule}|")])


def heading(document: dict[str, Any]) -> str:
    """Return what was run, and what was reduced."""
    n_images, n_epochs = document.get("n_images"), document.get("n_epochs")
    seeds = {key.rpartition("|")[2] for key in document["results"]}
    cut = [f"{n_epochs} of 200 epochs"] if n_epochs != 200 else []
    cut += [f"the first {n_images} images"] if n_images else []
    cut += [f"{len(seeds)} of 3 seeds"] if len(seeds) < 3 else []
    return (
        f"{len(document['results'])} trainings. "
        f"{'Reduced: ' + ', '.join(cut) if cut else 'Nothing is reduced'}."
    )


def table(document: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Return what the table shows, its header and its rows."""
    results, rows = document["results"], []
    names = [s for s in SCHEDULES if any(f"|{s}|" in key for key in results)]
    for case in CASES.values():
        cells = []
        for name in names:
            accuracy = 100 * curves_of(results, case, name, "test_accuracy")
            if not len(accuracy):
                cells.append("-")
                continue
            last = 100 * curves_of(results, case, name, "final_accuracy").mean()
            learned = 100 * curves_of(results, case, name, "memorised")[:, -1].mean()
            cells.append(f"{accuracy.max(axis=1).mean():.1f} > {last:.1f} ({learned:.0f})")
        if set(cells) != {"-"}:
            rows.append([case, *cells])
    about = (
        "Test accuracy in %: best of any epoch > last 10 % of the epochs (share of the wrong "
        "labels that are memorised in the end)"
    )
    return about, ["", *names], rows


def report(document: dict[str, Any]) -> str:
    """Return the table as text."""
    about, header, rows = table(document)
    lines = [heading(document), about]
    lines += [f"{row[0]:28}" + "".join(f"{c:>22}" for c in row[1:]) for row in (header, *rows)]
    return "\n".join(lines)


def markdown(document: dict[str, Any]) -> str:
    """Return the table for a page of the docs."""
    about, header, rows = table(document)
    return f"{heading(document)}\n\n{about}:\n\n{runs.markdown(header, rows)}"


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw a row for each schedule and a column for each thing that is changed."""
    results = document["results"]
    shown = [s for s in SCHEDULES if any(f"|{s}|" in key for key in results)]
    figure = Figure(figsize=(15, 2.5 * len(shown) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), len(PANELS), sharex=True, sharey=True, squeeze=False)
    for row, name in zip(axes, shown, strict=True):
        for axis, of in zip(row, PANELS.values(), strict=True):
            for i, (label, case) in enumerate(of.items()):
                for curve, style in (("test_accuracy", "-"), ("memorised", ":")):
                    found = 100 * curves_of(results, CASES[case], name, curve)
                    if len(found):
                        own = label if curve == "test_accuracy" else None
                        mean, sd = found.mean(axis=0), found.std(axis=0)
                        axis.plot(mean, style, color=f"C{i}", label=own)
                        if curve == "test_accuracy":
                            around = np.arange(len(mean)), mean - sd, mean + sd
                            axis.fill_between(*around, color=f"C{i}", alpha=0.15, lw=0)
            axis.grid(alpha=0.3)
            axis.set(ylim=(0, 122), yticks=range(0, 101, 20))  # room for the legend
        row[0].set_ylabel(f"{name}\n%")
    for axis, panel in zip(axes[0], PANELS, strict=True):
        axis.set_title(panel)
        axis.legend(fontsize=8, loc="upper center", ncols=3, columnspacing=1, handlelength=1)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    figure.suptitle(
        "Test accuracy (solid) and share of the wrong labels that are memorised (dotted), "
        f"{100 * NOISE_RATE:g} % symmetric noise"
        + (f", first {document['n_images']} images" if document.get("n_images") else ""),
        fontsize=11,
    )
    figure.savefig(path, dpi=90)


def budget(jobs: list[runs.Job], n_processes: int, setup: dict[str, Any]) -> str:
    """Time two epochs of each case here; return what the full run takes."""
    lines, minutes = [], {}
    run(
        (CASES[PANELS["data set"]["digits"]], "none", 0), **setup | {"n_epochs": 2}
    )  # what is once
    for case in dict.fromkeys(str(job[0]) for job in jobs):
        found = run((case, "none", 0), **setup | {"n_epochs": 2})
        minutes[case] = found["seconds"] / 60 / 2 * setup["n_epochs"]
        lines.append(f"{case:28}{minutes[case]:8.1f} minutes per training")
    trainings = {job: setup["n_trials"] + 1 if job[1] == "searched" else 1 for job in jobs}
    hours = sum(minutes[str(job[0])] * n for job, n in trainings.items()) / 60
    lines.append(
        f"{sum(trainings.values())} trainings of {setup['n_epochs']} epochs: {hours:.1f} core "
        f"hours, {hours / n_processes:.1f} hours with {n_processes} processes"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, print the table, draw the picture."""
    made = runs.figure_parser(__doc__, seeds=3, epochs=200, results=RESULTS)
    made.add_argument("--images", type=int, help="only the first N images; default: all")
    made.add_argument("--trials", type=int, default=0, help="trainings of a search; 0: no search")
    made.add_argument("--cases", nargs="+", metavar="CASE", choices=CASES.values(),
                      default=list(CASES.values()), help="only these")  # fmt: skip
    args = made.parse_args(argv)
    data = None
    if args.smoke:
        data, args.epochs, args.trials, args.seeds, args.images = "digits", 2, 2, 1, 100
        runs.keep_nothing(args)
    setup = {
        "data": data, "n_epochs": args.epochs, "n_images": args.images, "n_trials": args.trials
    }  # fmt: skip
    jobs = jobs_of(args.seeds, args.trials, args.cases)
    if args.budget:
        print(budget(jobs, args.jobs, setup))
        return
    if not args.report:
        runs.note_setup(args.results, setup)
        runs.run_missing(
            args.results, jobs, partial(run, **setup), n_processes=args.jobs, minutes=args.minutes
        )
    document = runs.read(args.results)
    print(report(document))
    if args.page is not None:
        runs.fill_page(args.page, "figure 1", markdown(document))
    if args.picture is not None:
        draw(document, args.picture)


if __name__ == "__main__":
    main()
