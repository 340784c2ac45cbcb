"""The schedule that is suggested for a noise rate is the first trial of a search, and no other."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna import samplers
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import (
    S2ESampler,
    Schedule,
    ScheduleSpace,
    generations,
    open_storage,
    optimize_batch,
    replay,
)

SPACE = ScheduleSpace(40, noise_rate=0.45)
SAMPLERS: dict[str, Any] = {
    "s2e": lambda: S2ESampler(population_size=4, seed=0),
    "random": lambda: samplers.RandomSampler(seed=0),
    "tpe": lambda: samplers.TPESampler(seed=0, n_startup_trials=2),
    "cma-es": lambda: samplers.CmaEsSampler(seed=0),
    "gp": lambda: samplers.GPSampler(seed=0, n_startup_trials=2),
    "nsga": lambda: samplers.NSGAIISampler(seed=0, population_size=4),
}


def distance(trial: optuna.Trial) -> float:
    """Return how far R(t) is from a curve."""
    return float(np.mean((SPACE.suggest(trial).keep_rates - 0.45) ** 2))


def is_middle(trial: FrozenTrial) -> bool:
    return Schedule.from_trial(trial) == SPACE.middle


def numbers_of_middles(study: optuna.Study) -> list[int]:
    return [t.number for t in study.trials if t.params and is_middle(t)]


def ranges() -> dict[str, tuple[float, float]]:
    found = {n: SPACE.distributions[n] for n in SPACE.searched}
    return {n: (d.low, d.high) for n, d in found.items() if isinstance(d, FloatDistribution)}


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
    wanted = SPACE.from_params({name: low for name, (low, _) in ranges().items()})
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
    grid = {name: list(bounds) for name, bounds in ranges().items()} | {"R.c": [1.0]}
    tags = {"R.eq1": [1], "R.n_epochs": [40]}
    study = optuna.create_study(sampler=samplers.GridSampler({**tags, **grid}))
    study.optimize(distance)
    points = {(t.params["R.tau"], t.params["R.tk"]) for t in study.trials}
    assert points == {(tau, t_k) for tau in grid["R.tau"] for t_k in grid["R.tk"]}


def test_later_trials_ask_no_database_whether_they_are_the_first(tmp_path: Path) -> None:
    counts = []
    for rate in (None, 0.45):
        space = ScheduleSpace(40, noise_rate=rate)
        study = optuna.create_study(
            storage=f"sqlite:///{tmp_path}/{rate}.db", sampler=samplers.RandomSampler(seed=0)
        )
        for _ in range(3):
            study.tell(study.ask(), 0.0)
        trial, statements = study.ask(), []
        engine = study._storage._backend.engine  # type: ignore[attr-defined]
        sqlalchemy.event.listen(
            engine, "before_cursor_execute", lambda *a, kept=statements: kept.append(a[2])
        )
        space.suggest(trial)
        counts.append(len(statements))
    assert counts[0] == counts[1] > 0
