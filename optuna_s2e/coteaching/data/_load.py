"""`load_data`: a named data set with wrong labels and with validation data split off."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from optuna_s2e import label_noise
from optuna_s2e._checks import check_choice, check_int, check_number
from optuna_s2e._typing import IntArray
from optuna_s2e.coteaching.data._labels import encode_labels
from optuna_s2e.coteaching.data._noisy_data import NoisyData, assemble
from optuna_s2e.coteaching.data._sources import DATA_SETS, N_VALIDATION, Source, read_source

_NOISE_STREAM, _VALIDATION_STREAM, _SOURCE_STREAM = range(3)  # spawn keys of one seed


def load_data(
    name: str,
    *,
    root: str | Path | None = None,
    noise: str | None = None,
    noise_rate: float | None = None,
    seed: int = 0,
    validation: str = "clean",
    n_validation: int | None = None,
    published_noise: bool = False,
    download: bool = True,
    content: str | None = None,
) -> NoisyData:
    """Load a data set and split off validation data; make labels of clean data sets wrong.

    The noise is applied to the whole training part, in the order of the data set. Then
    `n_validation` random samples become the validation data. The noise, the split and, for the
    digits, the test part are drawn from the seed independently of each other.

    The labels of your own file are never changed unless you name a noise.

    Args:
        name: Name of a data set, or a path that ends in `.npz`. Names: "digits" (scikit-learn's
            1,797 images of 8 x 8 pixels, which need no download: 500 for test, 300 for
            validation, 997 to train on), "mnist", "cifar10", "cifar100" (torchvision). A `.npz`
            file holds `train_x, train_y, test_x, test_y`, or `x, y, x_val, y_val` and optionally
            `x_test, y_test`, each as `NoisyData.from_arrays` takes them. If its labels are
            already noisy, it may also hold the true ones as `clean_labels`.
        root: Folder of torchvision's data sets. A relative `.npz` path starts there; None stands
            for the current folder.
        noise: "symmetric", "pair" or "none". "none" leaves the labels as they are. The default
            is "symmetric" for the names, which are clean data sets, and "none" for `.npz` files.
        noise_rate: Probability of a wrong label, in [0, 1). The default is 0.5. A `.npz` file
            needs `noise` with it.
        seed: Seed of noise and splits, a non-negative int.
        validation: Which labels the validation data have, "clean" or "noisy". If the clean ones
            are unknown, they have those of the file. Validation data that a file holds itself
            are taken as they are.
        n_validation: Number of validation samples, at least 1 and below the number of training
            samples. The default is 300 for the digits, 5,000 for torchvision's data sets, and
            10 % of the training part, but at least 1 and at most 5,000, for `.npz` files. If
            random samples leave out a class, the split is stratified: each class of two or more
            samples is then on both sides, as far as there is room.
        published_noise: Whether to take the published noise of Co-teaching and S2E, bit for bit.
            It does not depend on the seed (`optuna_s2e.label_noise.published_noise`).
        download: Whether to download data sets that are missing in `root`.
        content: What `settings["content"]` was when a `.npz` file was loaded before: the file is
            refused if its training or validation data are others now. None takes any.

    Returns:
        Training, validation and, if there are any, test data.

    Raises:
        ValueError: If an argument is out of range, the data are unusable or not those of
            `content`, or a noise rate is given for a `.npz` file and no noise.
        OSError: If files are missing and cannot, or must not, be downloaded.
        ImportError: If scikit-learn or torchvision is needed and missing.

    Warns:
        UserWarning: If a class has no samples to train on or to validate with, or
            `validation="noisy"` changes nothing.

    Example:
        >>> data = load_data("digits", noise="pair", noise_rate=0.45, seed=0)
        >>> tuple(data.x.shape), len(data.x_val), len(data.x_test)
        ((997, 1, 8, 8), 300, 500)
    """
    check_choice("validation", validation, ("clean", "noisy"))
    seed = check_int("seed", seed, 0)
    source = read_source(name, root, rng=_rng(seed, _SOURCE_STREAM), download=download)
    noise, noise_rate = _asked_noise(name, noise, noise_rate, published_noise)
    files = {} if name in DATA_SETS else {"content": source.content}
    if content not in (None, files.get("content")):
        raise ValueError(
            f"{str(name)!r} has changed: its training and validation data were {content}, and are "
            f"{files.get('content')} now. Bring the file back, or start a new study with it."
        )
    labels, classes = encode_labels(source.labels)
    source = source._replace(**labels)
    source = _with_noise(source, name, noise, noise_rate, len(classes), seed, published_noise)
    is_split_off = source.x_val is None
    is_clean = validation == "clean" and source.clean_labels is not None
    source = _with_validation(source, name, validation, n_validation, len(classes), seed)
    settings = {
        "name": str(name),
        "noise": noise,
        "noise_rate": noise_rate,
        "seed": seed,
        "validation": validation,
        "n_validation": n_validation if n_validation is None else int(n_validation),
        "published_noise": bool(published_noise),
        **files,
    }
    return assemble(
        source.inputs, source.labels, classes, name=str(name), settings=settings,
        clean_validation=is_clean or not is_split_off,
    )  # fmt: skip


def _asked_noise(
    name: str, noise: str | None, noise_rate: float | None, published: bool
) -> tuple[str, float]:
    """Return kind and rate of the noise; that of a user's own data has to be named."""
    if noise is None and name not in DATA_SETS and (noise_rate is not None or published):
        raise ValueError(
            f"noise must be 'symmetric' or 'pair' if a noise rate or the published noise is "
            f"asked for, but got None. The labels of {str(name)!r} are taken as they are unless "
            "the noise is named."
        )
    if noise is None:
        noise = "symmetric" if name in DATA_SETS else "none"
    check_choice("noise", noise, label_noise.NOISES)
    if noise_rate is None:
        noise_rate = 0.0 if noise == "none" else 0.5
    return noise, check_number("noise_rate", noise_rate, 0, 1, open_high=True)


