"""Optuna's private names, in one place.

Optuna has no public way for a sampler to read the system attributes of other trials, or to write
those of its own. The package does such things through these functions only: no other module uses
an underscored name of Optuna.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from inspect import unwrap
from types import FrameType, SimpleNamespace
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._heartbeat import BaseHeartbeat, BaseHeartbeatThread, get_heartbeat_thread
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.storages.journal import JournalFileOpenLock
from optuna.study import Study
from optuna.study._optimize import _run_trial
from optuna.study._tell import _tell_with_warning
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from optuna_s2e import _sql
from optuna_s2e._attributes import DRAW_KEY, FAILED_TRIAL_KEY, FIXED_PARAMS_KEY

__all__ = ["BaseHeartbeat"]

T = TypeVar("T")
Trials = Sequence[FrozenTrial] | Mapping[int, FrozenTrial]  # of a whole study, by number


def storage_of(study: Study) -> BaseStorage:
    """Return the storage of a study, also of the bracket studies that Hyperband makes."""
    return study._storage


def study_id(study: Study) -> int:
    """Return the identifier of a study, which is unique within its storage only."""
    return study._study_id


def trial_id(trial: FrozenTrial | Trial) -> int:
    """Return the identifier of a trial, which is unique within its storage only."""
    return trial._trial_id


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Say whether a value of any type is one of a distribution."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):  # of another type
        return False


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps all its constraints: their values are at most 0."""
    constraints = getattr(trial, "constraints", None)  # an attribute since Optuna 5
    if constraints is None:
        constraints = dict(enumerate(trial.system_attrs.get("constraints") or ()))
    return all(value <= 0 for value in constraints.values())


def completed_at(trial: FrozenTrial) -> datetime | None:
    """Return the local time at which a trial ended. None if it has not ended."""
    return _local(trial.datetime_complete)


def began_at(trial: FrozenTrial) -> datetime | None:
    """Return the local time at which a trial began. None if it has not begun."""
    return _local(trial.datetime_start)


def _local(moment: datetime | None) -> datetime | None:
    """Drop the time zone. Optuna 4.8 leaves one on times in journals that Optuna 5 wrote."""
    if moment is None or moment.tzinfo is None:
        return moment
    return moment.astimezone().replace(tzinfo=None)


def stale_trial_ids(storage: BaseStorage, study_id: int) -> list[int]:
    """Return the identifiers of running trials whose heartbeat has stopped."""
    if not isinstance(storage, BaseHeartbeat):
        return []
    return storage._get_stale_trial_ids(study_id)


def all_trials(study: Study) -> list[FrozenTrial]:
    """Return all trials in the order of their numbers, as the storage has them now.

    The objects are shared: do not change them. Optuna's snapshot per thread is bypassed. After
    several asks it would hide the records of later ones. Under Hyperband, where `get_trials`
    shows one bracket only, this returns the trials of all brackets.
    """
    return study._get_trials(deepcopy=False, use_cache=False)


def trials_for(study: Study, trial: FrozenTrial) -> Trials:
    """Return what the draw of a running trial needs of `all_trials`, with fewer statements.

    Optuna read the database just before it made the trial. One statement finds whether a trial
    has changed since: its state, its parameters, or what it records of its draw. If none has, that
    reading still holds. Parameters of the trial itself do not matter before it is drawn.
    """
    known = _in_its_database(study, partial(_known_trials, study._study_id, trial._trial_id))
    return known or all_trials(study)


def _known_trials(
    study_id: int, own: int, storage: _CachedStorage
) -> dict[int, FrozenTrial] | None:
    """Return all trials as they were read last; None if some have changed since."""
    marks = (DRAW_KEY, FIXED_PARAMS_KEY)
    with storage._lock:
        study = storage._studies.get(study_id)
        if study is None:
            return None
        ids, last = {own, *study.unfinished_trial_ids}, study.last_finished_trial_id
        for trial_id, *now in _sql.trials_since(
            storage._backend.engine, study_id, last, ids, marks
        ):
            number = storage._trial_id_to_study_id_and_number.get(trial_id, (study_id, -1))[1]
            trial = study.trials.get(number)
            if trial is None:
                return None
            n_marks = sum(key in trial.system_attrs for key in marks)
            n_params = now[1] if trial_id == own and not n_marks else len(trial.params)
            if now != [trial.state.name, n_params, n_marks]:
                return None
            ids.discard(trial_id)
        return None if ids else study.trials.copy()  # far cheaper than a list in order


