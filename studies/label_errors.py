"""Which labels are wrong? Two networks and the estimate of the noise, beside cleanlab and margins.

Question:  how well are wrong labels found, and at which cost: average precision, precision at the
           true number of wrong labels, precision and recall of the list that each method gives by
           itself, processor time and peak memory.
Tasks:     digits (997 samples, "mlp", 40 epochs), MNIST (10,000, "mlp", 20 epochs), CIFAR-10
           (5,000, "cnn2", 15 epochs) and the tables "additive" and "network" of
           classifier_tables.py (10,000, two hidden layers of 128, 20 epochs) under symmetric, pair
           and class-dependent noise. The quality was chosen on digits, a synthetic set of eight
           classes and CIFAR-10 of seed 0 (other images, other labels); MNIST and these tables were
           not looked at. The epochs are few, so that the study runs on one processor core.
Methods:   "pair": as `find_label_errors`. The noise is estimated with 300 or 500 clean validation
           labels, or without any. Beside it, the same runs with other ways to weigh: the history
           alone, out of fold alone, the sum of their log-odds, the mean of their ranks.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import runs
import tasks
import torch
from scipy.special import expit, logit
from scipy.stats import rankdata
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer
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
from optuna_s2e.schedules import coteaching_schedule, standard_schedule

RESULTS = Path(__file__).parent / "results" / "label_errors.json"
FIRST_SEED, N_VALIDATION, N_FOLDS = 900, 500, 5
NOISES = [("symmetric", 0.4), ("pair", 0.45), ("class-dependent", 0.35)]


@dataclass(frozen=True)
class Source:
    """Data and how networks are trained on them."""

    name: str
    n: int
    network: str | tasks.NetworkFunction
    n_epochs: int
    batch_size: int
    learning_rate: float = 1e-3

    @property
    def config(self) -> TrainingConfig:
        """Adam."""
        return TrainingConfig(batch_size=self.batch_size, learning_rate=self.learning_rate)


SOURCES = {
    "digits": Source("digits", 997, "mlp", 40, 64),
    "MNIST": Source("mnist", 10_000, "mlp", 20, 128),
    "CIFAR-10": Source("cifar10", 5_000, "cnn2", 15, 128),
    "additive": Source("additive", 10_000, tasks.deep_mlp, 20, 128, 2e-3),
    "network": Source("network", 10_000, tasks.deep_mlp, 20, 128, 2e-3),
}
TABLES = ("additive", "network")
METHODS = {
    "pair, clean validation labels": "pair, clean validation labels for the estimate",
    "pair": "pair, no clean labels",
    "margin": "area under the margin",
    "cleanlab": "cleanlab, self-confidence",
    "cleanlab, margin": "cleanlab, normalised margin",
}
WAYS = ("history", "out of fold", "sum", "ranks")


def make_data(source: Source, noise: str, rate: float, seed: int) -> NoisyData:
    """Draw samples, wrong labels and validation data with right labels."""
    rng = np.random.default_rng([seed, [s.name for s in SOURCES.values()].index(source.name)])
    x, y = read_table(source, seed) if source.name in TABLES else read_images(source)
    n_classes = int(y.max()) + 1
    order = rng.permutation(len(y))
    train, val = order[: source.n], order[source.n :][:N_VALIDATION]
    noisy = flip_labels(y[train], tasks.matrix_of(noise, rate, n_classes, rng), rng)
    return NoisyData.from_arrays(
        x[train], noisy, x[val], y[val], clean_labels=y[train], n_classes=n_classes
    )


def read_images(source: Source) -> tuple[torch.Tensor, np.ndarray]:
    """Return all images with their right labels."""
    options: dict[str, Any] = {}
    if source.name != "digits":
        options = {"root": os.environ["S2E_DATA_ROOT"], "download": False}
    full = load_data(source.name, noise="none", **options)
    x, y = full.x, full.noisy_labels.numpy()
    if source.name == "digits":  # all that there are
        x, y = torch.cat([x, full.x_val]), np.concatenate([y, full.y_val.numpy()])
    return x, y


def read_table(source: Source, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a table as features, with their right labels."""
    from classifier_tables import make_table  # it needs cleanlab

    table = make_table(source.name, "symmetric", seed)
    frame = table.x
    numbers = frame.columns[frame.columns.str.startswith("number")]
    encoder = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median", add_indicator=True),
                       QuantileTransformer(output_distribution="normal")), numbers),
        (OneHotEncoder(sparse_output=False), frame.columns.difference(numbers)),
    )  # fmt: skip
    x = np.concatenate([encoder.fit_transform(frame), encoder.transform(table.x_test)])
    y = np.unique(np.concatenate([table.true, table.y_test]), return_inverse=True)[1]
    return x.astype(np.float32), y


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


def as_input(x: torch.Tensor) -> torch.Tensor:
    """Return inputs as networks see them."""
    return x.float() / (255 if x.dtype == torch.uint8 else 1)


