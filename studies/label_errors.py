"""Which labels are wrong? A pair of networks that selects, beside cleanlab and area under margin.

Question:  how well are wrong labels found, and at which cost: average precision, precision at the
           true number of wrong labels, precision and recall of the list that each method gives by
           itself, processor time and peak memory.
Tasks:     digits (997 samples, "mlp", 40 epochs), MNIST (10,000, "mlp", 20 epochs) and CIFAR-10
           (5,000, "cnn2", 15 epochs) under symmetric, pair and class-dependent noise. The digits
           were looked at while the quality was chosen, MNIST and CIFAR-10 were not. Their epochs
           are few, so that the study runs on one processor core.
Methods:   "pair": `find_label_errors`. The noise is estimated with 300 or 500 clean validation
           labels, or without any; "alike" judges the same training without the matrix.
           "margin": one network trained on all labels, mean margin over the epochs (Pleiss 2020).
           "cleanlab": one network in 5-fold cross-validation, `find_label_issues` and its scores.
           All train the same network with the same optimiser for the same number of epochs.
Needs:     pip install cleanlab; S2E_DATA_ROOT, a torchvision data root, for MNIST and CIFAR-10.
Run:       python studies/label_errors.py                                       (it resumes)
Read:      studies/results/label_errors.json, --report
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import runs
import torch
from noise_estimate import matrix_of
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.nn import functional as F

from optuna_s2e.coteaching import (
    NoisyData,
    TrainingConfig,
    estimate_noise,
    label_quality,
    load_data,
    make_network,
    train_batch,
)
from optuna_s2e.label_noise import flip_labels
from optuna_s2e.schedules import suggested_schedule

RESULTS = Path(__file__).parent / "results" / "label_errors.json"
FIRST_SEED, N_VALIDATION, N_FOLDS = 900, 500, 5
NOISES = [("symmetric", 0.4), ("pair", 0.45), ("class-dependent", 0.35)]


@dataclass(frozen=True)
class Source:
    """Data and how networks are trained on them."""

    name: str
    n: int
    network: str
    n_epochs: int
    batch_size: int

    @property
    def config(self) -> TrainingConfig:
        """Adam at 1e-3."""
        return TrainingConfig(batch_size=self.batch_size)


SOURCES = {
    "digits": Source("digits", 997, "mlp", 40, 64),
    "MNIST": Source("mnist", 10_000, "mlp", 20, 128),
    "CIFAR-10": Source("cifar10", 5_000, "cnn2", 15, 128),
}
METHODS = {
    "pair, clean validation labels": "pair, clean validation labels for the estimate",
    "pair": "pair, no clean labels",
    "alike": "pair, all classes alike",
    "margin": "area under the margin",
    "cleanlab": "cleanlab, self-confidence",
    "cleanlab, margin": "cleanlab, normalised margin",
}


def make_data(source: Source, noise: str, rate: float, seed: int) -> NoisyData:
    """Draw samples, wrong labels and validation data with right labels."""
    options: dict[str, Any] = {}
    if source.name != "digits":
        options = {"root": os.environ["S2E_DATA_ROOT"], "download": False}
    full = load_data(source.name, noise="none", **options)
    x, y = full.x, full.noisy_labels.numpy()
    if source.name == "digits":  # all that there are
        x, y = torch.cat([x, full.x_val]), np.concatenate([y, full.y_val.numpy()])
    rng = np.random.default_rng([seed, list(SOURCES).index(
        next(key for key, value in SOURCES.items() if value is source)
    )])  # fmt: skip
    order = rng.permutation(len(y))
    train, val = order[: source.n], order[source.n :][:N_VALIDATION]
    noisy = flip_labels(y[train], matrix_of(noise, rate, 10, rng), rng)
    return NoisyData.from_arrays(
        x[train], noisy, x[val], y[val], clean_labels=y[train], n_classes=10
    )


class Cost:
    """Processor time, wall time and the peak memory of the process while some lines run."""

    @contextmanager
    def measured(self) -> Iterator[Cost]:
        """Measure what runs inside."""
        ctypes.CDLL(None).malloc_trim(0)  # gives free memory back
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        start, wall = time.process_time(), time.perf_counter()
        yield self
        self.cpu, self.wall = time.process_time() - start, time.perf_counter() - wall
        status = Path("/proc/self/status").read_text().split()
        self.megabytes = int(status[status.index("VmHWM:") + 1]) / 1024

    def plus(self, other: Cost) -> dict[str, float]:
        """Return the costs of both, one after the other."""
        return {
            "cpu": self.cpu + other.cpu, "wall": self.wall + other.wall,
            "megabytes": max(self.megabytes, other.megabytes),
        }  # fmt: skip


def train_alone(
    source: Source, x: torch.Tensor, y: torch.Tensor, seed: int
) -> tuple[nn.Module, np.ndarray]:
    """Train one network on all labels; return it and the mean margin of each sample."""
    x, config = x.float() / (255 if x.dtype == torch.uint8 else 1), source.config
    network = make_network(source.network, tuple(x.shape[1:]), 10, seed=seed)
    optimizer = config.make_optimizer(list(network.parameters()))
    generator = torch.Generator().manual_seed(seed)
    margins = torch.zeros(len(y), dtype=torch.float64)
    for rate, beta1 in zip(
        config.learning_rates(source.n_epochs), config.beta1s(source.n_epochs), strict=True
    ):
        for group in optimizer.param_groups:
            group.update(lr=float(rate), betas=(float(beta1), 0.999))
        for batch in torch.randperm(len(y), generator=generator).split(config.batch_size):
            logits, given = network(x[batch]), y[batch]
            optimizer.zero_grad()
            F.cross_entropy(logits, given).backward()
            optimizer.step()
            z = logits.detach()
            others = z.scatter(1, given[:, None], -torch.inf).max(dim=1).values
            margins[batch] += z.gather(1, given[:, None])[:, 0] - others
    return network.eval(), (margins / source.n_epochs).numpy()


def cross_validated(source: Source, data: NoisyData, seed: int) -> np.ndarray:
    """Return probabilities by networks that have not seen the sample, (N, C)."""
    x, y = data.x, data.noisy_labels
    probabilities = np.empty((len(y), 10))
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    for number, (train, held_out) in enumerate(folds.split(np.zeros(len(y)), y)):
        network, _ = train_alone(source, x[train], y[train], 10 * seed + number)
        inputs = x[held_out].float() / (255 if x.dtype == torch.uint8 else 1)
        with torch.no_grad():
            parts = [network(part).double() for part in inputs.split(1024)]
        probabilities[held_out] = torch.cat(parts).softmax(dim=1).numpy()
    return probabilities


def judge(quality: np.ndarray, wrong: np.ndarray, listed: np.ndarray | int) -> dict[str, float]:
    """Return how well a quality and a list (or its length) find the wrong labels."""
    worst = np.argsort(quality, kind="stable")
    found = worst[:listed] if isinstance(listed, int) else np.flatnonzero(listed)
    return {
        "average precision": float(average_precision_score(wrong, -quality)),
        "precision at n": float(wrong[worst[: wrong.sum()]].mean()),
        "precision": float(wrong[found].mean()) if len(found) else 1.0,
        "recall": float(wrong[found].sum() / wrong.sum()),
    }


def by_pair(source: Source, data: NoisyData, seed: int, *, clean: bool) -> dict[str, Any]:
    """Estimate the noise, train a pair, and judge what it saw with and without the matrix."""
    assert data.clean_labels is not None
    wrong = (data.noisy_labels != data.clean_labels).numpy()
    kinds: dict[str, Any] = {"network": source.network, "config": source.config, "device": "cpu"}
    with Cost().measured() as of_estimate:
        estimate = estimate_noise(
            data, n_epochs=source.n_epochs // 2, clean_validation=clean, seed=seed, **kinds
        )
    with Cost().measured() as of_training:
        rates = suggested_schedule(source.n_epochs, estimate.noise_rate).keep_rates
        (result,) = train_batch(rates[None], [seed], data=data, watch_samples=True, **kinds)
    if result.samples is None:
        raise RuntimeError("a training failed") from result.failure
    n, labels = round(estimate.noise_rate * len(wrong)), data.noisy_labels.numpy()
    cost = of_estimate.plus(of_training)
    alike = judge(label_quality(result.samples, labels), wrong, n)
    with_matrix = judge(label_quality(result.samples, labels, noise=estimate), wrong, n)
    return {
        "with matrix": {**with_matrix, **cost, "rate": estimate.noise_rate},
        "alike": {**alike, **cost, "rate": estimate.noise_rate},
    }


def run(job: runs.Job) -> dict[str, Any]:
    """Look for the wrong labels of one task by all methods."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    source, noise, rate, seed = SOURCES[str(job[0])], str(job[1]), float(job[2]), int(job[3])
    data = make_data(source, noise, rate, seed)
    assert data.clean_labels is not None
    labels = data.noisy_labels.numpy()
    wrong = labels != data.clean_labels.numpy()
    aided = by_pair(source, data, seed, clean=True)
    unaided = by_pair(source, data, seed, clean=False)
    found = {
        "pair, clean validation labels": aided["with matrix"], "pair": unaided["with matrix"],
        "alike": aided["alike"],
    }  # fmt: skip
    with Cost().measured() as cost:
        _, margins = train_alone(source, data.x, data.noisy_labels, seed)
    # it says nothing of how many: it is told the truth
    found["margin"] = {**judge(margins, wrong, int(wrong.sum())), **vars(cost)}
    with Cost().measured() as cost:
        probabilities = cross_validated(source, data, seed)
        issues = find_label_issues(labels, probabilities, n_jobs=1)
    for name, method in (("cleanlab", "self_confidence"),
                         ("cleanlab, margin", "normalized_margin")):  # fmt: skip
        scores = get_label_quality_scores(labels, probabilities, method=method)
        found[name] = {**judge(scores, wrong, issues), **vars(cost)}
    return {"wrong": float(wrong.mean()), "found": found}