class RunsOperations:
    """A storage that carries out operations on the storage that it wraps: `RetryingStorage`."""

    run: Callable[..., Any]


def _in_its_database(
    study: Study, operate: Callable[[_CachedStorage], T | None], *, writing: bool = False
) -> T | None:
    """Carry out an operation on Optuna's storage of a database.

    Return None if a study has another storage, or the operation fails: Optuna's own way is taken
    then, and raises what there is to raise.
    """

    def attempt(storage: BaseStorage) -> T | None:
        return operate(storage) if isinstance(storage, _CachedStorage) else None

    storage = study._storage
    run = storage.run if isinstance(storage, RunsOperations) else None
    try:
        return attempt(storage) if run is None else run(attempt, writing=writing)
    except StorageInternalError:  # it was tried for long enough
        raise
    except Exception:
        return None


class FastRDBStorage(RDBStorage):
    """Optuna's storage of a database, which reads a long study with far less work."""

    def _get_trials(
        self, study_id: int, states: Container[TrialState] | None,
        included_trial_ids: set[int], trial_id_greater_than: int,
    ) -> list[FrozenTrial]:  # fmt: skip
        from optuna.storages._rdb import models  # imports SQLAlchemy

        others = {i for i in included_trial_ids if i <= trial_id_greater_than}
        with _create_scoped_session(self.scoped_session) as session:
            trials = _sql.read_trials(session, models, study_id, trial_id_greater_than, others)
        return [t for t in trials if states is None or t.state in states]


