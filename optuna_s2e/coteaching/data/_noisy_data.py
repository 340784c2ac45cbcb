"""Training data with wrong labels, held in memory, made from arrays or torch data sets.

Notation
    x               inputs: uint8 images or float32, (N, ...)
    noisy_labels    the labels that training sees, (N,)
    clean_labels    the true labels, (N,), or None; used to measure label precision alone
    validation      data that a search may use, split off the training data
    test            data that only an evaluation uses
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from optuna_s2e._checks import check_int

ArrayOrTensor = npt.ArrayLike | Tensor


@dataclass(frozen=True, eq=False)
class NoisyData:
    """Hold training data with wrong labels, validation data and test data.

    Use `load_data`, `from_arrays` or `from_datasets` to make it: they check the data.

    Attributes:
        x: Training inputs, uint8 images or float32, (N, ...).
        noisy_labels: Labels to train on, int64, (N,).
        clean_labels: True labels, int64, (N,), or None if they are unknown.
        x_val: Validation inputs, (N_val, ...).
        y_val: Validation labels, clean or noisy, (N_val,).
        x_test: Test inputs, (N_test, ...), or None.
        y_test: Test labels, (N_test,), or None.
        n_classes: C, the number of classes, at least 2.
        name: Name of the data set.
        settings: Arguments with which `load_data` returns the same data, or None if the data
            were not made by `load_data`.
    """

    x: Tensor
    noisy_labels: Tensor
    clean_labels: Tensor | None
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor | None
    y_test: Tensor | None
    n_classes: int
    name: str
    settings: Mapping[str, Any] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.x.shape[1:])

    @property
    def noise_rate(self) -> float | None:
        """The noise rate given to `load_data`, else the share of wrong labels, else None."""
        if self.settings is not None and self.settings["noise"] != "none":
            return float(self.settings["noise_rate"])
        if self.clean_labels is None:
            return None
        return float((self.noisy_labels != self.clean_labels).double().mean())

    def to(self, device: torch.device | str) -> NoisyData:
        """Return the data on a device, or this object if they are there already."""
        tensors = {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return self if moved["x"] is self.x else replace(self, **moved)

    @classmethod
    def from_arrays(
        cls,
        x: ArrayOrTensor,
        y: ArrayOrTensor,
        x_val: ArrayOrTensor,
        y_val: ArrayOrTensor,
        *,
        x_test: ArrayOrTensor | None = None,
        y_test: ArrayOrTensor | None = None,
        clean_labels: ArrayOrTensor | None = None,
        n_classes: int | None = None,
        name: str = "arrays",
    ) -> NoisyData:
        """Make the data from arrays or tensors whose labels `y` are already noisy.

        Args:
            x: Training inputs, (N, ...). Training scales uint8 images to [0, 1] and takes floats
                as they are, in float32.
            y: Labels to train on, integers in [0, C), (N,).
            x_val: Validation inputs, of the shape and dtype of `x` except for their number.
            y_val: Validation labels, integers in [0, C). Clean labels are better than noisy ones.
            x_test: Test inputs for `evaluate_schedules`, or None.
            y_test: Test labels, or None. They must be given if `x_test` is.
            clean_labels: True labels of `x`, integers in [0, C), (N,). They are used to record
                how clean the selected samples are. None if they are unknown.
            n_classes: C, at least 2. The default is the largest label + 1.
            name: Name of the data for titles.

        Returns:
            The data. Arrays are copied; tensors that need no conversion are not.

        Raises:
            ValueError: If shapes or dtypes differ, labels are out of range, a class is missing in
                the training or validation labels, or an input is not finite.

        Example:
            >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
            >>> NoisyData.from_arrays(x, y, x, y).n_classes
            2
        """
        if (x_test is None) != (y_test is None):
            given = "y_test" if x_test is None else "x_test"
            raise ValueError(f"x_test and y_test must be given together, but got {given} alone.")
        inputs = {"x": _inputs("x", x), "x_val": _inputs("x_val", x_val)}
        labels = {"y": _labels("y", y), "y_val": _labels("y_val", y_val)}
        if x_test is not None and y_test is not None:
            inputs["x_test"] = _inputs("x_test", x_test)
            labels["y_test"] = _labels("y_test", y_test)
        if clean_labels is not None:
            labels["clean_labels"] = _labels("clean_labels", clean_labels)
        if n_classes is None:
            n_classes = 1 + max(int(label.max()) for label in labels.values())
        n_classes = check_int("n_classes", n_classes, 2)
        _check_shapes(inputs, labels)
        for label_name, label in labels.items():
            must_cover = label_name in ("y", "y_val")
            _check_classes(label_name, label, n_classes, must_cover=must_cover)
        return cls(
            x=inputs["x"],
            noisy_labels=labels["y"],
            clean_labels=labels.get("clean_labels"),
            x_val=inputs["x_val"],
            y_val=labels["y_val"],
            x_test=inputs.get("x_test"),
            y_test=labels.get("y_test"),
            n_classes=n_classes,
            name=name,
        )

    @classmethod
    def from_datasets(
        cls,
        train: Dataset[Any],
        val: Dataset[Any],
        test: Dataset[Any] | None = None,
        *,
        clean_labels: ArrayOrTensor | None = None,
        n_classes: int | None = None,
        name: str = "datasets",
    ) -> NoisyData:
        """Read torch data sets of (input, label) items into memory once.

        Random transforms are therefore applied once, not once per epoch.

        Args:
            train: Items to train on. Their labels are already noisy.
            val: Validation items.
            test: Test items for `evaluate_schedules`, or None.
            clean_labels: True labels in the order of `train`, as in `from_arrays`.
            n_classes: C, as in `from_arrays`.
            name: Name of the data for titles.

        Returns:
            The data.

        Raises:
            ValueError: If the items are not (tensor, label), or `from_arrays` refuses the data.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> items = TensorDataset(torch.eye(4), torch.tensor([0, 1, 0, 1]))
            >>> NoisyData.from_datasets(items, items).input_shape
            (4,)
        """
        x, y = _read_dataset("train", train)
        x_val, y_val = _read_dataset("val", val)
        x_test, y_test = (None, None) if test is None else _read_dataset("test", test)
        return cls.from_arrays(
            x,
            y,
            x_val,
            y_val,
            x_test=x_test,
            y_test=y_test,
            clean_labels=clean_labels,
            n_classes=n_classes,
            name=name,
        )


def to_input(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mini-batch as networks see it: uint8 images are scaled to [0, 1] (ToTensor)."""
    return x.to(dtype).div_(255) if x.dtype == torch.uint8 else x.to(dtype)


