"""Ranges around what wins at a noise rate, and the middle as the first trial of a search."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna import samplers
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, TrialState

from optuna_s2e import (
    S2ESampler,
    Schedule,
    ScheduleSpace,
    coteaching_schedule,
    generations,
    open_storage,
    optimize_batch,
    replay,
    standard_schedule,
    suggested_schedule,
)
from optuna_s2e.schedules import find_space

RATES = [0.0, 0.01, 0.05, 0.2, 0.45, 0.7, 0.9, 0.95, 1.0]
SPACE = ScheduleSpace(40, noise_rate=0.45)
SAMPLERS: dict[str, Any] = {
    "s2e": lambda: S2ESampler(population_size=4, seed=0),
    "random": lambda: samplers.RandomSampler(seed=0),
    "tpe": lambda: samplers.TPESampler(seed=0, n_startup_trials=2),
    "cma-es": lambda: samplers.CmaEsSampler(seed=0),
    "gp": lambda: samplers.GPSampler(seed=0, n_startup_trials=2),
    "nsga": lambda: samplers.NSGAIISampler(seed=0, population_size=4),
}


def ranges(space: ScheduleSpace) -> dict[str, tuple[float, float]]:
    found = {n: space.distributions[n] for n in space.searched}
    return {n: (d.low, d.high) for n, d in found.items() if isinstance(d, FloatDistribution)}


def distance(trial: optuna.Trial) -> float:
    """Return how far R(t) is from a curve."""
    return float(np.mean((SPACE.suggest(trial).keep_rates - 0.45) ** 2))


def is_middle(trial: optuna.trial.FrozenTrial) -> bool:
    return Schedule.from_trial(trial) == SPACE.middle


def numbers_of_middles(study: optuna.Study) -> list[int]:
    return [t.number for t in study.trials if t.params and is_middle(t)]


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


# --- the first trial -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_middle_is_the_first_trial_and_no_other(name: str) -> None:
    study = optuna.create_study(sampler=SAMPLERS[name]())
    study.optimize(distance, 6)
    study.sampler = SAMPLERS[name]()  # resumed
    study.optimize(distance, 1)
    assert numbers_of_middles(study) == [0]


@pytest.mark.parametrize("name", ["s2e", "tpe"])
def test_the_middle_is_the_first_trial_of_a_batch(name: str) -> None:
    study = optuna.create_study(sampler=SAMPLERS[name]())
    with ThreadPoolExecutor(4) as pool:
        optimize_batch(study, distance, 12, batch_size=4, executor=pool)
    assert numbers_of_middles(study) == [0]
    assert study.trials[0].value == np.mean((SPACE.middle.keep_rates - 0.45) ** 2)  # type: ignore[union-attr]


@pytest.mark.parametrize("batch", [False, True])
def test_the_middle_is_known_to_the_first_model_and_no_batch_is_broken(batch: bool) -> None:
    study = optuna.create_study(study_name="s", sampler=S2ESampler(population_size=4, seed=0))
    if batch:
        optimize_batch(study, distance, 12)
    else:
        study.optimize(distance, 12)
    found = generations(study)
    assert [g.trials for g in found] == [(1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert [g.members for g in found] == [(), (1, 2, 3, 0), (4, 5, 6, 7)]
    for recorded, replayed in zip(found, replay(study), strict=True):
        assert np.array_equal(recorded.theta, replayed.theta)


def test_a_middle_that_always_fails_is_tried_three_times_and_the_batches_go_on() -> None:
    def objective(trial: optuna.Trial) -> float:
        value = distance(trial)
        return float("nan") if value == at_middle else value

    assert SPACE.middle is not None
    at_middle = np.mean((SPACE.middle.keep_rates - 0.45) ** 2)
    study = optuna.create_study(study_name="s", sampler=S2ESampler(population_size=3, seed=0))
    optimize_batch(study, objective, 12)
    assert len(numbers_of_middles(study)) == 3
    assert len(generations(study)) >= 3
    assert all(np.array_equal(a.theta, b.theta)
               for a, b in zip(generations(study), replay(study), strict=True))  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_batches_go_on_from_the_middle(size: int) -> None:
    study = optuna.create_study(study_name="s", sampler=S2ESampler(population_size=size, seed=0))
    optimize_batch(study, distance, 7)
    assert numbers_of_middles(study) == [0]
    assert len(generations(study)) == {1: 6, 2: 4, 3: 3}[size]


@pytest.mark.parametrize("batch", [False, True])
def test_the_middle_is_no_draw_and_the_search_replays(batch: bool) -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0, estimator="natural"))
    if batch:
        optimize_batch(study, distance, 13)
    else:
        study.optimize(distance, 13)
    found = generations(study)
    assert [len(g.members) for g in found] == [0, 4, 4, 4][: len(found)]
    assert len(found) >= 3
    assert all(0 not in g.trials and 0 not in g.members for g in found)
    for recorded, replayed in zip(found, replay(study), strict=True):
        assert np.array_equal(recorded.theta, replayed.theta)


def test_theta_of_a_batch_does_not_depend_on_the_first_trial() -> None:
    thetas = []
    for fails in (False, True):
        study = optuna.create_study(
            sampler=S2ESampler(population_size=4, seed=0, estimator="natural")
        )

        def objective(trial: optuna.Trial, fails: bool = fails) -> float:
            value = distance(trial)
            return float("nan") if fails and trial.number == 0 else value

        optimize_batch(study, objective, 16)
        thetas.append([g.theta for g in generations(study)])
    for a, b in zip(*thetas, strict=False):
        assert np.array_equal(a, b)


def test_workers_that_start_at_once_train_the_middle_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    optuna.create_study(storage=open_storage(url), study_name="s")

    def work(seed: int) -> None:
        sampler = S2ESampler(population_size=4, seed=0)
        study = optuna.load_study(study_name="s", storage=open_storage(url), sampler=sampler)
        study.optimize(distance, 2)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    assert len(study.trials) == 8
    assert numbers_of_middles(study) == [0]
    assert all(np.array_equal(a.theta, b.theta)
               for a, b in zip(generations(study), replay(study), strict=True))  # fmt: skip


def test_an_interrupted_first_trial_is_followed_by_the_middle() -> None:
    def interrupted(trial: optuna.Trial) -> float:
        distance(trial)
        raise KeyboardInterrupt

    study = optuna.create_study(sampler=S2ESampler(seed=0))
    with pytest.raises(KeyboardInterrupt):
        study.optimize(interrupted, 1)
    study.optimize(distance, 3)
    assert numbers_of_middles(study) == [0, 1]
    assert [t.state for t in study.trials[:2]] == [TrialState.FAIL, TrialState.COMPLETE]


def test_an_objective_that_fails_at_the_middle_gets_other_schedules() -> None:
    def objective(trial: optuna.Trial) -> float:
        value = distance(trial)
        return float("nan") if SPACE.from_params(trial.params) == SPACE.middle else value

    study = optuna.create_study(sampler=S2ESampler(seed=0))
    study.optimize(objective, 6)
    assert numbers_of_middles(study) == [0, 1, 2]


def test_an_enqueued_first_trial_stays_as_it_is() -> None:
    study = optuna.create_study(sampler=S2ESampler(seed=0))
    wanted = SPACE.from_params({name: low for name, (low, _) in ranges(SPACE).items()})
    study.enqueue_trial(SPACE.to_params(wanted))
    study.optimize(distance, 3)
    assert Schedule.from_trial(study.trials[0]) == wanted
    assert numbers_of_middles(study) == []


def test_other_parameters_of_the_first_trial_are_drawn() -> None:
    drawn = []
    for rate in (None, 0.45):
        study = optuna.create_study(sampler=S2ESampler(seed=0))

        def objective(trial: optuna.Trial, rate: float | None = rate) -> float:
            size = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
            return size + ScheduleSpace(40, noise_rate=rate).suggest(trial).keep_rates[-1]

        study.optimize(objective, 1)
        drawn.append(study.trials[0].params["lr"])
    assert drawn[0] == drawn[1]
    assert is_middle(study.trials[0])


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_what_a_sampler_fixes_stays_fixed() -> None:
    fixed = {"R.c": 1.0}
    sampler = samplers.PartialFixedSampler(fixed, S2ESampler(population_size=4, seed=0))
    study = optuna.create_study(sampler=sampler)
    study.optimize(distance, 6)
    assert {t.params["R.c"] for t in study.trials} == {1.0}
    assert SPACE.middle is not None
    assert SPACE.middle.params is not None
    assert study.trials[0].params == {**SPACE.middle.params, **fixed}


def test_a_grid_is_searched_completely() -> None:
    grid = {name: list(bounds) for name, bounds in ranges(SPACE).items()} | {"R.c": [1.0]}
    tags = {"R.eq1": [1], "R.n_epochs": [40]}
    study = optuna.create_study(sampler=samplers.GridSampler({**tags, **grid}))
    study.optimize(distance)
    points = {(t.params["R.tau"], t.params["R.tk"]) for t in study.trials}
    assert points == {(tau, t_k) for tau in grid["R.tau"] for t_k in grid["R.tk"]}


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


def sampler_of(name: str) -> BaseSampler:
    sampler: BaseSampler = SAMPLERS[name]()
    return sampler


@pytest.mark.parametrize("name", ["tpe", "cma-es", "gp"])
def test_other_samplers_go_on_with_another_rate(name: str) -> None:
    study = optuna.create_study(sampler=sampler_of(name))
    study.optimize(distance, 6)
    other = ScheduleSpace(40, noise_rate=0.3)
    study.optimize(lambda trial: float(other.suggest(trial).keep_rates[-1]), 6)
    low, high = ranges(other)["R.tau"]
    assert all(low <= t.params["R.tau"] <= high for t in study.trials[6:])
