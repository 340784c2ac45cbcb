"""The noise rate that a study goes by: estimated once, one value for all who join."""

import multiprocessing
import pickle
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from optuna_s2e import S2ESampler, ScheduleSpace, open_storage, optimize_batch
from optuna_s2e._attributes import NOISE_KEY, read_noise
from optuna_s2e._optuna import set_study_system_attr, study_system_attrs
from optuna_s2e.coteaching import CoteachingObjective, NoiseEstimate, NoisyData
from optuna_s2e.coteaching._study_spaces import Progress, StudySpaces


def _estimate(rate: float) -> NoiseEstimate:
    return NoiseEstimate(
        noise_rate=rate,
        interval=(rate - 0.1, rate + 0.1),
        transition_matrix=np.array([[1 - rate, rate], [rate, 1 - rate]]),
        deviations=np.zeros((2, 2)),
        used_clean_labels=True,
        probabilities=np.full((4, 2), 0.5),
    )


class _Estimator:
    """Estimates a rate, and counts how often it was asked."""

    def __init__(self, rate: float, seconds: float = 0.0) -> None:
        self.rate, self.seconds, self.n = rate, seconds, 0

    def __call__(self, progress: Progress | None) -> NoiseEstimate:
        self.n += 1
        time.sleep(self.seconds)
        return _estimate(self.rate)


def _spaces(estimate: Callable[..., NoiseEstimate], seed: int = 0) -> StudySpaces:
    return StudySpaces(40, "eq1", "estimate", estimate, seed)


def test_the_first_worker_estimates_and_all_others_read() -> None:
    study = optuna.create_study()
    first, second = _Estimator(0.31234567), _Estimator(0.6)
    space = _spaces(first, seed=7).of_study(study)
    assert space == ScheduleSpace(40, noise_rate=0.3123)  # as recorded, with four digits
    assert _spaces(second).of_study(study) == space
    assert _spaces(first, seed=7).of_study(study) == space
    assert (first.n, second.n) == (1, 0)
    noise = read_noise(study.user_attrs)
    assert noise is not None
    assert noise.interval == (0.2123, 0.4123)
    assert noise.transition_matrix == [[0.6877, 0.3123], [0.3123, 0.6877]]
    assert (noise.used_clean_labels, noise.seed) == (True, 7)
    assert str(noise) == "Noise rate, estimated: 31 % of the labels are wrong [21, 41]"


def test_a_rate_that_is_given_is_not_estimated_and_none_is_the_whole_space() -> None:
    study, estimator = optuna.create_study(), _Estimator(0.3)
    for rate in (0.4, None):
        spaces = StudySpaces(40, "eq1", rate, estimator, 0)
        assert spaces.given == spaces.of_study(study) == ScheduleSpace(40, noise_rate=rate)
    assert estimator.n == 0
    assert study.user_attrs == {}


def test_threads_of_one_process_wait_for_one_estimate() -> None:
    study, estimator = optuna.create_study(), _Estimator(0.3, seconds=0.2)
    spaces = _spaces(estimator)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: spaces.of_study(study), range(4)))
    assert len(found) == 1
    assert estimator.n == 1


def _work(url: str, rate: float, both: Any, found: Any) -> None:
    """Join a study; the estimate takes until the other worker estimates, too."""

    def estimate(progress: Progress | None) -> NoiseEstimate:
        both.wait(60)
        return _estimate(rate)

    study = optuna.load_study(study_name="s", storage=open_storage(url))
    found.put(_spaces(estimate).of_study(study).noise_rate)


