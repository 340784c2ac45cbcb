"""Databases behind SQLAlchemy: SQLite files that many processes share, PostgreSQL, others."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import warnings
from functools import partial
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import Engine, ExceptionContext

from optuna_s2e.storages._retry import (
    Backend,
    DatabaseLostError,
    ServerNotReadyError,
    writes,
)
from optuna_s2e.storages._urls import driver_is_missing, hide_passwords

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


def connect_rdb(url: sqlalchemy.URL, heartbeat_interval: int | None, grace: int | None) -> Backend:
    try:
        storage = _open_rdb(url, heartbeat_interval, grace)
    except ImportError as error:
        raise driver_is_missing(url) from error
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
