"""A storage that waits for its database: what fails because it is away is tried again.

Notation
    lost        an operation failed because the database could not be reached or was too busy; it
                may have been carried out all the same (the acknowledgement was lost)
    patience    for how long one operation is tried again, in seconds
"""

from __future__ import annotations

import copy
import json
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import optuna
import tenacity
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna

T = TypeVar("T")
StaleTrialCallback = Callable[[optuna.Study, FrozenTrial], None]

_logger = optuna.logging.get_logger(__name__)
_operation = threading.local()  # .writes: whether this thread's operation changes anything
_inherited: list[Backend] = []  # of a parent process: kept, because closing them would harm it


class DatabaseLostError(Exception):
    """An operation failed because the database is away; it may have been carried out."""


class ServerNotReadyError(ConnectionError):
    """A database server answers, but cannot be used yet."""


class Backend(NamedTuple):
    """An open storage of Optuna.

    Attributes:
        storage: The storage.
        close: Closes the connections that are not in use.
        forget: Lets go of connections that belong to the parent process, without closing them.
        is_lost: Whether an exception of the storage says that the database is away.
    """

    storage: BaseStorage
    close: Callable[[], None]
    forget: Callable[[], None]
    is_lost: Callable[[Exception], bool]


def do_nothing() -> None:
    """Leave it open."""


def writes() -> bool:
    """Say whether the operation that this thread carries out may change the database."""
    return getattr(_operation, "writes", True)


