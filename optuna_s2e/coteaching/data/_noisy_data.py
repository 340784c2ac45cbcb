"""Training data with wrong labels, held in memory, made from arrays or torch data sets.

Notation
    x               inputs: uint8 images, float32 features or int64 tokens, (N, ...)
    noisy_labels    the labels that training sees, as class numbers, (N,)
    clean_labels    the true labels, (N,), or None; used to measure label precision alone
    classes         the label of each class as the user gave it, (C,)
    validation      data that a search may use, split off the training data
    test            data that only an evaluation uses
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from optuna_s2e._typing import IntArray
from optuna_s2e.coteaching.data._inputs import read_inputs
from optuna_s2e.coteaching.data._labels import Label, encode_labels, show_classes

_N_TELLING = 100  # validation samples from which on equal ones are no accident
_LEAKS = 0.9  # share of them that are training samples, too

ArrayOrTensor = npt.ArrayLike | Tensor


@dataclass(frozen=True, eq=False)
class NoisyData:
    """Hold training data with wrong labels, validation data and test data.

    Use `load_data`, `from_arrays` or `from_datasets` to make it: they check the data.

    Attributes:
        x: Training inputs, uint8 images, float32 features or int64 tokens, (N, ...).
        noisy_labels: Labels to train on, as class numbers, int64, (N,).
        clean_labels: True labels, int64, (N,), or None if they are unknown.
        x_val: Validation inputs, (N_val, ...).
        y_val: Validation labels, clean or noisy, (N_val,).
        x_test: Test inputs, (N_test, ...), or None.
        y_test: Test labels, (N_test,), or None.
        n_classes: C, the number of classes, at least 2.
        name: Name of the data set.
        settings: Arguments with which `load_data` returns the same data, or None if the data
            were not made by `load_data`.
        classes: Label of each class as it was given (a name, for example), (C,).
        clean_validation: Whether the validation labels count as right, which the estimate of the
            noise (`estimate_noise`) makes use of.
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
    classes: tuple[Label, ...] = ()
    clean_validation: bool = True

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

    def describe_noise(self) -> str:
        """Return a sentence: which noise `load_data` added to the labels.

        Example:
            >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
            >>> NoisyData.from_arrays(x, y, x, y, name="mine").describe_noise()
            'mine; the labels are as they were given, no noise is added.'
        """
        settings = self.settings
        if settings is None or settings["noise"] == "none":
            return f"{self.name}; the labels are as they were given, no noise is added."
        published = "the published " if settings["published_noise"] else ""
        rate = f"{100 * settings['noise_rate']:g} %"
        return (
            f"{self.name}; {published}{rate} {settings['noise']} noise is added to the training "
            "labels."
        )

    def decode(self, numbers: ArrayOrTensor) -> npt.NDArray[Any]:
        """Return the labels that class numbers stand for, such as predictions of a network.

        Args:
            numbers: Class numbers in [0, C), of any shape.

        Raises:
            ValueError: If a number is no class.

        Example:
            >>> x, y = np.eye(4, dtype=np.float32), ["dog", "cat", "dog", "cat"]
            >>> NoisyData.from_arrays(x, y, x, y).decode([[0, 1]]).tolist()
            [['cat', 'dog']]
        """
        asked = np.asarray(numbers.detach().cpu() if isinstance(numbers, Tensor) else numbers)
        is_class = np.isin(asked, np.arange(len(self.classes)))
        if not is_class.all():
            wrong = asked[~is_class].flat[0]
            raise ValueError(
                f"numbers must be ints in [0, {len(self.classes)}), but got {wrong!r}."
            )
        labels: npt.NDArray[Any] = np.array(self.classes)[asked.astype(np.int64)]
        return labels

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
        clean_validation: bool = True,
        name: str = "arrays",
    ) -> NoisyData:
        """Make the data from arrays or tensors whose labels `y` are already noisy.

        Lists and data frames are taken like arrays.

        Args:
            x: Training inputs, (N, ...). uint8 are images, which networks see in [0, 1]; if they
                have their 1 or 3 channels last, these become the first axis. Floats are taken as
                they are, in float32. Other integers are tokens, such as the ids of words: they
                need a network of your own that begins with an embedding.
            y: Labels to train on, (N,): whole numbers, strings or bytes. The classes are the
                different labels in sorted order (`classes`).
            x_val: Validation inputs, of the shape and dtype of `x` except for their number.
            y_val: Validation labels. Clean labels are better than noisy ones.
            x_test: Test inputs for `evaluate_schedules`, or None.
            y_test: Test labels, or None. They must be given if `x_test` is.
            clean_labels: True labels of `x`, (N,). They are used to record how clean the selected
                samples are. None if they are unknown.
            n_classes: C, at least 2. With it, labels in [0, C) are class numbers, and the training
                labels need not hold all of them.
            clean_validation: Whether the validation labels count as right. If they are as noisy
                as the training labels, say False: it is what `estimate_noise` goes by.
            name: Name of the data for titles.

        Returns:
            The data. Arrays are copied; tensors that need no conversion are not.

        Raises:
            ValueError: If shapes or dtypes differ, inputs are no numbers or not finite, labels are
                missing or of several types, `n_classes` does not fit them, or without it the
                training labels lack a class.

        Warns:
            UserWarning: If the training or the validation labels hold no sample of a class,
                classes differ in blanks or capitals alone, the label 255 may mark samples without
                a label, or the validation samples are training samples.

        Example:
            >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
            >>> NoisyData.from_arrays(x, y, x, y).n_classes
            2
        """
        if (x_test is None) != (y_test is None):
            given = "y_test" if x_test is None else "x_test"
            raise ValueError(f"x_test and y_test must be given together, but got {given} alone.")
        inputs = {"x": x, "x_val": x_val}
        labels = {"y": y, "y_val": y_val}
        if x_test is not None and y_test is not None:
            inputs["x_test"], labels["y_test"] = x_test, y_test
        if clean_labels is not None:
            labels["clean_labels"] = clean_labels
        numbers, classes = encode_labels(labels, n_classes)
        return assemble(inputs, numbers, classes, name=name, clean_validation=clean_validation)

    @classmethod
    def from_datasets(
        cls,
        train: Dataset[Any],
        val: Dataset[Any],
        test: Dataset[Any] | None = None,
        *,
        clean_labels: ArrayOrTensor | None = None,
        n_classes: int | None = None,
        clean_validation: bool = True,
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
            clean_validation: As in `from_arrays`.
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
            clean_validation=clean_validation,
            name=name,
        )