def _inputs(name: str, x: ArrayOrTensor) -> Tensor:
    tensor = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    if tensor.ndim < 2:
        raise ValueError(f"{name} must have shape (N, ...), but got {tuple(tensor.shape)}.")
    if tensor.dtype == torch.uint8:
        return tensor.contiguous()
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} must be uint8 images or floats, but got {tensor.dtype}. "
            "Scale it to about [0, 1] and convert it to float32."
        )
    tensor = tensor.to(torch.float32).contiguous()
    finite = tensor.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{name} must be finite, but {int((~finite).sum())} of {len(tensor)} samples hold "
            f"NaN or infinity, the first is {name}[{int(finite.int().argmin())}]."
        )
    return tensor


def _labels(name: str, y: ArrayOrTensor) -> Tensor:
    tensor = y.detach() if isinstance(y, Tensor) else torch.from_numpy(np.array(y))
    if tensor.ndim != 1 or len(tensor) == 0:
        raise ValueError(f"{name} must have shape (N,), N > 0, but got {tuple(tensor.shape)}.")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, but got {tensor.dtype}.")
    return tensor.to(torch.int64)


def _check_shapes(inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
    pairs = [("x", "y"), ("x_val", "y_val"), ("x_test", "y_test"), ("x", "clean_labels")]
    for x, y in pairs:
        if y in labels and len(inputs[x]) != len(labels[y]):
            raise ValueError(
                f"{x} and {y} must have the same length, "
                f"but got {len(inputs[x])} and {len(labels[y])}."
            )
    for name, tensor in inputs.items():
        if tensor.shape[1:] != inputs["x"].shape[1:] or tensor.dtype != inputs["x"].dtype:
            raise ValueError(
                f"x and {name} must hold inputs of one shape and dtype, but got "
                f"{tuple(inputs['x'].shape[1:])} {inputs['x'].dtype} and "
                f"{tuple(tensor.shape[1:])} {tensor.dtype}."
            )


def _check_classes(name: str, labels: Tensor, n_classes: int, *, must_cover: bool) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_classes:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} must be in [0, n_classes) = [0, {n_classes}), but got {wrong}.")
    counts = torch.bincount(labels, minlength=n_classes)
    if must_cover and not counts.all():
        empty = torch.nonzero(counts == 0).flatten().tolist()
        raise ValueError(
            f"{name} must hold every class, but {empty} are empty. "
            "Drop those classes, or take more samples."
        )


def _read_dataset(name: str, dataset: Dataset[Any]) -> tuple[Tensor, Tensor]:
    # without a generator of its own, a DataLoader draws a seed from torch's global one
    loader = DataLoader(dataset, batch_size=1000, generator=torch.Generator())
    try:
        inputs, labels = zip(*loader, strict=True)
        return torch.cat(inputs), torch.cat(labels)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a data set of (tensor, label) items ({error}). "
            "Images need a transform such as torchvision's PILToTensor()."
        ) from error
