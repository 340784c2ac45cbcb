"""Checks of arguments, all with one wording: `{name} must be {condition}, but got {value!r}.`

NumPy's integers are ints and its numbers are numbers; bools are neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import numpy.typing as npt


def check_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return an argument as a Python int.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        low: Smallest value allowed.
        high: Largest value allowed. None means no upper bound.

    Raises:
        ValueError: If the value is no int in [low, high].
    """
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    if is_int and low <= int(value) <= (inf if high is None else high):  # type: ignore[call-overload]
        return int(value)  # type: ignore[call-overload, no-any-return]
    bounds = f"of at least {low}" if high is None else f"in [{low}, {high}]"
    raise ValueError(f"{name} must be an int {bounds}, but got {value!r}.")


def check_number(
    name: str,
    value: object,
    low: float = -inf,
    high: float = inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return an argument as a finite Python float.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        low: Smallest value allowed.
        high: Largest value allowed.
        open_low: Whether `low` itself is refused.
        open_high: Whether `high` itself is refused.

    Raises:
        ValueError: If the value is no finite number between the bounds.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        above = low < number if open_low else low <= number
        below = number < high if open_high else number <= high
        if above and below and isfinite(number):
            return number
    raise ValueError(
        f"{name} must be {_interval(low, high, open_low, open_high)}, but got {value!r}."
    )


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return an argument that is one of some names.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        choices: The names allowed.

    Raises:
        ValueError: If the value is none of them.
    """
    names = list(choices)
    if isinstance(value, str) and value in names:
        return value
    shown = ", ".join(map(repr, names))
    raise ValueError(f"{name} must be one of {shown}, but got {value!r}.")


def check_shape(name: str, array: npt.NDArray[Any], symbols: str, shape: tuple[int, ...]) -> None:
    """Check the shape of an array.

    Args:
        name: Name of the argument.
        array: Value of the argument.
        symbols: The shape that it must have in letters, such as "(K, n_theta)".
        shape: The shape that it must have in numbers.

    Raises:
        ValueError: If the array has another shape.
    """
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {symbols} = {shape}, but got {array.shape}.")


def check_axes(
    name: str, array: npt.NDArray[Any], symbols: str, *, may_be_empty: bool = False
) -> None:
    """Check the number of axes of an array whose lengths are free.

    Args:
        name: Name of the argument.
        array: Value of the argument.
        symbols: One letter for each axis, such as "(N,)" or "(K, T)".
        may_be_empty: Whether an axis may have length 0.

    Raises:
        ValueError: If the array has another number of axes, or is empty.
    """
    n_axes = len([symbol for symbol in symbols.strip("()").split(",") if symbol])
    if array.ndim != n_axes or not (array.size or may_be_empty):
        condition = symbols if may_be_empty else f"{symbols} and not be empty"
        raise ValueError(f"{name} must have shape {condition}, but got {array.shape}.")


def _interval(low: float, high: float, open_low: bool, open_high: bool) -> str:
    if high == inf:
        if low == -inf:
            return "a finite number"
        return f"a finite number {'>' if open_low else '>='} {low:g}"
    return f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"


def is_number(text: str) -> bool:
    """Say whether a text is a number, as Python writes it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def spelling(text: str) -> str:
    """Return the same for texts that differ in blanks or capitals alone.

    A letter and its capital are two texts: data sets of letters have both as classes.
    """
    words = " ".join(text.split())
    return words if len(words) == 1 else words.casefold()