def train_alone(
    source: Source, data: NoisyData, some: np.ndarray | slice, seed: int
) -> tuple[nn.Module, np.ndarray]:
    """Train one network on some samples; return it and the mean margin of each of them."""
    x, y, config = as_input(data.x[some]), data.noisy_labels[some], source.config
    network = make_network(source.network, tuple(x.shape[1:]), data.n_classes, seed=seed)
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
    y = data.noisy_labels
    probabilities = np.empty((len(y), data.n_classes))
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    for number, (train, held_out) in enumerate(folds.split(np.zeros(len(y)), y)):
        network, _ = train_alone(source, data, train, 10 * seed + number)
        with torch.no_grad():
            parts = [network(part).double() for part in as_input(data.x[held_out]).split(1024)]
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
    """Estimate the noise, train a pair, and judge the labels in all ways."""
    assert data.clean_labels is not None
    wrong, labels = (data.noisy_labels != data.clean_labels).numpy(), data.noisy_labels.numpy()
    kinds: dict[str, Any] = {"network": source.network, "config": source.config, "device": "cpu"}
    with Cost().measured() as of_estimate:
        estimate = estimate_noise(
            data, n_epochs=3 * source.n_epochs // 8, clean_validation=clean, seed=seed, **kinds
        )
        out_of_fold = label_quality([], labels, noise=estimate)
    with Cost().measured() as of_training:
        schedule = coteaching_schedule(  # as find_label_errors does
            source.n_epochs, min(0.95, 1.2 * estimate.noise_rate), source.n_epochs / 2, 1.5
        )
        if clean:
            schedule = standard_schedule(source.n_epochs)
        (result,) = train_batch(
            schedule.keep_rates[None], [seed], data=data, watch_samples=True, **kinds
        )
        if result.samples is None:
            raise RuntimeError("a training failed") from result.failure
        both = label_quality(result.samples, labels, noise=estimate)
    unknown = replace(estimate, probabilities=np.full_like(estimate.probabilities, np.nan))
    history = label_quality(result.samples, labels, noise=unknown)
    odds = [logit(np.clip(q, 1e-12, 1 - 1e-12)) for q in (history, out_of_fold)]
    cost = of_estimate.plus(of_training)
    ways = {
        "history": history,
        "out of fold": out_of_fold,
        "sum": expit(sum(odds)),
        "ranks": rankdata(history) + rankdata(out_of_fold),
    }
    n = round(estimate.noise_rate * len(wrong))
    return {
        **judge(both, wrong, n),
        **cost,
        "rate": estimate.noise_rate,
        "estimate cpu": of_estimate.cpu,
        "ways": {way: judge(quality, wrong, n) for way, quality in ways.items()},
    }


def by_others(source: Source, data: NoisyData, seed: int) -> dict[str, Any]:
    """Judge the labels by the margins of one network, and by cleanlab."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    assert data.clean_labels is not None
    labels = data.noisy_labels.numpy()
    wrong = labels != data.clean_labels.numpy()
    with Cost().measured() as cost:
        _, margins = train_alone(source, data, slice(None), seed)
    # it says nothing of how many: it is told the truth
    found = {"margin": {**judge(margins, wrong, int(wrong.sum())), **vars(cost)}}
    with Cost().measured() as cost:
        probabilities = cross_validated(source, data, seed)
        issues = find_label_issues(labels, probabilities, n_jobs=1)
    for name, method in (("cleanlab", "self_confidence"),
                         ("cleanlab, margin", "normalized_margin")):  # fmt: skip
        scores = get_label_quality_scores(labels, probabilities, method=method)
        found[name] = {**judge(scores, wrong, issues), **vars(cost)}
    return found


def run(job: runs.Job) -> dict[str, Any]:
    """Look for the wrong labels of one task by some of the methods."""
    source, noise, rate, seed = SOURCES[str(job[0])], str(job[1]), float(job[2]), int(job[3])
    data = make_data(source, noise, rate, seed)
    if job[4] == "others":
        return by_others(source, data, seed)
    return {
        "pair, clean validation labels": by_pair(source, data, seed, clean=True),
        "pair": by_pair(source, data, seed, clean=False),
    }


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
    rows: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for key, found in results.items():
        name, noise, *_ = key.split("|")
        for method, result in found.items():
            rows.setdefault((name, noise), {}).setdefault(method, []).append(result)
    for name in SOURCES:
        for noise, rate in NOISES:
            of = rows.get((name, noise), {})
            print(f"\n**{name}, {noise} {100 * rate:g} %**\n")
            print("| method | seeds | " + " | ".join(title for title, *_ in cells) + " |")
            print("|---|" + "---:|" * (1 + len(cells)))
            for method, title in METHODS.items():
                all_of = of.get(method, [])
                if all_of:
                    values = [
                        f"{k * np.mean([get(r) for r in all_of]):.1f}" for _, get, k in cells
                    ]
                    print(f"| {title} | {len(all_of)} | " + " | ".join(values) + " |")
    print("\n**Average precision by ways to weigh**\n")
    print("| data | noise | clean labels | " + " | ".join((*WAYS, "both, scaled")) + " |")
    print("|---|---|---|" + "---:|" * (1 + len(WAYS)))
    for (name, noise), of in rows.items():
        for method in ("pair, clean validation labels", "pair"):
            pairs = of.get(method, [])
            if not pairs:
                continue
            means = [np.mean([r["ways"][way]["average precision"] for r in pairs]) for way in WAYS]
            means.append(np.mean([r["average precision"] for r in pairs]))
            aid = "yes" if method != "pair" else "no"
            values = [f"{100 * mean:.1f}" for mean in means]
            print(f"| {name} | {noise} | {aid} | " + " | ".join(values) + " |")


def main() -> None:
    """Run what is missing, then print the tables."""
    args = runs.parser(__doc__, seeds=3).parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    names = [s for s in SOURCES if s in ("digits", *TABLES) or "S2E_DATA_ROOT" in os.environ]
    jobs: list[runs.Job] = [
        (name, *noise, seed, part)
        for name in names
        for part in ("pair", "others")
        for noise in NOISES
        for seed in seeds
    ]
    if not args.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=args.jobs, minutes=args.minutes)
    report(runs.read(RESULTS)["results"])


if __name__ == "__main__":
    main()
