"""Table 1 and Eq 4 against the formulas, one number at a time."""

import math
import re
from typing import Any

import numpy as np
import pytest

from optuna_s2e import ScheduleSpace, table1_schedule
from optuna_s2e.distributions import find_simplexes
from optuna_s2e.schedules import SPACES, basis_function


def literal_basis(i: int, t: float, T: int, a: Any) -> float:
    """Table 1, one number at a time."""
    a1, a2, a3, a4 = a
    decay = math.exp(-a2 * t**a1) if i in (1, 2) else 1 / (1 + a2 * t) ** a1
    if i in (1, 3):
        return decay + a3 * (t / T) ** a4
    return decay + a3 * math.log(1 + t**a4) / math.log(1 + T**a4)


@pytest.mark.parametrize("i", [1, 2, 3, 4])
@pytest.mark.parametrize("T", [5, 200])
def test_bases_are_those_of_table_1(i: int, T: int) -> None:
    rng = np.random.default_rng(i)
    for a in [*rng.random((20, 4)), np.zeros(4), np.ones(4)]:
        t = np.arange(T, dtype=float)
        expected = [literal_basis(i, s, T, a) for s in t]
        np.testing.assert_allclose(basis_function(i, t, T, a), expected, rtol=1e-12)


def test_table1_schedule_is_the_clipped_mixture_of_eq_4() -> None:
    rng = np.random.default_rng(0)
    clipped = 0
    for _ in range(50):
        alpha, a, T = rng.dirichlet(np.ones(4)), rng.random((4, 4)), 40
        schedule = table1_schedule(T, alpha, a)
        mixture = [
            sum(alpha[i] * literal_basis(i + 1, t, T, a[i]) for i in range(4)) for t in range(T)
        ]
        clipped += max(mixture[1:]) > 1
        expected = [1.0, *(min(r, 1.0) for r in mixture[1:])]
        np.testing.assert_allclose(schedule.keep_rates, expected, atol=1e-12)
    assert clipped > 5


def test_parameters_broadcast_against_epochs() -> None:
    t, a = np.arange(6.0), np.random.default_rng(0).random((4, 3, 1))
    found = basis_function(2, t, 6, a)
    assert found.shape == (3, 6)
    for k, row in enumerate(found):  # by arrays: NumPy rounds powers of scalars otherwise
        np.testing.assert_array_equal(row[None], basis_function(2, t, 6, a[:, k : k + 1]))


@pytest.mark.parametrize("i", [0, 5, 1.0, True])
def test_only_four_bases_exist(i: Any) -> None:
    with pytest.raises(ValueError, match=r"i must be an int in \[1, 4\], but got"):
        basis_function(i, np.ones(1), 5, np.ones(4))


@pytest.mark.parametrize("kind", SPACES)
def test_every_space_explains_its_parameters(kind: str) -> None:
    space = ScheduleSpace(10, kind)
    searched = {n: d for n, d in space.distributions.items() if n not in space.tags}
    weights = {name for names in find_simplexes(searched) for name in names}
    assert space.meanings.keys() == searched.keys() - weights
    formula, _, words = space.about.partition(": ")
    assert formula.startswith("R(t) = ")
    for name in space.meanings:  # R.tau is called tau, R.f1.a2 is called a2
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", words)
