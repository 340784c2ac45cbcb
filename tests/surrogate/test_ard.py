"""Automatic relevance determination: its gradient, what it finds, and when it keeps out."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from scipy.optimize import check_grad

from optuna_s2e import S2ESampler, ScheduleSpace
from optuna_s2e.distributions._search_space import SearchSpace
from optuna_s2e.surrogate._ard import LOGIT, _Posterior, relevance
from optuna_s2e.surrogate._features import N_POINTS, features, groups


def drawn(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n, d))


def standardised(y: np.ndarray) -> np.ndarray:
    return np.asarray((y - y.mean()) / y.std())


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_the_density(seed: int) -> None:
    z = drawn(30, 5)
    groups_of = np.array([0, 1, 1, 2, 3])
    posterior = _Posterior(z, standardised(np.sin(3 * z[:, 0])), groups_of, 4)
    v = np.append(np.random.default_rng(seed).normal(size=5), LOGIT)
    error = check_grad(lambda v: posterior(v)[0], lambda v: posterior(v)[1], v)
    assert error < 1e-4 * np.linalg.norm(posterior(v)[1])


@pytest.mark.parametrize("n", [60, 300])
def test_what_matters_is_found_among_many(n: int) -> None:
    z = drawn(n, 20)
    y = (z[:, 3] - 0.3) ** 2 + 2 * (z[:, 11] - 0.8) ** 2
    factors = relevance(z, standardised(y), np.arange(20))
    assert set(np.argsort(factors)[-2:]) == {3, 11}
    assert np.sort(factors)[-2] > 3 * np.sort(factors)[-3]
    assert np.log(factors).mean() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [6, 18, 60])
def test_parameters_that_matter_alike_are_left_alone(n: int) -> None:
    for seed in range(5):
        z = drawn(n, 6, seed)
        y = ((z - 0.4) ** 2).sum(axis=1)
        assert relevance(z, standardised(y), np.arange(6)).tolist() == [1.0] * 6


def test_noise_has_no_relevant_parameter() -> None:
    found = []
    for seed in range(10):
        y = np.random.default_rng(100 + seed).normal(size=40)
        found.append(np.ptp(relevance(drawn(40, 10, seed), standardised(y), np.arange(10))) > 0)
    assert sum(found) <= 1


def test_equal_losses_and_equal_points_are_no_trouble() -> None:
    assert relevance(drawn(10, 3), np.zeros(10), np.arange(3)).tolist() == [1.0] * 3
    same = np.full((10, 3), 0.5)
    y = standardised(np.arange(10.0))
    assert np.isfinite(relevance(same, y, np.arange(3))).all()


def test_a_parameter_is_one_group_of_features() -> None:
    space = SearchSpace.of({
        "a": FloatDistribution(0, 1),
        "c": CategoricalDistribution("xyz"),
        "w.simplex3.1": FloatDistribution(0, 1),
        "w.simplex3.2": FloatDistribution(0, 1),
    })  # fmt: skip
    assert groups(space).tolist() == [0, 0, 0, 1, 2, 2, 2]
    x = np.array([[0.2, 0.3, 0.4, 1.0]])
    assert features(space, x).shape == (1, len(groups(space)))


def test_a_schedule_is_one_parameter_beside_others() -> None:
    trial = optuna.create_study().ask()
    ScheduleSpace(30).suggest(trial)
    tags = {n: v for n, v in trial.params.items() if trial.distributions[n].single()}
    space = SearchSpace.of({**trial.distributions, "lr": FloatDistribution(0, 1)}, tags)
    assert groups(space).tolist() == [0] * N_POINTS + [1]
    alone = SearchSpace.of(trial.distributions, tags)
    assert groups(alone).tolist() == [0] * N_POINTS


def test_search_where_few_of_many_parameters_matter() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(20)]
        return (x[4] - 0.3) ** 2 + (x[17] - 0.8) ** 2

    means = {}
    for make in (S2ESampler, TPESampler):
        last = []
        for seed in range(4):
            study = optuna.create_study(sampler=make(seed=seed))
            study.optimize(objective, n_trials=60)
            last.append(np.mean([t.value for t in study.trials[-12:]]))
        means[make] = np.median(last)
    assert means[S2ESampler] < means[TPESampler]
