"""Trying operations of a storage again while its database or server is unavailable.

Notation
    patience       for how long one operation is tried again, in seconds
    unavailable    the storage could not be reached, or was too busy. The operation may have been
                   carried out all the same: then its acknowledgement was lost
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage

from optuna_s2e import _optuna
from optuna_s2e.storages._connection import (
    ProcessLocalConnection,
    StorageUnavailableError,
    StorageUnusableError,
    operation,
    retry_for,
)
from optuna_s2e.storages._deferral import is_of_handler, signals_wait

T = TypeVar("T")

_logger = optuna.logging.get_logger(__name__)


class Attempts(_optuna.RunsOperations):
    """Carry out operations on a storage of Optuna, again and again while it is unavailable.

    Args:
        connection: The storage of Optuna.
        name: What messages call the storage, without a password.
        patience: For how long one operation is tried again, in seconds, at least 0.
    """

    def __init__(self, connection: ProcessLocalConnection, name: str, patience: float) -> None:
        self._connection = connection
        self._name = name
        self._patience = patience
        # "since": when it became unavailable. Threads need no lock: setdefault and pop are atomic
        self._outage: dict[str, float] = {}
        self._logged = ""

    def run(
        self,
        operate: Callable[[BaseStorage], T],
        *,
        writing: bool = False,
        look_up: Callable[[BaseStorage], T | None] | None = None,
        if_done: type[Exception] | tuple[()] = (),
    ) -> T:
        """Carry out an operation. While the storage is unavailable, try again.

        Args:
            operate: The operation.
            writing: Whether it may change anything.
            look_up: Called before the operation is tried again: returns its result if it was
                carried out, else None. None: the operation may be repeated.
            if_done: What the operation raises if it was carried out before.

        Raises:
            StorageInternalError: If the storage is unavailable for longer than the patience.
            ValueError: If the storage holds something that is no JSON.
        """
        n_attempts = 0

        def attempt() -> T:
            nonlocal n_attempts
            n_attempts += 1
            return self._attempt(operate, writing, look_up if n_attempts > 1 else None, if_done)

        try:
            result = retry_for(self._patience, StorageUnavailableError)(attempt)
        except StorageUnavailableError as error:
            raise StorageInternalError(
                f"The storage {self._name} was unavailable for {self._patience:g} s: {error}"
            ) from error
        self._log_return()
        return result

    @signals_wait()
    def _attempt(
        self,
        operate: Callable[[BaseStorage], T],
        writing: bool,
        look_up: Callable[[BaseStorage], T | None] | None,
        if_done: type[Exception] | tuple[()],
    ) -> T:
        """Carry out an operation, unless `look_up` finds that an earlier attempt did.

        Signals wait for its end. One that waits no longer leaves no transaction behind.
        """
        try:
            with self._not_left_open():
                storage = self._open()
                if look_up is not None and (found := look_up(storage)) is not None:
                    return found
                try:
                    with operation(writing=writing):
                        return operate(storage)
                except if_done:  # the earlier attempt was carried out after it was looked up
                    if look_up is None or (found := look_up(storage)) is None:
                        raise
                    return found
        except Exception as error:
            if is_of_handler(error) or (meant := self._meant_by(error)) is None:
                raise
            raise meant from error

    def _meant_by(self, error: Exception) -> Exception | None:
        """Return the error that says what one of the storage means; None if it says so itself."""
        if isinstance(error, json.JSONDecodeError):
            return ValueError(
                f"The storage {self._name} holds something that is no JSON, and Optuna cannot "
                f"read its study: {error}. Restore the storage from a backup, or delete what is "
                "damaged: in a database, rows by their value_json in the tables of attributes; in "
                "a journal file, a line."
            )
        if isinstance(error, StorageUnusableError | OSError):
            return self._unusable(f"cannot be used: {error}")
        if not self._is_unavailable(error):
            return None
        self._log_loss(error)
        return StorageUnavailableError(str(error))

    def _unusable(self, reason: str) -> StorageInternalError:
        """Return the error that ends the work, and log it: Optuna's loop may hide it."""
        message = f"The storage {self._name} {reason}"
        if message != self._logged:
            _logger.error(message)
            self._logged = message
        return StorageInternalError(message)

    @contextmanager
    def _not_left_open(self) -> Iterator[None]:
        """After an exception, end the transaction of this thread.

        Optuna does so after errors, but not after a KeyboardInterrupt. The frames of such an
        exception may live long, as in a notebook, and what they hold.
        """
        try:
            yield
        except BaseException:
            connection = self._connection.if_open()
            if connection is not None:
                with suppress(Exception):
                    connection.abandon_transaction()
            raise

    def _open(self) -> BaseStorage:
        try:
            return self._connection.get().storage
        except ConnectionError as error:
            raise StorageUnavailableError(str(error)) from error

    def _is_unavailable(self, error: Exception) -> bool:
        if isinstance(error, StorageUnavailableError):
            return True
        connection = self._connection.if_open()
        return connection is not None and connection.is_unavailable(error)

    def _log_loss(self, error: Exception) -> None:
        now = time.monotonic()
        if self._outage.setdefault("since", now) is now:  # else it was logged before
            _logger.warning(
                f"The storage {self._name} is unavailable ({error}). Trying again for "
                f"{self._patience:g} s."
            )

    def _log_return(self) -> None:
        since = self._outage.pop("since", None)
        if since is not None:
            seconds = time.monotonic() - since
            _logger.warning(f"The storage {self._name} is available again after {seconds:.1f} s.")
