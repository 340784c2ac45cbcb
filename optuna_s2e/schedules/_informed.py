r"""Ranges of Eq 1 around what wins at a noise rate, and their middle.

Notation
    eps          `noise_rate`, the share of wrong labels
    T            number of training epochs, `n_epochs`
    tau, t_k, c  of Eq 1: drop, epoch at which the drop is complete, exponent

The best schedules drop somewhat more than the wrong labels, in the first half of the training.
How much more depends on the data and the kind of noise, so the ranges are wide. They also cover an
estimate of eps that is off by a third.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from optuna.distributions import FloatDistribution

from optuna_s2e._checks import check_number
from optuna_s2e.schedules._formulas import SPACES


class _Around(NamedTuple):
    """A range and what is suggested within it, all in the same unit."""

    low: float
    middle: float
    high: float


TAU = _Around(0.6, 1.2, 1.8)  # in units of eps
T_K = _Around(0.15, 0.5, 1.0)  # in units of T
C = _Around(0.4, 1.5, 4.0)
MARGIN = 0.08  # the range of tau goes at least so far below and above eps: no estimate is exact
_DIGITS = 4  # of a bound: it is read on plots


def informed_distributions(n_epochs: int, noise_rate: float) -> dict[str, FloatDistribution]:
    """Return the distributions of Eq 1's parameters around what wins at a noise rate.

    Args:
        n_epochs: T, at least 2.
        noise_rate: eps, in [0, 1].

    Returns:
        The distributions by name. They are parts of those of the whole space.

    Raises:
        ValueError: If `noise_rate` is out of range.

    Example:
        >>> from optuna_s2e.schedules._informed import informed_distributions
        >>> informed_distributions(40, 0.0)["R.tau"]
        FloatDistribution(high=0.08, log=False, low=0.0, step=None)
    """
    eps = check_number("noise_rate", noise_rate, 0.0, 1.0)
    wanted = {
        "R.tau": (min(TAU.low * eps, eps - MARGIN), max(TAU.high * eps, eps + MARGIN)),
        "R.tk": (T_K.low * n_epochs, T_K.high * n_epochs),
        "R.c": (C.low, C.high),
    }
    found = {}
    for name, whole in SPACES["eq1"].distributions(n_epochs).items():
        low, high = np.clip(np.round(wanted[name], _DIGITS), whole.low, whole.high).tolist()
        found[name] = FloatDistribution(low, high, log=whole.log)
    return found


def informed_middle(n_epochs: int, noise_rate: float) -> dict[str, float]:
    """Return the parameters of Eq 1 that are suggested at a noise rate, which the ranges contain.

    Args:
        n_epochs: T, at least 2.
        noise_rate: eps, in [0, 1].

    Raises:
        ValueError: If `noise_rate` is out of range.

    Example:
        >>> from optuna_s2e.schedules._informed import informed_middle
        >>> informed_middle(40, 0.0)["R.tau"]
        0.0
    """
    eps = check_number("noise_rate", noise_rate, 0.0, 1.0)
    wanted = {"R.tau": TAU.middle * eps, "R.tk": T_K.middle * n_epochs, "R.c": C.middle}
    return {
        name: float(np.clip(round(wanted[name], _DIGITS), d.low, d.high))
        for name, d in informed_distributions(n_epochs, eps).items()
    }