def _rng(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))


def _with_noise(
    source: Source,
    name: str,
    noise: str,
    noise_rate: float,
    n_classes: int,
    seed: int,
    published: bool,
) -> Source:
    if noise == "none":  # it is unknown how clean the labels of a file are
        return source._replace(clean_labels=source.y) if name in DATA_SETS else source
    if source.clean_labels is not None:
        raise ValueError(
            f"noise must be 'none' for {name!r}, whose labels are noisy already "
            f"(it holds clean_labels), but got {noise!r}."
        )
    if published:
        noisy_labels = label_noise.published_noise(source.y, noise, noise_rate, n_classes)
    else:
        matrix = label_noise.transition_matrix(noise, noise_rate, n_classes)
        noisy_labels = label_noise.flip_labels(source.y, matrix, _rng(seed, _NOISE_STREAM))
    return source._replace(y=noisy_labels, clean_labels=source.y)


def _with_validation(
    source: Source,
    name: str,
    validation: str,
    n_validation: int | None,
    n_classes: int,
    seed: int,
) -> Source:
    if source.x_val is not None:
        if n_validation is not None:
            raise ValueError(
                f"n_validation must be None for {name!r}, which holds x_val, "
                f"but got {n_validation!r}."
            )
        if validation == "noisy":
            warnings.warn(
                f"validation 'noisy' changes nothing for {name!r}, which holds x_val: its y_val "
                "are taken as they are. Put the labels that you want into y_val.",
                UserWarning,
                stacklevel=3,
            )
        return source
    n = len(source.y)
    if n_validation is None:
        n_validation = N_VALIDATION.get(name, min(5000, max(1, n // 10)))
    n_validation = check_int("n_validation", n_validation, 1, n - 1)
    clean = source.clean_labels
    y_val = source.y if clean is None or validation == "noisy" else clean
    order = _rng(seed, _VALIDATION_STREAM).permutation(n)
    held_out, kept = np.sort(order[:n_validation]), np.sort(order[n_validation:])
    if min(len(np.unique(y_val[held_out])), len(np.unique(source.y[kept]))) < n_classes:
        order = _stratified(order, y_val)
        held_out, kept = np.sort(order[:n_validation]), np.sort(order[n_validation:])
    return source._replace(
        x=source.x[kept],
        y=source.y[kept],
        clean_labels=None if clean is None else clean[kept],
        x_val=source.x[held_out],
        y_val=y_val[held_out],
    )


def _stratified(order: IntArray, labels: IntArray) -> IntArray:
    """Return an order of samples of which each beginning holds the classes in proportion.

    The first sample of each class comes before all others, and the last one (or the only one)
    after all others, so that both sides of a split have one.
    """
    y = labels[order]
    counts = np.bincount(y)
    by_class = np.argsort(y, kind="stable")
    rank = np.empty(len(y), dtype=np.int64)  # among the samples of its class
    rank[by_class] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    position = (rank + 0.5) / counts[y]
    position[rank == 0] = 0
    position[rank == counts[y] - 1] = 1
    return order[np.argsort(position, kind="stable")]
