"""Journal files, which a full disk may have cut in the middle of a line."""

from __future__ import annotations

import os

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from optuna_s2e.storages._retry import (
    Backend,
    do_nothing,
)


class _MendingLock(JournalFileSymlinkLock):
    """The lock of a journal file, which a full disk or a power failure may have cut in a line.

    Nobody was told that such a line was written. Behind it, the next one would be unreadable.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def acquire(self) -> bool:
        """Wait for the lock, then remove the end of the file that is no whole line."""
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


def connect_journal(url: str) -> Backend:
    path = url.removeprefix("journal:///")
    try:
        backend = JournalFileBackend(path, lock_obj=_MendingLock(path))
    except OSError as error:
        raise ConnectionError(f"The storage {url} cannot be opened: {error}") from error
    storage = optuna.storages.JournalStorage(backend)
    return Backend(storage, do_nothing, do_nothing, lambda error: False)
