"""Synchronous batches: one driver asks for K trials, has them run anywhere, and tells K.

The driver keeps nothing: in each round it reads from the storage what is to be drawn next (for
`S2ESampler`: the slots of the open generation, `slots.py`), so that a driver that died is
followed by another that goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

from optuna_s2e import _optuna
from optuna_s2e._attributes import DRAW_KEY, DRIVER_KEY, FAILURE_KEY, FIXED_PARAMS_KEY, SEED_KEY
from optuna_s2e.distributions import KeyedSampler
from optuna_s2e.history import MAX_ATTEMPTS, MAX_MEMBERS, Record
from optuna_s2e.parallel import _detached as offline
from optuna_s2e.parallel import _slot_draws as slot_draws
from optuna_s2e.parallel._detached import Objective, Outcome, Task
from optuna_s2e.parallel._executors import AllTogether, Elsewhere, Executor, Here, Lost, Runner
from optuna_s2e.parallel._lease import Lease
from optuna_s2e.parallel._slots import Batch, Slot
from optuna_s2e.sampler import S2ESampler

Callback = Callable[[Study, FrozenTrial], None]

_MAX_REASON = 500  # characters

_logger = optuna.logging.get_logger(f"optuna.{__name__}")  # obeys Optuna's verbosity


def optimize_batch(
    study: Study,
    objective: Objective,
    n_trials: int | None = None,
    *,
    batch_size: int | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
    timeout: float | None = None,
    catch: Iterable[type[Exception]] | type[Exception] = (Exception,),
    callbacks: Iterable[Callback] | None = None,
    max_attempts: int = 3,
    show_progress_bar: bool = False,
) -> None:
    """Optimise a study in batches of K trials, which run in any order, anywhere.

    With `S2ESampler`, a batch is a generation, and every theta is the same, bit for bit, for any
    executor, any number of workers, any order of completion, and after workers or this process
    were killed at any moment and the call was made again; the objective has to depend on its
    parameters and on `trial.user_attrs["seed"]` only. What each death costs, and what an
    objective may assume where it runs, is in docs/parallel.md.

    Args:
        study: A study with any sampler, on any storage. One driver at a time: another one is
            refused while this one lives.
        objective: As for `study.optimize`; it needs no access to the storage. If it has a method
            `batch(trials)` that returns a value or an exception for each, and there is no
            executor, the K trials run in one call of that.
        n_trials: Trials of this call that come to an end; None: until `timeout` or `study.stop()`.
        batch_size: Trials in a batch, at most 100,000, for other samplers than `S2ESampler`,
            which knows its K.
        executor: Where trials run: None, one after the other in this process; or anything with
            `submit(function, *args)` that returns a future: executors of `concurrent.futures`,
            loky and submitit, `dask.distributed.Client`, `RayExecutor`; or a function that makes
            one, which is called again when workers that died have broken it.
        timeout: Seconds after which no more trials begin.
        catch: Exceptions of the objective that cost one trial. Any other ends the call when the
            batch is done. Unlike in `study.optimize`, the default is all.
        callbacks: Called in this process with (study, trial) after each trial.
        max_attempts: Points that a slot of S2E may fail with (an exception, NaN) before it counts
            as the worst of its generation, in [1, 1000]. As many times K failures in a row, or as
            many batches in a row of which nothing comes back, end the call.
        show_progress_bar: Whether to show one.

    Raises:
        ValueError: If an argument is out of range, or as `S2ESampler` when sampling.
        RuntimeError: If the study has another driver, if nothing but failures comes back, or if
            the objective raised what `catch` does not name.

    Example:
        >>> import optuna
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from optuna_s2e import S2ESampler, optimize_batch
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0))
        >>> def parabola(trial):
        ...     return trial.suggest_float("x", -1, 1) ** 2
        >>> with ThreadPoolExecutor(4) as pool:
        ...     optimize_batch(study, parabola, n_trials=20, executor=pool)
        >>> len(study.trials)
        20
    """
    caught = (catch,) if isinstance(catch, type) else tuple(catch)
    _check_arguments(study, n_trials, batch_size, max_attempts)
    runner: Here[_Place] | AllTogether[_Place] | Elsewhere[_Place]
    if executor is not None:
        runner = Elsewhere(objective, executor)
    elif hasattr(objective, "batch"):
        runner = AllTogether(objective.batch)
    else:
        runner = Here(objective)
    with (
        tqdm(total=n_trials, unit="trial", disable=not show_progress_bar) as bar,
        runner if isinstance(runner, Elsewhere) else contextlib.nullcontext(),
        _optuna.optimize_loop(study),
        _sigterm_as_exit(),
        Lease(study) as lease,
    ):
        driver = _Driver(study, objective, runner, lease, bar, batch_size, max_attempts, caught)
        driver.callbacks = tuple(callbacks or ())
        driver.left = n_trials
        driver.deadline = None if timeout is None else time.monotonic() + timeout
        driver.run()


def _check_arguments(
    study: Study, n_trials: int | None, batch_size: int | None, max_attempts: int
) -> None:
    for name, value in {"n_trials": n_trials, "batch_size": batch_size}.items():
        if value is not None and (isinstance(value, bool) or value != int(value) or value < 1):
            raise ValueError(f"{name} must be a positive int or None, but got {value!r}.")
    if batch_size is not None and batch_size > MAX_MEMBERS:
        raise ValueError(f"batch_size must be at most {MAX_MEMBERS}, but got {batch_size!r}.")
    if not 1 <= max_attempts <= MAX_ATTEMPTS:
        raise ValueError(f"max_attempts must be in [1, {MAX_ATTEMPTS}], but got {max_attempts!r}.")
    if isinstance(study.sampler, S2ESampler):
        if batch_size not in (None, study.sampler.population_size):
            raise ValueError(
                f"batch_size must be the sampler's population_size, "
                f"{study.sampler.population_size}, but got {batch_size!r}. Leave it out."
            )
    elif batch_size is None:
        raise ValueError(
            f"batch_size must be given for {type(study.sampler).__name__}, which has no "
            "population of its own."
        )


@dataclass(frozen=True)
class _Place:
    """A trial of the batch."""

    trial: Trial
    slot: Slot | None
    task: Task


class _Driver:
    """One call of `optimize_batch`."""

    def __init__(
        self,
        study: Study,
        objective: Objective,
        runner: Runner[_Place],
        lease: Lease,
        bar: Any,
        batch_size: int | None,
        max_attempts: int,
        catch: tuple[type[Exception], ...],
    ) -> None:
        self.callbacks: tuple[Callback, ...] = ()
        self.left: int | None = None
        self.deadline: float | None = None
        self._study, self._runner, self._lease, self._bar = study, runner, lease, bar
        self._seed_of_number = getattr(objective, "trial_seed", None)
        sampler = study.sampler if isinstance(study.sampler, S2ESampler) else None
        self._drawing = None if sampler is None else sampler.drawing
        self._outside_theta = None if sampler is None else sampler.independent_sampler
        self._size = batch_size if sampler is None else sampler.population_size
        self._max_attempts, self._catch = max_attempts, catch
        self._failed_in_a_row = self._lost_in_a_row = 0

    def run(self) -> None:
        """Run batches until the end; leave no trial running, whatever happens."""
        self._fail_running("The driver of its batch died.", of_others=True)
        try:
            while self.left != 0 and not self._stopped():
                self._lease.check()
                self._run_batch()
        finally:
            self._fail_running("The driver of its batch ended before it did.")

    def _stopped(self) -> bool:
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or _optuna.is_stopped(self._study)

    def _run_batch(self) -> None:
        came_back = False
        lost: Lost | None = None
        failed: Outcome | None = None
        uncaught: Outcome | None = None
        with contextlib.closing(self._runner(self._ask(), self._stopped)) as results:
            for place, result in results:
                if isinstance(result, Outcome):
                    came_back = self._tell(place, result) or came_back
                    failed = failed if result.failure is None else result
                    if result.error is not None and not isinstance(result.error, self._catch):
                        uncaught = uncaught or result
                else:
                    self._lose(place, result.reason)
                    lost = result if result.error is not None else lost
        if uncaught is not None:
            raise RuntimeError(f"The objective raised {uncaught.failure}") from uncaught.error
        assert self._size is not None
        if failed is not None and self._failed_in_a_row >= self._size * self._max_attempts:
            raise RuntimeError(
                f"{self._failed_in_a_row} trials in a row have failed; the last one: "
                f"{failed.failure} Mend the objective and call optimize_batch again: it goes on "
                "where it stopped."
            ) from failed.error
        self._lost_in_a_row = 0 if came_back or lost is None else self._lost_in_a_row + 1
        if lost is not None:
            self._check_lost(lost)

    def _check_lost(self, lost: Lost) -> None:
        """Give up if workers die and die.

        Raises:
            RuntimeError: If so.
        """
        if lost.is_fatal and not getattr(self._runner, "is_replaceable", False):
            raise RuntimeError(
                "The executor is broken, because a worker died. Call optimize_batch again: it "
                "goes on where it stopped. To go on by itself, it takes a function that makes "
                "the executor: executor=lambda: ProcessPoolExecutor(4)."
            ) from lost.error
        if self._lost_in_a_row >= self._max_attempts:
            raise RuntimeError(
                f"Nothing came back of {self._lost_in_a_row} batches in a row; the last trial: "
                f"{lost.reason}"
            ) from lost.error

    # --- asking ---

    def _ask(self) -> Iterator[_Place]:
        """Yield the trials of the next batch: enqueued ones, then slots (S2E) or new ones."""
        batch = None
        if self._drawing is not None:
            batch = slot_draws.next_batch(self._drawing, self._study, self._max_attempts)
        size = batch.size if batch is not None else self._size
        assert size is not None
        room = size if self.left is None else min(size, self.left)
        past = self._past(batch) if batch is not None else None
        mark = (DRIVER_KEY, self._lease.driver)
        while room > 0 and (trial_id := _optuna.pop_waiting(self._study, *mark)) is not None:
            yield self._place(trial_id, None, past)
            room -= 1
        slots = batch.slots if batch is not None else [None] * room
        for slot in slots[:room]:
            try:
                trial_id = self._new_trial(slot)
                if slot is not None and batch is not None and self._drawing is not None:
                    trial = _optuna.frozen(self._study, trial_id)
                    if not slot_draws.draw_slot(self._drawing, self._study, trial, batch, slot):
                        self._fail(trial, "machine", "Another process opened the next generation.")
                        return
                place = self._place(trial_id, slot, past)
            except UpdateFinishedTrialError:
                continue  # another driver has failed it as that of a dead one
            yield place

    def _new_trial(self, slot: Slot | None) -> int:
        attrs = {} if slot is None else {SEED_KEY: self._seed_of(slot)}
        return _optuna.new_trial(self._study, {DRIVER_KEY: self._lease.driver}, attrs)

    def _seed_of(self, slot: Slot) -> int:
        assert self._drawing is not None
        if self._seed_of_number is None:
            return slot_draws.seed_of_slot(self._drawing, self._study, slot)
        return int(self._seed_of_number(slot.key))

    def _place(self, trial_id: int, slot: Slot | None, past: list[FrozenTrial] | None) -> _Place:
        self._lease.watch(trial_id)
        trial = _optuna.trial_of(self._study, trial_id)
        rest: BaseSampler = self._study.sampler
        if self._drawing is not None:
            frozen = _optuna.frozen(self._study, trial_id)
            rest = slot_draws.sampler_outside_theta(
                self._drawing, self._study, frozen, self._outside_theta
            )
        if past is None or not isinstance(rest, KeyedSampler):
            past = _optuna.all_trials(self._study)  # it samples from what it sees
        return _Place(trial, slot, offline.detach(trial, past, rest))

    def _past(self, batch: Batch) -> list[FrozenTrial]:
        """Return the trials that a pruner compares with: those of earlier generations."""
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
        """Write what came of a trial; return False if someone else has failed it meanwhile."""
        study, trial_id = self._study, _optuna.id_of(place.trial)
        storage = _optuna.storage_of(study)
        if self._drawing is not None:
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
                caught = outcome.error is None or isinstance(outcome.error, self._catch)
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

    def _after(self, place: _Place, outcome: Outcome) -> None:
        """Count a trial that came back, show it, and call the callbacks."""
        trial = _optuna.frozen(self._study, _optuna.id_of(place.trial))
        self._lease.alive.discard(_optuna.id_of(place.trial))
        if outcome.failure is None:
            _logger.info(f"Trial {trial.number} finished with {trial.values} at {trial.params}.")
        self._failed_in_a_row = 0 if outcome.failure is None else self._failed_in_a_row + 1
        again = place.slot is not None and place.slot.attempt + 1 != self._max_attempts
        if outcome.failure is None or not again:
            self.left = None if self.left is None else max(0, self.left - 1)
            self._bar.update(1)
        if self._bar.disable is False and len(self._study.directions) == 1:
            with contextlib.suppress(ValueError):  # nothing is complete yet
                best = self._study.best_trial
                self._bar.set_description(f"Best trial: {best.number}. Value: {best.value:.6g}")
        for callback in self.callbacks:
            callback(self._study, copy.deepcopy(trial))

    def _check_space(self, trial_id: int, outcome: Outcome) -> None:
        assert self._drawing is not None
        trial = copy.deepcopy(_optuna.frozen(self._study, trial_id))
        for name, (value, distribution) in outcome.params.items():
            trial.distributions[name] = distribution
            trial.params[name] = distribution.to_external_repr(value)
        slot_draws.check_space(self._drawing, self._study, trial)

    def _lose(self, place: _Place, reason: str) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            trial = _optuna.frozen(self._study, _optuna.id_of(place.trial))
            self._fail(trial, "machine", reason)
        self._lease.alive.discard(_optuna.id_of(place.trial))

    def _fail(self, trial: FrozenTrial, by: str, reason: str) -> None:
        """Fail a trial and say whose fault it was; enqueue a point again that a machine lost."""
        _logger.warning(f"Trial {trial.number} failed. {reason}")
        mark = {"by": by, "reason": reason[:_MAX_REASON]}
        _optuna.set_system_attr(self._study, trial, FAILURE_KEY, mark)
        self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        fixed = trial.system_attrs.get(FIXED_PARAMS_KEY)
        if by == "machine" and fixed:
            self._study.enqueue_trial(fixed, user_attrs=trial.user_attrs)

    def _fail_running(self, reason: str, *, of_others: bool = False) -> None:
        """Fail the running trials of this driver, or of others, which are dead."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            driver = trial.system_attrs.get(DRIVER_KEY)
            if driver is not None and (driver != self._lease.driver) == of_others:
                marked = FAILURE_KEY in trial.system_attrs  # its driver died while failing it
                with contextlib.suppress(UpdateFinishedTrialError):
                    if marked:
                        self._study.tell(trial.number, state=TrialState.FAIL)
                    else:
                        self._fail(trial, "machine", reason)


def _without_attributes(trial: FrozenTrial) -> FrozenTrial:
    """Return what pruners read of a trial: it travels to every worker."""
    bare = copy.copy(trial)
    bare.params, bare.distributions, bare.user_attrs = {}, {}, {}
    numbers = (int, float)  # a pruner's marks: the rungs of successive halving
    bare.system_attrs = {k: v for k, v in trial.system_attrs.items() if isinstance(v, numbers)}
    return bare


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM end this process in order, as Ctrl-C does, unless someone handles it already."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def leave(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise SystemExit(128 + signum)
        signal.signal(signum, signal.SIG_DFL)  # a worker that was forked from here
        os.kill(os.getpid(), signum)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