class PatientStorage(BaseStorage, _optuna.BaseHeartbeat):
    """Pass every operation to a storage of Optuna and try it again while its database is away.

    An operation whose acknowledgement was lost is recognised as done: a result is looked up
    before it is written again, a trial is recognised by the microsecond of its start. Safe to
    use from threads and in forked processes; a pickled one opens the storage again.

    Args:
        connect: Opens the storage; called in each process, must be picklable.
        backend: What `connect` returned in this process.
        name: What the log calls the storage; without a password.
        patience: For how long an operation is tried again, in seconds, at least 0.
        heartbeat_interval: Seconds between two heartbeats of a running trial; None: no heartbeat.
        stale_trial_callback: What happens to a trial whose heartbeat has stopped, after it was
            failed, such as `optuna.storages.RetryHeartbeatStaleTrialCallback()`.
    """

    def __init__(
        self,
        connect: Callable[[], Backend],
        backend: Backend,
        *,
        name: str,
        patience: float,
        heartbeat_interval: int | None = None,
        stale_trial_callback: StaleTrialCallback | None = None,
    ) -> None:
        self._connect = connect
        self._name = name
        self._patience = patience
        self._heartbeat_interval = heartbeat_interval
        self._callback = stale_trial_callback
        self._start(backend)

    def _start(self, backend: Backend | None) -> None:
        self._backend = backend
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._lost_since: float | None = None
        if backend is not None:
            weakref.finalize(self, _close, backend, self._pid)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_connect", "_name", "_patience", "_heartbeat_interval", "_callback")
        return {name: self.__dict__[name] for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start(None)

    def __repr__(self) -> str:
        return f"PatientStorage({self._name!r})"

    # --- trying again ------------------------------------------------------------------------

    def _opened(self) -> Backend:
        """Return the backend of this process."""
        if self._pid != os.getpid():  # forked
            if self._backend is not None:
                self._backend.forget()
                _inherited.append(self._backend)
            self._start(None)
        with self._lock:
            if self._backend is None:
                try:
                    self._backend = self._connect()
                except ConnectionError as error:
                    raise DatabaseLostError(str(error)) from error
                weakref.finalize(self, _close, self._backend, self._pid)
            return self._backend

    def _run(
        self,
        operation: Callable[[BaseStorage], T],
        *,
        writing: bool = False,
        done: Callable[[BaseStorage], T | None] | None = None,
        again: type[Exception] | tuple[()] = (),
    ) -> T:
        """Carry out an operation, for as long as the patience lasts.

        Args:
            operation: What to do.
            writing: Whether that changes anything.
            done: Looks up, once an acknowledgement may have been lost, whether it has been done:
                the result, or None.
            again: What the operation raises if it has been done before.
        """
        lost = False

        def attempt() -> T:
            nonlocal lost
            try:
                storage = self._opened().storage
                found = done(storage) if lost and done is not None else None
                if found is not None:
                    return found
                try:
                    with _kind(writing):
                        return operation(storage)
                except again:
                    found = done(storage) if lost and done is not None else None
                    if found is None:
                        raise
                    return found
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"The storage {self._name} holds something that is no JSON, and Optuna cannot "
                    f"read its study: {error}. Restore it from a backup, or delete what is "
                    "damaged: a row's value_json in the tables of attributes, a line of a journal "
                    "file."
                ) from error
            except Exception as error:
                if not self._is_lost(error):
                    raise
                lost = True
                self._note_loss(error)
                raise DatabaseLostError(str(error)) from error

        try:
            result = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(DatabaseLostError),
                stop=tenacity.stop_after_delay(self._patience),
                wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
                reraise=True,
            )(attempt)
        except DatabaseLostError as error:
            raise StorageInternalError(
                f"The storage {self._name} was away for {self._patience:g} s: {error}"
            ) from error
        self._note_return()
        return result

    def _is_lost(self, error: Exception) -> bool:
        if isinstance(error, DatabaseLostError):
            return True
        return self._backend is not None and self._backend.is_lost(error)

    def _note_loss(self, error: Exception) -> None:
        with self._lock:
            if self._lost_since is not None:
                return
            self._lost_since = time.monotonic()
        _logger.warning(
            f"The storage {self._name} is away ({error}); trying again for {self._patience:g} s."
        )

    def _note_return(self) -> None:
        if self._lost_since is None:
            return
        with self._lock:
            since, self._lost_since = self._lost_since, None
        if since is not None:
            away = time.monotonic() - since
            _logger.warning(f"The storage {self._name} is back after {away:.1f} s.")

    # --- studies -----------------------------------------------------------------------------

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Create a study; one that exists already, after a lost acknowledgement, is this one."""
        name = study_name or f"no-name-{uuid.uuid4()}"

        def done(storage: BaseStorage) -> int | None:
            try:
                study_id = storage.get_study_id_from_name(name)
            except KeyError:
                return None
            same = storage.get_study_directions(study_id) == list(directions)
            return study_id if same and not storage.get_n_trials(study_id) else None

        return self._run(
            lambda s: s.create_new_study(directions, name),
            writing=True,
            done=done,
            again=DuplicatedStudyError,
        )

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""

        def done(storage: BaseStorage) -> bool | None:
            try:
                storage.get_study_name_from_id(study_id)
            except KeyError:
                return True
            return None

        def delete(storage: BaseStorage) -> bool:
            storage.delete_study(study_id)
            return True

        self._run(delete, writing=True, done=done, again=KeyError)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a study."""
        self._run(lambda s: s.set_study_user_attr(study_id, key, value), writing=True)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a study."""
        self._run(lambda s: s.set_study_system_attr(study_id, key, value), writing=True)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the identifier of a study."""
        return self._run(lambda s: s.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self._run(lambda s: s.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study."""
        return self._run(lambda s: s.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study."""
        return self._run(lambda s: s.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study."""
        return self._run(lambda s: s.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        """Return all studies."""
        return self._run(lambda s: s.get_all_studies())

    # --- trials ------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, once.

        A trial carries the microsecond of its creation as its start, so that it is recognised if
        the acknowledgement was lost. (Where a database keeps seconds only, as MySQL does by
        default, a trial without parameters and result may be left RUNNING; it holds nothing.)
        """
        template = copy.copy(template_trial or optuna.trial.create_trial(state=TrialState.RUNNING))
        template.datetime_start = template.datetime_start or datetime.now()

        def is_it(trial: FrozenTrial) -> bool:
            return (
                trial.datetime_start == template.datetime_start
                and trial.state == template.state
                and trial.params == template.params
                and trial.system_attrs == template.system_attrs
            )

        def done(storage: BaseStorage) -> int | None:
            trials = storage.get_all_trials(study_id, deepcopy=False)
            return next((_optuna.trial_id(t) for t in reversed(trials) if is_it(t)), None)

        return self._run(lambda s: s.create_new_trial(study_id, template), writing=True, done=done)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Set a parameter of a trial; a second time does nothing."""
        self._run(
            lambda s: s.set_trial_param(trial_id, param_name, param_value_internal, distribution),
            writing=True,
        )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set state and values of a trial; False if the trial is another worker's."""
        called = datetime.now()

        def done(storage: BaseStorage) -> bool | None:
            trial = storage.get_trial(trial_id)
            if trial.state != state:
                return None
            if state == TrialState.RUNNING:  # claimed from the queue: by this call?
                start = trial.datetime_start
                return start is not None and called <= start <= datetime.now()
            return True if trial.values == (None if values is None else list(values)) else None

        return self._run(
            lambda s: s.set_trial_state_values(trial_id, state, values),
            writing=True,
            done=done,
            again=UpdateFinishedTrialError,
        )

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Report an intermediate value."""
        self._run(
            lambda s: s.set_trial_intermediate_value(trial_id, step, intermediate_value),
            writing=True,
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial."""
        self._run(lambda s: s.set_trial_user_attr(trial_id, key, value), writing=True)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a trial."""
        self._run(lambda s: s.set_trial_system_attr(trial_id, key, value), writing=True)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the identifier of a trial."""
        return self._run(
            lambda s: s.get_trial_id_from_study_id_trial_number(study_id, trial_number)
        )

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial."""
        return self._run(lambda s: s.get_trial(trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials of a study by number."""
        return self._run(lambda s: s.get_all_trials(study_id, deepcopy, states))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best trial of a study."""
        return self._run(lambda s: s.get_best_trial(study_id))

    def remove_session(self) -> None:
        """Close what this thread has open."""
        if self._backend is not None and self._pid == os.getpid():
            self._backend.storage.remove_session()

    # --- heartbeat ---------------------------------------------------------------------------

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat, if the database is there; the next one is due in an interval."""
        try:
            storage = self._opened().storage
            assert isinstance(storage, _optuna.BaseHeartbeat)
            with _kind(True):
                storage.record_heartbeat(trial_id)
        except (DatabaseLostError, StorageInternalError) as error:
            self._note_loss(error)
        else:
            self._note_return()

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return self._run(lambda s: _optuna.stale_trial_ids(s, study_id))

    def get_heartbeat_interval(self) -> int | None:
        """Return the interval of the heartbeat in seconds; None where there is none."""
        return self._heartbeat_interval

    def get_heartbeat_stale_trial_callback(self) -> StaleTrialCallback | None:
        """Return what happens to a trial whose heartbeat has stopped."""
        return self._callback

    def get_failed_trial_callback(self) -> StaleTrialCallback | None:
        """Return the same; its name before Optuna 4.9."""
        return self._callback


def _close(backend: Backend, pid: int) -> None:
    if os.getpid() == pid:
        backend.close()


@contextmanager
def _kind(writing: bool) -> Iterator[None]:
    _operation.writes = writing
    try:
        yield
    finally:
        del _operation.writes
