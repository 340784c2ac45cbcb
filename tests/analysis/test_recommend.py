"""Which point is recommended, and how well its loss is foretold."""

import math
from functools import cache
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from scipy import stats

from optuna_s2e import (
    Recommendation,
    S2ESampler,
    Schedule,
    ScheduleSpace,
    coteaching_schedule,
    recommend,
)
from optuna_s2e.analysis import Snapshot
from optuna_s2e.analysis._mean_schedule import TEMPERATURE
from optuna_s2e.surrogate import N_POINTS, clip_and_standardize, fit

N_SEEDS = 16
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


def true_loss(picked: Recommendation) -> float:
    assert picked.schedule is not None
    return distance(picked.schedule)


@pytest.mark.parametrize("search", [natural_search, random_search])
def test_the_mean_beats_the_smoothed_pick_and_that_the_luckiest_trial(search: Any) -> None:
    studies = [search(seed) for seed in range(N_SEEDS)]
    picked = [recommend(study, "mean") for study in studies]
    mean = [true_loss(found) for found in picked]
    smoothed = [true_loss(recommend(study, "smoothed")) for study in studies]
    best = [distance(Schedule.from_trial(study.best_trial)) for study in studies]
    assert stats.wilcoxon(smoothed, best, alternative="less").pvalue < 0.01
    assert stats.wilcoxon(mean, best, alternative="less").pvalue < 0.01
    if search is random_search:  # it has not narrowed
        assert stats.wilcoxon(mean, smoothed, alternative="less").pvalue < 0.01
        nearest = [distance(Schedule.from_params(found.params)) for found in picked]
        assert stats.wilcoxon(nearest, best, alternative="less").pvalue < 0.001


def test_the_default_is_the_weighted_mean_of_the_trained_schedules() -> None:
    study = random_search(0)
    picked = recommend(study)
    assert picked == recommend(study, "mean")
    assert (picked.rule, picked.trial) == ("mean", None)
    schedules = [Schedule.from_trial(t) for t in study.trials]
    grid = np.linspace(0, 29, N_POINTS)
    space = ScheduleSpace(30)
    curves = space.curves({n: [t.params[n] for t in study.trials] for n in space.searched}, 32)
    losses = np.array([t.value for t in study.trials])
    model = fit(curves / np.sqrt(N_POINTS), losses)
    f = model.mean(model.features)
    weights = np.exp(-(f - f.min()) / (TEMPERATURE * clip_and_standardize(losses).deviation))
    weights /= weights.sum()
    rates = weights @ np.array([s.keep_rates for s in schedules])
    assert picked.schedule is not None
    np.testing.assert_allclose(picked.schedule.keep_rates, rates, atol=1e-4)
    counting = np.flatnonzero(weights >= 0.01 * weights.max())
    assert set(picked.mean_of) == set(counting.tolist())
    assert picked.mean_of[0] == int(np.argmin(f)) == recommend(study, "smoothed").trial
    on_grid = np.interp(grid, np.arange(30), rates) / np.sqrt(N_POINTS)
    expected, deviation = (float(v[0]) for v in model.predict(on_grid[None]))
    assert picked.expected_loss == pytest.approx(expected, abs=0.02 * deviation)
    half = (picked.interval[1] - picked.interval[0]) / 2
    assert half == pytest.approx(1.96 * deviation, rel=0.05)


def test_the_parameters_of_a_mean_are_the_nearest_of_the_space() -> None:
    study = random_search(0)
    picked = recommend(study)
    assert picked.schedule is not None
    assert picked.schedule.params is None
    assert picked.params.keys() == study.trials[0].params.keys()
    nearest = Schedule.from_params(picked.params)

    def off(schedule: Schedule) -> float:
        assert picked.schedule is not None
        return float(np.mean((schedule.keep_rates - picked.schedule.keep_rates) ** 2))

    assert 0 < off(nearest) < min(off(Schedule.from_trial(t)) for t in study.trials)
    assert f"nearest: tau {picked.params['R.tau']:.3g}, tk " in picked.source
    assert picked.source.startswith(
        f"the mean of the {len(picked.mean_of)} best trained schedules"
    )
    study = optuna.create_study()  # it can be trained
    study.enqueue_trial(picked.params)
    study.optimize(lambda trial: distance(ScheduleSpace(30).suggest(trial)), 1)
    assert study.trials[0].params == picked.params


