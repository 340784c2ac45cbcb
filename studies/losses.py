"""Which loss should a search minimise? Cross-entropy or error, last epoch or mean, clean or noisy.

Question:  which number of a training's validation data leads to the schedule of lowest test error?
Tasks:     studies/tasks.py, one seed or more each (wrong labels, split, draws); schedules drawn
           uniformly from the default space, one training each. Every loss is taken from the same
           trainings, with clean and with noisy validation labels.
Logits:    `train_batch` returns error and cross-entropy per epoch. Temperatures, probabilities of
           the label and Brier scores need logits: the networks are caught as they are made
           (backend "loop" trains the very modules) and asked after each epoch.
Truth:     the expected test error of a schedule: the test errors of all trainings of a task,
           smoothed over R(t) by the package's Gaussian process.
Measure:   rank correlation with the truth; and regret in points of test error: 60 of the draws are
           taken at random, 20 times, the loss is smoothed as `recommend` does it, the schedule of
           lowest smoothed loss is picked, and its truth is compared with the lowest of all.
Run:       python studies/losses.py --jobs 2 --minutes 8                        (it resumes)
Read:      studies/results/losses.json, --report
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import runs
import tasks
import torch
from scipy import stats
from scipy.optimize import minimize_scalar
from spaces import SPACES, Array, features, smoothed_pick
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_s2e import surrogate
from optuna_s2e.coteaching import Metrics, NoisyData, train_batch

RESULTS = Path(__file__).parent / "results" / "losses.json"
FIRST_SEED, N_DRAWS, N_PICKED, N_REPEATS = 500, 90, 60, 20
SPACE = SPACES["Eq 1 (default)"]
VALIDATIONS = ("clean", "noisy")


# Measures of one network's logits (N, C) under labels (N,)


def error(logits: Tensor, labels: Tensor) -> float:
    """0/1 loss."""
    return float((logits.argmax(dim=1) != labels).double().mean())


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label)."""
    return float(F.cross_entropy(logits, labels))