def system_attrs(study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
    """Return the system attributes of a trial as the storage has them now.

    `trial.system_attrs` may be older: a snapshot from when the trial was asked for.
    """
    return study._storage.get_trial_system_attrs(trial._trial_id)


def set_system_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Write one system attribute of a running trial in one transaction."""
    insert = partial(_sql.insert_attr, trial_id=trial._trial_id, key=key, value=value)
    done = _in_its_database(study, lambda s: insert(s._backend.engine), writing=True)
    if not done:
        study._storage.set_trial_system_attr(trial._trial_id, key, value)


def first_try_number(trial: Trial) -> int:
    """Return the number of a trial or, if it is a retry of Optuna, that of the first try."""
    attrs = trial.study._storage.get_trial_system_attrs(trial._trial_id)
    first = attrs.get(FAILED_TRIAL_KEY, trial.number)
    return first if isinstance(first, int) else trial.number


def set_running_trial_attr(trial: Trial, key: str, value: Any) -> None:
    """Write one system attribute of the trial that an objective holds.

    Unlike user attributes, system attributes are not shown on the dashboard. Learning curves are
    kept there.
    """
    trial.study._storage.set_trial_system_attr(trial._trial_id, key, value)


def running_trial_attrs(trial: Trial) -> Mapping[str, Any]:
    """Return the system attributes of the trial that an objective holds, as they are now."""
    return trial.study._storage.get_trial_system_attrs(trial._trial_id)


def attrs_when_asked(trial: Trial) -> Mapping[str, Any]:
    """Return the system attributes that a trial had when it was asked for, from memory."""
    return trial._cached_frozen_trial.system_attrs


def fix_params(trial: Trial, params: Mapping[str, Any]) -> None:
    """Let a running trial have these parameters, as if it had been enqueued with them.

    What `PartialFixedSampler` fixes stays as it is.
    """
    fixed, sampler = dict(params), trial.study.sampler
    while isinstance(sampler, PartialFixedSampler):
        fixed = {name: sampler._fixed_params.get(name, value) for name, value in fixed.items()}
        sampler = sampler._base_sampler
    set_running_trial_attr(trial, FIXED_PARAMS_KEY, fixed)
    trial._fixed_params = fixed


def url_of(study: Study) -> str | None:
    """Return the URL with which `open_storage` opens a study's storage, with its password.

    None for in-memory storages and gRPC proxies, which do not tell their URL.
    """
    layer: Any = study._storage
    while layer is not None:  # caches and retries wrap a storage
        if isinstance(layer, RDBStorage):
            return str(layer.url)
        if isinstance(path := getattr(layer, "_file_path", None), str):  # JournalFileBackend
            return f"journal:///{path}"
        layer = getattr(layer, "_backend", None)
    return None


def schema_version(storage: BaseStorage) -> str | None:
    """Return the version of the tables of a storage; None if it has no tables of its own."""
    layer: Any = storage
    while layer is not None and not isinstance(layer, RDBStorage):
        layer = getattr(layer, "_backend", None)
    return None if layer is None else layer.get_current_version()


def innermost_sampler(sampler: BaseSampler) -> BaseSampler:
    """Return what draws inside samplers that wrap another one, as `PartialFixedSampler` does."""
    while isinstance(inner := getattr(sampler, "_base_sampler", None), BaseSampler):
        sampler = inner
    return sampler


def note_target(study: Study, trial: FrozenTrial) -> Any:
    """Return what optuna-dashboard's `save_note` accepts in place of a running trial."""
    return SimpleNamespace(storage=study._storage, study=study, _trial_id=trial._trial_id)


def studies_beside(study: Study) -> list[tuple[int, str, Mapping[str, Any]]]:
    """Return identifier, name and user attributes of the other studies in the same storage."""
    return [
        (other._study_id, other.study_name, other.user_attrs)
        for other in study._storage.get_all_studies()
        if other._study_id != study._study_id
    ]


# --- what `Study.optimize` does with its study and its trials ---


def new_trial(study: Study, system_attrs: Mapping[str, Any], user_attrs: Mapping[str, Any]) -> int:
    """Make a running trial that has these attributes, and return its identifier.

    It is one transaction: a process could die between `study.ask` and a later write.
    """
    template = create_trial(
        state=TrialState.RUNNING, system_attrs=dict(system_attrs), user_attrs=dict(user_attrs)
    )
    study._thread_local.cached_all_trials = None
    return study._storage.create_new_trial(study._study_id, template_trial=template)


def pop_waiting(study: Study, key: str, value: Any) -> int | None:
    """Take the next enqueued trial. Return its identifier, or None if there is none.

    The trial gets a system attribute before it is taken, so that a process which dies between the
    two leaves no taken trial without it.
    """
    study._thread_local.cached_all_trials = None
    storage = study._storage
    waiting = (TrialState.WAITING,)
    for trial in storage.get_all_trials(study._study_id, deepcopy=False, states=waiting):
        with suppress(UpdateFinishedTrialError):  # another process was faster
            storage.set_trial_system_attr(trial._trial_id, key, value)
            if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return trial._trial_id
            storage.set_trial_system_attr(trial._trial_id, key, None)
    return None


def trial_of(study: Study, trial_id: int) -> Trial:
    """Return the trial as an objective gets it."""
    return Trial(study, trial_id)


def frozen(study: Study, trial_id: int) -> FrozenTrial:
    """Return a trial as the storage has it now."""
    return study._storage.get_trial(trial_id)


@contextmanager
def optimize_loop(study: Study) -> Iterator[None]:
    """Behave like `Study.optimize` inside: `study.stop()` works, and a nested loop is refused.

    Raises:
        RuntimeError: If this thread already optimises the study.
    """
    if study._thread_local.in_optimize_loop:
        raise RuntimeError("An objective or a callback must not optimise its own study.")
    study._stop_flag = False
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False


@contextmanager
def failures_unlogged(when: Callable[[], bool]) -> Iterator[None]:
    """While `when()` is true, let `Study.optimize` log no traceback of a trial that failed."""
    logger = logging.getLogger("optuna.study._optimize")

    def is_logged(record: logging.LogRecord) -> bool:
        return not (record.funcName == "_log_failed_trial" and when())

    logger.addFilter(is_logged)
    try:
        yield
    finally:
        logger.removeFilter(is_logged)


def is_stopped(study: Study) -> bool:
    """Return whether `study.stop()` was called inside `optimize_loop`."""
    return study._stop_flag


def heartbeat_interval(study: Study) -> int | None:
    """Return the seconds between two heartbeats. None if the storage has no heartbeat."""
    storage = study._storage
    return storage.get_heartbeat_interval() if isinstance(storage, BaseHeartbeat) else None


def record_heartbeat(study: Study, trial_id: int) -> None:
    """Tell the storage that a running trial is alive."""
    if isinstance(study._storage, BaseHeartbeat):
        study._storage.record_heartbeat(trial_id)


def study_system_attrs(study: Study) -> Mapping[str, Any]:
    """Return the system attributes of a study as the storage has them now."""
    return study._storage.get_study_system_attrs(study._study_id)


def set_study_system_attr(study: Study, key: str, value: Any) -> None:
    """Write a system attribute of the study."""
    study._storage.set_study_system_attr(study._study_id, key, value)


# --- what no storage of Optuna has: look and write in one step ---


def replace_study_system_attr(
    storage: BaseStorage, study_id: int, key: str, old: Any, new: Any
) -> bool | None:
    """Set a system attribute of a study, if it still is what the caller has read, in one step.

    Args:
        storage: Any storage. One that wraps another may have this function as a method.
        study_id: The study.
        key: The attribute.
        old: The value that it must have, as JSON; None if it must be missing or None.
        new: The value that it gets.

    Returns:
        Whether it was set. None: this kind of storage has no such step, and nothing was done.
    """
    if hasattr(storage, "replace_study_system_attr"):
        done: bool | None = storage.replace_study_system_attr(study_id, key, old, new)
        return done
    if isinstance(storage, _CachedStorage):
        storage = storage._backend
    if isinstance(storage, RDBStorage):
        from optuna.storages._rdb.models import StudySystemAttributeModel  # imports SQLAlchemy

        table = StudySystemAttributeModel.__table__
        return _sql.replace_attr(storage.engine, table, study_id, key, old, new)
    if isinstance(storage, InMemoryStorage):
        with storage._lock:
            return _replace(storage, study_id, key, old, new)
    path = getattr(getattr(storage, "_backend", None), "_file_path", None)
    if isinstance(storage, JournalStorage) and isinstance(path, str):
        lock = JournalFileOpenLock(f"{path}.{key.replace(':', '-')}")  # all who call this take it
        lock.acquire()
        try:
            return _replace(storage, study_id, key, old, new)
        finally:
            lock.release()
    return None


def settle_study_system_attr(study: Study, key: str, held: Any, own: Any) -> Any:
    """Set a system attribute that all who share a study agree on; return what counts.

    Args:
        study: The study.
        key: The attribute.
        held: The value that the caller has read, as JSON; None if there is none.
        own: The value that it gets, unless another process was faster.
    """
    done = replace_study_system_attr(storage_of(study), study_id(study), key, held, own)
    if done is None and study_system_attrs(study).get(key) == held:  # no such step in this storage
        set_study_system_attr(study, key, own)
    return study_system_attrs(study).get(key)


def _replace(storage: BaseStorage, study_id: int, key: str, old: Any, new: Any) -> bool:
    if storage.get_study_system_attrs(study_id).get(key) != old:
        return False
    storage.set_study_system_attr(study_id, key, new)
    return True


# Code that leaves a trial RUNNING for ever if an exception of a signal's handler ends it
_ATOMIC = {
    unwrap(function).__code__
    for function in (
        Study.ask, _tell_with_warning, get_heartbeat_thread,
        BaseHeartbeatThread.__enter__, BaseHeartbeatThread.__exit__,
    )
}  # fmt: skip


def is_in_trial(frame: FrameType | None) -> bool:
    """Return whether a frame is, or was called by, Optuna's loop amid a trial."""
    while frame is not None and frame.f_code is not _run_trial.__code__:
        frame = frame.f_back
    return frame is not None


def is_asking_or_telling(frame: FrameType | None) -> bool:
    """Return whether a frame is, or was called by, what Optuna does just before or after a trial.

    The objective itself and callbacks are not part of it.
    """
    if frame is not None and frame.f_code is _run_trial.__code__:
        return True
    while frame is not None:
        if frame.f_code in _ATOMIC:
            return True
        frame = frame.f_back
    return False