@pytest.mark.parametrize("url", ["sqlite:///s.db", "journal:///s.log"])
def test_of_workers_that_estimate_at_once_one_wins_for_all(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    context = multiprocessing.get_context("fork")
    both, found = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_work, args=(url, rate, both, found)) for rate in (0.2, 0.6)]
    for worker in workers:
        worker.start()
    rates = {found.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
    noise = read_noise(study.user_attrs)
    assert noise is not None
    assert rates == {noise.noise_rate}


def test_an_estimate_that_comes_late_gives_way() -> None:
    study = optuna.create_study()

    def slow(progress: Progress | None) -> NoiseEstimate:
        set_study_system_attr(study, NOISE_KEY, recorded)  # another worker is faster
        return _estimate(0.6)

    other = optuna.create_study()
    _spaces(_Estimator(0.2)).of_study(other)
    recorded = other.user_attrs[NOISE_KEY]
    assert _spaces(slow).of_study(study).noise_rate == 0.2
    assert study.user_attrs[NOISE_KEY] == recorded


def test_a_worker_that_died_amid_recording_has_recorded() -> None:
    study, estimator = optuna.create_study(), _Estimator(0.6)
    _spaces(_Estimator(0.2)).of_study(study)
    study.set_user_attr(NOISE_KEY, None)
    assert _spaces(estimator).of_study(study).noise_rate == 0.2
    assert estimator.n == 0
    assert read_noise(study.user_attrs) is not None


@pytest.mark.parametrize(
    "damage",
    [
        7,
        "text",
        {"v": 2},
        {"v": 1, "noise_rate": 0.3},
        {"noise_rate": 1.5},
        {"interval": [0.1]},
        {"noise_rate": "0.3"},
        {"interval": [0.1, float("nan")]},
    ],
)
def test_a_damaged_record_is_estimated_anew(damage: Any) -> None:
    study = optuna.create_study()
    spaces = _spaces(_Estimator(0.2))
    spaces.of_study(study)
    sound = study.user_attrs[NOISE_KEY]
    if isinstance(damage, dict) and "v" not in damage:
        damage = {**sound, **damage}
    study.set_user_attr(NOISE_KEY, damage)
    set_study_system_attr(study, NOISE_KEY, damage)
    assert read_noise(study.user_attrs) is None
    assert spaces.of_study(study).noise_rate == 0.2
    assert study.user_attrs[NOISE_KEY] == study_system_attrs(study)[NOISE_KEY] == sound


def test_what_is_forgotten_is_estimated_anew() -> None:
    study = optuna.create_study()
    _spaces(_Estimator(0.2)).of_study(study)
    spaces = _spaces(_Estimator(0.6))
    spaces.forget(study)
    assert spaces.of_study(study).noise_rate == 0.6


def test_a_matrix_of_many_classes_is_left_out() -> None:
    study = optuna.create_study()
    many = _estimate(0.5).transition_matrix.repeat(60, axis=0).repeat(60, axis=1) / 60
    estimate = NoiseEstimate(0.5, (0.4, 0.6), many, many, True, many)
    _spaces(lambda progress: estimate).of_study(study)
    noise = read_noise(study.user_attrs)
    assert noise is not None
    assert (noise.noise_rate, noise.transition_matrix) == (0.5, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_rate": "guess"}, "noise_rate must be 'estimate', a number or None, but got 'g"),
        ({"noise_rate": 1.5}, "noise_rate must be .* but got 1.5"),
        ({"noise_rate": True}, "noise_rate must be .* but got True"),
        ({"noise_rate": "estimate", "kind": "table1"}, "kind must be 'eq1' if noise_rate is"),
        ({"noise_rate": "estimate", "network": "mpl"}, "network must be one of"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(
    arguments: dict[str, Any], message: str, tiny: NoisyData
) -> None:
    with pytest.raises(ValueError, match=message):
        CoteachingObjective(tiny, n_epochs=2, device="cpu", **arguments)


# --- the objective ---


def _objective(data: NoisyData, **options: Any) -> CoteachingObjective:
    given = {"noise_rate": "estimate", "seed": 0, **options}
    return CoteachingObjective(data, n_epochs=4, device="cpu", **given)


def _ranges(study: optuna.Study) -> set[Any]:
    return {t.distributions["R.tau"] for t in study.trials}


def test_all_trials_of_a_study_search_the_space_of_its_estimate(tiny: NoisyData) -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=2, seed=0))
    with pytest.raises(ValueError, match=r"objective.prepare_study\(study\) returns it"):
        _ = _objective(tiny).space
    study.optimize(_objective(tiny), n_trials=2)
    study.optimize(_objective(tiny, seed=5), n_trials=1)  # another worker, another estimate
    noise = read_noise(study.user_attrs)
    assert noise is not None
    assert noise.seed == 0
    space = ScheduleSpace(4, noise_rate=noise.noise_rate)
    assert _ranges(study) == {space.distributions["R.tau"]}
    assert space.middle is not None
    assert study.trials[0].params == space.middle.params
    assert _objective(tiny, seed=5).prepare_study(study) == space


def test_an_estimate_that_is_given_is_recorded_and_none_is_made(tiny: NoisyData) -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=2, seed=0))
    objective = _objective(tiny, noise_rate=_estimate(0.31234567), seed=5)
    assert objective.noise_rate == "estimate"
    study.optimize(objective, n_trials=1)
    noise = read_noise(study.user_attrs)
    assert noise is not None
    assert (noise.noise_rate, noise.seed) == (0.3123, None)
    assert _ranges(study) == {ScheduleSpace(4, noise_rate=0.3123).distributions["R.tau"]}
    study.optimize(_objective(tiny, noise_rate=_estimate(0.6)), n_trials=1)  # comes too late
    assert read_noise(study.user_attrs) == noise