def report(results: runs.Results) -> None:
    """Print the tables."""
    cells: list[tuple[str, Callable[[dict[str, float]], float], float]] = [
        ("average precision", lambda r: r["average precision"], 100),
        ("precision at the true number", lambda r: r["precision at n"], 100),
        ("precision of its list", lambda r: r["precision"], 100),
        ("recall of its list", lambda r: r["recall"], 100),
        ("processor seconds", lambda r: r["cpu"], 1),
        ("peak memory, MB", lambda r: r["megabytes"], 1),
    ]
    rows = [(key.split("|"), r) for key, r in results.items()]
    for name in SOURCES:
        for noise, rate in NOISES:
            of = [r for (source, kind, *_), r in rows if (source, kind) == (name, noise)]
            if not of:
                continue
            print(f"\n**{name}, {noise} {100 * rate:g} %** ({len(of)} seeds)\n")
            print("| method | " + " | ".join(title for title, *_ in cells) + " |")
            print("|---|" + "---:|" * len(cells))
            for method, title in METHODS.items():
                values = [
                    f"{scale * np.mean([get(r['found'][method]) for r in of]):.1f}"
                    for _, get, scale in cells
                ]
                print(f"| {title} | " + " | ".join(values) + " |")


def main() -> None:
    """Run what is missing, then print the tables."""
    args = runs.parser(__doc__, seeds=3).parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    names = [name for name in SOURCES if name == "digits" or "S2E_DATA_ROOT" in os.environ]
    jobs = [(name, *noise, seed) for seed in seeds for noise in NOISES for name in names]
    jobs.sort(key=lambda job: job[0] != "digits")  # they take seconds
    if not args.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=args.jobs, minutes=args.minutes)
    report(runs.read(RESULTS)["results"])


if __name__ == "__main__":
    main()
