"""Schedules that need no search, against their formulas."""

import math
from typing import Any

import numpy as np
import pytest

from optuna_s2e import coteaching_schedule, standard_schedule, table1_schedule


def test_eq1_is_coteachings_schedule() -> None:
    schedule = coteaching_schedule(20, 0.45, n_gradual=10, exponent=2)
    expected = [1 - 0.45 * min((t / 10) ** 2, 1) for t in range(20)]
    np.testing.assert_allclose(schedule.keep_rates, expected, rtol=1e-15)
    np.testing.assert_allclose(schedule.forget_rates[-1], 0.45)
    assert np.array_equal(standard_schedule(7).keep_rates, np.ones(7))


def test_gradual_phase_longer_than_the_training_ends_with_it() -> None:
    assert coteaching_schedule(6, 0.5, n_gradual=10) == coteaching_schedule(6, 0.5, n_gradual=6)


def test_numpy_numbers_are_numbers() -> None:
    of_numpy = coteaching_schedule(np.int64(6), np.float32(0.5), np.int32(3), np.float64(2))
    assert of_numpy == coteaching_schedule(6, 0.5, 3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: coteaching_schedule(5, 1.0),
            r"forget_rate must be a number in \[0, 0.95\], but got",
        ),
        (lambda: coteaching_schedule(5, math.nan), "forget_rate must be a number in"),
        (lambda: coteaching_schedule(5, 0.5, 0.5), "n_gradual must be a finite number >= 1"),
        (lambda: coteaching_schedule(5, 0.5, exponent=5), r"exponent must be a number in \[0.25"),
        (
            lambda: table1_schedule(5, [1, 0, 0], np.ones((4, 4))),
            r"mix_weights must have shape \(n_bases,\) = \(4,\), but got \(3,\)",
        ),
        (
            lambda: table1_schedule(5, [1, 0, 0, 0], np.ones((4, 3))),
            "basis_params must have shape",
        ),
        (lambda: standard_schedule(1), "n_epochs must be an int in"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