def test_one_schedule_alone_is_itself_recommended() -> None:
    study = optuna.create_study(study_name="s0", sampler=RandomSampler(seed=0))
    study.optimize(noisy_schedule, n_trials=1)
    picked = recommend(study)
    assert (picked.rule, picked.trial) == ("smoothed", 0)
    assert picked.schedule == Schedule.from_trial(study.trials[0])
    study.optimize(noisy_schedule, n_trials=1)
    assert recommend(study).rule == "mean"


def test_infinite_losses_have_no_share_in_the_mean() -> None:
    def objective(trial: optuna.Trial) -> float:
        schedule = ScheduleSpace(30).suggest(trial)
        return math.inf if schedule.keep_rates[-1] < 0.5 else 1 - float(schedule.keep_rates[-1])

    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(objective, n_trials=40)
    picked = recommend(study)
    assert all(math.isfinite(study.trials[n].value or math.inf) for n in picked.mean_of)
    assert picked.schedule is not None
    assert picked.schedule.keep_rates[-1] > 0.45


def test_schedules_of_the_newest_length_alone_are_averaged() -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for n_epochs in (30, 20):
        study.optimize(
            lambda t, n=n_epochs: float(ScheduleSpace(n).suggest(t).keep_rates.mean()), n_trials=8
        )
    picked = recommend(study)
    assert picked.rule == "mean"
    assert picked.schedule is not None
    assert picked.schedule.n_epochs == 20
    assert picked.params["R.n_epochs"] == 20
    assert min(picked.mean_of) >= 8
    assert picked.left_out_trials == tuple(range(8))


def two_schedules(trial: optuna.Trial) -> float:
    first = ScheduleSpace(30).suggest(trial).keep_rates
    return float((first * ScheduleSpace(30, "table1").suggest(trial).keep_rates).mean())


@pytest.mark.parametrize("objective", ["two_schedules", "mixed", "branches"])
def test_other_objectives_keep_the_trained_point(objective: str) -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(globals()[objective], n_trials=25)
    picked = recommend(study)
    assert picked == recommend(study, "smoothed")
    assert picked.trial is not None
    assert picked.params == study.trials[picked.trial].params
    assert picked.mean_of == ()
    if objective != "mixed":  # no trial, or not every one, holds one schedule
        with pytest.raises(ValueError, match=r'has no mean schedule.*Use rule="smoothed"'):
            recommend(study, "mean")


def test_a_mean_beside_other_parameters_is_that_at_those_of_the_smoothed_pick() -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(mixed, n_trials=60)
    smoothed, mean = recommend(study, "smoothed"), recommend(study, "mean")
    assert {n: mean.params[n] for n in ("lr", "c")} == {n: smoothed.params[n] for n in ("lr", "c")}
    assert mean.schedule is not None
    assert smoothed.schedule is not None
    assert distance(mean.schedule) < 0.15  # of good schedules, wherever lr was: 0.29 on average
    assert mean.expected_loss < np.median([t.value for t in study.trials if t.value is not None])


def test_interval_covers_the_true_loss() -> None:
    covered = []
    for seed in range(N_SEEDS):
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
    assert (a.mean_of, a.schedule) == (b.mean_of, b.schedule)
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
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(lambda trial: 1.0, n_trials=3)
    with pytest.raises(ValueError, match="no trial has a parameter with more than one") as error:
        recommend(study)
    assert 'Use rule="best", or' in str(error.value)
    assert recommend(study, "best").expected_loss == 1.0
    assert recommend(study, "best").interval == (-math.inf, math.inf)


