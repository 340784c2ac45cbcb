"""Schedules that need no search: standard training, Co-teaching, one mixture of Table 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from optuna_s2e.distributions import simplex_params
from optuna_s2e.schedules._formulas import BASES, MIX_NAME, basis_names
from optuna_s2e.schedules._schedule import Schedule, ScheduleSpace


def standard_schedule(n_epochs: int) -> Schedule:
    """Return R(t) = 1: training on everything, the baseline called Standard."""
    return coteaching_schedule(n_epochs, 0.0)


def coteaching_schedule(
    n_epochs: int, forget_rate: float, n_gradual: float = 10.0, exponent: float = 1.0
) -> Schedule:
    """Return Co-teaching's fixed schedule, R(t) = 1 - tau * min((t / t_k)^c, 1) (Eq 1).

    Args:
        n_epochs: T.
        forget_rate: tau, in [0, 0.95]; Co-teaching sets it to the (known) noise rate.
        n_gradual: t_k, epochs until the drop is complete, in [1, T]; larger values become T.
        exponent: c, in [1/4, 4].

    Raises:
        ValueError: If an argument is out of range.
    """
    tk = min(float(n_gradual), float(n_epochs))
    values = {"R.tau": float(forget_rate), "R.tk": tk, "R.c": float(exponent)}
    return ScheduleSpace(n_epochs, "eq1").from_params(values)


def table1_schedule(
    n_epochs: int, mix_weights: npt.ArrayLike, basis_params: npt.ArrayLike
) -> Schedule:
    """Return the schedule of Eq 4 and Table 1 with the given weights and parameters.

    Args:
        n_epochs: T.
        mix_weights: alpha, shape (4,), non-negative, summing to 1.
        basis_params: a_1 .. a_4 of f1 .. f4, shape (4, 4), each in [0, 1].

    Raises:
        ValueError: If a shape or a value is out of range.
    """
    a = np.asarray(basis_params, dtype=np.float64)
    if a.shape != (4, 4) or np.shape(mix_weights) != (4,):
        raise ValueError(
            "mix_weights and basis_params must have shapes (4,) and (4, 4), "
            f"but got {np.shape(mix_weights)} and {a.shape}."
        )
    values: dict[str, float] = simplex_params(MIX_NAME, mix_weights)
    for i in range(1, len(BASES) + 1):
        values |= dict(zip(basis_names(i), a[i - 1].tolist(), strict=True))
    return ScheduleSpace(n_epochs, "table1").from_params(values)
