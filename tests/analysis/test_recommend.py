"""Which point is recommended, and how well its loss is foretold."""

import math
from functools import cache
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from scipy import stats

from optuna_s2e import (
    S2ESampler,
    Schedule,
    ScheduleSpace,
    coteaching_schedule,
    recommend,
    surrogate,
)

TARGET = coteaching_schedule(30, 0.5, 8).keep_rates


def distance(schedule: Schedule) -> float:
    return float(np.sqrt(np.mean((schedule.keep_rates - TARGET) ** 2)))


def noisy_schedule(trial: optuna.Trial) -> float:
    """Distance to a target schedule, with noise that grows with it."""
    f = distance(ScheduleSpace(30).suggest(trial))
    rng = np.random.default_rng([trial.number, int(trial.study.study_name[1:])])
    return f + (0.05 + 0.3 * f) * rng.normal()


def searched(sampler: optuna.samplers.BaseSampler, seed: int, **kwargs: Any) -> optuna.Study:
    study = optuna.create_study(study_name=f"s{seed}", sampler=sampler, **kwargs)
    study.optimize(noisy_schedule, n_trials=60)
    return study


@cache
def random_search(seed: int) -> optuna.Study:
    """Tests only read it."""
    return searched(RandomSampler(seed=seed), seed)


def natural_search(seed: int) -> optuna.Study:
    return searched(S2ESampler(estimator="natural", seed=seed), seed)


def true_loss(study: optuna.Study, rule: str) -> float:
    schedule = recommend(study, rule).schedule
    assert schedule is not None
    return distance(schedule)


@pytest.mark.parametrize("search", [natural_search, random_search])
def test_smoothed_pick_is_better_than_the_luckiest_trial(search: Any) -> None:
    studies = [search(seed) for seed in range(24)]
    smoothed, best = (np.array([true_loss(s, r) for s in studies]) for r in ("smoothed", "best"))
    assert stats.wilcoxon(smoothed, best, alternative="less").pvalue < 0.01


def test_interval_covers_the_true_loss() -> None:
    covered = []
    for seed in range(30):
        picked = recommend(random_search(seed))
        assert picked.schedule is not None
        covered.append(picked.interval[0] <= distance(picked.schedule) <= picked.interval[1])
    assert np.mean(covered) > 0.75  # of 95 % promised: the pick is the smallest of 60 means


def test_rules_return_what_they_say() -> None:
    study = searched(S2ESampler(seed=0), 0)
    smoothed, theta, best = (recommend(study, r) for r in ("smoothed", "theta", "best"))
    assert best.params == study.best_trial.params
    assert best.trial == study.best_trial.number
    assert best.expected_loss > study.best_value  # the best trial was lucky
    assert smoothed.trial is not None
    assert smoothed.params == study.trials[smoothed.trial].params
    assert theta.trial is None
    assert theta.schedule == Schedule.from_params(theta.params)
    assert smoothed.interval[0] < smoothed.expected_loss < smoothed.interval[1]


def test_maximize_mirrors_minimize() -> None:
    down = random_search(1)
    up = optuna.create_study(study_name="s1", direction="maximize", sampler=RandomSampler(seed=1))
    up.optimize(lambda trial: -noisy_schedule(trial), n_trials=60)
    a, b = recommend(down), recommend(up)
    assert a.trial == b.trial
    assert a.expected_loss == pytest.approx(-b.expected_loss)
    assert a.interval == pytest.approx(tuple(-v for v in reversed(b.interval)))


def mixed(trial: optuna.Trial) -> float:
    f = distance(ScheduleSpace(30).suggest(trial)) + abs(trial.suggest_float("lr", 0, 1) - 0.4)
    return f + (trial.suggest_categorical("c", ["a", "b", "c"]) != "b")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: TPESampler(seed=0),
        lambda: S2ESampler(seed=0),
        lambda: PartialFixedSampler({"R.c": 1.0}, RandomSampler(seed=0)),
    ],
)
def test_any_sampler_and_further_parameters(make: Any) -> None:
    study = optuna.create_study(sampler=make())
    study.optimize(mixed, n_trials=40)
    picked = recommend(study)
    assert picked.params["c"] == "b"
    assert picked.trial in [t.number for t in sorted(study.trials, key=lambda t: t.value)[:6]]


