"""One driver per study: a lease in the study's attributes, kept while its driver lives.

The lease saves work, and nothing depends on it: two drivers of one study would run some trials
twice, and the records would show it. The lease names the driver's process and holds a count that
grows. On the same machine a dead process is known at once. A driver on another machine counts as
dead when its count stands still for a while by the clock of the observer; clocks of two machines
are never compared.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study

from optuna_s2e import _optuna
from optuna_s2e._attributes import DRIVER_KEY

REFRESH = 5.0  # seconds between two counts
PATIENCE = 4 * REFRESH  # how long a count may stand still

_logger = optuna.logging.get_logger(f"optuna.{__name__}")


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
        self._count = 0
        self._taken_by: dict[str, Any] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="s2e-lease")

    def __enter__(self) -> Lease:
        other = self._other()
        if other is not None and _lives(self._study, other):
            raise RuntimeError(_refusal(self._study, other))
        self._write()
        other = self._other()
        if other is not None:  # who wrote last has it
            raise RuntimeError(_refusal(self._study, other))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        try:
            if self._other() is None:
                _optuna.set_study_system_attr(self._study, DRIVER_KEY, None)
        except Exception as error:  # a dead driver's lease keeps nobody out
            _logger.debug(f"The lease of study {self._study.study_name!r} stays: {error!r}")

    def check(self) -> None:
        """Raise if another driver has taken over because this one stood still for too long.

        Raises:
            RuntimeError: If so.
        """
        if self._taken_by is not None:
            raise RuntimeError(_refusal(self._study, self._taken_by))

    def watch(self, trial_id: int) -> None:
        """Send the heartbeats of a trial, from now on until it is removed from `alive`."""
        if _optuna.heartbeat_interval(self._study) is not None:
            _optuna.record_heartbeat(self._study, trial_id)
            self.alive.add(trial_id)

    def _other(self) -> dict[str, Any] | None:
        lease = _read(self._study)
        return lease if lease is not None and lease["driver"] != self.driver else None

    def _write(self) -> None:
        self._count += 1
        lease = {
            "driver": self.driver,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": _start_of(os.getpid()),
            "count": self._count,
        }
        _optuna.set_study_system_attr(self._study, DRIVER_KEY, lease)

    def _keep(self) -> None:
        interval = min(REFRESH, _optuna.heartbeat_interval(self._study) or REFRESH)
        while not self._end.wait(interval):
            try:
                self._taken_by = self._other()
                if self._taken_by is None:
                    self._write()
                for trial_id in sorted(self.alive):
                    _optuna.record_heartbeat(self._study, trial_id)
            except Exception as error:  # the database is away: it may come back
                _logger.debug(f"The lease of study {self._study.study_name!r}: {error!r}")
        _optuna.storage_of(self._study).remove_session()


def _read(study: Study) -> dict[str, Any] | None:
    """Return the lease that the storage holds; None if there is none or it is damaged."""
    lease = _optuna.study_system_attrs(study).get(DRIVER_KEY)
    if not isinstance(lease, dict) or not isinstance(lease.get("driver"), str):
        return None
    return lease


def _lives(study: Study, lease: dict[str, Any]) -> bool:
    """Say whether the holder of a lease lives. That takes `PATIENCE` for another machine."""
    pid = lease.get("pid")
    if lease.get("machine") == _machine() and isinstance(pid, int):
        started = _start_of(pid)
        return started is not None and started == lease.get("started")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(REFRESH / 5)
        now = _read(study)
        if now is None:
            return False
        if now != lease:
            return True
    return False


def _refusal(study: Study, lease: dict[str, Any]) -> str:
    return (
        f"Study {study.study_name!r} is driven by another optimize_batch: process "
        f"{lease.get('pid')!r} on {lease.get('host')!r}. Stop that process first."
    )


def _machine() -> str:
    """Return what tells apart machines and containers, as far as process numbers go."""
    parts = [socket.gethostname(), f"{uuid.getnode():x}"]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux
        pass
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """Return when a process began, as the system tells it; None if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except OSError as error:
        return "unknown" if isinstance(error, PermissionError) else None
    return "unknown"
