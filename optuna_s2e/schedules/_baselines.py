"""Schedules that need no search: standard training, Co-teaching, a suggestion, one of Table 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from optuna_s2e._checks import check_number, check_shape
from optuna_s2e.distributions import simplex_params
from optuna_s2e.schedules._formulas import BASES, MIX_NAME, basis_names
from optuna_s2e.schedules._informed import informed_middle
from optuna_s2e.schedules._schedule import Schedule, ScheduleSpace


def standard_schedule(n_epochs: int) -> Schedule:
    """Return R(t) = 1: training on all samples, the baseline "Standard".

    Args:
        n_epochs: T, at least 2.

    Returns:
        A schedule of the space `"eq1"`.

    Raises:
        ValueError: If `n_epochs` is out of range.

    Example:
        >>> from optuna_s2e import standard_schedule
        >>> standard_schedule(3).keep_rates.tolist()
        [1.0, 1.0, 1.0]
    """
    return coteaching_schedule(n_epochs, 0.0)


def coteaching_schedule(
    n_epochs: int, forget_rate: float, n_gradual: float = 10.0, exponent: float = 1.0
) -> Schedule:
    """Return Co-teaching's fixed schedule, R(t) = 1 - tau * min((t / t_k)^c, 1) (Eq 1).

    Args:
        n_epochs: T, at least 2.
        forget_rate: tau, in [0, 0.95]. Co-teaching sets it to the noise rate, if that is known.
        n_gradual: t_k, the number of epochs until the drop is complete, at least 1. Values above
            T count as T.
        exponent: c, in [1/4, 4].

    Returns:
        A schedule of the space `"eq1"`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from optuna_s2e import coteaching_schedule
        >>> coteaching_schedule(4, 0.5, n_gradual=2).keep_rates.tolist()
        [1.0, 0.75, 0.5, 0.5]
    """
    space = ScheduleSpace(n_epochs, "eq1")
    return space.from_params({
        "R.tau": check_number("forget_rate", forget_rate, 0.0, 0.95),
        "R.tk": min(check_number("n_gradual", n_gradual, 1.0), float(space.n_epochs)),
        "R.c": check_number("exponent", exponent, 0.25, 4.0),
    })  # fmt: skip


def suggested_schedule(n_epochs: int, noise_rate: float) -> Schedule:
    """Return the schedule of Eq 1 that is suggested at a noise rate, for those who do not search.

    It drops the wrong labels, and right ones as far as that costs little. It is
    `ScheduleSpace(n_epochs, noise_rate=noise_rate).middle`, the first trial of such a search.

    Args:
        n_epochs: T, at least 2.
        noise_rate: Share of wrong labels, in [0, 1], known or estimated.

    Returns:
        A schedule of the space `"eq1"`. At rate 0 it is R(t) = 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from optuna_s2e import suggested_schedule
        >>> rates = suggested_schedule(40, noise_rate=0.4).keep_rates
        >>> bool(rates[0] == 1), bool(0.05 < rates[-1] < 0.6)
        (True, True)
    """
    space = ScheduleSpace(n_epochs, "eq1")
    return space.from_params(informed_middle(space.n_epochs, noise_rate))


def table1_schedule(
    n_epochs: int, mix_weights: npt.ArrayLike, basis_params: npt.ArrayLike
) -> Schedule:
    """Return the schedule of Eq 4 and Table 1 with the given weights and parameters.

    Args:
        n_epochs: T, at least 2.
        mix_weights: alpha, non-negative weights of f1 .. f4 that sum to 1, (4,).
        basis_params: a_1 .. a_4 of f1 .. f4, each in [0, 1], (4, 4).

    Returns:
        A schedule of the space `"table1"`.

    Raises:
        ValueError: If a shape is wrong or a value is out of range.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e import table1_schedule
        >>> table1_schedule(3, [0, 0, 1, 0], np.tile([1, 1, 0, 0], (4, 1))).keep_rates.round(2)
        array([1.  , 0.5 , 0.33])
    """
    alpha = np.asarray(mix_weights, dtype=np.float64)
    a = np.asarray(basis_params, dtype=np.float64)
    check_shape("mix_weights", alpha, "(n_bases,)", (4,))
    check_shape("basis_params", a, "(n_bases, n_params)", (4, 4))
    values: dict[str, float] = simplex_params(MIX_NAME, alpha)
    for i in range(1, len(BASES) + 1):
        values |= dict(zip(basis_names(i), a[i - 1].tolist(), strict=True))
    return ScheduleSpace(n_epochs, "table1").from_params(values)
