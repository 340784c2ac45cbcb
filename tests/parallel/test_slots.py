"""Which slots a search by batches draws next, and how each of them is planned."""

from functools import partial
from typing import Any

import numpy as np
import optuna
import pytest
from batches import K, new_study
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_s2e import S2ESampler, _optuna
from optuna_s2e._attributes import FAILURE_KEY
from optuna_s2e.history import Slot
from optuna_s2e.parallel import _slots
from optuna_s2e.parallel._slots import Batch, known_before, next_batch, plan_slot
from optuna_s2e.sampler import Request, engine_of

ATTEMPTS = 2


def next_of(study: optuna.Study) -> Batch:
    return next_batch(engine_of(study.sampler), study, ATTEMPTS)


def draw(study: optuna.Study, batch: Batch, slot: Slot) -> Trial | None:
    """Draw a slot as a driver does; None if its generation is over."""
    trial_id = _optuna.new_trial(study, {}, {})
    request = Request(
        _optuna.frozen(study, trial_id), slot=slot, plan=partial(plan_slot, batch, slot)
    )
    drawn = engine_of(study.sampler).next(study, request)
    return None if drawn is None else _optuna.trial_of(study, trial_id)


def run(study: optuna.Study, batch: Batch, outcomes: list[Any]) -> list[FrozenTrial]:
    """Draw the slots of a batch; tell a value, "objective" or "machine" for each."""
    trials = [draw(study, batch, slot) for slot in batch.slots[: len(outcomes)]]
    for trial, outcome in zip(trials, outcomes, strict=True):
        assert trial is not None
        x = trial.suggest_float("x", 0, 1)
        if isinstance(outcome, str):
            _optuna.set_running_trial_attr(trial, FAILURE_KEY, {"by": outcome, "reason": "r"})
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, x + outcome)
    return [study.trials[t.number] for t in trials if t is not None]


def test_a_new_search_draws_k_slots_from_theta_1() -> None:
    batch = next_of(new_study())
    assert batch.generation == 0
    assert batch.slots == tuple(Slot(n, 0) for n in range(K))
    assert not batch.members
    assert not batch.space.names


def test_slots_without_a_value_are_drawn_again_and_the_objectives_failures_move_them() -> None:
    study = new_study()
    run(study, next_of(study), [0.1, "machine", "objective", 0.2])
    assert next_of(study).slots == (Slot(1, 0),)  # attempt by attempt
    lost = study.trials[1].params
    again = run(study, next_of(study), [0.3])[0].params
    assert again == lost  # the same key, the same point
    assert next_of(study).slots == (Slot(2, 1),)
    other = run(study, next_of(study), [0.4])[0].params
    assert other != study.trials[2].params


def test_a_closed_generation_leads_to_the_next_one_with_its_members_in_the_order_of_slots() -> (
    None
):
    study = new_study()
    first = next_of(study)
    run(study, first._replace(slots=first.slots[::-1]), [0.0] * K)
    batch = next_of(study)
    assert batch.generation == 1
    assert batch.slots == tuple(Slot(n, 0) for n in range(K, 2 * K))
    assert [d.record.slot for d in batch.members] == list(range(K))
    assert batch.space.names == ("x",)


def test_a_slot_without_attempts_left_counts_as_the_worst() -> None:
    study = new_study()
    for _ in range(ATTEMPTS):
        batch = next_of(study)
        outcomes = ["objective" if slot.number == 2 else 0.0 for slot in batch.slots]
        run(study, batch, outcomes)
    batch = next_of(study)
    assert batch.generation == 1
    failed = [d for d in batch.members if d.trial.state == TrialState.FAIL]
    assert [(d.record.slot, d.record.attempt) for d in failed] == [(2, ATTEMPTS - 1)]


def test_if_all_slots_fail_all_go_on() -> None:
    study = new_study()
    for attempt in range(2 * ATTEMPTS):
        batch = next_of(study)
        assert batch.slots == tuple(Slot(n, attempt) for n in range(K))
        run(study, batch, ["objective"] * K)


def test_pruned_generations_cannot_move_theta() -> None:
    study = new_study()
    batch = next_of(study)
    for slot in batch.slots:
        trial = draw(study, batch, slot)
        assert trial is not None
        trial.suggest_float("x", 0, 1)
        study.tell(trial, state=TrialState.PRUNED)
    with pytest.raises(ValueError, match="generation 0 were pruned or failed"):
        next_of(study)


def test_a_slot_of_a_generation_that_is_over_is_not_drawn() -> None:
    study = new_study()
    old = next_of(study)
    run(study, old, [0.0] * K)
    batch = next_of(study)
    assert draw(study, batch, batch.slots[0]) is not None  # opens generation 1
    assert draw(study, old, old.slots[0]) is None
    assert study.trials[-1].system_attrs == {}


def test_the_slots_of_a_generation_know_the_earlier_ones_whatever_ran_meanwhile() -> None:
    """The third slot is the same point whether the first two still run, completed or were lost."""
    points = []
    for outcomes in ([], [0.1, 0.2], ["machine", 0.2]):
        study = new_study()
        run(study, next_of(study), [0.0] * K)
        batch = next_of(study)
        if outcomes:
            run(study, batch, outcomes)
        else:
            for slot in batch.slots[:2]:
                trial = draw(study, batch, slot)
                assert trial is not None
                trial.suggest_float("x", 0, 1)
        third = draw(study, next_of(study) if not outcomes else batch, batch.slots[2])
        assert third is not None
        points.append(third.suggest_float("x", 0, 1))
    assert np.ptp(points) == 0


