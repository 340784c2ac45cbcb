"""Data sets without added noise: scikit-learn's digits, torchvision's, `.npz` files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from optuna_s2e._npz import read_npz
from optuna_s2e.coteaching._torchvision import read_images

Array = npt.NDArray[Any]

DATA_SETS = ("digits", "mnist", "cifar10", "cifar100")
N_VALIDATION = {"digits": 300, "mnist": 5000, "cifar10": 5000, "cifar100": 5000}
_N_DIGITS_TEST = 500
_SPLIT_BY_US = ("train_x", "train_y", "test_x", "test_y")
_SPLIT_BY_FILE = ("x", "y", "x_val", "y_val")
_KEYS = {*_SPLIT_BY_US, *_SPLIT_BY_FILE, "x_test", "y_test", "clean_labels"}


class Source(NamedTuple):
    """Hold a data set without added noise.

    Attributes:
        x: Training inputs, (N, ...).
        y: Training labels, (N,).
        x_test: Test inputs, or None.
        y_test: Test labels, or None.
        x_val: Validation inputs, or None if they are still to be split off `x`.
        y_val: Validation labels, or None if they are still to be split off `y`.
        clean_labels: True labels of `x` if those in `y` are noisy, else None.
    """

    x: Array
    y: Array
    x_test: Array | None = None
    y_test: Array | None = None
    x_val: Array | None = None
    y_val: Array | None = None
    clean_labels: Array | None = None

    @property
    def inputs(self) -> dict[str, Array]:
        """The inputs that there are, by name."""
        return self._present("x", "x_val", "x_test")

    @property
    def labels(self) -> dict[str, Array]:
        """The labels that there are, by name."""
        return self._present("y", "y_val", "y_test", "clean_labels")

    @property
    def content(self) -> str:
        """A digest of what a search depends on: all but the test data, which may come later."""
        digest = hashlib.sha256()
        for name, array in self._present("x", "y", "x_val", "y_val", "clean_labels").items():
            digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def _present(self, *names: str) -> dict[str, Array]:
        arrays = self._asdict()
        return {name: arrays[name] for name in names if arrays[name] is not None}


def read_source(
    name: str, root: str | Path | None, *, rng: np.random.Generator, download: bool
) -> Source:
    """Read a data set by name, or a `.npz` file by path (see `load_data`).

    Raises:
        ValueError: If the name is unknown, or a file does not hold the necessary arrays.
        OSError: If files are missing.
        ImportError: If scikit-learn or torchvision is needed and missing.
    """
    if name == "digits":
        return _read_digits(rng)
    if name in DATA_SETS:
        images = read_images(name, root, download=download)
        return Source(images.x, images.y, images.x_test, images.y_test)
    if str(name).endswith(".npz"):
        return _read_npz(Path(root or ".") / name)
    raise ValueError(
        f"data set must be one of {list(DATA_SETS)} or a path that ends in .npz, but got {name!r}."
    )


def _read_digits(rng: np.random.Generator) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ImportError(
            'The digits need scikit-learn. Install it with: pip install "optuna-s2e[coteaching]"'
        ) from error
    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)  # (N, 1, 8, 8), in [0, 1]
    is_test = np.zeros(len(x), dtype=bool)
    is_test[rng.permutation(len(x))[:_N_DIGITS_TEST]] = True
    y = digits.target
    return Source(x[~is_test], y[~is_test], x[is_test], y[is_test])


def _read_npz(path: Path) -> Source:
    arrays, others = read_npz(path, _KEYS)
    layout = _SPLIT_BY_FILE if "x" in arrays else _SPLIT_BY_US
    missing = [key for key in layout if key not in arrays]
    if missing:
        raise ValueError(
            f"{str(path)!r} must hold {', '.join(_SPLIT_BY_US)} or {', '.join(_SPLIT_BY_FILE)}, "
            f"but got {', '.join([*sorted(arrays), *others]) or 'nothing'}: "
            f"{', '.join(missing)} missing."
        )
    clean_labels = arrays.get("clean_labels")
    pairs = [layout[:2], layout[2:]]
    if clean_labels is not None:
        pairs.append((layout[1], "clean_labels"))
    for one, other in pairs:
        lengths = [len(arrays[key]) if arrays[key].ndim else 0 for key in (one, other)]
        if not 0 < lengths[0] == lengths[1]:
            raise ValueError(
                f"{one} and {other} in {str(path)!r} must have the same length above 0, "
                f"but got {lengths[0]} and {lengths[1]}."
            )
    if layout is _SPLIT_BY_US:
        x, y, x_test, y_test = (arrays[key] for key in layout)
        return Source(x, y, x_test, y_test, clean_labels=clean_labels)
    x, y, x_val, y_val = (arrays[key] for key in layout)
    return Source(x, y, arrays.get("x_test"), arrays.get("y_test"), x_val, y_val, clean_labels)
