"""Data with wrong labels that the studies train on: small enough for thousands of trainings.

Tasks of the part "tune" may be looked at while settings are chosen; those of the part "report"
may not, and are run with seeds that were never used before. Each seed of a task has its own wrong
labels and its own split. MNIST and CIFAR-10 need `S2E_DATA_ROOT`, a torchvision data root.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from sklearn import datasets
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, load_data
from optuna_s2e.label_noise import flip_labels, transition_matrix

Arrays = tuple[np.ndarray, np.ndarray]
NetworkFunction = Callable[[tuple[int, ...], int], nn.Module]


def digits() -> Arrays:
    """1,797 images of 8 x 8."""
    x, y = datasets.load_digits(return_X_y=True)
    return x / 16.0, y


def synthetic(n_classes: int, seed: int) -> Arrays:
    """4,000 points of 32 numbers, two clusters per class."""
    return datasets.make_classification(  # type: ignore[no-any-return]
        n_samples=4000, n_features=32, n_informative=16, n_redundant=8, n_classes=n_classes,
        n_clusters_per_class=2, class_sep=1.2, flip_y=0, random_state=seed,
    )  # fmt: skip


def breast_cancer() -> Arrays:
    """569 patients, 30 numbers of a cell image, two classes."""
    return datasets.load_breast_cancer(return_X_y=True)  # type: ignore[no-any-return]


def images(name: str, n: int, classes: int = 10, first: int = 0) -> Arrays:
    """Return the first n images of some classes of a torchvision set, a quarter as wide.

    Args:
        name: "mnist" or "cifar10".
        n: Number of images.
        classes: Number of classes.
        first: The first of them.
    """
    data = load_data(name, root=os.environ["S2E_DATA_ROOT"], noise="none", download=False)
    x, y = data.x.numpy(), data.noisy_labels.numpy()
    kept = np.flatnonzero((y >= first) & (y < first + classes))[:n]
    width = x.shape[-1] // 4 * 4
    x = x[kept, ..., :width, :width].astype(np.float64) / 255.0
    blocks = x.reshape(*x.shape[:-2], width // 4, 4, width // 4, 4)
    return blocks.mean(axis=(-3, -1)).reshape(n, -1), y[kept] - first


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


def mlp64(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """One hidden layer of 64."""
    return _mlp(input_shape, n_classes, 64)


def mlp256(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """One hidden layer of 256."""
    return _mlp(input_shape, n_classes, 256)


def deep_mlp(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Two hidden layers of 128."""
    return _mlp(input_shape, n_classes, 128, 128)


def _mlp(input_shape: tuple[int, ...], n_classes: int, *widths: int) -> nn.Module:
    sizes = [int(np.prod(input_shape)), *widths]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))


@dataclass(frozen=True)
class Task:
    """One kind of data, noise and training.

    Attributes:
        part: "tune" or "report".
        source: Makes inputs (N, d) and labels (N,).
        noise: "symmetric", "pair" or "class-dependent".
        noise_rate: Share of wrong labels.
        n_train: Training samples.
        n_validation: Validation samples: enough that the search is not of their luck (a standard
            error of the order of one point of error), as with the thousands that people hold out
            of MNIST or CIFAR. The rest is for the test.
        learning_rate: Adam's.
        n_epochs: T.
        needs_images: Whether `S2E_DATA_ROOT` must be set.
        network: Makes a network, (input_shape, n_classes) -> module.
    """

    part: str
    source: Callable[[], Arrays]
    noise: str
    noise_rate: float
    n_train: int
    n_validation: int
    learning_rate: float
    n_epochs: int = 40
    needs_images: bool = False
    network: NetworkFunction = mlp64

    @property
    def config(self) -> TrainingConfig:
        """Mini-batches of 64, Adam."""
        return TrainingConfig(batch_size=64, learning_rate=self.learning_rate)

    @property
    def available(self) -> bool:
        """Whether its data are at hand."""
        return not self.needs_images or "S2E_DATA_ROOT" in os.environ

    def data(self, seed: int, validation: str = "clean") -> NoisyData:
        """Draw wrong labels and a split; inputs are standardised by the training part."""
        x, y = _read(self.source)
        n_classes = int(y.max()) + 1
        rng = np.random.default_rng([seed, 1])
        order = rng.permutation(len(y))
        train, val, test = np.split(order, [self.n_train, self.n_train + self.n_validation])
        matrix = matrix_of(self.noise, self.noise_rate, n_classes, rng)
        noisy = flip_labels(y, matrix, rng)
        mean, deviation = x[train].mean(axis=0), x[train].std(axis=0) + 1e-6
        z = ((x - mean) / deviation).astype(np.float32)
        arrays: dict[str, Any] = {
            "x_test": z[test], "y_test": y[test], "clean_labels": y[train], "n_classes": n_classes
        }  # fmt: skip
        y_val = noisy[val] if validation == "noisy" else y[val]
        return NoisyData.from_arrays(z[train], noisy[train], z[val], y_val, **arrays)


_read = cache(lambda source: source())


def _synthetic8() -> Arrays:
    return synthetic(8, 0)


def _synthetic5() -> Arrays:
    return synthetic(5, 77)


def _mnist() -> Arrays:
    return images("mnist", 8000)


def _cifar10() -> Arrays:
    return images("cifar10", 6000, classes=4)


TASKS: dict[str, Task] = {
    "digits sym-50": Task("tune", digits, "symmetric", 0.5, 700, 500, 1e-2),
    "digits pair-45": Task("tune", digits, "pair", 0.45, 700, 500, 1e-2),
    "synthetic-8 pair-40": Task("tune", _synthetic8, "pair", 0.4, 1500, 1000, 5e-3),
    "synthetic-5 sym-50": Task("report", _synthetic5, "symmetric", 0.5, 1000, 1000, 5e-3, 30),
    "breast cancer sym-35": Task("report", breast_cancer, "symmetric", 0.35, 250, 150, 1e-2, 60),
    "MNIST 7x7 pair-45": Task("report", _mnist, "pair", 0.45, 2000, 1000, 5e-3, 30, True),
    "MNIST 7x7 sym-50": Task("report", _mnist, "symmetric", 0.5, 1000, 1000, 5e-3, 30, True),
    "CIFAR-10 8x8, 4 classes, sym-40": Task(
        "report", _cifar10, "symmetric", 0.4, 1000, 1000, 3e-3, 30, True
    ),
}


def first_images(data: NoisyData, n: int | None) -> NoisyData:
    """Keep the first n training, validation and test samples, for a run that is cut.

    Args:
        data: Data with a test part and clean labels.
        n: How many. None keeps all.
    """
    if n is None:
        return data
    parts = ("x", "noisy_labels", "clean_labels", "x_val", "y_val", "x_test", "y_test")
    return replace(data, **{part: getattr(data, part)[:n] for part in parts})


def first_classes(data: NoisyData, n: int | None) -> NoisyData:
    """Keep the samples of the first n classes, before labels are made wrong.

    Args:
        data: Data without noise, with a test part.
        n: How many classes. None keeps all.

    Raises:
        ValueError: If there are not that many.
    """
    if n is None:
        return data
    if not 2 <= n <= data.n_classes:
        raise ValueError(f"n must be in [2, {data.n_classes}], but got {n}.")
    cut: dict[str, Any] = {"n_classes": n, "classes": data.classes[:n], "clean_labels": None}
    for x, y in (("x", "noisy_labels"), ("x_val", "y_val"), ("x_test", "y_test")):
        kept = getattr(data, y) < n
        cut |= {part: getattr(data, part)[kept] for part in (x, y)}
    return replace(data, **cut)