def test_parameters_without_a_common_range_are_named() -> None:
    study = optuna.create_study(study_name="e", sampler=RandomSampler(seed=0))
    for choices in ("ab", "cd", "ef", "gh"):  # as from four studies
        distributions = {"x": CategoricalDistribution(list(choices))}
        study.add_trial(
            optuna.create_trial(params={"x": choices[0]}, distributions=distributions, value=1.0)
        )
    with pytest.raises(ValueError, match=r"'e' .* the ranges of 'x' have nothing in common"):
        recommend(study)
    assert recommend(study, "best").params == {"x": study.best_params["x"]}


def quadratic(trial: optuna.Trial, high: float = 1.0) -> float:
    x, y = trial.suggest_float("x", 0, high), trial.suggest_float("y", 0, 1)
    return (x - 0.3) ** 2 + (y - 0.5) ** 2


@pytest.mark.parametrize("make", [lambda: RandomSampler(seed=0), lambda: adopting()])
def test_after_a_change_of_a_range_the_newest_trials_count(make: Any) -> None:
    study = optuna.create_study(sampler=make())
    study.optimize(quadratic, n_trials=20)
    study.add_trial(study.best_trial)  # the old range is better, and was used last
    study.sampler = make()
    study.optimize(lambda trial: 1.0 + quadratic(trial, 3.0), n_trials=20)
    picked = recommend(study)
    assert picked.trial is not None
    assert picked.trial > 20
    assert picked.left_out_trials == tuple(range(21))
    assert picked.left_out_params == ()
    assert picked.expected_loss == pytest.approx(1.0, abs=0.1)
    best = recommend(study, "best")
    assert (best.trial, best.params) == (study.best_trial.number, study.best_trial.params)
    assert best.expected_loss == study.best_value
    assert best.interval == (-math.inf, math.inf)


def adopting() -> S2ESampler:
    return S2ESampler(seed=0, on_config_change="adopt", warn_independent_sampling=False)