def test_losses_that_are_infinite_or_equal_do_no_harm() -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(lambda t: math.inf if t.suggest_float("x", 0, 1) > 0.5 else 1.0, n_trials=20)
    assert recommend(study).params["x"] <= 0.5
    assert recommend(study).expected_loss == pytest.approx(1.0)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_interval_scales_with_the_values(direction: str) -> None:
    def recommended(scale: float) -> Any:
        study = optuna.create_study(sampler=S2ESampler(seed=1), direction=direction)
        study.optimize(
            lambda t: scale * (1 + (t.suggest_float("x", 0, 1) - 0.3) ** 2), n_trials=14
        )
        return recommend(study)

    plain = recommended(1.0)
    assert plain.interval[1] - plain.interval[0] < 0.1
    for scale in (2.0**-1000, 2.0**-600, 2.0**400, 2.0**1022):
        found = recommended(scale)
        assert found.params == plain.params
        assert found.expected_loss == scale * plain.expected_loss
        assert found.interval == tuple(scale * v for v in plain.interval)


@pytest.mark.parametrize("value", [1e-300, 0.1, 1.6e308])
def test_the_interval_of_equal_values_is_near_them(value: float) -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(lambda t: value + 0 * t.suggest_float("x", 0, 1), n_trials=9)
    low, high = recommend(study).interval
    assert 0.9 * value < low <= value <= high < 1.1 * value


def test_one_trial_is_recommended() -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert recommend(study).params == study.trials[0].params


def test_what_cannot_be_recommended_is_a_clear_error() -> None:
    study = optuna.create_study(study_name="e", sampler=RandomSampler(seed=0))
    with pytest.raises(ValueError, match="'e' has no completed trial"):
        recommend(study)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    with pytest.raises(ValueError, match="rule must be one of"):
        recommend(study, "median")
    with pytest.raises(ValueError, match="has no theta"):
        recommend(study, "theta")
    study.optimize(lambda trial: trial.suggest_float("y", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match="must share a parameter"):
        recommend(study)


def test_surrogate_recovers_a_smooth_function() -> None:
    rng = np.random.default_rng(0)
    z = rng.random((80, 2))
    f = np.sin(4 * z[:, 0]) + z[:, 1] ** 2
    model = surrogate.fit(z, f + 0.1 * rng.normal(size=80))
    mean, deviation = model.predict(z)
    assert np.sqrt(np.mean((mean - f) ** 2)) < 0.06
    assert np.mean(np.abs(mean - f) < 2.5 * deviation) > 0.9
    assert 0.05 < model.noise_deviation < 0.2


def test_surrogate_matches_a_literal_gaussian_process() -> None:
    rng = np.random.default_rng(1)
    z, y, new = rng.random((12, 3)), rng.normal(size=12), rng.random((5, 3))
    model = surrogate.fit(z, y)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        r = math.sqrt(5) * math.dist(a, b) / model.length_scale
        return (1 - model.noise_share) * (1 + r + r * r / 3) * math.exp(-r)

    median = np.median(y)
    clipped = np.minimum(y, median + 2 * (median - y.min()))
    standard = (clipped - clipped.mean()) / clipped.std()
    gram = np.array([[kernel(a, b) for b in z] for a in z]) + model.noise_share * np.eye(12)
    cross = np.array([[kernel(a, b) for b in z] for a in new])
    expected = clipped.mean() + clipped.std() * cross @ np.linalg.solve(gram, standard)
    np.testing.assert_allclose(model.predict(new)[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("features", "losses", "message"),
    [
        (np.zeros((3, 2)), np.zeros(2), "must have shape"),
        (np.zeros((0, 2)), np.zeros(0), "finite number"),
        (np.zeros((2, 2)), np.full(2, np.inf), "finite number"),
    ],
)
def test_unusable_data_are_refused(features: Any, losses: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surrogate.fit(features, losses)