def scaled_cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Cross-entropy at the temperature at which it is lowest, on the same labels."""

    def at(log_temperature: float) -> float:
        return cross_entropy(logits / np.exp(log_temperature), labels)

    return float(minimize_scalar(at, bounds=(-3.0, 12.0), options={"xatol": 0.02}).fun)


def missing_probability(logits: Tensor, labels: Tensor) -> float:
    """Mean of 1 - p(label): a smooth error, bounded as the error is."""
    return float(1.0 - logits.softmax(dim=1).gather(1, labels[:, None]).double().mean())


def brier(logits: Tensor, labels: Tensor) -> float:
    """Mean squared distance of the probabilities from the label."""
    target = F.one_hot(labels, logits.shape[1])
    return float(((logits.softmax(dim=1) - target) ** 2).sum(dim=1).double().mean())


MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "error": error,
    "cross-entropy": cross_entropy,
    "scaled": scaled_cross_entropy,
    "1 - p": missing_probability,
    "Brier": brier,
}
ALL_EPOCHS = ("error", "cross-entropy")  # the others: the last 10 %


# Losses: numbers of the curves of one measure, (N, T)


def tail(curve: Array, share: float) -> Array:
    """Return the mean of the last epochs, (N,)."""
    return np.asarray(curve[:, -max(1, int(share * curve.shape[1])) :].mean(axis=1))


def exponential_mean(curve: Array) -> Array:
    """Return the exponentially weighted mean with a memory of 10 % of the epochs, (N,)."""
    age = np.arange(curve.shape[1])[::-1]
    weights = np.exp(-age / (0.1 * curve.shape[1]))
    return np.asarray(curve @ (weights / weights.sum()))


DEFAULT = "error, last 10 % (default)"
LOSSES: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "error, last epoch": ("error", lambda curve: curve[:, -1]),
    DEFAULT: ("error", lambda curve: tail(curve, 0.1)),
    "error, last 30 %": ("error", lambda curve: tail(curve, 0.3)),
    "error, exponential mean": ("error", exponential_mean),
    "cross-entropy, last epoch": ("cross-entropy", lambda curve: curve[:, -1]),
    "cross-entropy, last 10 %": ("cross-entropy", lambda curve: tail(curve, 0.1)),
    "log cross-entropy, last 10 %": ("cross-entropy", lambda curve: np.log(tail(curve, 0.1))),
    "cross-entropy, last 30 %": ("cross-entropy", lambda curve: tail(curve, 0.3)),
    "scaled cross-entropy, last epoch": ("scaled", lambda curve: curve[:, -1]),
    "scaled cross-entropy, last 10 %": ("scaled", lambda curve: tail(curve, 0.1)),
    "1 - p(label), last 10 %": ("1 - p", lambda curve: tail(curve, 0.1)),
    "Brier score, last 10 %": ("Brier", lambda curve: tail(curve, 0.1)),
}


def draws(task: tasks.Task, seed: int) -> Array:
    """Return the schedules of a seed, (N, T)."""
    u = np.random.default_rng([FIRST_SEED + seed, 2]).uniform(size=(N_DRAWS, SPACE.n))
    return SPACE.keep_rates(u, task.n_epochs)


def bounded(data: NoisyData) -> NoisyData:
    """Cut inputs off at 50 deviations.

    Pixels that are constant in the training part are scaled to thousands elsewhere. Errors do not
    notice such an image in a hundred; cross-entropies see nothing else.
    """
    cut = {n: getattr(data, n).clamp(-50.0, 50.0) for n in ("x", "x_val", "x_test")}
    return replace(data, **cut)


def train(task: tasks.Task, seed: int) -> dict[str, dict[str, list[float]]]:
    """Train the draws of a seed; return the losses by validation labels and name, and the test."""
    rates, data = draws(task, seed), bounded(task.data(FIRST_SEED + seed))
    assert data.x_test is not None
    assert data.y_test is not None
    parts = {
        "clean": (data.x_val, data.y_val),
        "noisy": (data.x_val, task.data(FIRST_SEED + seed, "noisy").y_val),
        "test": (data.x_test, data.y_test),
    }
    n_tail = max(1, task.n_epochs // 10)
    curves = {(p, m): np.full(rates.shape, np.nan) for p in parts for m in MEASURES}
    made: list[nn.Module] = []

    def network(shape: tuple[int, ...], n_classes: int) -> nn.Module:
        made.append(tasks.mlp64(shape, n_classes))
        return made[-1]

    @torch.no_grad()
    def on_epoch(k: int, epoch: int, metrics: Metrics) -> None:
        networks = made[-2:]  # trial after trial: those of trial k
        for part, (x, y) in parts.items():
            logits = [net(x) for net in networks]
            for measure, function in MEASURES.items():
                if measure in ALL_EPOCHS or epoch >= task.n_epochs - n_tail:
                    curves[part, measure][k, epoch] = np.mean([function(z, y) for z in logits])
        assert abs(curves["clean", "error"][k, epoch] - metrics.error.mean()) < 1e-6

    train_batch(
        rates, range(N_DRAWS * seed, N_DRAWS * (seed + 1)), data=data, network=network,
        config=task.config, device="cpu", on_epoch=on_epoch, backend="loop",
    )  # fmt: skip
    found = {
        part: {name: loss(curves[part, m]) for name, (m, loss) in LOSSES.items()}
        for part in VALIDATIONS
    }
    found["test"] = {DEFAULT: tail(curves["test", "error"], 0.1)}
    return {
        part: {name: np.round(v, 5).tolist() for name, v in losses.items()}
        for part, losses in found.items()
    }


def judge(name: str, n_seeds: int) -> dict[str, Any]:
    """Return [rank correlation, regret] per seed, by validation labels and loss."""
    results, task = runs.read(RESULTS)["results"], tasks.TASKS[name]
    rows = [results[runs.key_of((name, seed))] for seed in range(n_seeds)]
    rates = [draws(task, seed) for seed in range(n_seeds)]
    z = features(np.concatenate(rates))
    tested = np.concatenate([row["test"][DEFAULT] for row in rows])
    truth = surrogate.fit(z, tested).mean(z).reshape(n_seeds, N_DRAWS)
    rng = np.random.default_rng(0)
    samples = [rng.choice(N_DRAWS, N_PICKED, replace=False) for _ in range(N_REPEATS)]
    found: dict[str, Any] = {"spread": round(float(truth.std()), 5)}
    for part in VALIDATIONS:
        found[part] = {}
        for loss in LOSSES:
            found[part][loss] = []
            for row, r, true in zip(rows, rates, truth, strict=True):
                y = np.array(row[part][loss])
                picked = [true[s[smoothed_pick(r[s], y[s])]] for s in samples]
                rho = stats.spearmanr(y, true).statistic
                excess = np.mean(picked) - truth.min()
                found[part][loss].append([round(float(rho), 4), round(float(excess), 5)])
    return found


def run(job: runs.Job) -> Any:
    """Train the draws of a task and seed; or, once they are there, judge the losses on a task."""
    if job[0] == "judge":
        return judge(str(job[1]), int(job[2]))
    return train(tasks.TASKS[str(job[0])], int(job[1]))


def report(results: runs.Results) -> None:
    """Print a table per task, and the comparisons with the default over tasks."""
    judged: dict[str, Any] = {}
    for key, found in results.items():  # the last one of a task has the most seeds
        if key.startswith("judge|"):
            judged[key.split("|")[1]] = found
    for name, found in judged.items():
        n_seeds = len(found["clean"][DEFAULT])
        print(f"\n{name}: rank correlation with the expected test error; regret of the smoothed "
              f"pick of {N_PICKED} in points ({n_seeds} seeds of {N_DRAWS} trainings); standard "
              f"deviation of the expected error over schedules {100 * found['spread']:.1f}\n"
              f"{'':34}{'clean validation':>20}{'noisy validation':>20}")  # fmt: skip
        for loss in LOSSES:
            cells = []
            for part in VALIDATIONS:
                rho, regret = np.mean(found[part][loss], axis=0)
                cells.append(f"{rho:.2f} / {100 * regret:.2f}")
            print(f"{loss:34}{cells[0]:>20}{cells[1]:>20}")
    for noise in ("symmetric", "pair", "both"):
        names = [n for n in judged if noise in (tasks.TASKS[n].noise, "both")]
        if len(names) < 2:
            continue
        print(f"\nRegret of the default, then regret less that of the default with the same "
              f"labels, {noise} noise: points, mean of {len(names)} tasks [95 % interval]\n"
              f"{'':34}{'clean validation':>24}{'noisy validation':>24}")  # fmt: skip
        for loss in LOSSES:
            others = [None if loss == DEFAULT else (part, DEFAULT) for part in VALIDATIONS]
            cells = [over_tasks(judged, names, (part, loss), other)
                     for part, other in zip(VALIDATIONS, others, strict=True)]  # fmt: skip
            print(f"{loss:34}{cells[0]:>24}{cells[1]:>24}")
        labels = over_tasks(judged, names, ("noisy", DEFAULT), ("clean", DEFAULT))
        print(f"default, noisy labels less clean ones: {labels}")


def over_tasks(
    judged: dict[str, Any], names: list[str], one: tuple[str, str], other: tuple[str, str] | None
) -> str:
    """Return the mean regret of a (validation labels, loss), or of two the difference."""
    regrets = [np.array(judged[n][one[0]][one[1]])[:, 1] for n in names]
    if other is None:
        return f"{100 * np.mean([r.mean() for r in regrets]):.2f}"
    others = [np.array(judged[n][other[0]][other[1]])[:, 1] for n in names]
    differences = [a - b for a, b in zip(regrets, others, strict=True)]
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*runs.over_tasks(differences))


def is_trained(results: runs.Results, name: str, n_seeds: int) -> bool:
    """Whether the first seeds of a task are there."""
    return all(runs.key_of((name, seed)) in results for seed in range(n_seeds))


def main() -> None:
    """Train what is missing and judge it, seed by seed; save after each step; report."""
    options = runs.parser(__doc__, seeds=1).parse_args()
    names = [name for name, task in tasks.TASKS.items() if task.available]
    deadline = time.monotonic() + 60 * options.minutes
    for n_seeds in range(1, options.seeds + 1) if not options.report else ():
        trainings: list[runs.Job] = [(name, n_seeds - 1) for name in names]
        judgements: list[runs.Job] = [("judge", name, n_seeds) for name in names]
        for jobs in (trainings, judgements):
            done = runs.read(RESULTS)["results"]
            possible = [j for j in jobs if j[0] != "judge" or is_trained(done, str(j[1]), n_seeds)]
            minutes = (deadline - time.monotonic()) / 60
            runs.run_missing(RESULTS, possible, run, n_processes=options.jobs, minutes=minutes)
    report(runs.read(RESULTS)["results"])


if __name__ == "__main__":
    main()
