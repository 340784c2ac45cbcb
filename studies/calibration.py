"""Are the probabilities of `NoisyLabelClassifier` honest, and what does one temperature mend?

Question:  how far are predicted probabilities from the truth on test data with right labels: log
           loss and expected calibration error (ECE, 15 bins of equal size), as they are and at the
           temperature that 20 or 300 clean labels give.
Tasks:     digits (900 to train on), MNIST (2,000), breast cancer (200; 60 clean labels in place of
           300) and the tables "additive" and "trees" of classifier_tables.py (3,000), under
           symmetric and pair noise of 40 % (two classes: 30 %, where both are the same).
Methods:   `NoisyLabelClassifier(search=False)`, the network "mlp" for MNIST. The temperature's
           prior was chosen on other seeds of all but MNIST. Predictions do not depend on it.
Needs:     pip install cleanlab (classifier_tables.py does); S2E_DATA_ROOT for MNIST.
Run:       python studies/calibration.py                                        (it resumes)
Read:      studies/results/calibration.json, --report
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import runs
import tasks
from sklearn.datasets import load_breast_cancer, load_digits

from optuna_s2e import NoisyLabelClassifier
from optuna_s2e.coteaching import load_data
from optuna_s2e.label_noise import flip_labels

RESULTS = Path(__file__).parent / "results" / "calibration.json"
SIZES = {"digits": 900, "MNIST": 2000, "breast cancer": 200, "additive": 3000, "trees": 3000}
NOISES = ("symmetric", "pair")
N_CLEAN = (20, 300)
N_TEST, N_BINS, FIRST_SEED = 3000, 15, 700


def read(name: str, seed: int) -> tuple[Any, np.ndarray]:
    """Return inputs and their right labels, as numbers."""
    if name in ("additive", "trees"):
        from classifier_tables import make_table  # it needs cleanlab

        table = make_table(name, "symmetric", seed)
        return table.x, np.unique(table.true, return_inverse=True)[1]
    if name == "MNIST":
        full = load_data("mnist", noise="none", root=os.environ["S2E_DATA_ROOT"], download=False)
        return full.x.numpy(), full.noisy_labels.numpy()
    digits = name == "digits"
    x, y = (load_digits if digits else load_breast_cancer)(return_X_y=True)
    return ((15 * x).astype(np.uint8).reshape(-1, 8, 8) if digits else x), y


def take(x: Any, rows: np.ndarray) -> Any:
    """Return some samples."""
    return x.iloc[rows] if hasattr(x, "iloc") else x[rows]


def judge(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return log loss, calibration error and accuracy."""
    rows, predicted = np.arange(len(y)), probabilities.argmax(axis=1)
    confidence, right = probabilities.max(axis=1), predicted == y
    bins = np.array_split(np.argsort(confidence), N_BINS)
    gaps = [abs(confidence[b].mean() - right[b].mean()) * len(b) for b in bins]
    return {
        "log loss": float(-np.log(np.maximum(probabilities[rows, y], 1e-15)).mean()),
        "ece": float(sum(gaps) / len(y)),
        "accuracy": float(right.mean()),
    }


def run(job: runs.Job) -> dict[str, Any]:
    """Fit once, and judge the probabilities."""
    name, noise, n_clean, seed = str(job[0]), str(job[1]), int(job[2]), int(job[3])
    x, y = read(name, seed)
    rng, n, n_classes = (
        np.random.default_rng([seed, *name.encode()]),
        SIZES[name],
        int(y.max()) + 1,
    )
    if name == "breast cancer":
        n_clean = min(n_clean, 60)
    order = rng.permutation(len(y))
    train, clean, test = order[:n], order[n : n + n_clean], order[n + 300 :][:N_TEST]
    if name == "breast cancer":
        test = order[n + 60 :]
    rate = 0.4 if n_classes > 2 else 0.3
    given = flip_labels(y[train], tasks.matrix_of(noise, rate, n_classes, rng), rng)
    model = NoisyLabelClassifier(
        search=False, random_state=seed, device="cpu",
        network="mlp" if name == "MNIST" else "auto",
    )  # fmt: skip
    model.fit(take(x, train), given, take(x, clean), y[clean])
    calibrated = model.predict_proba(take(x, test))
    plain = calibrated**model.temperature_
    plain /= plain.sum(axis=1, keepdims=True)
    return {
        "temperature": model.temperature_,
        "plain": judge(plain, y[test]),
        "calibrated": judge(calibrated, y[test]),
    }


def report(results: runs.Results) -> None:
    """Print means over the seeds, and in how many fits the temperature helped."""
    rows: dict[tuple[str, str], dict[tuple[str, str], list[dict[str, float]]]] = {}
    for key, found in results.items():
        name, noise, n_clean, _ = key.split("|")
        for kind in ("plain", "calibrated"):
            rows.setdefault((name, noise), {}).setdefault((n_clean, kind), []).append(found[kind])
    columns = [(str(n), kind) for n in N_CLEAN for kind in ("plain", "calibrated")]
    for measure, scale, digits in (("log loss", 1, 2), ("ece", 100, 1), ("accuracy", 100, 1)):
        print(f"\n**{measure}**\n\n| data | noise |", end="")
        print("".join(f" {n} clean labels, {kind} |" for n, kind in columns))
        print("|---|---|" + "---:|" * len(columns))
        for (name, noise), of in rows.items():
            means = [scale * np.mean([r[measure] for r in of[c]]) for c in columns if c in of]
            print(f"| {name} | {noise} |" + "".join(f" {m:.{digits}f} |" for m in means))
    for n in N_CLEAN:
        some = [found for key, found in results.items() if key.split("|")[2] == str(n)]
        for measure in ("log loss", "ece"):
            better = sum(r["calibrated"][measure] < r["plain"][measure] for r in some)
            print(f"\n{n} clean labels: a lower {measure} in {better} of {len(some)} fits.")


def main() -> None:
    """Run what is missing, then print the tables."""
    args = runs.parser(__doc__, seeds=3).parse_args()
    names = [n for n in SIZES if n != "MNIST" or "S2E_DATA_ROOT" in os.environ]
    jobs: list[runs.Job] = [
        (name, noise, n_clean, FIRST_SEED + seed)
        for seed in range(args.seeds)
        for name in names
        for noise in (NOISES if name != "breast cancer" else NOISES[:1])
        for n_clean in N_CLEAN
    ]
    if not args.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=args.jobs, minutes=args.minutes)
    report(runs.read(RESULTS)["results"])


if __name__ == "__main__":
    main()