def test_batches_have_the_noise_estimated_first(tiny: NoisyData) -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=2, seed=0))
    with ThreadPoolExecutor(2) as pool:
        optimize_batch(study, _objective(tiny), n_trials=2, executor=pool)
    optimize_batch(study, pickle.loads(pickle.dumps(_objective(tiny, seed=5))), n_trials=2)
    noise = read_noise(study.user_attrs)
    assert noise is not None
    assert noise.seed == 0
    assert len(_ranges(study)) == 1
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 4


def test_a_wrapped_objective_in_batches_is_told_what_to_do(tiny: NoisyData) -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=2, seed=0))
    objective = _objective(tiny)
    with pytest.raises(RuntimeError, match=r"call objective.prepare_study\(study\) first"):
        optimize_batch(study, lambda trial: objective(trial), n_trials=2, max_attempts=1)
    study = optuna.create_study(sampler=S2ESampler(population_size=2, seed=0))
    objective.prepare_study(study)
    optimize_batch(study, lambda trial: objective(trial), n_trials=2)
    assert len(_ranges(study)) == 1


def test_a_repeated_trial_needs_no_study(tiny: NoisyData) -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=2, seed=0))
    study.optimize(_objective(tiny), n_trials=2)
    for trial in study.trials:
        assert _objective(tiny)(trial) == trial.value
        fixed = optuna.trial.FixedTrial(trial.params, number=trial.number)
        assert _objective(tiny)(fixed) == trial.value


def test_an_estimate_shows_its_progress_and_is_made_once_for_several_studies(
    tiny: NoisyData,
) -> None:
    shown: list[tuple[int, int]] = []
    objective = _objective(tiny)
    for _ in range(2):
        objective.prepare_study(optuna.create_study(), lambda *done: shown.append(done))
    assert shown == [(n, 6) for n in range(1, 7)]  # three folds, two epochs each


def test_settings_hold_the_noise_rate_and_may_lack_it() -> None:
    from optuna_s2e.coteaching import load_data

    data = load_data("digits", seed=0)
    for rate in ("estimate", 0.4, None):
        settings = CoteachingObjective(data, device="cpu", noise_rate=rate).settings
        assert settings is not None
        assert ("noise_rate" in settings) == (rate is not None)  # as earlier releases have it
        again = CoteachingObjective.from_settings(settings, device="cpu")
        assert (again.noise_rate, again.settings) == (rate, settings)


def test_an_estimate_can_be_interrupted_and_leaves_nothing(tiny: NoisyData) -> None:
    study, objective = optuna.create_study(), _objective(tiny)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        objective.prepare_study(study, interrupt)
    assert study.user_attrs == {}
    ended = threading.Thread(target=objective.prepare_study, args=(study,))
    ended.start()  # no lock is held
    ended.join(60)
    assert read_noise(study.user_attrs) is not None


@pytest.mark.parametrize("directions", [["maximize"], ["minimize", "minimize"]])
@pytest.mark.parametrize("batches", [False, True])
def test_a_study_that_would_look_for_the_worst_schedule_is_refused(
    tiny: NoisyData, directions: list[str], batches: bool
) -> None:
    objective = CoteachingObjective(tiny, n_epochs=2, device="cpu")
    study = optuna.create_study(directions=directions)
    search = partial(optimize_batch, batch_size=2) if batches else optuna.Study.optimize
    with pytest.raises(ValueError, match=re.escape(f"but got {directions}. Make it with")):
        search(study, objective, n_trials=2)
    assert not [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
