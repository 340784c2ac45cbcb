"""Surrogate-assisted S2E: theta follows the model, draws explore it, failures fall back."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from optuna_s2e import (
    S2ESampler,
    ScheduleSpace,
    coteaching_schedule,
    generations,
    replay,
    suggest_simplex,
    surrogate,
)
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.analysis import Snapshot, verify
from optuna_s2e.distributions._search_space import SearchSpace
from optuna_s2e.estimators import surrogate_newton
from optuna_s2e.estimators.settings import resolve
from optuna_s2e.surrogate import _acquisition, propose

T = 40
TARGET = coteaching_schedule(T, 0.5, 10).keep_rates
UNIT = SearchSpace.of({name: FloatDistribution(0, 1) for name in "ab"})


def to_target(trial: optuna.Trial, kind: str = "eq1") -> float:
    rates = ScheduleSpace(T, kind).suggest(trial).keep_rates
    return float(np.sqrt(np.mean((rates - TARGET) ** 2)))


def searched(objective: Any = to_target, n_trials: int = 60, **kwargs: Any) -> optuna.Study:
    study = optuna.create_study(sampler=S2ESampler(**{"seed": 0} | kwargs))
    study.optimize(objective, n_trials=n_trials)
    return study


def model_of(f: Any, n: int = 40) -> surrogate.Model:
    x = np.random.default_rng(0).uniform(size=(n, 2))
    return surrogate.Model.fit(UNIT, x, np.ones(x.shape, dtype=bool), f(x))


def bowl(x: np.ndarray) -> np.ndarray:
    return np.asarray(((x - [0.2, 0.7]) ** 2).sum(axis=1))


def test_theta_moves_to_the_minimum_of_the_model() -> None:
    settings, theta = resolve({}), UNIT.distribution.uniform_theta()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        step = surrogate_newton.update(theta, model_of(bowl), settings, rng)
        assert 0 < step.kl <= settings.max_kl
        theta = step.theta
    np.testing.assert_allclose(UNIT.distribution.mean(theta), [0.2, 0.7], atol=0.05)


def test_a_flat_model_keeps_theta() -> None:
    settings, theta = resolve({}), np.array([2.0, 3.0, 1.0, 1.0])
    model = model_of(lambda x: np.ones(len(x)))
    step = surrogate_newton.update(theta, model, settings, np.random.default_rng(0))
    assert np.array_equal(step.theta, theta)


def test_proposals_are_good_and_differ_from_the_pending_ones() -> None:
    model, theta = model_of(bowl, 12), UNIT.distribution.uniform_theta()
    pending = np.zeros((0, 2))
    for seed in range(6):
        x = propose(theta, model, pending, pending[:0], 2, np.random.default_rng(seed))
        assert np.all((x > 0) & (x < 1))
        pending = np.vstack([pending, x])
    assert bowl(pending).mean() < bowl(np.random.default_rng(1).uniform(size=(999, 2))).mean() / 2
    alone = [
        propose(theta, model, pending[:0], pending[:0], 2, np.random.default_rng(seed))
        for seed in range(6)
    ]
    spread = [np.linalg.norm(np.std(x, axis=0)) for x in (pending, alone)]
    assert spread[0] > 1.5 * spread[1]  # without the pending ones, all ask for the same place


def test_in_many_dimensions_a_proposal_is_near_the_best_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = SearchSpace.of(
        {f"x{i:02d}": FloatDistribution(0, 1) for i in range(20)}
        | {f"z{i}": CategoricalDistribution("abc") for i in range(2)}
    )
    theta, active = space.distribution.uniform_theta(), np.ones((60, 22), dtype=bool)
    x = space.coordinates(space.distribution.sample(theta, np.random.default_rng(0), 60))
    losses = ((x[:, :20] - 0.4) ** 2).sum(axis=1) + (x[:, 20:] != 1).sum(axis=1)
    model = surrogate.Model.fit(space, x, active, losses)

    def expected() -> float:
        """Mean of the model at eight proposals that explore little."""
        none = np.empty((0, 22))
        found = [
            propose(theta, model, none, none, 36, np.random.default_rng(seed)) for seed in range(8)
        ]
        return float(model.gp.mean(model.features(np.array(found))).mean())

    near = expected()
    monkeypatch.setattr(_acquisition, "FEW_PARAMETERS", 22)
    assert near < expected() - 0.1 * losses.std()


def test_candidates_near_the_best_lie_on_the_way_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = SearchSpace.of({"a": FloatDistribution(0, 1), "z": CategoricalDistribution("abcd")})
    x = np.array([[0.1, 0.0], [0.5, 2.0], [0.9, 0.0], [0.2, 0.0]])
    losses = np.array([1.0, 0.0, 1.0, 1.0])
    model = surrogate.Model.fit(space, x, np.ones(x.shape, dtype=bool), losses)
    monkeypatch.setattr(_acquisition, "N_BASES", 1)
    other = np.array([[0.7, 3.0]])
    found = _acquisition._near_the_best(model, other, 4000, np.random.default_rng(0))
    way = (found[:, 0] - 0.5) / 0.2
    assert 0.03 - 1e-9 <= way.min() <= way.max() <= 1.0
    assert np.median(way) == pytest.approx(np.sqrt(0.03), rel=0.1)  # log-uniform
    assert set(found[:, 1]) == {2.0, 3.0}
    assert np.mean(found[:, 1] == 3.0) == pytest.approx(way.mean(), abs=0.03)


def test_deviation_after_pending_draws_is_that_of_a_model_that_knows_them() -> None:
    rng = np.random.default_rng(0)
    z, pending, new = (rng.uniform(size=(n, 3)) for n in (20, 5, 7))
    model = surrogate.fit(z, np.sin(5 * z[:, 0]) + 0.1 * rng.normal(size=20))
    every = np.vstack([z, pending])

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        r = np.sqrt(5) * np.linalg.norm(a[:, None] - b, axis=2) / model.length_scale
        return np.asarray((1 - model.noise_share) * (1 + r + r**2 / 3) * np.exp(-r))

    k = kernel(new, every)
    inverse = np.linalg.inv(kernel(every, every) + model.noise_share * np.eye(25))
    variance = (1 - model.noise_share) - np.einsum("ij,jk,ik->i", k, inverse, k)
    unit = model.noise_deviation / np.sqrt(model.noise_share)
    np.testing.assert_allclose(model.predict(new, pending)[1], unit * np.sqrt(variance), rtol=1e-6)
    np.testing.assert_array_equal(model.predict(new, pending)[0], model.predict(new)[0])


@pytest.mark.parametrize("kind", ["eq1", "table1"])
def test_schedules_are_searched_with_the_model_and_replay(kind: str) -> None:
    study = searched(lambda trial: to_target(trial, kind), n_trials=36)
    opener = generations(study)[2].opener
    settings = study.trials[opener].system_attrs[DRAW_KEY]["settings"]  # type: ignore[index]
    assert settings["estimator"] == "surrogate"
    told, computed = generations(study), replay(study)
    assert len(told) == 6
    assert all(np.array_equal(a.theta, b.theta) for a, b in zip(told, computed, strict=True))
    assert all(np.ptp(g.theta) > 0 for g in told[1:])


def test_the_model_beats_random_search_on_schedules() -> None:
    ours = [searched(seed=s, n_trials=30).best_value for s in range(8)]
    random = []
    for seed in range(8):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        study.optimize(to_target, n_trials=30)
        random.append(study.best_value)
    assert np.median(ours) < np.median(random) / 2


def test_asked_together_the_draws_differ_and_each_names_its_theta() -> None:
    study = searched(n_trials=12)
    trials = [study.ask() for _ in range(6)]
    rates = np.array([ScheduleSpace(T).suggest(t).keep_rates for t in trials])
    assert min(np.abs(a - b).max() for i, a in enumerate(rates) for b in rates[:i]) > 0.01
    for trial in trials:
        study.tell(trial, 0.5)
    assert verify(Snapshot.of(study)).sound


def test_losses_that_allow_no_model_fall_back_on_the_papers_step_with_one_warning() -> None:
    def infinite(trial: optuna.Trial) -> float:
        ScheduleSpace(T).suggest(trial)
        return float("inf")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = searched(infinite, n_trials=30)
    assert sum("No model can be fitted" in str(w.message) for w in caught) == 1
    told, computed = generations(study), replay(study)
    assert len(told) == 5
    assert all(np.array_equal(a.theta, b.theta) for a, b in zip(told, computed, strict=True))


def test_the_model_of_a_long_study_is_bounded_and_remembers_the_beginning() -> None:
    study = searched(to_target, n_trials=260, population_size=20)
    assert len(generations(study)) == 13
    known = study.sampler.drawing._known(study)  # type: ignore[attr-defined]
    assert len(known.model.gp.features) == 200


def test_monte_carlo_estimators_leave_assisted_draws_out() -> None:
    study = searched(n_trials=25)
    study.sampler = S2ESampler(seed=0, estimator="natural", on_config_change="adopt")
    study.optimize(to_target, n_trials=12)
    told, computed = generations(study), replay(study)
    assert all(np.array_equal(a.theta, b.theta) for a, b in zip(told, computed, strict=True))


def test_a_simplex_beside_a_schedule_is_a_feature_too() -> None:
    def objective(trial: optuna.Trial) -> float:
        return to_target(trial) + float(suggest_simplex(trial, "w", 3)[0])

    study = searched(objective, n_trials=40)
    assert study.best_value < 0.2


def test_share_failed_is_that_of_the_five_nearest() -> None:
    completed = np.array([[0.0], [0.1], [0.2], [0.3], [0.4]])
    failed = np.array([[0.8], [0.9], [1.0]])
    share = _acquisition.share_failed(np.array([[0.0], [0.65], [1.0]]), completed, failed)
    assert share.tolist() == [0.0, 0.6, 0.6]
    few = _acquisition.share_failed(np.array([[0.0]]), completed[:1], failed[:2])
    assert few.tolist() == [2 / 3]


def test_a_region_that_fails_is_left_though_losses_fall_towards_it() -> None:
    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        if x > 0.7:
            raise ValueError
        return (1 - x) ** 2 + (y - 0.3) ** 2

    for seed in range(3):
        study = optuna.create_study(sampler=S2ESampler(seed=seed))
        study.optimize(objective, n_trials=60, catch=(ValueError,))
        failed = [t.number for t in study.trials if t.state == optuna.trial.TrialState.FAIL]
        assert sum(number >= 40 for number in failed) < 12  # without: all twenty
        assert study.best_value < 0.12  # the least possible: 0.09
