r"""The formulas of the schedule spaces: Table 1 with Eq 4, and Co-teaching's Eq 1.

Notation
    t            epoch, 0 .. T - 1                                                    (m,)
    T            number of training epochs, `n_epochs`
    alpha_i      `mix_weights`: weights of the four bases of Table 1, on the simplex  (4,)
    a_1 .. a_4   `basis_params`: parameters of one basis, each in [0, 1]              (4, 4)
    tau, t_k, c  of Eq 1: drop, epoch at which the drop is complete, exponent

A space is a version and two functions of plain parameters. Add a space by adding it to `SPACES`.

References:
    Yao et al., "Searching to Exploit Memorization Effect in Learning with Noisy Labels",
    ICML 2020: Eq 1, Eq 4, Table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.distributions import FloatDistribution

from optuna_s2e._checks import check_int
from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import parameter_names, weights_from_unit


class Space(NamedTuple):
    """One kind of space: all that `ScheduleSpace` needs to know of it.

    Attributes:
        version: Version of the formulas, which every trial records.
        distributions: Function T -> Optuna's distributions of the searched parameters.
        keep_rates: Function (parameters by name, (n, 1) each; epochs t, (m,); T) -> R before
            clipping, (n, m).
        about: R(t) and its parameters in one sentence, for people who look at a search.
        meanings: What single parameters are, in two or three words, by name.
    """

    version: int
    distributions: Callable[[int], dict[str, FloatDistribution]]
    keep_rates: Callable[[Mapping[str, FloatArray], FloatArray, int], FloatArray]
    about: str
    meanings: Mapping[str, str]


def _exponential_decay(t: FloatArray, a1: FloatArray, a2: FloatArray) -> FloatArray:
    return np.exp(-a2 * t**a1)


def _power_decay(t: FloatArray, a1: FloatArray, a2: FloatArray) -> FloatArray:
    return (1.0 + a2 * t) ** -a1


def _power_rise(t: FloatArray, n_epochs: int, a3: FloatArray, a4: FloatArray) -> FloatArray:
    return a3 * (t / n_epochs) ** a4


def _log_rise(t: FloatArray, n_epochs: int, a3: FloatArray, a4: FloatArray) -> FloatArray:
    return a3 * np.log1p(t**a4) / np.log1p(float(n_epochs) ** a4)


# Table 1, f1 .. f4: each is the sum of a decay and a rise
BASES = (
    (_exponential_decay, _power_rise),
    (_exponential_decay, _log_rise),
    (_power_decay, _power_rise),
    (_power_decay, _log_rise),
)


def basis_function(i: int, t: FloatArray, n_epochs: int, a: npt.ArrayLike) -> FloatArray:
    """Evaluate basis f_i of Table 1.

    Args:
        i: 1, 2, 3 or 4.
        t: Epochs, of any shape.
        n_epochs: T.
        a: a_1 .. a_4, each in [0, 1], (4,) or (4, ...) to broadcast against `t`.

    Returns:
        f_i(t), of the shape of `t` broadcast against `a`.

    Raises:
        ValueError: If `i` is out of range.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.schedules import basis_function
        >>> basis_function(3, np.arange(3.0), n_epochs=3, a=[1, 1, 0, 0]).round(2)
        array([1.  , 0.5 , 0.33])
    """
    decay, rise = BASES[check_int("i", i, 1, len(BASES)) - 1]
    a1, a2, a3, a4 = np.asarray(a, dtype=np.float64)
    return decay(t, a1, a2) + rise(t, n_epochs, a3, a4)


MIX_NAME = "R.mix"
_MIX = parameter_names(MIX_NAME, len(BASES))


def basis_names(i: int) -> list[str]:
    """Return the names of a_1 .. a_4 of basis f_i, i from 1."""
    return [f"R.f{i}.a{j}" for j in range(1, 5)]


def _table1_distributions(n_epochs: int) -> dict[str, FloatDistribution]:
    names = _MIX + [n for i in range(1, len(BASES) + 1) for n in basis_names(i)]
    return {name: FloatDistribution(0.0, 1.0) for name in names}


def _table1_keep_rates(p: Mapping[str, FloatArray], t: FloatArray, n_epochs: int) -> FloatArray:
    mix_weights = weights_from_unit(np.concatenate([p[n] for n in _MIX], axis=-1))
    total = np.zeros((len(mix_weights), len(t)))
    for i in range(1, len(BASES) + 1):  # Eq 4: R(t) = sum_i alpha_i f_i(t; a)
        f = basis_function(i, t, n_epochs, [p[n] for n in basis_names(i)])
        total += mix_weights[:, i - 1 : i] * f
    return total


def _eq1_distributions(n_epochs: int) -> dict[str, FloatDistribution]:
    return {
        "R.tau": FloatDistribution(0.0, 0.95),
        "R.tk": FloatDistribution(1.0, float(n_epochs)),
        "R.c": FloatDistribution(0.25, 4.0, log=True),
    }


def _eq1_keep_rates(p: Mapping[str, FloatArray], t: FloatArray, n_epochs: int) -> FloatArray:
    return 1.0 - p["R.tau"] * np.minimum(t / p["R.tk"], 1.0) ** p["R.c"]  # Eq 1


_EQ1_ABOUT = (
    "R(t) = 1 - tau * min(t / tk, 1) ** c: tau is the drop, tk the epoch at which it is complete, "
    "and c its exponent (below 1 R falls early, above 1 late)"
)
_EQ1_MEANINGS = {"R.tau": "drop", "R.tk": "epoch of full drop", "R.c": "exponent"}
_TABLE1_ABOUT = (
    "R(t) = w1 f1(t) + ... + w4 f4(t): the weights (R.mix) sum to 1, and each basis is a decay, "
    "shaped by a1 and a2, plus a rise of height a3 and exponent a4 (Table 1)"
)
_TABLE1_MEANINGS = {
    name: what
    for i in range(1, len(BASES) + 1)
    for name, what in zip(
        basis_names(i),
        ("decay, exponent", "decay, speed", "rise, height", "rise, exponent"),
        strict=True,
    )
}

SPACES = {
    "eq1": Space(1, _eq1_distributions, _eq1_keep_rates, _EQ1_ABOUT, _EQ1_MEANINGS),
    "table1": Space(1, _table1_distributions, _table1_keep_rates, _TABLE1_ABOUT, _TABLE1_MEANINGS),
}
