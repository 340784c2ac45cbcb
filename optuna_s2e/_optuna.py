"""Optuna's private names, in one place.

Optuna has no public way for a sampler to read another trial's or write its own system
attributes. Everything the package needs of that kind passes through these functions; no other
module touches an underscored name of Optuna.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from optuna_s2e._attributes import FAILED_TRIAL_KEY

__all__ = ["BaseHeartbeat"]


def storage_of(study: Study) -> BaseStorage:
    """Return the storage of a study (also of the bracket studies that Hyperband makes)."""
    return study._storage


def study_id(study: Study) -> int:
    """Return the storage's identifier of a study: an identity within one storage, no more."""
    return study._study_id


def trial_id(trial: FrozenTrial | Trial) -> int:
    """Return the storage's identifier of a trial: an identity within one storage, no more."""
    return trial._trial_id


def completed_at(trial: FrozenTrial) -> datetime | None:
    """Return when a trial ended, in local time; None if it has not."""
    return _local(trial.datetime_complete)


def began_at(trial: FrozenTrial) -> datetime | None:
    """Return when a trial began, in local time; None if it has not."""
    return _local(trial.datetime_start)


def _local(moment: datetime | None) -> datetime | None:
    """Drop the time zone that Optuna 4.8 leaves on moments in journals which Optuna 5 wrote."""
    if moment is None or moment.tzinfo is None:
        return moment
    return moment.astimezone().replace(tzinfo=None)


def stale_trial_ids(storage: BaseStorage, study_id: int) -> list[int]:
    """Return the identifiers of the running trials whose heartbeat has stopped."""
    if not isinstance(storage, BaseHeartbeat):
        return []
    return storage._get_stale_trial_ids(study_id)


def all_trials(study: Study) -> list[FrozenTrial]:
    """Return every trial, fresh from the storage and by number; the objects are shared.

    Optuna's per-thread snapshot is bypassed: in "ask K times, then suggest" it would hide the
    records of the siblings. Under Hyperband, where `get_trials` shows one bracket only, this
    returns the trials of all brackets.
    """
    return study._get_trials(deepcopy=False, use_cache=False)


def system_attrs(study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
    """Return the system attributes of a trial as the storage has them now.

    `trial.system_attrs` may be the snapshot taken when the trial was asked for.
    """
    return study._storage.get_trial_system_attrs(trial._trial_id)


def set_system_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Write one system attribute of a running trial: one call, one transaction."""
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


def first_try_number(trial: Trial) -> int:
    """Return the number of the trial, or of the first try that this trial is a retry of.

    Retries are those of `optuna.storages.RetryHeartbeatStaleTrialCallback`
    (`RetryFailedTrialCallback` before Optuna 4.9).
    """
    attrs = trial.study._storage.get_trial_system_attrs(trial._trial_id)
    first = attrs.get(FAILED_TRIAL_KEY, trial.number)
    return first if isinstance(first, int) else trial.number


def set_running_trial_attr(trial: Trial, key: str, value: Any) -> None:
    """Write one system attribute of the trial that an objective holds.

    For data that belongs to the trial but not on a dashboard page, such as learning curves.
    """
    trial.study._storage.set_trial_system_attr(trial._trial_id, key, value)


def running_trial_attrs(trial: Trial) -> Mapping[str, Any]:
    """Return the system attributes of the trial that an objective holds, as stored now."""
    return trial.study._storage.get_trial_system_attrs(trial._trial_id)


def url_of(study: Study) -> str | None:
    """Return the URL under which `open_storage` finds a study's storage, with its password.

    None if there is no such URL: in-memory storages, gRPC proxies.
    """
    layer: Any = study._storage
    while layer is not None:  # storages are wrapped in caches and the like
        if isinstance(layer, RDBStorage):
            return str(layer.url)
        if isinstance(path := getattr(layer, "_file_path", None), str):  # JournalFileBackend
            return f"journal:///{path}"
        layer = getattr(layer, "_backend", None)
    return None


def note_target(study: Study, trial: FrozenTrial) -> Any:
    """Return what optuna-dashboard's `save_note` takes in place of a running trial."""
    return SimpleNamespace(storage=study._storage, study=study, _trial_id=trial._trial_id)


def studies_beside(study: Study) -> list[tuple[int, str, Mapping[str, Any]]]:
    """Return identifier, name and user attributes of the other studies in a study's storage."""
    return [
        (other._study_id, other.study_name, other.user_attrs)
        for other in study._storage.get_all_studies()
        if other._study_id != study._study_id
    ]


# --- what `Study.optimize` does with its study and its trials ---


def new_trial(study: Study, system_attrs: Mapping[str, Any], user_attrs: Mapping[str, Any]) -> int:
    """Make a running trial that has these attributes from the start; return its identifier.

    One transaction, unlike `study.ask` and a later write: no process can die in between.
    """
    template = create_trial(
        state=TrialState.RUNNING, system_attrs=dict(system_attrs), user_attrs=dict(user_attrs)
    )
    study._thread_local.cached_all_trials = None
    return study._storage.create_new_trial(study._study_id, template_trial=template)


def pop_waiting(study: Study, key: str, value: Any) -> int | None:
    """Take the next enqueued trial; return its identifier, None if there is none.

    It is given a system attribute before it is taken: no process can die in between.
    """
    study._thread_local.cached_all_trials = None
    storage = study._storage
    waiting = (TrialState.WAITING,)
    for trial in storage.get_all_trials(study._study_id, deepcopy=False, states=waiting):
        with suppress(UpdateFinishedTrialError):  # someone else was faster
            storage.set_trial_system_attr(trial._trial_id, key, value)
            if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return trial._trial_id
            storage.set_trial_system_attr(trial._trial_id, key, None)
    return None


def trial_of(study: Study, trial_id: int) -> Trial:
    """Return the trial that an objective gets."""
    return Trial(study, trial_id)


def id_of(trial: Trial) -> int:
    """Return the storage's identifier of a trial."""
    return trial._trial_id


def frozen(study: Study, trial_id: int) -> FrozenTrial:
    """Return a trial as the storage has it now."""
    return study._storage.get_trial(trial_id)


@contextmanager
def optimize_loop(study: Study) -> Iterator[None]:
    """Let `study.stop()` work inside, and nothing optimise the study in the same thread.

    Raises:
        RuntimeError: If the study is being optimised in this thread.
    """
    if study._thread_local.in_optimize_loop:
        raise RuntimeError("An objective or a callback must not optimise its own study.")
    study._stop_flag = False
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False


def is_stopped(study: Study) -> bool:
    """Say whether `study.stop()` was called inside `optimize_loop`."""
    return study._stop_flag


def heartbeat_interval(study: Study) -> int | None:
    """Return the seconds between the heartbeats that the storage wants; None if it wants none."""
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
