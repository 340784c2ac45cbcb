"""How well does `estimate_noise` find the noise rate, and what does it cost?

Question:  the error of the estimated noise rate, with clean validation labels and without any;
           whether its 95 % interval holds the truth; its processor time in Co-teaching trainings.
Tasks:     data of studies/tasks.py under no, symmetric, pair and class-dependent noise; two seeds
           each (wrong labels, split, folds). The estimator's constants were chosen with other
           seeds of the digits, MNIST, CIFAR-10 and two synthetic sets, on smaller networks.
Truth:     the share of labels that are wrong in the drawn sample.
Reference: the share of labels that out-of-fold predictions contradict.
Run:       python studies/noise_estimate.py --jobs 2                         (it resumes)
Read:      studies/results/noise_estimate.json, --report
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import runs
import tasks

from optuna_s2e.coteaching import NoisyData, TrainingConfig, estimate_noise, train_batch
from optuna_s2e.label_noise import flip_labels, transition_matrix
from optuna_s2e.schedules import standard_schedule

RESULTS = Path(__file__).parent / "results" / "noise_estimate.json"
FIRST_SEED, N_VALIDATION, N_EPOCHS = 700, 500, 40
CONFIG = TrainingConfig(batch_size=64)
SOURCES: dict[str, Callable[[], tasks.Arrays]] = {
    "digits": tasks.digits,
    "breast cancer": tasks.breast_cancer,
    "synthetic-4": lambda: tasks.synthetic(4, 5),
    "synthetic-8": lambda: tasks.synthetic(8, 6),
    "MNIST 7x7": lambda: tasks.images("mnist", 8000),
    "CIFAR-10 8x8, 4 classes": lambda: tasks.images("cifar10", 6000, classes=4),
    "CIFAR-10 8x8": lambda: tasks.images("cifar10", 6000),
}
NOISES = [("none", 0.0), ("symmetric", 0.2), ("symmetric", 0.45), ("pair", 0.2), ("pair", 0.4),
          ("class-dependent", 0.35)]  # fmt: skip


def matrix_of(noise: str, rate: float, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return the transition matrix; class-dependent noise has a rate for each class."""
    if noise != "class-dependent":
        return transition_matrix(noise, rate, n_classes)
    rows = []
    for i in range(n_classes):
        wrong = rng.uniform(0.5, 1.5) * rate
        others = rng.dirichlet(np.full(n_classes - 1, 0.5))
        rows.append(np.insert(wrong * others, i, 1 - wrong))
    return np.array(rows)


def make_data(source: str, noise: str, rate: float, seed: int) -> NoisyData:
    """Draw wrong labels and a split; inputs are standardised by the training part."""
    x, y = SOURCES[source]()
    n_classes = int(y.max()) + 1
    rng = np.random.default_rng([seed, list(SOURCES).index(source)])
    order = rng.permutation(len(y))
    n_validation = min(N_VALIDATION, len(y) // 4)
    val, train = order[:n_validation], order[n_validation:]
    noisy = flip_labels(y[train], matrix_of(noise, rate, n_classes, rng), rng)
    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0) + 1e-2
    z = ((x - mean) / deviation).astype(np.float32)
    return NoisyData.from_arrays(
        z[train], noisy, z[val], y[val], clean_labels=y[train], n_classes=n_classes
    )


def run(job: runs.Job) -> dict[str, Any]:
    """Estimate the noise of one task."""
    source, noise, rate, seed = job
    data = make_data(str(source), str(noise), float(rate), int(seed))
    assert data.clean_labels is not None
    start = time.process_time()
    aided = estimate_noise(data, config=CONFIG, device="cpu", seed=int(seed))
    seconds = time.process_time() - start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unaided = estimate_noise(
            data, config=CONFIG, device="cpu", seed=int(seed), clean_validation=False
        )
    start = time.process_time()
    (training,) = train_batch(
        standard_schedule(N_EPOCHS).keep_rates[None], [int(seed)],
        data=data, config=CONFIG, device="cpu",
    )  # fmt: skip
    return {
        "true": float((data.noisy_labels != data.clean_labels).double().mean()),
        "aided": [aided.noise_rate, *aided.interval],
        "unaided": [unaided.noise_rate, *unaided.interval],
        "trainings": seconds / (time.process_time() - start),
        "best_error": float(training.curves.error.min()),
    }


def report(results: runs.Results) -> None:
    """Print the tables."""
    rows = [(key.split("|"), r) for key, r in results.items()]
    print("| data | least error of the network | clean labels: error, median (worst) | in 95 % "
          "interval | none: error, median (worst) | cost in trainings |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|")
    for name in [*SOURCES, None]:
        of = [r for (source, *_), r in rows if name in (source, None)]
        if not of:
            continue
        true = np.array([r["true"] for r in of])
        cells = []
        for kind in ("aided", "unaided"):
            value, low, high = np.array([r[kind] for r in of]).T
            off = np.abs(value - true)
            cells.append(f"{np.median(off):.3f} ({off.max():.3f})")
            held = int(((low <= true + 1e-9) & (true <= high + 1e-9)).sum())
            cells.append(f"{held} of {len(of)}")
        least = np.median([r["best_error"] for r in of])
        cost = np.median([r["trainings"] for r in of])
        print(f"| {name or 'all'} | {least:.2f} | {cells[0]} | {cells[1]} | {cells[2]} | "
              f"{cost:.2f} |")  # fmt: skip


def main() -> None:
    """Run what is missing, then print the tables."""
    args = runs.parser(__doc__, seeds=2).parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    jobs = [(s, n, rate, seed) for seed in seeds for s in SOURCES for n, rate in NOISES]
    if not args.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=args.jobs, minutes=args.minutes)
    report(runs.read(RESULTS)["results"])


if __name__ == "__main__":
    main()