def assemble(
    inputs: Mapping[str, Any],
    labels: Mapping[str, IntArray],
    classes: Sequence[Label],
    *,
    name: str,
    settings: Mapping[str, Any] | None = None,
    clean_validation: bool,
) -> NoisyData:
    """Make the data from inputs and class numbers.

    Args:
        inputs: "x", "x_val" and maybe "x_test", as in `NoisyData.from_arrays`.
        labels: "y", "y_val" and maybe "y_test" and "clean_labels", as class numbers.
        classes: Label of each class.
        name: Name of the data for titles.
        settings: Arguments with which `load_data` returns the same data, or None.
        clean_validation: Whether the labels "y_val" count as right.

    Raises:
        ValueError: If shapes or dtypes differ, or inputs are no numbers or not finite.

    Warns:
        UserWarning: If the training or the validation labels hold no sample of a class, or the
            validation samples are training samples.
    """
    x = read_inputs(inputs)
    _check_shapes(x, labels)
    for part, consequence in (
        ("y", "networks cannot learn them"),
        ("y_val", "the validation error knows nothing of them"),
    ):
        held = set(labels[part].tolist())
        empty = [label for i, label in enumerate(classes) if i not in held]
        if empty:
            warnings.warn(
                f"{part} of {name!r} holds no sample of the classes {show_classes(empty)}: "
                f"{consequence}.",
                UserWarning,
                stacklevel=3,
            )
    _warn_of_training_samples(x, labels, name)
    y = {part: torch.from_numpy(numbers).to(x["x"].device) for part, numbers in labels.items()}
    return NoisyData(
        x=x["x"],
        noisy_labels=y["y"],
        clean_labels=y.get("clean_labels"),
        x_val=x["x_val"],
        y_val=y["y_val"],
        x_test=x.get("x_test"),
        y_test=y.get("y_test"),
        n_classes=len(classes),
        name=name,
        settings=settings,
        classes=tuple(classes),
        clean_validation=bool(clean_validation),
    )


def _check_shapes(inputs: Mapping[str, Tensor], labels: Mapping[str, IntArray]) -> None:
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
                f"{tuple(tensor.shape[1:])} {tensor.dtype}. Convert them to the same."
            )


def _warn_of_training_samples(
    inputs: Mapping[str, Tensor], labels: Mapping[str, IntArray], name: str
) -> None:
    """Warn if validation samples were not taken out of the training data.

    A few equal samples are no fault, and nor are training samples with corrected labels. Where
    most training samples have equals among themselves, as in tables of a few categories, equal
    validation samples say nothing.
    """

    def samples(x: str, y: str) -> Iterator[int]:
        rows = zip(inputs[x].cpu().numpy(), labels[y].tolist(), strict=True)
        return (hash((row.tobytes(), label)) for row, label in rows)

    n = len(labels["y_val"])
    if n < _N_TELLING:
        return
    trained = Counter(samples("x", "y"))
    n_repeated = sum(count for count in trained.values() if count > 1)
    n_trained = sum(sample in trained for sample in samples("x_val", "y_val"))
    if n_trained >= _LEAKS * n and 2 * n_repeated <= trained.total():
        warnings.warn(
            f"{n_trained} of {n} validation samples of {name!r} are training samples with the "
            "same labels: the validation error rewards networks that learn wrong labels by heart. "
            "Take them out of the training data.",
            UserWarning,
            stacklevel=4,
        )


def _read_dataset(name: str, dataset: Dataset[Any]) -> tuple[Tensor, list[Any]]:
    if isinstance(dataset, DataLoader):
        raise ValueError(f"{name} must be a data set, but is a DataLoader. Take {name}.dataset.")

    def collate(items: list[Any]) -> tuple[Any, list[Any]]:
        for item in items:
            if not isinstance(item, tuple | list) or len(item) != 2:
                size = f" of {len(item)}" if hasattr(item, "__len__") else ""
                raise ValueError(f"an item is a {type(item).__name__}{size}")
        inputs, labels = zip(*items, strict=True)
        return default_collate(list(inputs)), list(labels)

    # without a generator of its own, a DataLoader draws a seed from torch's global one
    loader = DataLoader(dataset, batch_size=1000, generator=torch.Generator(), collate_fn=collate)
    try:
        parts = list(loader)
        if not parts:
            raise ValueError("it is empty")
        inputs, labels = zip(*parts, strict=True)
        return torch.cat(list(inputs)), list(chain(*labels))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be a data set of (tensor, label) items of one shape ({error}). "
            "Images need a transform such as torchvision's PILToTensor()."
        ) from error
