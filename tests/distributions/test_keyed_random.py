"""Keyed random numbers: what they depend on, and that they are random."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy import stats

from optuna_s2e.distributions import (
    Key,
    KeyedSampler,
    decode,
    draw_independent,
    keyed_coordinate,
    keyed_rng,
)

UNIT = FloatDistribution(0, 1)


def test_draws_depend_on_seed_number_and_name() -> None:
    keys = [(0, 0, "x"), (1, 0, "x"), (0, 1, "x"), (0, 0, "y")]
    assert len({keyed_coordinate(s, n, name, UNIT) for s, n, name in keys}) == 4
    assert keyed_coordinate(2**70, 5, "x", UNIT) == keyed_coordinate(2**70, 5, "x", UNIT)


def test_every_part_of_a_key_changes_the_generator() -> None:
    keys = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0), (2**80, 0, 0)]
    assert len({keyed_rng(*key).integers(2**63) for key in keys}) == len(keys)
    with pytest.raises(ValueError, match="non-negative"):
        keyed_rng(-1)


def test_neighbouring_keys_give_independent_uniform_numbers() -> None:
    u = np.array([keyed_coordinate(0, i, "x", UNIT) for i in range(4000)])
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(4000)
    other = np.array([keyed_coordinate(0, i, "y", UNIT) for i in range(4000)])
    assert abs(np.corrcoef(u, other)[0, 1]) < 4 / np.sqrt(4000)


def test_categories_are_equally_probable() -> None:
    d = CategoricalDistribution("abc")
    counts = np.bincount([int(keyed_coordinate(0, i, "c", d)) for i in range(3000)])
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("name", ["x", "\udcff"])  # Optuna accepts both names
def test_the_layout_of_a_key_is_what_recorded_studies_were_drawn_with(name: str) -> None:
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    entropy = [3, 0, 4, int.from_bytes(digest[:8], "big")]
    u = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random()
    assert keyed_coordinate(3, 4, name, UNIT) == u


def test_the_sampler_draws_each_parameter_by_its_key_in_any_order() -> None:
    distributions: dict[str, Any] = {
        "x": FloatDistribution(-1, 1),
        "c": CategoricalDistribution("ab"),
    }
    expected = {n: decode(keyed_coordinate(5, 7, n, d), d) for n, d in distributions.items()}
    study = optuna.create_study(sampler=KeyedSampler(Key(5, 7)))
    for fixed in (distributions, dict(reversed(distributions.items()))):
        assert study.ask(fixed).params == expected
    assert {n: draw_independent(Key(5, 7), n, d) for n, d in distributions.items()} == expected
