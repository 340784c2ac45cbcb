"""Optuna's own storages, opened so that several processes can share them."""

from __future__ import annotations

import time
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

SQLITE_TIMEOUT = 60.0  # seconds that a writer waits for another


def open_storage(url: str) -> BaseStorage:
    """Open a storage of Optuna for searches with several workers.

    The search is correct on any storage of Optuna; this one is also robust: SQLite waits up to a
    minute for another writer and keeps a write-ahead log, so that readers never block it;
    connections to a server are checked before use, so that a restarted database costs nothing.

    Args:
        url: `sqlite:///FILE`, `postgresql+psycopg://USER@HOST/DATABASE` (`postgresql://` too), any
            other URL that SQLAlchemy knows, or `journal:///FILE` for Optuna's journal file.

    Returns:
        A storage for `optuna.create_study(storage=...)`.

    Raises:
        ValueError: If the URL is none.
        ImportError: If the database's driver is missing.
        ConnectionError: If the storage cannot be reached or opened; without the password.

    Example:
        >>> import optuna
        >>> from optuna_s2e import open_storage
        >>> study = optuna.create_study(storage=open_storage("sqlite:///:memory:"))
    """
    if url.startswith("journal:///"):
        try:
            backend = JournalFileBackend(url.removeprefix("journal:///"))
        except OSError as error:
            raise ConnectionError(f"The storage {url} cannot be opened: {error}") from error
        return optuna.storages.JournalStorage(backend)
    shown = url.rpartition("@")[2]  # never a password
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.drivername == "postgresql":  # which driver that means depends on SQLAlchemy
            parsed = parsed.set(drivername="postgresql+psycopg")
        shown = parsed.render_as_string(hide_password=True)
        return _open_rdb(parsed)
    except sqlalchemy.exc.ArgumentError as error:
        raise ValueError(
            f"storage must be a database URL such as sqlite:///s2e.db, but got {shown!r}."
        ) from error
    except ImportError as error:
        raise ImportError(
            f'The database driver of {shown} is missing: pip install "optuna-s2e[postgres]" for '
            "PostgreSQL, or the driver of your database."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise ConnectionError(f"The storage {shown} cannot be opened: {cause}") from error


def _made_at_once(url: str, options: dict[str, Any]) -> RDBStorage:
    """Open a storage whose tables another process may be making at this moment."""
    for wait in (0.2, 0.5, 1.0, 2.0):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError) as error:
            text = str(error).lower()
            if not any(sign in text for sign in ("already exists", "unique", "duplicate")):
                raise
        time.sleep(wait)
    return RDBStorage(url, engine_kwargs=options)


def _open_rdb(url: sqlalchemy.URL) -> RDBStorage:
    sqlite = url.get_backend_name() == "sqlite"
    options: dict[str, Any] = (
        {"connect_args": {"timeout": SQLITE_TIMEOUT}} if sqlite else {"pool_pre_ping": True}
    )
    # RDBStorage formats its URL: braces are doubled to survive it
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    storage = _made_at_once(text, options)
    if sqlite and url.database not in (None, "", ":memory:"):
        connection = storage.engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode=WAL")  # the file keeps it
        finally:
            connection.close()
    return storage
