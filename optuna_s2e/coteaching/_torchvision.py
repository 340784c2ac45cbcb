"""torchvision's data sets as plain arrays, and its models. No other module imports torchvision."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_CLASSES = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


class ImageArrays(NamedTuple):
    """A data set in its original order: uint8 images (N, channels, H, W), int64 labels (N,)."""

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.int64]
    x_test: npt.NDArray[np.uint8]
    y_test: npt.NDArray[np.int64]


def read_images(name: str, root: str | Path | None, *, download: bool) -> ImageArrays:
    """Read MNIST, CIFAR-10 or CIFAR-100. Files that exist are never downloaded again.

    Args:
        name: "mnist", "cifar10" or "cifar100".
        root: Folder in torchvision's layout; it holds `MNIST/raw`, `cifar-10-batches-py`, ...
        download: Whether to download missing files.

    Raises:
        ImportError: If torchvision is missing.
        ValueError: If `root` is None.
        FileNotFoundError: If files are missing and cannot, or must not, be downloaded.
    """
    if root is None:
        raise ValueError(f"root must be a folder that holds (or will hold) {name}, but got None.")
    dataset = getattr(import_datasets(), _CLASSES[name])
    parts = [_read_part(name, dataset, Path(root), train, download) for train in (True, False)]
    return ImageArrays(*parts[0], *parts[1])


def _read_part(
    name: str, dataset: Any, root: Path, train: bool, download: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    try:
        part = dataset(str(root), train=train, download=False)
    except RuntimeError as missing:  # "Dataset not found or corrupted."
        if not download:
            raise FileNotFoundError(
                f"{name} was not found (or is damaged) in {str(root)!r}. "
                "Name the folder that holds it, or allow the download."
            ) from missing
        try:
            part = dataset(str(root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{name} was not found in {str(root)!r} and cannot be downloaded ({error}). "
                "Put the files there as torchvision lays them out."
            ) from error
    images = np.asarray(part.data)
    # MNIST has no channel axis, CIFAR has the channels last
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), np.asarray(part.targets, dtype=np.int64)


def import_datasets() -> Any:
    """Return `torchvision.datasets`, even if torch and torchvision are of different builds."""
    return _import("datasets")


def import_models() -> Any:
    """Return `torchvision.models`, even if torch and torchvision are of different builds."""
    return _import("models")


def _import(name: str) -> Any:
    try:
        return import_module(f"torchvision.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(
            "MNIST and CIFAR, ResNets and DenseNets need torchvision. "
            'Install it with: pip install "optuna-s2e[coteaching]"'
        ) from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _define_missing_operators()
        return import_module(f"torchvision.{name}")


def _define_missing_operators() -> None:
    """Declare the two compiled operators whose absence makes `import torchvision` fail.

    If torchvision is a CUDA build and torch a CPU build, torchvision cannot load its compiled
    library (pytorch/vision #8985), and then fails to register shapes for operators that do not
    exist. This package calls neither of them.
    """
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", schema)
