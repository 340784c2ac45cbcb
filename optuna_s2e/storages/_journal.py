"""Connections to journal files, also to those that end with half a line."""

from __future__ import annotations

import os

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from optuna_s2e.storages._connection import Connection


class _RepairingLock(JournalFileSymlinkLock):
    """The lock of a journal file. Whoever takes it removes half a line at the end of the file.

    A full disk or a power failure leaves such a line. No worker was told that it was written.
    The next line would be appended to it, and would be unreadable.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def acquire(self) -> bool:
        """Wait for the lock, then remove what follows the last line end of the file."""
        taken = super().acquire()
        try:
            with open(self._path, "r+b") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                if file.read() not in (b"", b"\n"):
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        except BaseException:
            self.release()
            raise
        return taken


def connect_journal(path: str, create: bool) -> Connection:
    """Open a journal file.

    Args:
        path: The file.
        create: Whether it is made if it does not exist.

    Raises:
        ConnectionError: If the file cannot be opened, or is no journal.
    """

    def refusal(reason: object) -> ConnectionError:
        return ConnectionError(f"The storage journal:///{path} cannot be opened: {reason}")

    if not create and not os.path.exists(path):
        raise refusal("the file does not exist.")
    try:
        backend = JournalFileBackend(path, lock_obj=_RepairingLock(path))
        return Connection(optuna.storages.JournalStorage(backend))
    except OSError as error:
        raise refusal(error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise refusal(f"the file is no journal of Optuna, or is damaged ({error}).") from error
