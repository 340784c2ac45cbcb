"""Batches: the same thetas whoever ran what, in which order, and whatever died meanwhile."""

import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from batches import K, assert_sound, completed, new_study, noisy, parabola, states, thetas
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_s2e import S2ESampler, ScheduleSpace, generations, open_storage, optimize_batch, replay


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_theta_is_the_same_for_any_number_of_threads(workers: int, undisturbed: list[str]) -> None:
    study = new_study()
    with ThreadPoolExecutor(workers) as executor:
        optimize_batch(study, parabola, 5 * K + 1, executor=executor)
    assert thetas(study) == undisturbed[6]
    assert_sound(study)


def test_theta_is_the_same_on_processes(pool: Executor, undisturbed: list[str]) -> None:
    study = new_study()
    optimize_batch(study, parabola, 5 * K + 1, executor=pool)
    assert thetas(study) == undisturbed[6]


@pytest.mark.parametrize("estimator", ["natural", "surrogate"])
def test_undisturbed_batches_are_what_one_worker_of_optimize_does(
    estimator: str, pool: Executor
) -> None:
    one, many = (new_study(estimator=estimator) for _ in range(2))
    one.optimize(parabola, 5 * K + 1)
    optimize_batch(many, parabola, 5 * K + 1, executor=pool)
    assert thetas(one) == thetas(many)
    assert [t.params for t in one.trials] == [t.params for t in many.trials]


def failing_schedule(trial: Trial) -> float:
    rates = ScheduleSpace(8).suggest(trial).keep_rates
    if rates[-1] > 0.8:
        raise ValueError("keeps too much")
    return float(np.square(rates - 0.5).mean())


def test_surrogate_assisted_schedules_are_the_same_on_any_executor(pool: Executor) -> None:
    """Draws of a model follow the draws that are pending: those of the slots before."""
    found = []
    for executor, step in ((None, 4 * K), (pool, 4 * K), (pool, 3)):
        study = new_study()
        while len(generations(study)) < 4:
            optimize_batch(study, failing_schedule, step, executor=executor)
        assert_sound(study)
        found.append(thetas(study, 4))
    assert found[0] == found[1] == found[2]


def branching(trial: Trial) -> float:
    if trial.suggest_categorical("model", ["linear", "tree"]) == "linear":
        return 0.25 + trial.suggest_float("penalty", 0, 1)
    return abs(trial.suggest_float("rate", 0, 1) - 0.7) + 0.1 * trial.suggest_int("depth", 1, 9)


def test_conditional_parameters_are_the_same_on_any_executor(pool: Executor) -> None:
    drawn = []
    for executor in (None, pool):
        study = new_study()
        optimize_batch(study, branching, 5 * K, executor=executor)
        assert_sound(study)
        assert generations(study)[0].theta.shape == (2 + 3 * 2,)
        drawn.append((thetas(study), [t.params for t in study.trials]))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("step", [1, 3, 7])
def test_theta_is_the_same_in_calls_of_any_length(step: int, undisturbed: list[str]) -> None:
    study = new_study()
    for start in range(0, 5 * K + 1, step):
        optimize_batch(study, parabola, min(step, 5 * K + 1 - start))
    assert thetas(study) == undisturbed[6]


def test_seeds_follow_the_slot(pool: Executor) -> None:
    calm, stormy = new_study(), new_study()
    optimize_batch(calm, noisy, 3 * K + 1)
    stormy.enqueue_trial({"x0": 0.5})  # shifts the numbers
    stormy.ask()
    optimize_batch(stormy, noisy, 3 * K + 2, executor=pool)
    assert thetas(calm) == thetas(stormy)
    assert len({t.user_attrs["seed"] for t in calm.trials}) == 3 * K + 1


def test_schedules_and_a_change_of_the_space() -> None:
    def objective(n_epochs: int) -> Callable[[Trial], float]:
        return lambda trial: float(ScheduleSpace(n_epochs).suggest(trial).keep_rates.mean())

    study, calm = new_study(), new_study()
    optimize_batch(study, objective(8), 3 * K)
    with pytest.raises(ValueError, match="n_epochs"):
        optimize_batch(study, objective(9), K)
    optimize_batch(study, objective(8), K + 1)
    optimize_batch(calm, objective(8), 4 * K + 1)
    assert thetas(study) == thetas(calm)
    assert_sound(study)


def test_another_range_of_a_parameter_is_one_clear_error() -> None:
    study = new_study()
    optimize_batch(study, lambda trial: trial.suggest_float("x", 0, 1), 2 * K)
    with (
        pytest.raises(
            ValueError, match=r"can move theta. Trial \d+ cannot, because parameter 'x' is Float"
        ),
        pytest.warns(UserWarning, match="stands still"),
    ):
        optimize_batch(study, lambda trial: trial.suggest_float("x", 0, 2), 2 * K)


