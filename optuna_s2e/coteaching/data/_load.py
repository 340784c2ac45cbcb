"""`load_data`: a named data set with wrong labels and with validation data split off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from optuna_s2e import label_noise
from optuna_s2e._checks import check_choice, check_int
from optuna_s2e.coteaching.data._noisy_data import NoisyData
from optuna_s2e.coteaching.data._sources import DATA_SETS, N_VALIDATION, Source, read_source

_NOISE_STREAM, _VALIDATION_STREAM, _SOURCE_STREAM = range(3)  # spawn keys of one seed


def load_data(
    name: str,
    *,
    root: str | Path | None = None,
    noise: str = "symmetric",
    noise_rate: float = 0.5,
    seed: int = 0,
    validation: str = "clean",
    n_validation: int | None = None,
    published_noise: bool = False,
    download: bool = True,
) -> NoisyData:
    """Load a data set, make part of its training labels wrong and split off validation data.

    The noise is applied to the whole training part, in the order of the data set. Then
    `n_validation` random samples become the validation data. The noise, the split and, for the
    digits, the test part are drawn from the seed independently of each other.

    Args:
        name: Name of a data set, or a path that ends in `.npz`. Names: "digits" (scikit-learn's
            1,797 images of 8 x 8 pixels, which need no download: 500 for test, 300 for
            validation, 997 to train on), "mnist", "cifar10", "cifar100" (torchvision). A `.npz`
            file holds `train_x, train_y, test_x, test_y`, or `x, y, x_val, y_val` and optionally
            `x_test, y_test`. If its labels are already noisy, it may also hold the true ones as
            `clean_labels`.
        root: Folder of torchvision's data sets. A relative `.npz` path starts there; None stands
            for the current folder.
        noise: "symmetric", "pair" or "none". "none" leaves the labels as they are.
        noise_rate: Probability of a wrong label, in [0, 1).
        seed: Seed of noise and splits, a non-negative int.
        validation: Which labels the validation data have, "clean" or "noisy".
        n_validation: Number of validation samples, at least 1 and below the number of training
            samples. The default is 300 for the digits, 5,000 for torchvision's data sets, and
            10 % of the training part, but at most 5,000, for `.npz` files.
        published_noise: Whether to take the published noise of Co-teaching and S2E, bit for bit.
            It does not depend on the seed (`optuna_s2e.label_noise.published_noise`).
        download: Whether to download data sets that are missing in `root`.

    Returns:
        Training, validation and, if there are any, test data.

    Raises:
        ValueError: If an argument is out of range or the data are unusable.
        OSError: If files are missing and cannot, or must not, be downloaded.
        ImportError: If scikit-learn or torchvision is needed and missing.

    Example:
        >>> data = load_data("digits", noise="pair", noise_rate=0.45, seed=0)
        >>> tuple(data.x.shape), len(data.x_val), len(data.x_test)
        ((997, 1, 8, 8), 300, 500)
    """
    check_choice("validation", validation, ("clean", "noisy"))
    seed = check_int("seed", seed, 0)
    source = read_source(name, root, rng=_rng(seed, _SOURCE_STREAM), download=download)
    source = _with_noise(source, name, noise, noise_rate, seed, published_noise)
    source = _with_validation(source, name, validation, n_validation, seed)
    settings = {
        "name": str(name),
        "noise": noise,
        "noise_rate": float(noise_rate),
        "seed": seed,
        "validation": validation,
        "n_validation": n_validation if n_validation is None else int(n_validation),
        "published_noise": bool(published_noise),
    }
    data = NoisyData.from_arrays(**source._asdict(), name=str(name))
    return replace(data, settings=settings)


def _rng(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))


def _with_noise(
    source: Source, name: str, noise: str, noise_rate: float, seed: int, published: bool
) -> Source:
    if source.clean_labels is not None and noise != "none":
        raise ValueError(
            f"noise must be 'none' for {name!r}, whose labels are noisy already "
            f"(it holds clean_labels), but got {noise!r}."
        )
    known = [y for y in (source.y, source.y_val, source.y_test) if y is not None]
    n_classes = 1 + max(int(y.max()) for y in known)
    matrix = label_noise.transition_matrix(noise, noise_rate, n_classes)
    if published:
        noisy_labels = label_noise.published_noise(source.y, noise, noise_rate, n_classes)
    else:
        noisy_labels = label_noise.flip_labels(source.y, matrix, _rng(seed, _NOISE_STREAM))
    if noise == "none" and name not in DATA_SETS:
        return source  # it is unknown how clean these labels are
    return source._replace(y=noisy_labels, clean_labels=source.y)


def _with_validation(
    source: Source, name: str, validation: str, n_validation: int | None, seed: int
) -> Source:
    if source.x_val is not None:
        if n_validation is not None:
            raise ValueError(
                f"n_validation must be None for {name!r}, which holds x_val, "
                f"but got {n_validation!r}."
            )
        return source
    n = len(source.y)
    if n_validation is None:
        n_validation = N_VALIDATION.get(name, min(5000, n // 10))
    n_validation = check_int("n_validation", n_validation, 1, n - 1)
    order = _rng(seed, _VALIDATION_STREAM).permutation(n)
    held_out, kept = np.sort(order[:n_validation]), np.sort(order[n_validation:])
    clean = source.clean_labels
    y_val = source.y if clean is None or validation == "noisy" else clean
    return source._replace(
        x=source.x[kept],
        y=source.y[kept],
        clean_labels=None if clean is None else clean[kept],
        x_val=source.x[held_out],
        y_val=y_val[held_out],
    )
