"""A storage whose operations are tried again: Optuna's interface, and what was done before.

`_attempts` tries them.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Container, Sequence
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e.storages._attempts import Attempts
from optuna_s2e.storages._connection import (
    ProcessLocalConnection,
    StorageUnavailableError,
    StorageUnusableError,
    operation,
)
from optuna_s2e.storages._deferral import hand_on

StaleTrialCallback = Callable[[optuna.Study, FrozenTrial], None]

_A_SECOND = timedelta(seconds=1)


class RetryingStorage(Attempts, BaseStorage, _optuna.BaseHeartbeat):
    """Pass every operation to a storage of Optuna, and try it again while that is unavailable.

    An operation that was carried out although its acknowledgement was lost is not repeated: what
    it writes is looked up first. A new trial is recognised by the microsecond of its start.
    Threads may share this storage. A forked process opens it again, and so does an unpickled copy.

    Args:
        connection: The storage of Optuna.
        name: What messages call the storage, without a password.
        patience: For how long one operation is tried again, in seconds, at least 0.
        heartbeat_interval: Seconds between two heartbeats of a running trial. None: no heartbeat.
        stale_trial_callback: Called with the study and a trial whose heartbeat has stopped, after
            the trial was failed. None: nothing is called.
    """

    def __init__(
        self,
        connection: ProcessLocalConnection,
        *,
        name: str,
        patience: float,
        heartbeat_interval: int | None = None,
        stale_trial_callback: StaleTrialCallback | None = None,
    ) -> None:
        super().__init__(connection, name, patience)
        self._heartbeat_interval = heartbeat_interval
        self._callback = stale_trial_callback
        self._begun: dict[int, tuple[int, datetime]] = {}  # own trials: their study and start
        self._newest: dict[int, int] = {}  # the largest identifier of a study's trials so far

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_outage": {}, "_begun": {}, "_newest": {}}

    def __repr__(self) -> str:
        return f"RetryingStorage({self._name!r})"

    @property
    def _backend(self) -> BaseStorage:
        """The storage of Optuna, under the name by which Optuna's own wrappers keep theirs."""
        return self.run(lambda storage: storage)

    # --- studies -----------------------------------------------------------------------------

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Create a study. Without a name it gets one, by which a second attempt finds it."""
        name = study_name or f"no-name-{uuid.uuid4()}"

        def look_up(storage: BaseStorage) -> int | None:
            try:
                study_id = storage.get_study_id_from_name(name)
            except KeyError:
                return None
            same = storage.get_study_directions(study_id) == list(directions)
            return study_id if same and not storage.get_n_trials(study_id) else None

        study_id = self.run(
            lambda s: s.create_new_study(directions, name),
            writing=True,
            look_up=look_up,
            if_done=DuplicatedStudyError,
        )
        self._newest.pop(study_id, None)  # SQLite gives the identifiers of a deleted study again
        return study_id

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""

        def look_up(storage: BaseStorage) -> bool | None:
            try:
                storage.get_study_name_from_id(study_id)
            except KeyError:
                return True
            return None

        def delete(storage: BaseStorage) -> bool:
            storage.delete_study(study_id)
            return True

        self.run(delete, writing=True, look_up=look_up, if_done=KeyError)
        self._newest.pop(study_id, None)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a study."""
        self.run(lambda s: s.set_study_user_attr(study_id, key, value), writing=True)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a study."""
        self.run(lambda s: s.set_study_system_attr(study_id, key, value), writing=True)

    def replace_study_system_attr(
        self, study_id: int, key: str, old: Any, new: Any
    ) -> bool | None:
        """Set a system attribute of a study, if it still is `old`, in one step.

        Return None if the storage has no such step, as a gRPC proxy. See `_optuna`.
        """

        def look_up(storage: BaseStorage) -> bool | None:
            return storage.get_study_system_attrs(study_id).get(key) == new or None

        return self.run(
            lambda s: _optuna.replace_study_system_attr(s, study_id, key, old, new),
            writing=True,
            look_up=look_up,
        )

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the identifier of a study."""
        return self.run(lambda s: s.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self.run(lambda s: s.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study."""
        return self.run(lambda s: s.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study."""
        return self.run(lambda s: s.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study."""
        return self.run(lambda s: s.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        """Return all studies."""
        return self.run(lambda s: s.get_all_studies())

    # --- trials ------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, once.

        The trial starts at a microsecond that is chosen here. A second attempt recognises it by
        that. Where a database keeps whole seconds only, as MySQL does by default, a lost
        acknowledgement leaves an empty trial RUNNING.
        """
        hand_on()
        template = copy.copy(template_trial or optuna.trial.create_trial(state=TrialState.RUNNING))
        template.datetime_start = template.datetime_start or datetime.now()

        def is_it(trial: FrozenTrial) -> bool:
            return (
                trial.datetime_start == template.datetime_start
                and trial.state == template.state
                and trial.params == template.params
                and trial.system_attrs == template.system_attrs
            )

        def look_up(storage: BaseStorage) -> int | None:
            trials = storage.get_all_trials(study_id, deepcopy=False)
            return next((_optuna.trial_id(t) for t in reversed(trials) if is_it(t)), None)

        newest = self._newest.get(study_id, -1)  # before: other threads make trials too
        trial_id = self.run(
            lambda s: s.create_new_trial(study_id, template), writing=True, look_up=look_up
        )
        if trial_id <= newest:
            self.set_trial_state_values(trial_id, TrialState.FAIL)
            raise self._made_again()
        self._newest[study_id] = max(newest, trial_id)
        if template.state == TrialState.RUNNING:
            self._begun[trial_id] = study_id, template.datetime_start
        return trial_id

    def _made_again(self) -> StorageInternalError:
        """Return the error for a study whose identifiers a new one has. SQLite reuses them."""
        return self._unusable(
            "holds another study in place of the one that was opened: it was deleted and made "
            "again meanwhile. Start again to work on the new one."
        )

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Set a parameter of a trial. Setting it twice does nothing more."""
        self.run(
            lambda s: s.set_trial_param(trial_id, param_name, param_value_internal, distribution),
            writing=True,
        )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set state and values of a trial. Return False if another worker runs the trial."""
        if state == TrialState.RUNNING:
            hand_on()
        called = datetime.now()

        def look_up(storage: BaseStorage) -> bool | None:
            trial = storage.get_trial(trial_id)
            if trial.state != state:
                return None
            if state == TrialState.RUNNING:  # taken from the queue: by this call?
                start = trial.datetime_start
                return start is not None and called <= start <= datetime.now()
            return True if trial.values == (None if values is None else list(values)) else None

        result = self.run(
            lambda s: s.set_trial_state_values(trial_id, state, values),
            writing=True,
            look_up=look_up,
            if_done=UpdateFinishedTrialError,
        )
        if state.is_finished():
            self._begun.pop(trial_id, None)
        return result

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Report an intermediate value."""
        self.run(
            lambda s: s.set_trial_intermediate_value(trial_id, step, intermediate_value),
            writing=True,
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial."""
        self.run(lambda s: s.set_trial_user_attr(trial_id, key, value), writing=True)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a trial."""
        self.run(lambda s: s.set_trial_system_attr(trial_id, key, value), writing=True)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the identifier of a trial."""
        return self.run(
            lambda s: s.get_trial_id_from_study_id_trial_number(study_id, trial_number)
        )

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial."""
        study_id, start = self._begun.get(trial_id, (None, None))
        try:
            trial = self.run(lambda s: s.get_trial(trial_id))
        except KeyError:
            if any(_optuna.study_id(study) == study_id for study in self.get_all_studies()):
                raise self._made_again() from None
            raise
        began = _optuna.began_at(trial)
        if start and began and abs(began - start) >= _A_SECOND:  # some keep whole seconds only
            raise self._made_again()
        return trial

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials of a study in the order of their numbers."""
        return self.run(lambda s: s.get_all_trials(study_id, deepcopy, states))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best trial of a study."""
        return self.run(lambda s: s.get_best_trial(study_id))

    def remove_session(self) -> None:
        """Close what this thread has open, if this process has opened the storage."""
        hand_on()  # Optuna's loop has ended
        connection = self._connection.if_open()
        if connection is not None:
            connection.storage.remove_session()

    # --- heartbeat ---------------------------------------------------------------------------

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat. If the storage is unavailable, wait for the next interval."""
        try:
            storage = self._open()
            assert isinstance(storage, _optuna.BaseHeartbeat)
            with operation(writing=True):
                storage.record_heartbeat(trial_id)
        except (StorageUnavailableError, StorageUnusableError, StorageInternalError) as error:
            self._log_loss(error)
        else:
            self._log_return()

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return self.run(lambda s: _optuna.stale_trial_ids(s, study_id))

    def get_heartbeat_interval(self) -> int | None:
        """Return the seconds between two heartbeats. None: no heartbeat."""
        return self._heartbeat_interval

    def get_heartbeat_stale_trial_callback(self) -> StaleTrialCallback | None:
        """Return what is called with a trial whose heartbeat has stopped."""
        return self._callback

    def get_failed_trial_callback(self) -> StaleTrialCallback | None:
        """Return the same. This is its name before Optuna 4.9."""
        return self._callback