def test_settings_of_another_search_are_refused() -> None:
    storage = InMemoryStorage()
    optimize_batch(new_study(storage), parabola, K)
    with pytest.raises(ValueError, match="population_size is 6, was 4"):
        optimize_batch(new_study(storage, size=6), parabola, K)
    adopting = new_study(storage, size=6, on_config_change="adopt")
    optimize_batch(adopting, parabola, 13)
    assert [len(g.members) for g in generations(adopting)] == [0, 4, 6, 6]
    assert_sound(adopting)


def test_batches_and_asynchronous_workers_take_turns() -> None:
    study = new_study()
    for n in (3, 7, 2 * K):
        study.optimize(parabola, n)
        optimize_batch(study, parabola, n + 1)
    assert_sound(study)
    complete = completed(study)
    assert sum(len(g.members) for g in generations(study)) > complete - 3 * K


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    "make_sampler",
    [
        lambda: RandomSampler(seed=0),
        lambda: TPESampler(seed=0, n_startup_trials=4),
        lambda: CmaEsSampler(seed=0),
        lambda: NSGAIISampler(seed=0, population_size=4),
        lambda: QMCSampler(seed=0, warn_independent_sampling=False),
        lambda: PartialFixedSampler({"x0": 0.5}, S2ESampler(seed=0)),
    ],
    ids=["random", "tpe", "cmaes", "nsgaii", "qmc", "partial-fixed"],
)
def test_any_sampler(make_sampler: Callable[[], BaseSampler], pool: Executor) -> None:
    study = optuna.create_study(sampler=make_sampler())
    with pytest.raises(ValueError, match="batch_size must be given for"):
        optimize_batch(study, parabola, 20)
    optimize_batch(study, parabola, 20, batch_size=4, executor=pool)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 20
    points = {tuple(t.params.values()) for t in study.trials}
    if not isinstance(study.sampler, NSGAIISampler):
        assert len(points) == 20
    else:  # its crossover repeats points
        assert max(t.system_attrs["NSGAIISampler:generation"] for t in study.trials) == 4


def test_k_are_asked_before_any_is_told() -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0))
    running = []

    def count(study: optuna.Study, trial: FrozenTrial) -> None:
        running.append(len(study.get_trials(states=(TrialState.RUNNING,))))

    optimize_batch(study, parabola, 10, batch_size=5, callbacks=[count])
    assert running == [4, 3, 2, 1, 0] * 2


def test_several_objectives() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=NSGAIISampler())
    optimize_batch(study, lambda t: (parabola(t), 1.0), 8, batch_size=4)
    assert all(len(t.values) == 2 for t in study.trials)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_any_storage(scheme: str, tmp_path: Path, undisturbed: list[str]) -> None:
    study = new_study(open_storage(f"{scheme}:///{tmp_path}/s.db"))
    with ThreadPoolExecutor(4) as executor:
        optimize_batch(study, parabola, 2 * K + 1, executor=executor)
    assert thetas(study) == undisturbed[3]
    assert [g.index for g in replay(study)] == [0, 1, 2]


def test_timeout(pool: Executor) -> None:
    study = new_study()
    started = time.monotonic()
    optimize_batch(study, parabola, timeout=0.5, executor=pool)
    assert 0.5 <= time.monotonic() - started < 5
    assert TrialState.RUNNING not in states(study)
    assert completed(study) > 0


def test_callbacks_progress_and_an_error_in_a_callback(capsys: pytest.CaptureFixture[str]) -> None:
    study, numbers = new_study(), []

    def note(study: optuna.Study, trial: FrozenTrial) -> None:
        numbers.append(trial.number)
        if trial.number == 6:
            raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"):
        optimize_batch(study, parabola, 20, callbacks=[note], show_progress_bar=True)
    assert numbers == list(range(7))
    assert TrialState.RUNNING not in states(study)
    assert "Best trial" in capsys.readouterr().err


def test_nested_calls_are_refused() -> None:
    study = new_study()

    def nested(study: optuna.Study, trial: FrozenTrial) -> None:
        optimize_batch(study, parabola, 1)

    with pytest.raises(RuntimeError, match="must not optimise its own study"):
        optimize_batch(study, parabola, 4, callbacks=[nested])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "n_trials must be an int of at least 1, but got 0"),
        ({"batch_size": 3}, "batch_size must be the sampler's population_size, 4, but got 3"),
        ({"max_attempts": 0}, "max_attempts must be an int in \\[1, 1000\\], but got 0"),
        ({"executor": 3}, "executor must have a method submit"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    study = new_study()
    with pytest.raises(ValueError, match=message):
        optimize_batch(study, parabola, **options)
    assert study.trials == []
