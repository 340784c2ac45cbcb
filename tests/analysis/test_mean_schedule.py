"""The weighted mean of schedules, and the nearest schedule of a space."""

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

from optuna_s2e import Schedule, ScheduleSpace, coteaching_schedule
from optuna_s2e.analysis._mean_schedule import (
    TEMPERATURE,
    mean_schedule,
    mean_weights,
    nearest_params,
)

N_EPOCHS = 30


def drawn(space: ScheduleSpace, n: int, seed: int = 0) -> list[dict[str, float | int]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    study.optimize(lambda trial: float(space.suggest(trial).keep_rates[-1]), n)
    return [t.params for t in study.trials]


def distance(a: Schedule, b: Schedule) -> float:
    return float(np.sqrt(np.mean((a.keep_rates - b.keep_rates) ** 2)))


def test_weights_fall_by_e_with_each_temperature() -> None:
    deviation = 0.2
    f = 0.3 + TEMPERATURE * deviation * np.array([0.0, 1.0, 2.0, 40.0])
    weights = mean_weights(f, deviation)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights / weights[0], np.exp([0, -1, -2, -40]), rtol=1e-9)


@pytest.mark.parametrize("scale", [2.0**-1000, 1.0, 2.0**900])
def test_weights_do_not_depend_on_the_unit_of_the_losses(scale: float) -> None:
    f = np.array([0.3, 0.31, 0.5])
    np.testing.assert_array_equal(mean_weights(scale * f, scale * 0.2), mean_weights(f, 0.2))


def test_equal_losses_have_equal_weights() -> None:
    np.testing.assert_array_equal(mean_weights(np.full(4, 7.0), 1.0), np.full(4, 0.25))


@pytest.mark.parametrize("kind", ["eq1", "table1"])
def test_the_mean_is_that_of_the_curves(kind: str) -> None:
    space = ScheduleSpace(N_EPOCHS, kind)
    trained = drawn(space, 7)
    weights = np.random.default_rng(0).dirichlet(np.ones(7))
    expected = sum(
        w * space.from_params(p).keep_rates for w, p in zip(weights, trained, strict=True)
    )
    found = mean_schedule(space, trained, weights)
    np.testing.assert_allclose(found.keep_rates, expected, atol=5.1e-7)
    assert found.keep_rates[0] == 1
    assert found.params is None
    assert Schedule.from_json(found.to_json()) == found


@pytest.mark.parametrize("kind", ["eq1", "table1"])
@pytest.mark.parametrize("n_epochs", [2, 30, 400])
def test_a_schedule_of_the_space_is_its_own_nearest(kind: str, n_epochs: int) -> None:
    space = ScheduleSpace(n_epochs, kind)
    ranges = {n: space.distributions[n] for n in space.searched}
    trained = drawn(space, 5)
    for params in trained:
        wanted = space.from_params(params)
        found = Schedule.from_params(nearest_params(space, ranges, trained, wanted))
        assert distance(found, wanted) < 1e-5


def test_the_nearest_beats_a_fine_grid() -> None:
    space = ScheduleSpace(N_EPOCHS)
    ranges = {n: space.distributions[n] for n in space.searched}
    pair = [coteaching_schedule(N_EPOCHS, *p).params or {} for p in ((0.7, 8, 1), (0.3, 20, 3))]
    mean = mean_schedule(space, pair, np.array([0.5, 0.5]))
    nearest = nearest_params(space, ranges, pair, mean)
    grid = [
        coteaching_schedule(N_EPOCHS, tau, t_k, c)
        for tau in np.linspace(0.3, 0.7, 17)
        for t_k in np.linspace(6, 30, 17)
        for c in np.geomspace(0.25, 4, 17)
    ]
    found = distance(Schedule.from_params(nearest), mean)
    assert 0 < found <= min(distance(s, mean) for s in grid)
    assert found < min(distance(Schedule.from_params(p), mean) for p in pair)


def test_the_nearest_is_within_the_ranges() -> None:
    space = ScheduleSpace(N_EPOCHS)
    ranges = {
        "R.tau": FloatDistribution(0.2, 0.3),
        "R.tk": FloatDistribution(5.0, 9.0),
        "R.c": FloatDistribution(0.5, 2.0, log=True),
    }
    start = coteaching_schedule(N_EPOCHS, 0.25, 6).params or {}
    far = coteaching_schedule(N_EPOCHS, 0.9, 3, 0.25)  # more than the ranges allow
    found = nearest_params(space, ranges, [start], far)
    assert space.tags.items() <= found.items()
    for name, d in ranges.items():
        assert d.low <= found[name] <= d.high
    assert found["R.tau"] == pytest.approx(0.3, abs=1e-3)
    assert found["R.tk"] == pytest.approx(5.0, abs=0.05)
    assert found["R.c"] == pytest.approx(0.5, abs=0.01)
