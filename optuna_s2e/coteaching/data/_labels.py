"""Labels as users have them, turned into class numbers, and the classes that turn them back.

Labels are whole numbers, strings or bytes, in a list, an array, a tensor or the column of a data
frame. The classes are the different labels in sorted order: class number i stands for classes[i].
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from optuna_s2e._checks import check_int, spelling
from optuna_s2e._typing import IntArray

Label = int | str | bytes

# what missing labels become as text, for example by array.astype(str)
_MISSING = ("", "nan", "NaN", "None", "<NA>", "NaT")
_IGNORED = 255  # of uint8, as -1 and -100 of other ints, which are refused
_MISSING_TEXTS = {*_MISSING, *(text.encode() for text in _MISSING)}


def encode_labels(
    labels: Mapping[str, Any], n_classes: int | None = None
) -> tuple[dict[str, IntArray], tuple[Label, ...]]:
    """Return labels as class numbers, and the classes.

    Args:
        labels: Labels by the name of their argument, (N,) or (N, 1) each. "y" holds the training
            labels.
        n_classes: C. Labels in [0, C) are then class numbers already, and classes may be empty.
            None takes the labels that occur; the training labels must hold all of them.

    Returns:
        Class numbers by name, int64 of shape (N,), and the label of each class.

    Raises:
        ValueError: If a label is missing or no label, labels are of several types, there are
            fewer than two classes, or `n_classes` does not fit.

    Warns:
        UserWarning: If classes differ in blanks or capitals alone, or one seems to mark samples
            without a label.

    Example:
        >>> encode_labels({"y": ["dog", "cat", "dog"]})
        ({'y': array([1, 0, 1])}, ('cat', 'dog'))
    """
    given = {name: _listed(name, y) for name, y in labels.items()}
    label_of = {name: _plain_labels(name, values) for name, values in given.items()}
    found = {name: set(plain.values()) for name, plain in label_of.items()}
    _check_one_type(found)
    classes = _classes(found, n_classes)
    if n_classes is None:
        _warn_of_odd(classes)
    number = {label: i for i, label in enumerate(classes)}
    numbers = {}
    for name, values in given.items():
        number_of = {value: number[label] for value, label in label_of[name].items()}
        numbers[name] = np.array([number_of[value] for value in values], dtype=np.int64)
    return numbers, classes


def show_classes(classes: Sequence[Label]) -> str:
    """Return a list of classes as messages show it: at most five of them."""
    more = f", ... ({len(classes)})" if len(classes) > 5 else ""
    return f"[{', '.join(map(repr, classes[:5]))}{more}]"


def _listed(name: str, y: Any) -> list[Any]:
    """Return labels as a list."""
    array = y.detach().cpu() if isinstance(y, Tensor) else _array(name, y)
    shape = tuple(array.shape)
    if shape[1:] == (1,):  # a column
        array = array.reshape(-1)
    elif len(shape) != 1:
        remedy = f" Take {name}.argmax(axis=1) of one-hot rows." if len(shape) == 2 else ""
        raise ValueError(f"{name} must have shape (N,), N > 0, but got {shape}.{remedy}")
    values: list[Any] = array.tolist()
    if not values:
        raise ValueError(f"{name} must have shape (N,), N > 0, but got {shape}.")
    return values


def _array(name: str, y: Any) -> Any:
    if np.ma.is_masked(y):
        y = y.astype(object).filled(np.nan)
    if hasattr(y, "__array__"):
        return np.asarray(y)
    if isinstance(y, list | tuple):
        y = [v.item() if isinstance(v, Tensor | np.generic) and v.ndim == 0 else v for v in y]
    try:
        return np.array(y, dtype=object)  # any other dtype would make text of mixed types
    except ValueError as error:
        raise ValueError(f"{name} must have shape (N,), but got {error}.") from error


def _plain_labels(name: str, values: list[Any]) -> dict[Any, Label]:
    """Return the label that each different value stands for: True and 1.0 stand for 1."""
    try:
        return {value: _plain(value) for value in set(values)}
    except (TypeError, ValueError):  # found again, for the message
        i = next(i for i, value in enumerate(values) if not _is_label(value))
    if _is_missing(values[i]):
        is_text = isinstance(values[i], str | bytes)
        raise ValueError(
            f"{name} must hold a label of every sample, but {sum(map(_is_missing, values))} of "
            f"{len(values)} are missing, the first is {name}[{i}] = {values[i]!r}. Drop those "
            f"samples{', or rename the class if it is one' if is_text else ''}."
        )
    raise ValueError(
        f"{name} must hold class labels (whole numbers, strings or bytes), but {name}[{i}] is "
        f"{values[i]!r}. Turn such values into classes first."
    )


def _plain(value: Any) -> Label:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str | bytes) and value not in _MISSING_TEXTS:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Real) and float(value).is_integer():
        return int(float(value))
    raise ValueError(value)


def _is_label(value: Any) -> bool:
    try:
        _plain(value)
    except ValueError:
        return False
    return True


def _is_missing(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return value in _MISSING_TEXTS
    if isinstance(value, float):
        return value != value
    return value is None or type(value).__name__ in ("NAType", "NaTType")  # pandas' own


def _check_one_type(found: Mapping[str, set[Label]]) -> None:
    first: dict[type, str] = {}
    for name, labels in found.items():
        for label in labels:
            first.setdefault(type(label), f"{label!r} in {name}")
    if len(first) > 1:
        raise ValueError(
            f"Labels must be of one type, but got {' and '.join(first.values())}. "
            "Convert all of them to strings, or to whole numbers."
        )


def _classes(found: Mapping[str, set[Label]], n_classes: int | None) -> tuple[Label, ...]:
    every = sorted(set().union(*found.values()))
    _check_signs(found, every)
    if n_classes is None:
        absent = [label for label in every if label not in found["y"]]
        if absent:
            holder = next(name for name, labels in found.items() if absent[0] in labels)
            raise ValueError(
                f"y must hold every class, but {show_classes(absent)} are empty there and occur "
                f"in {holder}. Drop those samples, or add such samples to y."
            )
        if len(every) < 2:
            raise ValueError(f"y must hold at least 2 classes, but holds {every[0]!r} alone.")
        return tuple(every)
    n_classes = check_int("n_classes", n_classes, 2)
    if all(isinstance(label, int) and 0 <= label < n_classes for label in every):
        return tuple(range(n_classes))
    if len(every) == n_classes:
        return tuple(every)
    outside = [label for label in every if not (isinstance(label, int) and label < n_classes)]
    holder = next(name for name, labels in found.items() if outside[0] in labels)
    raise ValueError(
        f"{holder} must be in [0, n_classes) = [0, {n_classes}), but got {outside[0]!r}. Leave "
        f"n_classes out to take the {len(every)} different labels as classes."
    )


def _warn_of_odd(classes: tuple[Label, ...]) -> None:
    """Warn of labels that are mostly no classes of their own."""
    spellings: dict[str, list[Label]] = {}
    for label in classes:
        if isinstance(label, str | bytes):
            text = label if isinstance(label, str) else label.decode(errors="replace")
            spellings.setdefault(spelling(text), []).append(label)
    same = next((labels for labels in spellings.values() if len(labels) > 1), None)
    if same is not None:
        warnings.warn(
            f"The labels {show_classes(same)} differ in blanks or capitals alone, and are taken "
            "as different classes. Spell them alike if they are one.",
            UserWarning,
            stacklevel=4,
        )
    if classes[-1] == _IGNORED and _IGNORED - 1 not in classes and len(classes) > 2:
        warnings.warn(
            f"The label {_IGNORED} is taken as a class. Drop its samples if it marks those "
            "without a label.",
            UserWarning,
            stacklevel=4,
        )


def _check_signs(found: Mapping[str, set[Label]], every: list[Label]) -> None:
    """Refuse negative numbers, which mark missing labels, but take -1 and 1 as two classes."""
    negative = [label for label in every if isinstance(label, int) and label < 0]
    if negative and every != [-1, 1]:
        holder = next(name for name, labels in found.items() if negative[0] in labels)
        raise ValueError(
            f"{holder} must hold labels of at least 0, but got {negative[0]}. Drop samples "
            "without a label; if it is a class, number the classes from 0."
        )
