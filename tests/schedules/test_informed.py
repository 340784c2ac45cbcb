"""Ranges around what wins at a noise rate, and their middle."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna import samplers
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial

from optuna_s2e import (
    S2ESampler,
    Schedule,
    ScheduleSpace,
    coteaching_schedule,
    generations,
    replay,
    standard_schedule,
    suggested_schedule,
)
from optuna_s2e.schedules import find_space

RATES = [0.0, 0.01, 0.05, 0.2, 0.45, 0.7, 0.9, 0.95, 1.0]
SPACE = ScheduleSpace(40, noise_rate=0.45)
SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: samplers.TPESampler(seed=0, n_startup_trials=2),
    "cma-es": lambda: samplers.CmaEsSampler(seed=0),
    "gp": lambda: samplers.GPSampler(seed=0, n_startup_trials=2),
}


def ranges(space: ScheduleSpace) -> dict[str, tuple[float, float]]:
    found = {n: space.distributions[n] for n in space.searched}
    return {n: (d.low, d.high) for n, d in found.items() if isinstance(d, FloatDistribution)}


def distance(trial: optuna.Trial) -> float:
    """Return how far R(t) is from a curve."""
    return float(np.mean((SPACE.suggest(trial).keep_rates - 0.45) ** 2))


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_epochs", [2, 3, 20, 200])
@pytest.mark.parametrize("rate", RATES)
def test_ranges_are_wide_and_part_of_the_whole_space(n_epochs: int, rate: float) -> None:
    whole = ranges(ScheduleSpace(n_epochs))
    found = ranges(ScheduleSpace(n_epochs, noise_rate=rate))
    assert found.keys() == whole.keys()
    for name, (low, high) in found.items():
        assert whole[name][0] <= low < high <= whole[name][1]
    low, high = found["R.tau"]
    assert high - low >= 0.08
    assert low <= min(rate, 0.95) <= high
    assert found["R.tk"][1] - found["R.tk"][0] >= n_epochs / 2


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_an_estimate_that_is_off_by_a_third_leaves_the_rate_in_range(rate: float) -> None:
    for estimate in (rate * 2 / 3, rate * 4 / 3):
        low, high = ranges(ScheduleSpace(40, noise_rate=estimate))["R.tau"]
        assert low < rate < high


@pytest.mark.parametrize("rate", RATES)
def test_middle_is_suggested_and_within_the_ranges(rate: float) -> None:
    space = ScheduleSpace(40, noise_rate=rate)
    middle = space.middle
    assert middle is not None
    assert suggested_schedule(40, rate) == middle
    assert space.to_params(middle) == middle.params
    tau = min(2 * rate, rate + (1 - rate) / 5, 0.95)  # keeps four of five right labels
    assert 1 - middle.keep_rates[-1] == pytest.approx(tau, abs=1e-3)


def test_nothing_is_dropped_without_noise() -> None:
    assert np.array_equal(suggested_schedule(9, 0).keep_rates, standard_schedule(9).keep_rates)


def test_no_rate_leaves_the_space_as_it_is() -> None:
    assert ScheduleSpace(40).middle is None
    assert ranges(ScheduleSpace(40)) == {
        "R.tau": (0.0, 0.95), "R.tk": (1.0, 40.0), "R.c": (0.25, 4.0),
    }  # fmt: skip


def test_spaces_of_other_rates_differ() -> None:
    spaces = [ScheduleSpace(40), SPACE, ScheduleSpace(40, noise_rate=0.4)]
    assert len(set(spaces)) == 3
    assert ScheduleSpace(40, "eq1", noise_rate=0.45) == SPACE
    assert repr(SPACE) == "ScheduleSpace(n_epochs=40, kind='eq1', noise_rate=0.45)"


@pytest.mark.parametrize("value", [45, -0.1, float("nan"), "0.4", True])
def test_a_rate_is_a_share(value: Any) -> None:
    for call in (
        lambda: ScheduleSpace(40, noise_rate=value),
        lambda: suggested_schedule(9, value),
    ):
        with pytest.raises(ValueError, match=r"noise_rate must be a number in \[0, 1\], but got"):
            call()


def test_a_rate_informs_eq1_only() -> None:
    with pytest.raises(ValueError, match="kind must be 'eq1' if noise_rate is given, but got 'ta"):
        ScheduleSpace(40, "table1", noise_rate=0.4)


# --- parameters ----------------------------------------------------------------------------------


def test_a_schedule_out_of_the_ranges_is_not_enqueued() -> None:
    with pytest.raises(
        ValueError, match=r"R.tau must be in \[.*noise_rate=0.45\), but got 0.01\."
    ):
        SPACE.to_params(coteaching_schedule(40, 0.01))
    with pytest.raises(ValueError, match=r"R.tk must be in \[.*but got 1\.0\."):
        SPACE.to_params(coteaching_schedule(40, 0.45, n_gradual=1))


def test_a_trial_decodes_by_eq1_alone() -> None:
    study = optuna.create_study(sampler=samplers.RandomSampler(seed=0))
    study.optimize(distance, 5)
    for trial in study.trials:
        schedule = Schedule.from_trial(trial)
        assert find_space(trial.params) == ScheduleSpace(40)
        assert SPACE.from_params(trial.params) == schedule
        assert SPACE.suggest(FixedTrial(trial.params)) == schedule
        for name, (low, high) in ranges(SPACE).items():
            assert low <= trial.params[name] <= high
    copy = optuna.create_study()
    copy.add_trials(study.trials)
    assert [Schedule.from_trial(t) for t in copy.trials] == [
        Schedule.from_trial(t) for t in study.trials
    ]


def test_a_trial_of_another_rate_still_decodes() -> None:
    outside = coteaching_schedule(40, 0.01)
    assert outside.params is not None
    assert SPACE.from_params(outside.params) == outside


# --- another rate at resume ----------------------------------------------------------------------


def search(study: optuna.Study, rate: float, n_trials: int, change: str = "refuse") -> None:
    study.sampler = S2ESampler(population_size=4, seed=0, on_config_change=change)
    space = ScheduleSpace(40, noise_rate=rate)

    def objective(trial: optuna.Trial) -> float:
        return float(np.mean((space.suggest(trial).keep_rates - 0.45) ** 2))

    study.optimize(objective, n_trials)


def test_another_rate_at_resume_is_a_change_of_space() -> None:
    study = optuna.create_study()
    search(study, 0.6, 9)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        search(study, 0.1, 6)
    said = [str(w.message) for w in found]
    assert sum("'R.tau' in trial 9 is drawn independently of theta" in text for text in said) == 1
    assert sum("so the search stands still" in text for text in said) == 1
    search(study, 0.1, 9, "adopt")  # starts anew at theta = 1
    spaces = [study.trials[g.opener].distributions["R.tau"] for g in generations(study)[1:]
              if g.opener is not None]  # fmt: skip
    assert set(spaces) == {ScheduleSpace(40, noise_rate=0.1).distributions["R.tau"]}
    assert all(np.array_equal(a.theta, b.theta)
               for a, b in zip(generations(study), replay(study), strict=True))  # fmt: skip
    middles = [suggested_schedule(40, rate) for rate in (0.6, 0.1)]
    assert [t.number for t in study.trials if Schedule.from_trial(t) in middles] == [0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_other_samplers_go_on_with_another_rate(name: str) -> None:
    study = optuna.create_study(sampler=SAMPLERS[name]())
    study.optimize(distance, 6)
    other = ScheduleSpace(40, noise_rate=0.3)
    study.optimize(lambda trial: float(other.suggest(trial).keep_rates[-1]), 6)
    low, high = ranges(other)["R.tau"]
    assert all(low <= t.params["R.tau"] <= high for t in study.trials[6:])
