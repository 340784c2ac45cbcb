"""The draws of a search by batches: slots in place of trial numbers (`slots.py`, `batch.py`)."""

from __future__ import annotations

from dataclasses import replace

from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_s2e import _optuna
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.distributions import Key, KeyedSampler, keyed_rng
from optuna_s2e.history import Chain, Record, own_record
from optuna_s2e.parallel._slots import Batch, Slot, find_batch, known_before
from optuna_s2e.sampler import Drawing, Request


def next_batch(drawing: Drawing, study: Study, max_attempts: int) -> Batch:
    """Return the slots that are to be drawn next.

    Raises:
        ValueError: As when sampling, or if a generation cannot be closed.
    """
    with drawing.lock:
        state = drawing.state(study)
        own = drawing.settings_of(study, state)  # refuses others
        in_force = drawing.ledger(study).settings_in_force(state.chain) or own
        return find_batch(
            drawing.ledger(study),
            state,
            in_force["population_size"],
            drawing.population_size,
            max_attempts,
        )


def draw_slot(
    drawing: Drawing, study: Study, trial: FrozenTrial, batch: Batch, slot: Slot
) -> bool:
    """Record the draw of a slot on a new trial, whose parameters then follow from it.

    The first draw of a generation opens it.

    Returns:
        False if another process has opened a later generation meanwhile.
    """
    seed = drawing.seed_of(study)
    key = Key(seed, slot.key)
    with drawing.lock:
        state, ledger = drawing.state(study), drawing.ledger(study)
        head = state.chain.head if state.chain is not None else None
        if head is None and batch.members:  # generation 1
            state = state._replace(chain=Chain(batch.space))
        chain, settings = state.chain, drawing.settings_of(study, state)
        open_generation = head.generation if head is not None else 0
        if open_generation > batch.generation:
            return False
        if chain is None or batch.generation == 0:
            record = Record(trial.number, 0, seed=seed, settings=settings)
        elif head is not None and open_generation == batch.generation:
            known = known_before(ledger, chain, head, batch, slot)
            record = drawing.join(study, chain, head, Request(trial.number, key, *known))
        else:
            known = known_before(ledger, chain, None, batch, slot)
            request = Request(trial.number, key, *known)
            record = drawing.open(study, chain, batch.members, settings, request)
    record = replace(record, slot=slot.number, attempt=slot.attempt)
    _optuna.set_system_attr(study, trial, DRAW_KEY, record.to_attr())
    return True


def check_space(drawing: Drawing, study: Study, trial: FrozenTrial) -> None:
    """Refuse what a trial of a batch was searched in, if the study has another space.

    Raises:
        ValueError: As when sampling.
    """
    with drawing.lock:
        drawing.state(study, trial)


def seed_of_slot(drawing: Drawing, study: Study, slot: Slot) -> int:
    """Return a seed for the objective in this slot, in [0, 2^32)."""
    return int(keyed_rng(drawing.seed_of(study), 2, slot.key).integers(2**32))


def sampler_outside_theta(
    drawing: Drawing, study: Study, trial: FrozenTrial, otherwise: BaseSampler | None
) -> BaseSampler:
    """Return what draws the parameters outside of theta for one trial, without its study.

    Args:
        drawing: Of the sampler.
        study: The study.
        trial: A trial of a batch.
        otherwise: What the user gave for that, if anything: it needs the study.
    """
    record = own_record(_optuna.system_attrs(study, trial), trial)
    if record is None:  # enqueued: no draw
        return KeyedSampler(Key(drawing.seed_of(study), trial.number))
    if record.generation > 0 and otherwise is not None:
        return otherwise
    seed = drawing.seed_of(study) if record.seed is None else record.seed
    return KeyedSampler(Key(seed, record.key))
