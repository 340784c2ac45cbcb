"""Open storages of Optuna: one connection per process, and the errors that all kinds share.

The modules of the kinds (`_rdb`, `_journal`, `_grpc`) make connections; `_attempts` uses them.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import tenacity
from optuna.storages import BaseStorage

_thread = threading.local()  # .is_writing: whether its operation may change the storage
_inherited: list[Connection] = []  # from parent processes; collecting them would close theirs


class StorageUnavailableError(Exception):
    """The storage cannot be reached or is too busy. The operation may have been carried out."""


class StorageUnusableError(Exception):
    """The storage cannot be used, and waiting does not help: a full disk, a file that is gone."""


class ServerNotReadyError(ConnectionError):
    """A database server answers, but cannot be used yet."""


def _do_nothing() -> None:
    pass


def _never(error: Exception) -> bool:
    return False


def retry_for(patience: float, error: type[Exception]) -> tenacity.Retrying:
    """Return what calls a function again while it raises an error, for `patience` seconds."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(error),
        stop=tenacity.stop_after_delay(patience),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        reraise=True,
    )


class Connection(NamedTuple):
    """A storage of Optuna that is open in one process.

    Attributes:
        storage: The storage.
        close: Closes the connections that are not in use.
        abandon: Drops connections that a fork has inherited, without closing them: they belong to
            the parent process.
        is_unavailable: Says whether an exception of the storage means that it is unavailable.
        abandon_transaction: Ends the transaction of this thread after an exception.
    """

    storage: BaseStorage
    close: Callable[[], None] = _do_nothing
    abandon: Callable[[], None] = _do_nothing
    is_unavailable: Callable[[Exception], bool] = _never
    abandon_transaction: Callable[[], None] = _do_nothing


class ProcessLocalConnection:
    """Open a storage once in each process. Forked processes and unpickled copies open it again.

    Args:
        connect: Opens the storage. Must be picklable.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._begin_process()

    def _begin_process(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_connect": self._connect}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_process()

    def get(self) -> Connection:
        """Return the connection of this process, which is opened at the first call.

        Raises:
            ConnectionError: If the storage cannot be opened.
        """
        if self._pid != os.getpid():  # forked
            if self._connection is not None:
                self._connection.abandon()
                _inherited.append(self._connection)
            self._begin_process()
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
                weakref.finalize(self, _close, self._connection, self._pid)
            return self._connection

    def if_open(self) -> Connection | None:
        """Return the connection of this process; None if it is not open."""
        return self._connection if self._pid == os.getpid() else None


def _close(connection: Connection, pid: int) -> None:
    if os.getpid() == pid:
        connection.close()


def is_writing() -> bool:
    """Return whether the operation that this thread carries out may change the storage."""
    return getattr(_thread, "is_writing", True)


@contextmanager
def operation(*, writing: bool) -> Iterator[None]:
    """Set what `is_writing` returns inside."""
    _thread.is_writing = writing
    try:
        yield
    finally:
        del _thread.is_writing
