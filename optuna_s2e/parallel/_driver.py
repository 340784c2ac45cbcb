"""The driver of a search by batches: asks for K trials, has them run anywhere, and tells K.

The driver keeps nothing. In each round it reads from the storage what is to be drawn next (for
`S2ESampler`: the slots of the open generation, slots.py). So a driver that died is followed by
another one that goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from optuna_s2e import _optuna
from optuna_s2e._attributes import (
    DRAW_KEY,
    DRIVER_KEY,
    FAILURE_KEY,
    FIXED_PARAMS_KEY,
    REPEATS_KEY,
    SEED_KEY,
)
from optuna_s2e.distributions import KeyedSampler
from optuna_s2e.history import Record, Slot, own_record
from optuna_s2e.parallel._detached import Outcome, Task, detach
from optuna_s2e.parallel._executors import Lost, Results
from optuna_s2e.parallel._lease import Lease, LeaseLostError
from optuna_s2e.parallel._sampler_change import sampler_mark
from optuna_s2e.parallel._signals import Orders
from optuna_s2e.parallel._slots import Batch, next_batch, plan_slot
from optuna_s2e.sampler import Request, S2ESampler, engine_of

Callback = Callable[[Study, FrozenTrial], None]

_MAX_REASON = 500  # characters

_logger = optuna.logging.get_logger(f"optuna.{__name__}")  # obeys Optuna's verbosity


class Limits(NamedTuple):
    """When a call of `optimize_batch` ends.

    Attributes:
        n_trials: Trials that come to an end in this call; None for no limit.
        deadline: `time.monotonic()` after which no more trials begin; None for no limit.
        max_attempts: Points that a slot may fail with before it counts as the worst.
        catch: Exceptions of the objective that cost one trial only.
    """

    n_trials: int | None
    deadline: float | None
    max_attempts: int
    catch: tuple[type[Exception], ...]


class _Place(NamedTuple):
    """A running trial of the batch, and its slot."""

    trial: Trial
    slot: Slot | None


class Driver:
    """One call of `optimize_batch`: asks for K trials, has them run, and tells K.

    Args:
        study: The study.
        run: Runs tasks: a function of executors.py with its first arguments given.
        orders: What signals tell this process to do.
        lease: The right to drive the study, held while the driver runs.
        limits: When the call ends.
        batch_size: K for samplers other than `S2ESampler`.
        seed_of_number: Returns the seed of an objective that seeds itself by a trial's number;
            None if the objective does not.
        replaceable: Whether a broken executor is made anew.
        bar: A progress bar of tqdm.
        callbacks: Called with (study, trial) after each trial.

    Attributes:
        n_told: How many trials came back.
        leaves_none_running: False if an interruption kept it from failing trials that ran.
    """

    def __init__(
        self,
        study: Study,
        run: Callable[[Iterable[Task], Callable[[], bool]], Results],
        orders: Orders,
        lease: Lease,
        limits: Limits,
        *,
        batch_size: int | None,
        seed_of_number: Callable[[int], int] | None,
        replaceable: bool,
        bar: Any,
        callbacks: tuple[Callback, ...],
    ) -> None:
        self._study, self._run, self._orders = study, run, orders
        self.lease, self.bar, self.n_told = lease, bar, 0
        self.leaves_none_running = True
        self._limits, self._left, self._callbacks = limits, limits.n_trials, callbacks
        self._seed_of_number, self._replaceable = seed_of_number, replaceable
        sampler = study.sampler if isinstance(study.sampler, S2ESampler) else None
        self._engine = None if sampler is None else engine_of(sampler)
        self._outside_theta = None if sampler is None else sampler.independent_sampler
        self._size = batch_size if sampler is None else sampler.population_size
        self._places: dict[int, _Place] = {}  # by the identifier of the trial
        self._failed_in_a_row = self._lost_in_a_row = 0

    def run(self) -> None:
        """Run batches until a limit is reached. Leave no trial running, whatever happens."""
        self._fail_running("The driver of its batch died.", of_others=True)
        try:
            while self._left != 0 and not self._stopped():
                self._run_batch()
        except LeaseLostError as lost:
            raise RuntimeError(str(lost)) from None
        finally:
            self.leaves_none_running = False
            self._fail_running("The driver of its batch ended before it did.")
            self.leaves_none_running = True

    def _stopped(self) -> bool:
        """Say whether no more trials are to begin; raise if this driver must not go on at all."""
        self._orders.check()
        self.lease.confirm()
        deadline = self._limits.deadline
        late = deadline is not None and time.monotonic() >= deadline
        return late or _optuna.is_stopped(self._study)

    def _run_batch(self) -> None:
        came_back = False
        lost: Lost | None = None
        failed: Outcome | None = None
        uncaught: Outcome | None = None
        with contextlib.closing(self._run(self._ask(), self._stopped)) as results:
            for task, result in results:
                place = self._places.pop(task.trial_id)
                if isinstance(result, Outcome):
                    came_back = self._tell(place, result) or came_back
                    failed = failed if result.failure is None else result
                    if not self._is_caught(result):
                        uncaught = uncaught or result
                else:
                    self._lose(place, result.reason)
                    lost = result if result.error is not None else lost
        if uncaught is not None:
            raise RuntimeError(f"The objective raised {uncaught.failure}") from uncaught.error
        assert self._size is not None
        if failed is not None and self._failed_in_a_row >= self._size * self._limits.max_attempts:
            raise RuntimeError(
                f"{self._failed_in_a_row} trials in a row have failed; the last one: "
                f"{str(failed.failure).rstrip('.')}. Mend the objective and call optimize_batch "
                "again: it goes on where it stopped."
            ) from failed.error
        self._lost_in_a_row = 0 if came_back or lost is None else self._lost_in_a_row + 1
        if lost is not None:
            self._check_lost(lost)

    def _check_lost(self, lost: Lost) -> None:
        """Give up if workers die and die.

        Raises:
            RuntimeError: If so.
        """
        if lost.is_fatal and not self._replaceable:
            raise RuntimeError(
                "The executor is broken because a worker died. Call optimize_batch again: it goes "
                "on where it stopped. Pass a function that makes the executor, and it goes on by "
                "itself: executor=lambda: ProcessPoolExecutor(4)."
            ) from lost.error
        if self._lost_in_a_row >= self._limits.max_attempts:
            raise RuntimeError(
                f"{self._lost_in_a_row} batches in a row returned nothing. The last trial: "
                f"{lost.reason}"
            ) from lost.error

    # --- asking ---

    def _ask(self) -> Iterator[Task]:
        """Yield the trials of the next batch: enqueued ones, then slots (S2E) or new ones."""
        batch = None
        if self._engine is not None:
            batch = next_batch(self._engine, self._study, self._limits.max_attempts)
        size = batch.size if batch is not None else self._size
        assert size is not None
        room = size if self._left is None else min(size, self._left)
        past = self._past(batch) if batch is not None else None
        mark = (DRIVER_KEY, self.lease.driver)
        while room > 0 and (trial_id := _optuna.pop_waiting(self._study, *mark)) is not None:
            self._check()
            yield self._begin(trial_id, None, past)
            room -= 1
        slots = batch.slots if batch is not None else [None] * room
        for slot in slots[:room]:
            self._check()
            try:
                trial_id = self._new_trial(slot)
                if slot is not None and batch is not None and self._engine is not None:
                    trial = _optuna.frozen(self._study, trial_id)
                    request = Request(trial, slot=slot, plan=partial(plan_slot, batch, slot))
                    if self._engine.next(self._study, request) is None:
                        self._fail(trial, "machine", "Another process opened the next generation.")
                        return
                task = self._begin(trial_id, slot, past)
            except UpdateFinishedTrialError:
                continue  # another driver has failed it as that of a dead one
            yield task

    def _new_trial(self, slot: Slot | None) -> int:
        attrs = {} if slot is None else {SEED_KEY: self._seed_of(slot)}
        marks = {DRIVER_KEY: self.lease.driver, **sampler_mark(self._study.sampler)}
        return _optuna.new_trial(self._study, marks, attrs)

    def _seed_of(self, slot: Slot) -> int:
        assert self._engine is not None
        if self._seed_of_number is None:
            return self._engine.seed_of_slot(self._study, slot)
        return int(self._seed_of_number(slot.key))

    def _begin(self, trial_id: int, slot: Slot | None, past: list[FrozenTrial] | None) -> Task:
        self.lease.watch(trial_id)
        trial = _optuna.trial_of(self._study, trial_id)
        rest = self._sampler_outside_theta(trial_id)
        if past is None or not isinstance(rest, KeyedSampler):
            past = _optuna.all_trials(self._study)  # it samples from what it sees
        self._places[trial_id] = _Place(trial, slot)
        return detach(trial, past, rest, self._check)

    def _check(self) -> None:
        """Raise if no trial of this driver is to go on."""
        self._orders.check()
        self.lease.check()

    def _sampler_outside_theta(self, trial_id: int) -> BaseSampler:
        """Return what draws the parameters outside of theta; keyed samplers need no study."""
        if self._engine is None:
            return self._study.sampler
        trial = _optuna.frozen(self._study, trial_id)
        record = own_record(trial.system_attrs, trial)
        if record is not None and record.generation > 0 and self._outside_theta is not None:
            return self._outside_theta
        return KeyedSampler(self._engine.key(self._study, trial, record))

    def _past(self, batch: Batch) -> list[FrozenTrial]:
        """Return the trials of earlier generations, which a pruner compares with."""
        if isinstance(self._study.pruner, NopPruner):
            return []
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        reported = [
            t
            for t in self._study.get_trials(deepcopy=False, states=states)
            if t.intermediate_values
        ]
        records = [Record.from_attr(t.system_attrs.get(DRAW_KEY)) for t in reported]
        return [
            _without_attributes(t)
            for t, r in zip(reported, records, strict=True)
            if r is None or r.slot is None or r.generation < batch.generation
        ]

    # --- telling ---

    def _tell(self, place: _Place, outcome: Outcome) -> bool:
        """Write the outcome of a trial. Return False if someone else failed it meanwhile."""
        study, trial_id = self._study, _optuna.trial_id(place.trial)
        storage = _optuna.storage_of(study)
        if self._engine is not None:
            self._check_space(trial_id, outcome)
        try:
            try:
                for name, (value, distribution) in outcome.params.items():
                    storage.set_trial_param(trial_id, name, value, distribution)
            except ValueError as error:  # as `suggest` would raise it
                outcome = replace(
                    outcome, values=None, failure=f"ValueError: {error}", error=error
                )
            for key, value in outcome.user_attrs.items():
                storage.set_trial_user_attr(trial_id, key, value)
            for key, value in outcome.system_attrs.items():
                storage.set_trial_system_attr(trial_id, key, value)
            for step, value in outcome.intermediate_values.items():
                storage.set_trial_intermediate_value(trial_id, step, value)
            if outcome.failure is not None:
                caught = self._is_caught(outcome)
                self._fail(
                    _optuna.frozen(study, trial_id),
                    "objective" if caught else "error",
                    outcome.failure,
                )
            elif outcome.pruned:
                study.tell(place.trial, state=TrialState.PRUNED)
            else:
                study.tell(place.trial, outcome.values)
        except UpdateFinishedTrialError:
            _logger.warning(f"Trial {place.trial.number} was finished by someone else.")
            return False
        if outcome.stop:
            study.stop()
        self._after(place, outcome)
        return True

    def _is_caught(self, outcome: Outcome) -> bool:
        return outcome.error is None or isinstance(outcome.error, self._limits.catch)

    def _after(self, place: _Place, outcome: Outcome) -> None:
        """Count a trial that came back, show it, and call the callbacks."""
        trial = _optuna.frozen(self._study, _optuna.trial_id(place.trial))
        self.lease.alive.discard(_optuna.trial_id(place.trial))
        if outcome.failure is None:
            _logger.info(f"Trial {trial.number} finished with {trial.values} at {trial.params}.")
        self.n_told += 1
        self._failed_in_a_row = 0 if outcome.failure is None else self._failed_in_a_row + 1
        again = place.slot is not None and place.slot.attempt + 1 != self._limits.max_attempts
        if outcome.failure is None or not again:
            self._left = None if self._left is None else max(0, self._left - 1)
            self.bar.update(1)
        if self.bar.disable is False and len(self._study.directions) == 1:
            with contextlib.suppress(ValueError):  # nothing is complete yet
                best = self._study.best_trial
                self.bar.set_description(f"Best trial: {best.number}. Value: {best.value:.6g}")
        for callback in self._callbacks:
            callback(self._study, copy.deepcopy(trial))

    def _check_space(self, trial_id: int, outcome: Outcome) -> None:
        assert self._engine is not None
        trial = copy.deepcopy(_optuna.frozen(self._study, trial_id))
        for name, (value, distribution) in outcome.params.items():
            trial.distributions[name] = distribution
            trial.params[name] = distribution.to_external_repr(value)
        self._engine.state(self._study, trial)  # refuses another schedule space

    def _lose(self, place: _Place, reason: str) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            trial = _optuna.frozen(self._study, _optuna.trial_id(place.trial))
            self._fail(trial, "machine", reason)
        self.lease.alive.discard(_optuna.trial_id(place.trial))

    def _fail(
        self, trial: FrozenTrial, by: str, reason: str, level: int = logging.WARNING
    ) -> None:
        """Record why a trial fails, enqueue its point again if a machine lost it, and fail it.

        In this order: a driver that dies in between leaves it running, and the next one goes on.
        """
        _logger.log(level, f"Trial {trial.number} failed. {reason}")
        mark = {"by": by, "reason": reason[:_MAX_REASON]}
        _optuna.set_system_attr(self._study, trial, FAILURE_KEY, mark)
        if by == "machine":
            self._enqueue_again(trial)
        self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        """Enqueue the fixed parameters of a trial, if it has any, unless that was done before."""
        fixed = trial.system_attrs.get(FIXED_PARAMS_KEY)
        others = _optuna.all_trials(self._study) if fixed else []
        if fixed and all(t.system_attrs.get(REPEATS_KEY) != trial.number for t in others):
            attrs = {FIXED_PARAMS_KEY: fixed, REPEATS_KEY: trial.number}
            waiting = create_trial(
                state=TrialState.WAITING, user_attrs=trial.user_attrs, system_attrs=attrs
            )
            self._study.add_trial(waiting)

    def _fail_running(self, reason: str, *, of_others: bool = False) -> None:
        """Fail the running trials of this driver, or those of other drivers, which are dead."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            driver = trial.system_attrs.get(DRIVER_KEY)
            if driver is not None and (driver != self.lease.driver) == of_others:
                mark = trial.system_attrs.get(FAILURE_KEY)
                with contextlib.suppress(UpdateFinishedTrialError):
                    if mark is not None:  # its driver died while failing it
                        if mark.get("by") == "machine":
                            self._enqueue_again(trial)
                        self._study.tell(trial.number, state=TrialState.FAIL)
                    else:
                        level = logging.WARNING if of_others else logging.INFO
                        self._fail(trial, "machine", reason, level)


def _without_attributes(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy with what pruners read of a trial: it travels to every worker."""
    bare = copy.copy(trial)
    bare.params, bare.distributions, bare.user_attrs = {}, {}, {}
    numbers = (int, float)  # a pruner's marks: the rungs of successive halving
    bare.system_attrs = {k: v for k, v in trial.system_attrs.items() if isinstance(v, numbers)}
    return bare
