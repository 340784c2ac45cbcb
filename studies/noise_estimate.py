"""How well does `estimate_noise` find the noise rate, and what does it cost?

Question:  the error of the estimated noise rate, with clean validation labels and without any;
           whether its 95 % interval holds the truth; its processor time in Co-teaching trainings.
Tasks:     24 held-out tasks, six data sets under symmetric, pair and class-dependent noise, three
           seeds each (wrong labels, split, folds). Nothing was chosen on these data sets. Beside
           them, one seed each of 28 tasks on data sets whose other seeds were looked at while the
           method and its constants were chosen; those on images need `S2E_DATA_ROOT`.
Truth:     the share of labels that are wrong in the drawn sample.
Peer:      cleanlab on the same out-of-fold probabilities: the off-diagonal of `estimate_joint`,
           and the count of `num_label_issues`. Neither uses clean labels.
Run:       pip install "optuna-s2e[coteaching,studies]"
           python studies/noise_estimate.py --jobs 2                         (it resumes)
Read:      studies/results/noise_estimate.json, --report
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import runs
import tasks
from cleanlab.count import estimate_joint, num_label_issues
from sklearn import datasets

from optuna_s2e.coteaching import NoisyData, TrainingConfig, estimate_noise, train_batch
from optuna_s2e.label_noise import flip_labels
from optuna_s2e.schedules import standard_schedule

RESULTS = Path(__file__).parent / "results" / "noise_estimate.json"
FIRST_SEED, N_VALIDATION, N_EPOCHS = 900, 500, 40
CONFIG = TrainingConfig(batch_size=64)
N = 2500


def quantiles() -> tasks.Arrays:
    """2,500 normal points of 8 numbers; three classes, one shell around the other."""
    return datasets.make_gaussian_quantiles(  # type: ignore[no-any-return]
        n_samples=N, n_features=8, n_classes=3, random_state=3
    )


def hastie() -> tasks.Arrays:
    """2,500 normal points of 10 numbers; two classes, inside a sphere and outside."""
    x, y = datasets.make_hastie_10_2(n_samples=N, random_state=4)
    return x, (y > 0).astype(np.int64)


def wine() -> tasks.Arrays:
    """178 wines, 13 numbers of a chemical analysis, three growers."""
    return datasets.load_wine(return_X_y=True)  # type: ignore[no-any-return]


def synthetic(n_classes: int, seed: int) -> tasks.Arrays:
    """Return the first 2,500 points of a synthetic set."""
    x, y = tasks.synthetic(n_classes, seed)
    return x[:N], y[:N]


HELD_OUT: dict[str, Callable[[], tasks.Arrays]] = {
    "wine": wine,
    "sphere, 2 classes": hastie,
    "shells, 3 classes": quantiles,
    "synthetic, 2 classes": lambda: synthetic(2, 99),
    "synthetic, 5 classes": lambda: synthetic(5, 77),
    "synthetic, 10 classes": lambda: synthetic(10, 21),
}
SEEN: dict[str, Callable[[], tasks.Arrays]] = {
    "digits": tasks.digits,
    "breast cancer": tasks.breast_cancer,
    "synthetic-4": lambda: tasks.synthetic(4, 5),
    "synthetic-8": lambda: tasks.synthetic(8, 6),
    "MNIST 7x7": lambda: tasks.images("mnist", 8000),
    "CIFAR-10 8x8, 4 classes": lambda: tasks.images("cifar10", 6000, classes=4),
    "CIFAR-10 8x8": lambda: tasks.images("cifar10", 6000),
}
IMAGES = ["MNIST 7x7", "CIFAR-10 8x8, 4 classes", "CIFAR-10 8x8"]
SOURCES = {**HELD_OUT, **SEEN}
NOISES = [("symmetric", 0.2), ("symmetric", 0.45), ("pair", 0.4), ("class-dependent", 0.35)]


def make_data(source: str, noise: str, rate: float, seed: int) -> NoisyData:
    """Draw wrong labels and a split; inputs are standardised by the training part."""
    x, y = SOURCES[source]()
    n_classes = int(y.max()) + 1
    rng = np.random.default_rng([seed, list(SOURCES).index(source)])
    order = rng.permutation(len(y))
    n_validation = min(N_VALIDATION, len(y) // 4)
    val, train = order[:n_validation], order[n_validation:]
    noisy = flip_labels(y[train], tasks.matrix_of(noise, rate, n_classes, rng), rng)
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
    labels = data.noisy_labels.numpy()
    joint = estimate_joint(labels, unaided.probabilities)
    return {
        "true": float((data.noisy_labels != data.clean_labels).double().mean()),
        "aided": [aided.noise_rate, *aided.interval],
        "unaided": [unaided.noise_rate, *unaided.interval],
        "joint": float(1.0 - np.trace(joint)),
        "issues": num_label_issues(labels, unaided.probabilities) / len(labels),
        "trainings": seconds / (time.process_time() - start),
        "best_error": float(training.curves.error.min()),
    }


def report(results: runs.Results) -> None:
    """Print the table: error of the rate, median (worst); how often the interval holds it."""
    rows = [(key.split("|"), r) for key, r in results.items()]
    print("| data | least error of the network | clean labels | in 95 % | none | in 95 % "
          "| cleanlab: joint | count | cost in trainings |")  # fmt: skip
    print("|---|" + "---:|" * 8)
    groups = {name: [name] for name in HELD_OUT} | {"all held out": list(HELD_OUT)}
    groups |= {name: [name] for name in SEEN} | {"all seen": list(SEEN)}
    for name, sources in groups.items():
        of = [r for (source, *_), r in rows if source in sources]
        if not of:
            continue
        true = np.array([r["true"] for r in of])
        cells = []
        for kind in ("aided", "unaided"):
            value, low, high = np.array([r[kind] for r in of]).T
            held = int(((low <= true + 1e-9) & (true <= high + 1e-9)).sum())
            cells += [_error(value - true), f"{held} of {len(of)}"]
        cells += [_error(np.array([r[kind] for r in of]) - true) for kind in ("joint", "issues")]
        least, cost = (np.median([r[key] for r in of]) for key in ("best_error", "trainings"))
        print(f"| {name} | {least:.2f} | {' | '.join(cells)} | {cost:.2f} |")


def _error(off: np.ndarray) -> str:
    return f"{np.median(np.abs(off)):.3f} ({np.abs(off).max():.3f})"


def main() -> None:
    """Run what is missing, then print the table."""
    args = runs.parser(__doc__, seeds=3).parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    jobs = [(s, n, rate, seed) for seed in seeds for s in HELD_OUT for n, rate in NOISES]
    seen = [s for s in SEEN if "S2E_DATA_ROOT" in os.environ or s not in IMAGES]
    jobs += [(s, n, rate, FIRST_SEED) for s in seen for n, rate in NOISES]
    if not args.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=args.jobs, minutes=args.minutes)
    report(runs.read(RESULTS)["results"])


if __name__ == "__main__":
    main()