UNIT, AB = FloatDistribution(0, 1), CategoricalDistribution(["a", "b"])
ODD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another range": ({"x": 0.5, "c": "a"}, {"x": FloatDistribution(0, 1e9), "c": AB}),
    "other categories": (
        {"x": 0.5, "c": "z"}, {"x": UNIT, "c": CategoricalDistribution(["a", "b", "z"])},
    ),
    "another type": ({"x": "q", "c": 0.5}, {"x": CategoricalDistribution(["q"]), "c": UNIT}),
    "other names": ({"y": 0.5}, {"y": UNIT}),
    "no parameters": ({}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("n_before", [0, 10, 20])
def test_an_odd_trial_is_left_out_and_named(case: str, n_before: int) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        return (x - 0.3) ** 2 + (trial.suggest_categorical("c", ["a", "b"]) == "a")

    study = optuna.create_study(sampler=S2ESampler(seed=0))
    study.optimize(objective, n_trials=n_before)
    odd, distributions = ODD[case]
    study.add_trial(optuna.create_trial(params=odd, distributions=distributions, value=-5.0))
    study.optimize(objective, n_trials=20 - n_before)
    best = recommend(study, "best")
    assert (best.trial, best.params, best.expected_loss) == (n_before, odd, -5.0)
    assert best.left_out_trials == (n_before,)
    for picked in (recommend(study), recommend(study, "theta")):
        assert picked.left_out_trials == (n_before,)
        assert picked.trial != n_before
        assert picked.params["c"] == "b"
        assert picked.params["x"] == pytest.approx(0.3, abs=0.15)
        assert picked.expected_loss == pytest.approx(0.0, abs=0.1)


def test_theta_gives_its_own_schedule_beside_a_better_trial_of_another_space() -> None:
    study = optuna.create_study(sampler=S2ESampler(seed=0))
    study.optimize(lambda t: distance(ScheduleSpace(30).suggest(t)), n_trials=20)
    other = optuna.create_study(sampler=RandomSampler(seed=0))
    other.optimize(lambda t: distance(ScheduleSpace(30, "table1").suggest(t)) - 9, n_trials=1)
    study.add_trial(other.trials[0])
    picked = recommend(study, "theta")
    assert picked.schedule == Schedule.from_params(picked.params)
    assert set(picked.params) == {"R.eq1", "R.n_epochs", "R.tau", "R.tk", "R.c"}
    assert picked.left_out_trials == (20,)
    assert recommend(study).params.keys() == picked.params.keys()


@pytest.mark.parametrize("make", [lambda: RandomSampler(seed=0), lambda: adopting()])
def test_dynamic_ranges_are_compared_on_a_range_that_covers_them(make: Any) -> None:
    def objective(trial: optuna.Trial) -> float:
        s0 = trial.suggest_float("s0", 0, 1)
        s1 = trial.suggest_float("s1", s0, 1)
        s2 = trial.suggest_float("s2", s1, 1)
        return (s0 - 0.2) ** 2 + (s1 - 0.5) ** 2 + (s2 - 0.8) ** 2

    study = optuna.create_study(sampler=make())
    study.optimize(objective, n_trials=40)
    picked = recommend(study)
    assert (picked.left_out_trials, picked.left_out_params) == ((), ())
    assert picked.params.keys() == {"s0", "s1", "s2"}
    assert picked.trial in [t.number for t in sorted(study.trials, key=lambda t: t.value)[:4]]


def branches(trial: optuna.Trial) -> float:
    """Training on all samples is best; a schedule costs 0.5 more."""
    lr = trial.suggest_float("lr", 0, 1)
    if trial.suggest_categorical("method", ["plain", "select"]) == "plain":
        return (lr - 0.3) ** 2
    return (lr - 0.3) ** 2 + 0.5 + distance(ScheduleSpace(30).suggest(trial))


@pytest.mark.parametrize("last", ["plain", "select"])
def test_the_better_branch_is_recommended_whichever_ended_last(last: str) -> None:
    source = optuna.create_study(sampler=S2ESampler(seed=0))
    source.optimize(branches, n_trials=40)
    study = optuna.create_study()
    study.add_trials(sorted(source.trials, key=lambda t: t.params["method"] == last))
    for rule, found in [(r, recommend(study, r)) for r in ("smoothed", "best")]:
        assert found.params["method"] == "plain", rule
        assert found.schedule is None
        assert found.left_out_trials == ()
        assert found.expected_loss == pytest.approx(0.0, abs=0.05)
    theta = recommend(source, "theta")
    assert theta.params.keys() == {"method", "lr"}
    assert theta.schedule is None


def constrained(n_feasible: int) -> optuna.Study:
    """Return a study whose best losses violate the constraint x >= 0.5."""
    study = optuna.create_study()
    for i in range(24):
        x = i / 24 if i >= n_feasible else 0.5 + i / 48
        trial = optuna.trial.create_trial(
            params={"x": x},
            distributions={"x": FloatDistribution(0, 1)},
            value=x,
            system_attrs={"constraints": [0.5 - x]},
        )
        study.add_trial(trial)
    return study


@pytest.mark.parametrize("rule", ["auto", "smoothed", "best"])
def test_trials_that_violate_a_constraint_are_not_recommended(rule: str) -> None:
    study = constrained(6)
    picked = recommend(study, rule)
    assert picked.params["x"] >= 0.5
    violating = tuple(t.number for t in study.trials if t.params["x"] < 0.5)
    assert violating
    assert picked.left_out_trials == violating
    best = Snapshot.of(study).best
    assert best is not None
    assert best.number == study.best_trial.number


@pytest.mark.parametrize("rule", ["auto", "best"])
def test_a_study_whose_trials_all_violate_a_constraint_says_so(rule: str) -> None:
    study = optuna.create_study()
    for trial in constrained(0).trials[:12]:
        study.add_trial(trial)
    with pytest.raises(ValueError, match=r"No completed trial of .* keeps its constraints"):
        recommend(study, rule)
    assert Snapshot.of(study).best is None
