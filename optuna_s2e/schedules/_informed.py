r"""Ranges of Eq 1 around what wins at a noise rate, and their middle.

Notation
    eps          `noise_rate`, the share of wrong labels
    T            number of training epochs, `n_epochs`
    tau, t_k, c  of Eq 1: drop, epoch at which the drop is complete, exponent

The best schedules drop more than the wrong labels: of the right ones they also drop the hardest
and, at the end, many that are learned already. How much more depends on the data, the kind of
noise and the network, so the ranges are wide, which also covers an estimate of eps that is off by
a third. What is suggested without a search is more careful: it keeps four of five right labels.

The constants were chosen on the tables of the part "tune" of `studies/landscapes.py`.
"""

from __future__ import annotations

import numpy as np
from optuna.distributions import FloatDistribution

from optuna_s2e._checks import check_number
from optuna_s2e.schedules._formulas import SPACES

LEAST_TAU, LARGEST_TAU = 0.7, 3.0  # in units of eps
LEAST_T_K = 0.1  # in units of T; the largest is T
LEAST_C, LARGEST_C = 0.3, 4.0
MIDDLE_KEPT = 0.8  # share of the right labels, unless tau were more than twice eps then
MIDDLE_T_K, MIDDLE_C = 0.3, 1.2  # in units of T; c
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
        "R.tau": (min(LEAST_TAU * eps, eps - MARGIN), max(LARGEST_TAU * eps, eps + MARGIN)),
        "R.tk": (LEAST_T_K * n_epochs, float(n_epochs)),
        "R.c": (LEAST_C, LARGEST_C),
    }
    found = {}
    for name, whole in SPACES["eq1"].distributions(n_epochs).items():
        low, high = np.clip(np.round(wanted[name], _DIGITS), whole.low, whole.high).tolist()
        found[name] = FloatDistribution(low, high, log=whole.log)
    return found


def informed_middle(n_epochs: int, noise_rate: float) -> dict[str, float]:
    """Return the parameters of Eq 1 that are suggested at a noise rate.

    The drop keeps four of five right labels, but is at most twice the noise rate:
    tau = min(1 - .8 (1 - eps), 2 eps).

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
    wanted = {
        "R.tau": min(1.0 - MIDDLE_KEPT * (1.0 - eps), 2.0 * eps),
        "R.tk": MIDDLE_T_K * n_epochs,
        "R.c": MIDDLE_C,
    }
    return {
        name: float(np.clip(round(wanted[name], _DIGITS), d.low, d.high))
        for name, d in informed_distributions(n_epochs, eps).items()
    }
