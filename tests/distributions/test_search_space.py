"""Parameters as coordinates: Optuna's uniform distribution at theta = 1, and back again."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy import stats

from optuna_s2e.distributions import _simplex as simplex
from optuna_s2e.distributions._keyed_random import keyed_coordinate, keyed_rng
from optuna_s2e.distributions._search_space import (
    SearchSpace,
    decode,
    encode,
    intersection,
    same_value,
    union,
)

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "unit": FloatDistribution(0, 1),
    "negative": FloatDistribution(-3, -1),
    "huge": FloatDistribution(-1e308, 1e308),
    "log": FloatDistribution(1e-5, 1e2, log=True),
    "grid": FloatDistribution(0.0, 1.0, step=0.1),
    "odd grid": FloatDistribution(-1.0, 0.8, step=0.3),
    "int": IntDistribution(-2, 5),
    "int step": IntDistribution(1, 10, step=3),
    "int log": IntDistribution(1, 100, log=True),
    "choice": CategoricalDistribution(("a", None, 3, math.nan)),
}
each_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)


def optuna_draws(distribution: BaseDistribution, n: int) -> list[Any]:
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    trial = study.ask()
    frozen = study.trials[trial.number]
    return [sampler.sample_independent(study, frozen, "x", distribution) for _ in range(n)]


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS.keys() - {"huge"}))  # Optuna overflows
def test_theta_1_is_optunas_uniform_distribution(name: str) -> None:
    d = DISTRIBUTIONS[name]
    ours = [decode(keyed_coordinate(7, i, name, d), d) for i in range(2000)]
    theirs = optuna_draws(d, 2000)
    if isinstance(d, FloatDistribution) and d.step is None:
        scale = max(abs(d.low), abs(d.high))
        p = stats.ks_2samp(np.array(ours) / scale, np.array(theirs) / scale).pvalue
    else:
        values = sorted({repr(v) for v in theirs})
        counts = [[sum(repr(v) == w for v in draws) for w in values] for draws in (ours, theirs)]
        assert sum(counts[0]) == 2000
        p = stats.chi2_contingency(np.array(counts) + 1).pvalue
    assert p > 1e-4


@each_distribution
def test_values_are_pure_python_and_in_the_distribution(name: str) -> None:
    d = DISTRIBUTIONS[name]
    edges = range(4) if name == "choice" else [1e-6, 1 - 1e-6, 0.5, *np.linspace(0.01, 0.99, 50)]
    for c in edges:
        value = decode(float(c), d)
        assert type(value) in (float, int, str, type(None))
        assert d._contains(d.to_internal_repr(value))


@each_distribution
def test_encoding_inverts_decoding(name: str) -> None:
    d = DISTRIBUTIONS[name]
    for c in range(4) if name == "choice" else np.linspace(0.01, 0.99, 37).tolist():
        value = decode(float(c), d)
        again = decode(encode(value, d), d)
        if isinstance(value, float):
            assert again == pytest.approx(value, rel=1e-12, nan_ok=True)
        else:
            assert again == value
        if isinstance(d, FloatDistribution) and d.step is None:
            assert encode(value, d) == pytest.approx(c, abs=1e-12)


def stepped(low: int, high: int, step: int) -> IntDistribution:
    return IntDistribution(low, high - (high - low) % step, step=step)


LARGE = {
    "step": stepped(0, 2**60, step=3),
    "even step": stepped(0, 2**60, step=10),
    "odd start": stepped(1, 2**62, step=4),
    "huge step": stepped(-3, 2**70, step=2**65),
    "negative": stepped(-(2**62), 2**62, step=7),
    "only negative": stepped(-(2**60), -(2**55), step=5),
    "no step": IntDistribution(-(2**60), 2**60),
    "hundreds of digits": stepped(0, 10**300, step=99),
    "few": stepped(2**53 - 3, 2**53 + 9, step=3),
    "log": IntDistribution(2**53 - 1, 2**60, log=True),
    "neighbours, log": IntDistribution(2**60, 2**60 + 2, log=True),
    "no floats between": stepped(2**60 + 1, 2**60 + 9, step=2),
}


@pytest.mark.parametrize("d", LARGE.values(), ids=LARGE.keys())
def test_ints_beyond_floats_lie_on_their_grid(d: IntDistribution) -> None:
    values = [decode(u, d) for u in [1e-6, *np.random.default_rng(0).random(200), 1 - 1e-6]]
    n_exact = 0
    for value in values:
        assert type(value) is int
        assert d.low <= value <= d.high
        assert (value - d.low) % d.step == 0
        n_exact += int(float(value)) == value  # as storages keep it
        assert 0 < encode(value, d) < 1
    if d.low not in (2**60 + 1, 1, -3):  # 1 + 4 i is no multiple of 8
        assert n_exact >= 195
    if not d.log:
        low, high = values[0], values[-1]
        width = d.high - d.low
        assert low - d.low <= width // 1000 + 2**12 * d.step
        assert d.high - high <= width // 1000 + 2**12 * d.step
        cells = np.array([(v - d.low) / width for v in values[1:-1]])
        if width // d.step > 1000:
            assert stats.kstest(cells, "uniform").pvalue > 1e-4


NARROW: dict[str, tuple[Any, Any, Any]] = {
    "tiny": (FloatDistribution(1e-14, 1e-13), 5e-14, 6e-14),
    "tiny log": (FloatDistribution(1e-15, 1e-13, log=True), 1e-14, 2e-14),
    "far from 0": (FloatDistribution(1e6, 1e6 + 1e-8), 1e6 + 3e-9, 1e6 + 5e-9),
    "two floats": (FloatDistribution(1.0, math.nextafter(1.0, 2)), 1.0, math.nextafter(1.0, 2)),
    "two floats, log": (FloatDistribution(1e300, 1e300 * (1 + 2e-16), log=True), 1e300,
                        1e300 * (1 + 2e-16)),
    "denormal": (FloatDistribution(0.0, 5e-324), 0.0, 5e-324),
    "large ints": (IntDistribution(10**12, 10**12 + 3), 10**12 + 1, 10**12 + 2),
}  # fmt: skip


@pytest.mark.parametrize("name", NARROW)
def test_values_of_narrow_ranges_differ(name: str) -> None:
    d, a, b = NARROW[name]
    assert d.low <= a < b <= d.high
    assert same_value(d, a, a)
    assert not same_value(d, a, b)
    assert all(d.low <= decode(encode(v, d), d) <= d.high for v in (a, b))


def test_rounding_does_not_make_values_differ() -> None:
    assert same_value(FloatDistribution(0, 1), 0.3, 0.1 + 0.2)
    assert same_value(FloatDistribution(1e-5, 1, log=True), 1e-5, 1e-5 * (1 + 1e-12))
    assert same_value(FloatDistribution(-1.7e308, 1.7e308), 1e300, 1e300 * (1 + 1e-12))
    assert not same_value(FloatDistribution(-1.7e308, 1.7e308), 1e300, 1.1e300)


def space_with_a_simplex() -> SearchSpace:
    return SearchSpace.of(
        {
            "x": FloatDistribution(0, 2),
            **dict.fromkeys(simplex.parameter_names("w", 4), FloatDistribution(0, 1)),
            "c": CategoricalDistribution(("a", "b", "c")),
            "fixed": IntDistribution(3, 3),
            "a": IntDistribution(0, 9),
        }
    )


def test_order_is_simplexes_then_names_without_single_values() -> None:
    space = space_with_a_simplex()
    assert space.names == ("w.simplex4.1", "w.simplex4.2", "w.simplex4.3", "a", "c", "x")
    assert space.distribution.n_columns == 4 + 1 + 1 + 1
    assert space.distribution.n_theta == 4 + 2 + 3 + 2


def test_points_and_coordinates_are_inverse() -> None:
    space, rng = space_with_a_simplex(), np.random.default_rng(0)
    theta = rng.uniform(1, 20, space.distribution.n_theta)
    points = space.distribution.sample(theta, rng, 200)
    x = space.coordinates(points)
    assert x.shape == (200, 6)
    np.testing.assert_allclose(space.points(x), points, atol=1e-9)


def test_uniform_theta_draws_uniform_simplex_parameters() -> None:
    space = space_with_a_simplex()
    theta = space.distribution.uniform_theta()
    x = np.array([space.sample(theta, keyed_rng(0, i)) for i in range(2000)])
    for j in (0, 1, 2, 3, 5):
        assert stats.kstest(x[:, j], "uniform").pvalue > 1e-4


def test_params_round_trip_through_coordinates() -> None:
    space = space_with_a_simplex()
    params = space.decode(space.sample(space.distribution.uniform_theta(), keyed_rng(3)))
    assert space.decode(space.encode(params)) == pytest.approx(params)


def test_fingerprint_names_the_space() -> None:
    spaces = [
        {"x": FloatDistribution(0, 1)},
        {"x": FloatDistribution(0, 2)},
        {"x": FloatDistribution(0, 1, step=0.5)},
        {"y": FloatDistribution(0, 1)},
        {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)},
    ]
    assert len({SearchSpace.of(s).fingerprint for s in spaces}) == len(spaces)
    shuffled = dict(reversed(spaces[-1].items()))
    assert SearchSpace.of(shuffled).fingerprint == SearchSpace.of(spaces[-1]).fingerprint


def test_union_needs_agreement_and_a_parameter_that_all_share() -> None:
    f = FloatDistribution
    spaces = [
        {"a": f(0, 1), "b": f(0, 1), "c": f(0, 1)},
        {"a": f(0, 1), "b": f(0, 2), "d": f(0, 1)},
    ]
    assert union(spaces) == {"a": f(0, 1), "c": f(0, 1), "d": f(0, 1)}
    assert union([{"c": f(0, 1)}, {"d": f(0, 1)}]) == {}


def test_inactive_parameters_have_no_influence_on_features() -> None:
    space = space_with_a_simplex()
    rng, theta = np.random.default_rng(0), space.distribution.uniform_theta()
    x = space.coordinates(space.distribution.sample(theta, rng, 2))
    active = np.ones(x.shape, dtype=bool)
    for columns in ([0, 1, 2], [3], [4], [5]):  # simplex, int, category, float
        other = x[:1].copy()
        other[:, columns] = x[1:, columns]
        active[:, columns] = False
        same = [space.unit_features(v, active[:1]) for v in (x[:1], other)]
        np.testing.assert_array_equal(same[0], same[1])
        active[:, columns] = True
        assert not np.array_equal(
            space.unit_features(x[:1], active[:1]), space.unit_features(other, active[:1])
        )


def test_intersection_needs_equal_distributions() -> None:
    f = FloatDistribution
    shared = intersection(
        [{"a": f(0, 1), "b": f(0, 1), "c": f(0, 1)}, {"a": f(0, 1), "b": f(0, 2)}]
    )
    assert shared == {"a": f(0, 1)}
