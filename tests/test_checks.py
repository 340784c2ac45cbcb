"""The checks of arguments: what passes, as which type, and the wording of refusals."""

from typing import Any

import numpy as np
import pytest

from optuna_s2e._checks import (
    check_axes,
    check_choice,
    check_int,
    check_number,
    check_shape,
    is_number,
    spelling,
)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_ints_become_python_ints(value: Any) -> None:
    assert type(check_int("n", value, 3)) is int
    assert check_int("n", value, 0, 3) == 3


@pytest.mark.parametrize("value", [2, 4, True, 3.0, "3", None, np.bool_(True), np.float64(3)])
def test_other_values_are_no_ints(value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        check_int("n", value, 3, 3)
    assert str(caught.value) == f"n must be an int in [3, 3], but got {value!r}."


def test_an_int_without_an_upper_bound() -> None:
    assert check_int("n", 10**30, 1) == 10**30
    with pytest.raises(ValueError, match=r"^n must be an int of at least 1, but got 0\.$"):
        check_int("n", 0, 1)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int64(1)])
def test_numbers_become_python_floats(value: Any) -> None:
    assert type(check_number("x", value)) is float
    assert check_number("x", value, 1.0, 1.0) == 1.0


@pytest.mark.parametrize(
    ("value", "options", "condition"),
    [
        (np.nan, {}, "a finite number"),
        (np.inf, {}, "a finite number"),
        (True, {}, "a finite number"),
        ("1", {}, "a finite number"),
        (1j, {}, "a finite number"),
        (np.inf, {"low": 0.0}, "a finite number >= 0"),
        (0.0, {"low": 0.0, "open_low": True}, "a finite number > 0"),
        (-0.1, {"low": 0.0, "high": 0.95}, "a number in [0, 0.95]"),
        (1.0, {"low": 0.0, "high": 1.0, "open_high": True}, "a number in [0, 1)"),
        (0.0, {"low": 0.0, "high": 1.0, "open_low": True}, "a number in (0, 1]"),
    ],
)
def test_other_values_are_no_numbers(value: Any, options: Any, condition: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_number("x", value, **options)
    assert str(caught.value) == f"x must be {condition}, but got {value!r}."


def test_choices_and_shapes_are_named() -> None:
    assert check_choice("kind", "a", {"a": 1, "b": 2}) == "a"
    for value in ("c", ["a"], None):
        with pytest.raises(ValueError) as caught:
            check_choice("kind", value, ["a", "b"])
        assert str(caught.value) == f"kind must be one of 'a', 'b', but got {value!r}."
    check_shape("s", np.ones((2, 3)), "(K, n)", (2, 3))
    with pytest.raises(ValueError) as caught:
        check_shape("s", np.ones((3, 2)), "(K, n)", (2, 3))
    assert str(caught.value) == "s must have shape (K, n) = (2, 3), but got (3, 2)."


def test_axes_of_any_length_are_counted() -> None:
    check_axes("rates", np.ones((2, 3)), "(K, T)")
    check_axes("labels", np.ones(0), "(N,)", may_be_empty=True)
    with pytest.raises(ValueError, match=r"^rates must") as caught:
        check_axes("rates", np.ones(3), "(K, T)")
    assert str(caught.value) == "rates must have shape (K, T) and not be empty, but got (3,)."
    with pytest.raises(ValueError, match=r"and not be empty"):
        check_axes("rates", np.ones((0, 3)), "(K, T)")
    with pytest.raises(ValueError, match=r"^labels must have shape \(N,\), but got \(1, 2\)\.$"):
        check_axes("labels", np.ones((1, 2)), "(N,)", may_be_empty=True)


def test_numbers_as_texts() -> None:
    assert all(map(is_number, ("1", "-1.5e3", " 2 ", "nan", "inf")))
    assert not any(map(is_number, ("", "1,5", "one", "0x1")))


def test_texts_that_differ_in_blanks_or_capitals_alone() -> None:
    assert spelling("New  York ") == spelling("new york")
    assert spelling("STRASSE") == spelling("stra\u00dfe")
    assert spelling(" a") == spelling("a")
    assert spelling("a") != spelling("A")  # letters
    assert spelling("ab") != spelling("a b")
