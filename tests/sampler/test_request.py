"""How the draw of a trial that is asked for alone is planned: uniform, joining or opening."""

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from searches import K, make_study, quadratic

from optuna_s2e.history import Ledger, Rules
from optuna_s2e.sampler import Plan
from optuna_s2e.sampler._request import plan_next


def plan_of(study: optuna.Study, population_size: int = K) -> Plan:
    ledger = Ledger(Rules.of(study)).read(study.trials)
    return plan_next(ledger, ledger.state(population_size), population_size)


def test_the_first_trials_are_drawn_from_theta_1() -> None:
    study = make_study()
    for n in range(K):
        assert plan_of(study).chain is None, n
        study.optimize(quadratic, n_trials=1)
    assert plan_of(study).chain is not None


def test_k_completed_draws_open_a_generation_in_the_order_of_their_completion() -> None:
    study = make_study()
    asked = [study.ask() for _ in range(K + 1)]
    values = [quadratic(trial) for trial in asked]  # all are drawn before any is told
    order = [2, 0, 3, 1, 4]
    for at in order:
        study.tell(asked[at], values[at])
    plan = plan_of(study)
    assert [d.trial.number for d in plan.members] == order[:K]
    assert plan.chain is not None
    assert plan.chain.head is None
    assert len(plan.pending) == 0


def test_a_later_opening_takes_the_oldest_k_and_knows_the_others() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=K)
    asked = [study.ask() for _ in range(K + 2)]  # the first one opens generation 1
    values = [quadratic(trial) for trial in asked]
    for trial, value in zip(asked[:-1], values[:-1], strict=True):
        study.tell(trial, value)
    plan = plan_of(study)
    assert [d.trial.number for d in plan.members] == [t.number for t in asked[:K]]
    assert plan.chain is not None
    x = np.array([[t.params[n] for n in plan.chain.space.names] for t in study.trials])
    assert plan.pending == pytest.approx(x[-2:])  # one waits for the update after, one runs


def test_a_trial_between_two_openings_joins_and_knows_what_runs_waits_and_failed() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=K + 1)  # trial K opens generation 1 and waits in the pool
    running, failing, waiting = (study.ask() for _ in range(3))
    values = [quadratic(trial) for trial in (running, failing, waiting)]
    study.tell(failing, state=TrialState.FAIL)
    study.tell(waiting, values[2])
    plan = plan_of(study)
    assert plan.chain is not None
    assert plan.chain.head is not None
    assert plan.chain.head.trial == K
    assert not plan.members
    x = np.array([[t.params[n] for n in plan.chain.space.names] for t in study.trials])
    assert plan.pending == pytest.approx(x[[K, running.number, waiting.number]])
    assert plan.failed == pytest.approx(x[[failing.number]])


def test_a_trial_that_asks_for_nothing_is_no_draw_to_keep_away_from() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=K + 1)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask()
    plan = plan_of(study)
    assert len(plan.failed) == 0
    assert len(plan.pending) == 1  # trial K alone
