"""One driver per study: a lease in the study's attributes, kept while its driver lives.

The lease names the driver's process and holds a count that grows. On the same machine a dead
process is known at once. A driver on another machine counts as dead when its count stands still
for a while by the clock of the observer; clocks of two machines are never compared.

A lease is taken, renewed and given back by replacing the very value that was read, in one step
of the storage. So of many drivers that begin at once one gets it, and a driver that stood still
for too long notices that it lost it. A storage without such a step (a gRPC proxy) is asked again
after a while who has the lease; there two drivers may overlap for `SETTLE` seconds.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from typing import Any

import optuna
from optuna.study import Study

from optuna_s2e import _optuna
from optuna_s2e._attributes import DRIVER_KEY
from optuna_s2e.parallel._process import Process, this_process

REFRESH = 5.0  # seconds between two counts
PATIENCE = 4 * REFRESH  # how long a count may stand still
SETTLE = 2.0  # seconds in which a storage without the step decides between drivers

_held: set[str] = set()  # drivers of this process
_logger = optuna.logging.get_logger(f"optuna.{__name__}")  # obeys Optuna's verbosity


class LeaseLostError(BaseException):
    """Another driver has taken over. No objective may take this for an error of its own."""


class Lease:
    """The right to drive a study, held inside a `with` block.

    A thread renews the lease and sends the heartbeats of the trials in `alive`, if the storage
    wants them. The thread survives errors of the storage.

    Attributes:
        driver: The identifier of this driver.
        alive: The identifiers of the trials whose heartbeats are due.

    Raises:
        RuntimeError: On entering, if another driver lives.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self.driver = uuid.uuid4().hex
        self.alive: set[int] = set()
        self._lease: dict[str, Any] = {
            "driver": self.driver,
            "host": socket.gethostname(),
            **this_process()._asdict(),
            "count": 0,
        }
        self._renewed = 0.0  # when, as `time.monotonic()`
        self._lock = threading.Lock()  # of the two above
        self._lost_to: Any = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="s2e-lease")

    def __enter__(self) -> Lease:
        while True:
            held = _read(self._study)
            if _is_lease(held) and _lives(self._study, held):
                raise RuntimeError(f"{_driven_by(self._study, held)} Stop that process first.")
            _held.add(self.driver)
            self._renewed = time.monotonic()
            try:
                taken = self._replace(held, self._lease, settle=SETTLE)
            except BaseException:
                _held.discard(self.driver)
                raise
            if taken:
                break
            _held.discard(self.driver)  # another one was faster, or the holder lives: look again
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        _held.discard(self.driver)
        try:
            self._replace(self._lease, None)
        except Exception as error:  # a dead driver's lease keeps nobody out
            _logger.debug(f"The lease of study {self._study.study_name!r} stays: {error!r}")

    def check(self) -> None:
        """Raise if another driver is known to have taken over. It costs nothing.

        Raises:
            LeaseLostError: If so.
        """
        if self._lost_to is not None:
            raise LeaseLostError(
                f"{_driven_by(self._study, self._lost_to)} It has taken over, because this "
                f"process stood still for more than {PATIENCE:g} s. This one trains nothing "
                "more; the trials that it was running run again there."
            )

    def confirm(self) -> None:
        """Renew the lease if it is old: this process may have stood still. Then check it.

        Raises:
            LeaseLostError: If another driver has taken over.
        """
        if time.monotonic() - self._renewed > REFRESH:
            self._renew()
        self.check()

    def watch(self, trial_id: int) -> None:
        """Send the heartbeats of a trial, from now on until it is removed from `alive`."""
        if _optuna.heartbeat_interval(self._study) is not None:
            _optuna.record_heartbeat(self._study, trial_id)
            self.alive.add(trial_id)

    def _renew(self) -> None:
        with self._lock:
            begun = time.monotonic()
            lease = {**self._lease, "count": self._lease["count"] + 1}
            if self._replace(self._lease, lease):
                self._lease, self._renewed = lease, begun
            else:
                self._lost_to = _read(self._study) or {}

    def _replace(self, old: Any, new: Any, settle: float = 0.0) -> bool:
        storage, study_id = _optuna.storage_of(self._study), _optuna.study_id(self._study)
        done = _optuna.replace_study_system_attr(storage, study_id, DRIVER_KEY, old, new)
        if done is not None:
            return done
        if _read(self._study) != old:
            return False
        _optuna.set_study_system_attr(self._study, DRIVER_KEY, new)
        time.sleep(settle)
        return bool(_read(self._study) == new)

    def _keep(self) -> None:
        interval = min(REFRESH, _optuna.heartbeat_interval(self._study) or REFRESH)
        while not self._end.wait(interval) and self._lost_to is None:
            try:
                self._renew()
                for trial_id in sorted(self.alive):
                    _optuna.record_heartbeat(self._study, trial_id)
            except Exception as error:  # the database is away: it may come back
                _logger.debug(f"The lease of study {self._study.study_name!r}: {error!r}")
        _optuna.storage_of(self._study).remove_session()


def _read(study: Study) -> Any:
    """Return what the storage holds in place of the lease; None if there is none."""
    return _optuna.study_system_attrs(study).get(DRIVER_KEY)


def _is_lease(held: Any) -> bool:
    return isinstance(held, dict) and isinstance(held.get("driver"), str)


def _lives(study: Study, lease: dict[str, Any]) -> bool:
    """Say whether the holder of a lease lives. That takes `PATIENCE` for another machine."""
    machine, pid, started = (lease.get(key) for key in Process._fields)
    if isinstance(machine, str) and isinstance(pid, int):
        holder = Process(machine, pid, started)
        if holder == this_process():
            return lease["driver"] in _held  # else it ended while the storage was away
        if holder.lives is not None:
            return holder.lives
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(REFRESH / 5)
        now = _read(study)
        if not _is_lease(now):
            return False
        if now != lease:
            return True
    return False


def _driven_by(study: Study, lease: Any) -> str:
    pid, host = (lease.get(key) if isinstance(lease, dict) else None for key in ("pid", "host"))
    return (
        f"Study {study.study_name!r} is driven by another optimize_batch: process {pid!r} on "
        f"{host!r}."
    )
