"""What moves theta: the update of a generation follows from its members, and from nothing else."""

from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from searches import K, make_study, quadratic

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.estimators import newton, resolve
from optuna_s2e.history import Ledger, Rules
from optuna_s2e.sampler import next_theta, recorded_theta
from optuna_s2e.sampler._update import MAX_MODEL_DRAWS, fit_model

SETTINGS = resolve({"population_size": K, "estimator": "newton", "reuse": 0})


def ledger_of(study: optuna.Study) -> Ledger:
    return Ledger(Rules.of(study)).read(study.trials)


def no_theta(opener: int) -> FloatArray:
    raise AssertionError(f"theta of opener {opener} is not needed")


def searched(n_trials: int, **options: object) -> optuna.Study:
    study = make_study(estimator="newton", reuse=0, **options)
    study.optimize(quadratic, n_trials=n_trials)
    return study


@pytest.mark.parametrize("maximize", [False, True])
def test_the_first_update_is_the_newton_step_on_the_first_k_losses(maximize: bool) -> None:
    study = searched(K)
    ledger = Ledger(replace(Rules.of(study), maximize=maximize)).read(study.trials)
    state = ledger.state(K)
    assert state.chain is not None
    space = state.chain.space
    moved = next_theta(space, None, state.pool, ledger, no_theta, SETTINGS)
    distribution, theta = space.distribution, space.distribution.uniform_theta()
    x = np.array([[t.params[n] for n in space.names] for t in study.trials])  # in [0, 1]: itself
    losses = np.array([t.value for t in study.trials]) * (-1.0 if maximize else 1.0)
    log_density = np.zeros(K)  # uniform draws
    expected = newton.update(
        distribution, theta, x, losses=losses, log_density_drawn=log_density, settings=SETTINGS
    )
    assert np.array_equal(moved.theta, expected.theta)
    assert not np.array_equal(moved.theta, theta)


def test_members_of_another_space_cannot_move_theta() -> None:
    study = searched(K)
    ledger = ledger_of(study)
    elsewhere = SearchSpace.of({"x0": FloatDistribution(0, 7)})
    with pytest.raises(ValueError, match="No member is a draw from the study's space"):
        next_theta(elsewhere, None, ledger.state(K).pool, ledger, no_theta, SETTINGS)


def test_recorded_theta_is_what_the_opener_wrote() -> None:
    study = searched(K + 1)
    recorded = study.trials[K].system_attrs["s2e:draw"]["theta"]
    assert recorded_theta(ledger_of(study), K).tolist() == recorded


def test_a_model_of_many_draws_keeps_the_newest_and_spreads_over_the_older_ones() -> None:
    n, size = MAX_MODEL_DRAWS + 60, 20
    study = make_study(estimator="newton", reuse=0, population_size=size)
    study.optimize(quadratic, n_trials=n)
    ledger = ledger_of(study)
    state = ledger.state(size)
    assert state.chain is not None
    space, settings = state.chain.space, replace(SETTINGS, reuse=1000)
    model = fit_model(space, state.chain.head, state.pool, ledger, settings)
    assert model is not None
    x = np.array([[t.params[name] for name in space.names] for t in study.trials])
    used = [int(np.argmin(np.abs(x - row).sum(axis=1))) for row in model.x]
    assert len(used) == MAX_MODEL_DRAWS
    assert used[MAX_MODEL_DRAWS // 2 :] == list(range(n - MAX_MODEL_DRAWS // 2, n))
    older = used[: MAX_MODEL_DRAWS // 2]
    assert older[0] == 0
    assert older == sorted(set(older))
    assert np.diff(older).max() <= 2  # 160 older draws, 100 places
