"""One read of a study: how often the storage is asked, and that all views agree."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from observed_storages import CountingStorage, GrowingStorage
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import S2ESampler, ScheduleSpace, generations, recommend, replay
from optuna_s2e.analysis import Snapshot, describe, verify
from optuna_s2e.visualization import (
    figures,
    plot_basis_functions,
    plot_generations,
    plot_learning_curves,
    plot_schedules,
    plot_theta,
)

K = 4
STUDY_FIGURES = (
    figures.schedules, figures.theta, figures.generations, figures.learning_curves,
)  # fmt: skip


def objective(trial: optuna.Trial) -> float:
    rates = ScheduleSpace(10).suggest(trial).keep_rates
    trial.report(float(rates[5]), 5)
    return float(((rates - np.linspace(1, 0.5, 10)) ** 2).mean())


def searched(n_trials: int, storage: Any = None) -> optuna.Study:
    sampler = S2ESampler(population_size=K, seed=0)
    study = optuna.create_study(study_name="s", storage=storage, sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return study


@pytest.fixture(scope="module")
def counted() -> optuna.Study:
    return searched(14, CountingStorage())


@pytest.fixture(scope="module")
def recorded() -> list[FrozenTrial]:
    return searched(60).trials


def reads(study: optuna.Study, look: Callable[[optuna.Study], object]) -> int:
    storage = study._storage
    assert isinstance(storage, CountingStorage)
    before = storage.n_reads
    look(study)
    return storage.n_reads - before


def status(study: optuna.Study) -> None:
    snapshot = Snapshot.of(study)
    describe(snapshot)
    verify(snapshot)


VIEWS: dict[str, Callable[[optuna.Study], object]] = {
    "generations": generations,
    "replay": replay,
    "recommend": recommend,
    "recommend theta": lambda study: recommend(study, "theta"),
    "status": status,
    "plot_schedules": plot_schedules,
    "plot_theta": plot_theta,
    "plot_generations": plot_generations,
    "plot_learning_curves": plot_learning_curves,
    "plot_basis_functions": plot_basis_functions,
}


@pytest.mark.parametrize("view", VIEWS)
def test_all_trials_are_read_once(counted: optuna.Study, view: str) -> None:
    assert reads(counted, VIEWS[view]) == 1


def test_trials_that_were_just_read_are_not_read_again(counted: optuna.Study) -> None:
    trials = counted.get_trials(deepcopy=False)
    assert reads(counted, lambda study: Snapshot.of(study, trials=trials).generations) == 0


@pytest.mark.parametrize("n_before", [0, 1, K, 3 * K + 1])
def test_views_of_a_growing_study_agree(recorded: list[FrozenTrial], n_before: int) -> None:
    storage = GrowingStorage()
    study = optuna.create_study(study_name="s", storage=storage)
    study.add_trials(recorded[:n_before])
    with storage.growing(study, recorded[n_before:]):
        snapshot = Snapshot.of(study)
        page, verified = describe(snapshot), verify(snapshot)
        drawn = [figure(snapshot) for figure in STUDY_FIGURES]
    n = len(snapshot.trials)
    assert n > n_before  # it has grown before the read
    assert n == len(study.trials)  # and not since: no view has asked the storage again
    assert f"Study 's': {n} complete" in page
    assert sum(row.n_trials for row in snapshot.generation_rows) == n
    assert sum(row.n_complete for row in snapshot.generation_rows) == n
    replayed = len(snapshot.generations)
    said = "1 generation replays" if replayed == 1 else f"{replayed} generations replay"
    assert verified.message == f"verify: {said} bit for bit."
    points = drawn[2]["data"][0]
    assert sorted(points["customdata"]) == list(range(n))
    assert max(points["x"]) <= snapshot.generations[-1].index
    median = next(t for t in drawn[3]["data"] if t.get("name", "").startswith("all "))
    assert median["name"] == f"all {n}: median, 80 %"


def test_a_snapshot_does_not_follow_its_study() -> None:
    study = searched(2 * K)
    snapshot = Snapshot.of(study)
    study.optimize(objective, n_trials=2 * K)
    assert len(snapshot.trials) == 2 * K
    assert snapshot.generations[-1].index == 1
    assert Snapshot.of(study).generations[-1].index == 3


def test_a_study_without_trials_has_one_empty_generation() -> None:
    snapshot = Snapshot.of(optuna.create_study(sampler=S2ESampler()))
    (generation,) = snapshot.generations
    assert generation.theta.shape == (0,)
    assert (generation.trials, generation.opener) == ((), None)
    assert snapshot.best is snapshot.recommended is snapshot.population_size is None
    assert not snapshot.is_s2e
    assert snapshot.theta_summary == ([], [])
    assert snapshot.keep_rate_band(5) is None


def test_best_is_the_best_finite_value_in_the_direction_of_the_study() -> None:
    values = [0.3, float("inf"), 0.1, float("-inf"), 0.7]
    for direction, number in (("minimize", 2), ("maximize", 4)):
        study = optuna.create_study(direction=direction)
        for value in values:
            study.add_trial(optuna.trial.create_trial(value=value))
        study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
        best = Snapshot.of(study).best
        assert best is not None
        assert best.number == number


def test_studies_of_other_samplers_have_schedules_but_no_theta() -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(objective, n_trials=5)
    snapshot = Snapshot.of(study)
    assert not snapshot.is_s2e
    assert snapshot.space is None
    assert sorted(snapshot.schedules) == list(range(5))
    assert snapshot.recommended is not None


def test_schedules_of_an_earlier_space_are_left_out() -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)
    study.optimize(lambda t: float(ScheduleSpace(20).suggest(t).keep_rates.mean()), n_trials=3)
    snapshot = Snapshot.of(study)
    assert snapshot.schedule_space == ScheduleSpace(20)
    assert sorted(snapshot.schedules) == [2, 3, 4]


def test_the_population_size_is_that_of_the_settings_in_force() -> None:
    study = searched(2 * K)
    study.sampler = S2ESampler(population_size=3, seed=0, on_config_change="adopt")
    study.optimize(objective, n_trials=4)
    assert Snapshot.of(study).population_size == 3


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match="one objective"):
        Snapshot.of(study)
