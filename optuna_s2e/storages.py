"""Optuna's own storages, opened so that several processes can share them and survive outages."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import optuna
import sqlalchemy
import tenacity
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import Engine, ExceptionContext

from optuna_s2e.patient_storage import (
    Backend,
    DatabaseLostError,
    PatientStorage,
    StaleTrialCallback,
    writes,
)

DEFAULT_PATIENCE = 300.0  # seconds
SQLITE_TIMEOUT = 60.0  # seconds that a writer waits for another
WRITER_TIMEOUT = 30.0  # seconds that PostgreSQL waits for a worker that has stopped amid a write
_SQLITE_BUSY, _SQLITE_LOCKED = 5, 6
# https://www.postgresql.org/docs/current/libpq-connect.html: notice a server that has vanished
_LIBPQ_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# SQLSTATE classes: connection exceptions, deadlocks, too few resources, operator intervention
_AWAY = ("08", "40", "53", "57")
_NOT_READY = ("the database system is", "too many clients", "connection slots are reserved")
_GRPC_AWAY = ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")


class ServerNotReadyError(ConnectionError):
    """A database server answers, but cannot be used yet."""


def open_storage(
    url: str,
    *,
    patience: float = DEFAULT_PATIENCE,
    heartbeat_interval: int | None = None,
    stale_trial_callback: StaleTrialCallback | None = None,
) -> BaseStorage:
    """Open a storage of Optuna for searches with several workers.

    The search is correct on any storage of Optuna; this one also survives:

    - A database server that restarts or is away for less than `patience`: operations wait and
      are tried again, what was carried out although its acknowledgement was lost is recognised,
      and the heartbeat goes on. The log says once that the database is away, and once that it is
      back.
    - A worker that is suspended, or whose machine is gone, in the middle of a write: PostgreSQL
      takes its locks back after half a minute.
    - Many writers on one SQLite file: a write-ahead log, so that readers never block writers, a
      timeout of a minute, and transactions that take the lock before they read what they change.
    - Forks and pickling: each process opens the storage for itself.
    - A journal file whose last line was cut by a full disk.

    What cannot be reached when it is opened is an error at once; a server that answers, but is
    starting, stopping or has no connection left, is waited for.

    Args:
        url: `sqlite:///FILE`, `postgresql+psycopg://USER@HOST/DATABASE` (`postgresql://` too), any
            other URL that SQLAlchemy knows, `journal:///FILE` for Optuna's journal file, or
            `grpc://HOST:PORT` for Optuna's gRPC proxy.
        patience: For how long one operation is tried again, in seconds, at least 0.
        heartbeat_interval: Seconds, at least 1, between two heartbeats of a running trial, under
            `study.optimize`. Trials whose heartbeat has stopped for longer than `patience` and
            two intervals are failed by the next worker that asks. None: no heartbeat. The search
            never needs it; databases only.
        stale_trial_callback: What happens to such a trial then, for example
            `optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2)`.

    Returns:
        A storage for `optuna.create_study(storage=...)`.

    Raises:
        ValueError: If the URL is none, or an argument is out of range.
        ImportError: If the database's driver is missing.
        ConnectionError: If the storage cannot be reached or opened; without the password.

    Example:
        >>> import optuna
        >>> from optuna_s2e import open_storage
        >>> study = optuna.create_study(storage=open_storage("sqlite:///:memory:"))
    """
    if not 0 <= patience < float("inf"):
        raise ValueError(f"patience must be at least 0 s and finite, but got {patience!r}.")
    if heartbeat_interval is not None and heartbeat_interval < 1:
        raise ValueError(f"heartbeat_interval must be at least 1 s, but got {heartbeat_interval}.")
    scheme = url.partition(":")[0] if "://" in url else ""
    if heartbeat_interval is not None and scheme in ("journal", "grpc"):
        raise ValueError(f"heartbeat_interval must be None for {scheme}: it needs a database.")
    connect: Callable[[], Backend]
    if scheme == "journal":
        name, connect = url, partial(_connect_journal, url)
    elif scheme == "grpc":
        host, port = _grpc_address(url)
        name, connect = f"grpc://{host}:{port}", partial(_connect_grpc, host, port)
    else:
        parsed = _parse(url)
        name = hide_passwords(parsed.render_as_string())
        grace = None if heartbeat_interval is None else int(patience) + 2 * heartbeat_interval
        connect = partial(_connect_rdb, parsed, heartbeat_interval, grace)
    opening = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ServerNotReadyError),
        stop=tenacity.stop_after_delay(patience),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        reraise=True,
    )
    return PatientStorage(
        connect,
        opening(connect),
        name=name,
        patience=patience,
        heartbeat_interval=heartbeat_interval,
        stale_trial_callback=stale_trial_callback,
    )


def hide_passwords(text: str) -> str:
    """Replace the passwords of all URLs in a text by ***."""
    text = re.sub(r"(://[^:/@\s]*):[^\s'\"]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", text)


# --- journal files ---------------------------------------------------------------------------


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


def _connect_journal(url: str) -> Backend:
    path = url.removeprefix("journal:///")
    try:
        backend = JournalFileBackend(path, lock_obj=_MendingLock(path))
    except OSError as error:
        raise ConnectionError(f"The storage {url} cannot be opened: {error}") from error
    storage = optuna.storages.JournalStorage(backend)
    return Backend(storage, _nothing, _nothing, lambda error: False)


# --- gRPC ------------------------------------------------------------------------------------


def _grpc_address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        shown = url.rpartition("@")[2]
        raise ValueError(f"storage must be grpc://HOST:PORT, but got {shown!r}.")
    return host, port


def _connect_grpc(host: str, port: int) -> Backend:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
        storage.wait_server_ready(timeout=10)
    except ImportError as error:
        raise ImportError(
            'Optuna\'s gRPC client is missing: pip install "optuna-s2e[grpc]"'
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"The storage grpc://{host}:{port} cannot be opened: no server answers."
        ) from error
    return Backend(storage, storage.close, _nothing, _is_grpc_away)


def _nothing() -> None:
    """Leave it open."""


def _is_grpc_away(error: Exception) -> bool:
    code = getattr(error, "code", None)  # of grpc.RpcError, which may not be installed
    return callable(code) and getattr(code(), "name", None) in _GRPC_AWAY


# --- databases -------------------------------------------------------------------------------


def _parse(url: str) -> sqlalchemy.URL:
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.drivername == "postgresql":  # which driver that means depends on SQLAlchemy
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect()
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        shown = hide_passwords(url.rpartition("@")[2])  # never a password
        raise ValueError(
            f"storage must be a database URL such as sqlite:///s2e.db, but got {shown!r}."
        ) from error
    except ImportError as error:
        raise _driver_is_missing(parsed) from error
    return parsed


def _driver_is_missing(url: sqlalchemy.URL) -> ImportError:
    shown = hide_passwords(url.render_as_string())
    return ImportError(
        f'The database driver of {shown} is missing: pip install "optuna-s2e[postgres]" for '
        "PostgreSQL, or the driver of your database."
    )


def _connect_rdb(
    url: sqlalchemy.URL, heartbeat_interval: int | None, grace: int | None
) -> Backend:
    try:
        storage = _open_rdb(url, heartbeat_interval, grace)
    except ImportError as error:
        raise _driver_is_missing(url) from error
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        shown = hide_passwords(url.render_as_string())
        origin = error.__cause__ if isinstance(error, StorageInternalError) else error
        cause = hide_passwords(str(getattr(origin, "orig", None) or origin or error))
        kind = ServerNotReadyError if _is_not_ready(origin) else ConnectionError
        message = f"The storage {shown} cannot be opened: {cause.splitlines()[0]}"
        raise kind(message) from error
    close, forget = storage.engine.dispose, partial(storage.engine.dispose, close=False)
    return Backend(optuna.storages.get_storage(storage), close, forget, _is_rdb_away)


def _is_not_ready(error: BaseException | None) -> bool:
    lost = isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
    return lost or any(sign in str(error) for sign in _NOT_READY)


def _open_rdb(
    url: sqlalchemy.URL, heartbeat_interval: int | None, grace: int | None
) -> RDBStorage:
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": SQLITE_TIMEOUT}}
    elif url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        given = {name: v for name, v in _LIBPQ_OPTIONS.items() if name not in url.query}
        options["connect_args"] = given
    make = partial(
        RDBStorage,
        # RDBStorage formats its URL: braces are doubled to survive it
        url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
        engine_kwargs=options,
        heartbeat_interval=heartbeat_interval,
        grace_period=grace,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = _made_at_once(make)
    sqlalchemy.event.listen(storage.engine, "handle_error", _tell_away)
    if is_file:
        _share_sqlite_file(storage.engine)
    elif url.get_backend_name() == "postgresql":
        _bound_writes(storage.engine)
    return storage


def _made_at_once(make: partial[RDBStorage]) -> RDBStorage:
    """Open a storage whose tables another process may be making at this moment."""
    for wait in (0.2, 0.5, 1.0, 2.0):
        try:
            return make()
        except (sqlalchemy.exc.DBAPIError, StorageInternalError) as error:
            text = str(error).lower()
            if not any(sign in text for sign in ("already exists", "unique", "duplicate")):
                raise
        time.sleep(wait)
    return make()


def _share_sqlite_file(engine: Engine) -> None:
    """Keep a write-ahead log; lock at the start of what writes, not when it first does.

    To be called after Optuna has made its tables, which such transactions would lock out.
    """
    engine.dispose()  # connections made from here on get the listeners

    @sqlalchemy.event.listens_for(engine, "connect")
    def no_implicit_transactions(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None
        with contextlib.suppress(sqlite3.OperationalError):  # read-only: stays as it is
            connection.execute("PRAGMA journal_mode=WAL").close()  # the file keeps it

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes() else "BEGIN")


def _bound_writes(engine: Engine) -> None:
    """Let PostgreSQL take its locks back from a writer that is suspended or has vanished.

    All who ask lock the study's row for a moment. Reads hold up nobody, and may take long.
    """

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        if writes():
            milliseconds = round(1000 * WRITER_TIMEOUT)
            connection.exec_driver_sql(
                f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
            )


def _tell_away(context: ExceptionContext) -> None:
    """Raise what PatientStorage tries again, instead of SQLAlchemy's many ways to say it."""
    error = context.original_exception
    if not isinstance(error, Exception):
        return  # a signal (KeyboardInterrupt, SystemExit), which SQLAlchemy calls a disconnect
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        away = code in (_SQLITE_BUSY, _SQLITE_LOCKED)
    else:
        state = str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")
        is_operational = isinstance(context.sqlalchemy_exception, sqlalchemy.exc.OperationalError)
        no_connection = context.connection is None and is_operational
        away = context.is_disconnect or no_connection or state[:2] in _AWAY
    if away and not context.is_pre_ping:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DatabaseLostError(hide_passwords(reason))


def _is_rdb_away(error: Exception) -> bool:
    """Recognise a pool that runs dry while its connections wait for the database."""
    return isinstance(error, StorageInternalError) and isinstance(
        error.__cause__, sqlalchemy.exc.TimeoutError
    )