def set_sampler(study: optuna.Study, size: int) -> None:
    study.sampler = S2ESampler(
        population_size=size, seed=0, estimator="natural", on_config_change="adopt"
    )


def test_the_open_generation_keeps_its_size_and_the_next_one_has_the_adopted_one() -> None:
    study = new_study()
    run(study, next_of(study), [0.0] * (K - 1))
    set_sampler(study, K + 2)
    batch = next_of(study)
    assert (batch.size, batch.slots) == (K, (Slot(K - 1, 0),))
    run(study, batch, [0.0])
    batch = next_of(study)
    assert (batch.generation, batch.size, len(batch.members)) == (1, K + 2, K)
    assert [slot.number for slot in batch.slots] == list(range(K + 2, 2 * K + 4))
    run(study, batch, [0.0])
    set_sampler(study, 2)
    assert next_of(study).slots == tuple(Slot(n, 0) for n in range(K + 3, 2 * K + 4))


def test_draws_that_workers_left_open_a_generation_only_if_they_are_k() -> None:
    study = new_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=K - 1)
    assert next_of(study).generation == 0
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)  # opens 1
    batch = next_of(study)
    assert (batch.generation, batch.members) == (1, ())
    assert batch.slots == tuple(Slot(n, 0) for n in range(K, 2 * K))
    assert batch.space.names == ("x",)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=K - 1)
    batch = next_of(study)
    assert (batch.generation, batch.slots[0]) == (2, Slot(2 * K, 0))
    assert [d.trial.number for d in batch.members] == list(range(K, 2 * K))


def test_a_generation_that_was_begun_by_slots_is_closed_by_its_slots() -> None:
    study = new_study()
    run(study, next_of(study), [0.0])
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=K - 1)
    batch = next_of(study)  # K draws wait, but only one is of a slot
    assert batch.slots == tuple(Slot(n, 0) for n in range(1, K))
    assert (batch.generation, batch.members, batch.space.names) == (0, (), ())


def test_what_a_draw_keeps_away_from_is_ordered_by_attempt_and_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def known(slot: Slot) -> tuple[list[float], list[float]]:
        with engine_of(study.sampler).reading(study) as (ledger, state):
            assert state.chain is not None
            before = known_before(ledger, state.chain, state.chain.head, batch, slot)
        return tuple(x.ravel().tolist() for x in before)  # type: ignore[return-value]

    study = new_study()
    old = run(study, next_of(study), [0.0, 0.0, "objective", 0.0])[2].params["x"]
    run(study, next_of(study), [0.0])
    batch = next_of(study)
    x = [t.params["x"] for t in run(study, batch, [0.1, "objective", "machine"])]
    assert known(Slot(K, 0)) == ([], [old])
    assert known(Slot(K + 2, 0)) == (x[:2], [old])  # not from the draw that was lost there
    assert known(Slot(K + 3, 0)) == (x, [old])
    batch = next_of(study)
    assert batch.slots == (Slot(K + 2, 0), Slot(K + 3, 0))
    again, last = (t.params["x"] for t in run(study, batch, [0.2, "objective"]))
    assert again == x[2]
    batch = next_of(study)
    assert batch.slots == (Slot(K + 1, 1), Slot(K + 3, 1))
    assert known(Slot(K + 1, 1)) == ([x[0], x[2]], [old, x[1], last])
    second = run(study, batch, [0.3])[0].params["x"]
    assert known(Slot(K + 1, 1)) == ([x[0], x[2]], [old, x[1], last])
    assert known(Slot(K + 3, 1)) == ([x[0], x[2], second], [old, x[1], last])
    monkeypatch.setattr(_slots, "MAX_PENDING", 2)
    assert known(Slot(K + 3, 1)) == ([x[0], x[2], second], [x[1], last])


def test_pruned_draws_and_draws_of_somebody_else_are_no_members() -> None:
    study = new_study()
    batch = next_of(study)
    trials = [draw(study, batch, slot) for slot in batch.slots]
    for n, trial in enumerate(trials):
        assert trial is not None
        trial.suggest_float("x", 0, 1)
        study.tell(trial, None if n == 1 else 0.0, TrialState.PRUNED if n == 1 else None)
    assert [d.record.slot for d in next_of(study).members] == [0, 2, 3]
    other = IntDistribution(1, 9)
    run(study, next_of(study), [0.0, 0.0, "objective", 0.0])
    batch = next_of(study)
    again = draw(study, batch, batch.slots[0])
    assert again is not None
    study._storage.set_trial_param(again._trial_id, "y", 3, other)  # it never asks for x
    study.tell(again, 0.0)
    batch = next_of(study)
    assert batch.generation == 2
    assert [d.record.slot for d in batch.members] == [K, K + 1, K + 3]


@pytest.mark.filterwarnings("ignore:The parameter 'y'", "ignore:The last 4 completed")
@pytest.mark.parametrize("asks", [True, False])
def test_a_generation_of_which_nothing_can_be_used_says_why(asks: bool) -> None:
    study = new_study()
    if asks:
        run(study, next_of(study), [0.0] * K)
    batch = next_of(study)
    for slot in batch.slots:
        trial = draw(study, batch, slot)
        assert trial is not None
        if asks:
            trial.suggest_float("y", 0, 1)
        study.tell(trial, 0.0)
    reason = (
        r"generation 1 can.*Trial 7 cannot, because it has none of the parameters \['x'\]"
        if asks
        else "generation 0 can.*Trial 3 cannot, because they share no parameter that was drawn"
    )
    with pytest.raises(ValueError, match=reason):
        next_of(study)
