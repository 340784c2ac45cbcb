r"""Which draws a search by batches needs next, read from its records.

Notation
    slot        n = m K + k, place k in generation m; its draws are keyed by (seed, m, n, attempt)
    settled     a slot with a completed or pruned draw, or with `max_attempts` failed ones

A generation closes when its K slots are settled. Its members are the draws of the slots, in the
order of the slots. So it does not matter which worker ran which trial, when, and which workers
died: a draw that a machine lost is drawn again under the same key. Only a failure of the objective
moves a slot to its next attempt, which is another point. A slot without attempts left counts as
the worst among the draws of the update. If no slot has any left, nothing is known, and all slots
make one more attempt.

The default estimator also learns from trials that are no draws. A slot whose trial got fixed
parameters, as the first one of a space that knows the noise rate, is settled by that trial, or by
the last of `max_attempts` such trials that failed. No generation opens while an enqueued trial
waits.

All slots make an attempt before any slot makes the next one. So the draws that a draw knows, and
keeps away from, are the same whatever ran or died meanwhile (`known_before`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from optuna.study import Study
from optuna.trial import TrialState

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history import (
    MAX_PENDING,
    Chain,
    Draw,
    Ledger,
    Record,
    Slot,
    State,
    failed_by_objective,
    locate,
    space_of,
)
from optuna_s2e.sampler import Engine, Plan

FILLING = (TrialState.COMPLETE, TrialState.PRUNED)  # states of a draw that settles its slot


class Batch(NamedTuple):
    """What to draw next.

    Attributes:
        generation: m, the generation of these draws.
        slots: The slots that are to be drawn, in order.
        size: K, the number of slots in the generation.
        space: The parameters that theta describes; none in generation 0.
        members: The draws that the update uses, if the generation is not open yet.
    """

    generation: int
    slots: tuple[Slot, ...]
    size: int
    space: SearchSpace
    members: tuple[Draw, ...] = ()


def find_batch(
    ledger: Ledger,
    state: State,
    size: int,
    next_size: int,
    max_attempts: int,
    with_others: bool = False,
) -> Batch:
    """Return the slots of the open generation that are not settled, or all of the next one.

    Args:
        ledger: The records of the study.
        state: Where the search stands.
        size: K of the open generation.
        next_size: K of the next generation.
        max_attempts: Number of draws of one slot that may fail, at least 1.
        with_others: Whether trials that are no draws are known, too.

    Raises:
        ValueError: If all slots are settled and none of their values can be used.
    """
    chain = state.chain
    head = chain.head if chain is not None else None
    generation = head.generation if head is not None else 0
    given = ledger.others.given if with_others and generation == 0 and size > 1 else ()
    tries = {
        number: _draws_of_slot(ledger, number, generation, head)
        for number in range(generation * size, (generation + 1) * size)
    }
    for number in given:
        if not any(d.trial.state in FILLING for d in tries.get(number, ())):
            tries.pop(number, None)
    fixed = ledger.others.failed if with_others and generation == 0 else {}
    failures = {
        number: max(_next_attempt(draws), fixed.get(number, 0)) for number, draws in tries.items()
    }
    enough = max(max_attempts, min(failures.values()) + 1)  # one more, if all slots have failed
    found = {number: _settled(draws, enough) for number, draws in tries.items()}
    unsettled = [  # a suggested schedule has no draw: where it failed often enough, none is left
        Slot(number, failures[number])
        for number, d in found.items()
        if d is None and failures[number] < enough
    ]
    attempt = min((slot.attempt for slot in unsettled), default=0)
    pending = [slot for slot in unsettled if slot.attempt == attempt]
    settled = [d for d in found.values() if d is not None]
    space = chain.space if chain is not None and head is not None else SearchSpace({})
    members: Sequence[Draw] = ()
    if not pending:
        space, members = _members(ledger, settled, chain if head is not None else None)
    elif not any(tries.values()) and chain is not None and state.members(size):
        space, members = chain.space, state.members(size)  # left by workers of study.optimize
    if with_others and ledger.has_waiting and not pending:
        return Batch(generation, (), size, space)
    if not members:
        return Batch(generation, tuple(pending), size, space)
    first = (generation + 1) * next_size
    slots = tuple(Slot(n, 0) for n in range(first, first + next_size))
    return Batch(generation + 1, slots, next_size, space, tuple(members))


def next_batch(engine: Engine, study: Study, max_attempts: int) -> Batch:
    """Return the slots that are to be drawn next.

    Args:
        engine: The engine of the study's sampler.
        study: The study.
        max_attempts: Draws of one slot that may fail, at least 1.

    Raises:
        ValueError: As when sampling, or if a generation cannot be closed.
    """
    with engine.reading(study) as (ledger, state):
        in_force = ledger.settings_in_force(state.chain) or engine.settings
        size = in_force["population_size"]
        return find_batch(
            ledger,
            state,
            size,
            engine.population_size,
            max_attempts,
            in_force["estimator"] == "surrogate",
        )


def plan_slot(
    batch: Batch, slot: Slot, ledger: Ledger, state: State, population_size: int
) -> Plan | None:
    """Plan the draw of a slot; the first draw of a generation opens it.

    Args:
        batch: The batch of the slot.
        slot: The slot that is to be drawn.
        ledger: What the study's trials say.
        state: Where the search stands.
        population_size: K; the batch knows its own.

    Returns:
        None if another process has opened a later generation meanwhile.
    """
    head = state.chain.head if state.chain is not None else None
    open_generation = head.generation if head is not None else 0
    if open_generation > batch.generation:
        return None
    # generation 1 is opened on the space that its members share
    chain = Chain(batch.space) if head is None and batch.members else state.chain
    if chain is None or batch.generation == 0:
        return Plan(None)
    if open_generation < batch.generation:
        return Plan(chain, batch.members, *known_before(ledger, chain, None, batch, slot))
    return Plan(chain, (), *known_before(ledger, chain, head, batch, slot))


def known_before(
    ledger: Ledger, chain: Chain, head: Record | None, batch: Batch, slot: Slot
) -> tuple[FloatArray, FloatArray]:
    """Return the draws that a draw of a slot keeps away from.

    They are the same whatever ran or died meanwhile.

    Args:
        ledger: What the study's trials say.
        chain: The chain that the generation belongs to, or continues.
        head: The opener of the slot's generation; None if this draw is to open it.
        batch: The batch of the slot.
        slot: The slot that is to be drawn.

    Returns:
        x (P, d) of the earlier draws of the generation, attempt by attempt and slot by slot,
        without failures; x (F, d) of the newest `MAX_PENDING` draws that the objective failed in
        earlier generations and at earlier attempts.
    """
    first = batch.generation * batch.size
    end = slot.number if slot.attempt == 0 else first + batch.size
    pending: dict[tuple[int, int, int], Draw] = {}
    failed: dict[tuple[int, int, int], Draw] = {}
    for draw in ledger.failures():
        if draw.record.generation < batch.generation and failed_by_objective(draw.trial):
            failed.setdefault(_place(draw), draw)
    for number in range(first, end):
        for draw in _draws_of_slot(ledger, number, batch.generation, head):
            if draw.record.attempt < slot.attempt and failed_by_objective(draw.trial):
                failed.setdefault(_place(draw), draw)
            elif (draw.record.attempt, number) < (slot.attempt, slot.number):
                pending.setdefault(_place(draw), draw)
    places = sorted(pending.keys() - failed.keys())
    x = [c for c in (pending[p].record.x for p in places) if c is not None]
    running = np.array(x, dtype=np.float64).reshape(-1, len(chain.space.names))
    known = [failed[p] for p in sorted(failed)[-MAX_PENDING:]]
    return running, ledger.located(chain.space, known)[1]


def _place(draw: Draw) -> tuple[int, int, int]:
    """Return the same for a draw and for its repetition, after a machine had lost it."""
    slot = draw.record.slot
    return draw.record.generation, draw.record.attempt, -1 if slot is None else slot


def _draws_of_slot(
    ledger: Ledger, number: int, generation: int, head: Record | None
) -> list[Draw]:
    """Return the draws of a slot of the open generation, by trial number.

    Two drivers may have opened the generation twice. Draws from an equal theta belong to it.
    """
    found = []
    for _, draw in sorted(ledger.slots.get(number, {}).items()):
        record = draw.record
        if head is None:
            mine = record.generation == 0 and record.trial not in ledger.used
        else:
            opener = ledger.openers.get(record.opener) if record.opener is not None else None
            mine = (
                record.generation == generation
                and opener is not None
                and (opener.theta, opener.space) == (head.theta, head.space)
            )
        if mine:
            found.append(draw)
    return found


def _next_attempt(draws: Sequence[Draw]) -> int:
    failed = [d.record.attempt for d in draws if failed_by_objective(d.trial)]
    return max(failed, default=-1) + 1


def _settled(draws: Sequence[Draw], max_attempts: int) -> Draw | None:
    """Return the draw that settles a slot: one with a value, or the last failure."""
    done = [d for d in draws if d.trial.state in FILLING]
    if done:
        return min(done, key=lambda d: (d.record.attempt, d.record.trial))
    failed = [d for d in draws if failed_by_objective(d.trial)]
    if not failed:
        return None
    last = max(failed, key=lambda d: (d.record.attempt, -d.record.trial))
    return last if last.record.attempt + 1 >= max_attempts else None


def _members(
    ledger: Ledger, settled: Sequence[Draw], chain: Chain | None
) -> tuple[SearchSpace, list[Draw]]:
    """Return the space and the members of the next generation. Failed draws count as worst."""
    counted = [d for d in settled if ledger.rules.counts(d.trial)]
    generation = settled[0].record.generation
    if not counted:
        raise ValueError(
            f"All trials of generation {generation} were pruned or failed, so no value can move "
            "theta. Pass consider_pruned_trials=True, or use another pruner."
        )
    space = chain.space if chain is not None else space_of(counted)
    usable = [
        d
        for d in settled
        if (d in counted or failed_by_objective(d.trial))
        and ledger.coordinates(space, d) is not None
    ]
    if not space.names or not any(d in counted for d in usable):
        reason = locate(counted[-1], space, ledger.openers) if space.names else (
            "they share no parameter that was drawn"
        )  # fmt: skip
        raise ValueError(
            f"None of the completed trials of generation {generation} can move theta. Trial "
            f"{counted[-1].trial.number} cannot, because {reason}. Undo the change, or use "
            "another study."
        )
    return space, usable
