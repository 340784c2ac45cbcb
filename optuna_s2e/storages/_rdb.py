"""Connections to databases behind SQLAlchemy: shared SQLite files, PostgreSQL, others.

Each connection raises `StorageUnavailableError` where SQLAlchemy and the drivers have many ways to
say that the database cannot be reached.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import Engine, ExceptionContext

from optuna_s2e import _optuna
from optuna_s2e.storages._connection import (
    Connection,
    ServerNotReadyError,
    StorageUnavailableError,
    StorageUnusableError,
    is_writing,
)
from optuna_s2e.storages._deferral import is_of_handler
from optuna_s2e.storages._urls import driver_is_missing, hide_passwords, mask_url, sqlite_file

SQLITE_TIMEOUT = 60.0  # seconds that a writer waits for another
_SQLITE_SLICE = 0.2  # seconds that it waits in one piece, in which no signal is looked at
WRITER_TIMEOUT = 30.0  # seconds after which PostgreSQL ends a write whose worker has stopped

_SQLITE_BUSY, _SQLITE_LOCKED = 5, 6
# read-only, I/O error, corrupt, full, cannot be opened, no database
_SQLITE_UNUSABLE = (8, 10, 11, 13, 14, 26)

# https://www.postgresql.org/docs/current/libpq-connect.html: notice a server that has vanished
_LIBPQ_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

# SQLSTATE classes: connection exceptions, deadlocks, too few resources, operator intervention
_UNAVAILABLE_STATES = ("08", "40", "53", "57")
_NOT_READY = ("the database system is", "too many clients", "connection slots are reserved")


def connect_rdb(
    url: sqlalchemy.URL, create: bool, heartbeat_interval: int | None, grace_period: int | None
) -> Connection:
    """Open a database with Optuna's tables.

    Args:
        url: URL of the database, with its password.
        create: Whether what is missing is made: the file of an SQLite database, the tables.
        heartbeat_interval: Seconds between two heartbeats of a running trial. None: no heartbeat.
        grace_period: Seconds without a heartbeat after which a trial counts as dead.

    Raises:
        ImportError: If the database's driver is missing.
        ServerNotReadyError: If the server answers, but cannot be used yet.
        ConnectionError: If the database cannot be opened.
    """
    file = sqlite_file(url)
    if file is not None and not os.path.isdir(folder := os.path.dirname(file)):
        raise _cannot_be_opened(url, f"the folder {folder} does not exist.")
    try:
        if not create:
            _check_existence(url)
        storage = _open(url, create, heartbeat_interval, grace_period)
    except ImportError as error:
        raise driver_is_missing(url) from error
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        origin = error.__cause__ if isinstance(error, StorageInternalError) else error
        cause = hide_passwords(str(getattr(origin, "orig", None) or origin or error))
        kind = ServerNotReadyError if _is_not_ready(origin) else ConnectionError
        raise _cannot_be_opened(url, cause.splitlines()[0], kind) from error
    except TypeError as error:  # of the driver, about an option in the query
        raise _cannot_be_opened(url, hide_passwords(str(error))) from error
    except RuntimeError as error:  # of Optuna, about the version of the tables
        raise _cannot_be_opened(url, str(error)) from error
    return Connection(
        optuna.storages.get_storage(storage),
        close=storage.engine.dispose,
        abandon=partial(storage.engine.dispose, close=False),
        is_unavailable=_is_pool_timeout,
        abandon_transaction=_abandons_transactions(storage),
    )


def _cannot_be_opened(
    url: sqlalchemy.URL, reason: str, kind: type[ConnectionError] = ConnectionError
) -> ConnectionError:
    return kind(f"The storage {mask_url(url)} cannot be opened: {reason}")


def _check_existence(url: sqlalchemy.URL) -> None:
    """Refuse a database without Optuna's tables, and make nothing.

    Raises:
        ConnectionError: If the file or one of the tables is missing.
    """
    file = sqlite_file(url)
    if file is not None and not os.path.exists(file):
        raise _cannot_be_opened(url, "the file does not exist.")
    engine = sqlalchemy.create_engine(url)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if not tables:
        raise _cannot_be_opened(url, "the database is empty.")
    if "studies" not in tables:
        raise _cannot_be_opened(url, "the database holds no studies of Optuna.")
    if not {"version_info", "alembic_version"} <= tables:
        raise _cannot_be_opened(
            url,
            "a very old Optuna has made its tables. `optuna storage upgrade` of Optuna 4 upgrades "
            "them.",
        )


def _is_not_ready(error: BaseException | None) -> bool:
    lost = isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
    return lost or any(sign in str(error) for sign in _NOT_READY)


def _open(
    url: sqlalchemy.URL, create: bool, heartbeat_interval: int | None, grace_period: int | None
) -> RDBStorage:
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": _SQLITE_SLICE}}
    elif url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        given = {name: v for name, v in _LIBPQ_OPTIONS.items() if name not in url.query}
        options["connect_args"] = given
    make = partial(
        _optuna.FastRDBStorage,
        # RDBStorage formats its URL: doubled braces become single ones again
        url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
        engine_kwargs=options,
        heartbeat_interval=heartbeat_interval,
        grace_period=grace_period,
        skip_table_creation=not create,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = _open_beside_others(make)
    sqlalchemy.event.listen(storage.engine, "handle_error", _raise_unavailable)
    if (file := sqlite_file(url)) is not None:
        _share_sqlite_file(storage.engine)
        _refuse_another_file(storage.engine, file)
    elif url.get_backend_name() == "postgresql":
        _limit_suspended_writes(storage.engine)
    return storage


def _open_beside_others(make: Callable[[], RDBStorage]) -> RDBStorage:
    """Open a storage, also while another process makes its tables."""
    end, waits = time.monotonic() + SQLITE_TIMEOUT, iter((0.2, 0.5, 1.0, 2.0))
    while True:
        try:
            return make()
        except (sqlalchemy.exc.DBAPIError, StorageInternalError) as error:
            text = f"{error} {error.__cause__}".lower()
            is_locked = "database is locked" in text and time.monotonic() < end
            is_made = any(sign in text for sign in ("already exists", "unique", "duplicate"))
            wait = _SQLITE_SLICE if is_locked else next(waits, None) if is_made else None
            if wait is None:
                raise
        time.sleep(wait)


def _share_sqlite_file(engine: Engine) -> None:
    """Keep a write-ahead log, and lock at the start of a transaction that will write.

    With Optuna's transactions, which lock when they first write, two writers may have read what
    the other one changes; SQLite refuses one of them at once. Call this after Optuna has made its
    tables: it makes them in transactions that would lock each other out.
    """
    engine.dispose()  # connections made from here on get the listeners

    @sqlalchemy.event.listens_for(engine, "connect")
    def no_implicit_transactions(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        if is_writing() and not connection.info.get("has_log"):  # what only reads changes nothing
            with contextlib.suppress(StorageUnavailableError):  # in use: some other time
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # the file keeps this mode
                connection.info["has_log"] = True
        end = time.monotonic() + SQLITE_TIMEOUT
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing() else "BEGIN")
                return
            except StorageUnavailableError:  # another one writes
                if time.monotonic() >= end:
                    raise


def _refuse_another_file(engine: Engine, file: str) -> None:
    """Refuse to go on if the database's file was deleted or replaced.

    An open connection would write to a file that nobody sees, and a new one would make an empty
    file.
    """

    def identity() -> tuple[int, int] | None:
        try:
            status = os.stat(file)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    first = identity()

    def check(*_: Any) -> None:
        if identity() != first:
            raise StorageUnusableError("its file was deleted or replaced meanwhile.")

    sqlalchemy.event.listen(engine, "do_connect", check)
    sqlalchemy.event.listen(engine, "begin", check, insert=True)


def _abandons_transactions(storage: RDBStorage) -> Callable[[], None]:
    """Return what ends the session of this thread after an exception, wherever that came from.

    If a signal came between two of its lines, SQLAlchemy may not know of the transaction, or give
    the connection back in spite of it. Or it closes the connection: SQLite keeps that, and its
    lock, while a cursor is in use, here by the frames of the exception.
    """
    in_use = threading.local()

    def roll_back(connection: Any, *_: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.rollback()  # does nothing without a transaction

    @sqlalchemy.event.listens_for(storage.engine, "checkout")
    def take(connection: Any, *_: Any) -> None:
        in_use.connection = connection

    @sqlalchemy.event.listens_for(storage.engine, "checkin")
    def give_back(connection: Any, *_: Any) -> None:
        roll_back(connection)
        if getattr(in_use, "connection", None) is connection:
            in_use.connection = None

    sqlalchemy.event.listen(storage.engine, "close", roll_back)

    def abandon() -> None:
        roll_back(getattr(in_use, "connection", None))
        try:
            storage.remove_session()
        finally:  # a signal may have left a session that cannot be closed
            storage.scoped_session.registry.clear()

    return abandon


def _limit_suspended_writes(engine: Engine) -> None:
    """Let PostgreSQL undo the write of a worker that is suspended or has vanished.

    Every ask locks the study's row for a moment, so that such a write holds up all workers. Reads
    hold up nobody, and may take as long as they need.
    """

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        if is_writing():
            milliseconds = round(1000 * WRITER_TIMEOUT)
            connection.exec_driver_sql(
                f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
            )


def _raise_unavailable(context: ExceptionContext) -> None:
    """Raise StorageUnavailableError or StorageUnusableError in place of what means it."""
    error = context.original_exception
    if not isinstance(error, Exception):
        return  # a signal (KeyboardInterrupt, SystemExit), which SQLAlchemy calls a disconnect
    if is_of_handler(error):
        return
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _SQLITE_UNUSABLE:
            raise StorageUnusableError(f"{error}.")
        unavailable = code in (_SQLITE_BUSY, _SQLITE_LOCKED)
    else:
        state = str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")
        is_operational = isinstance(context.sqlalchemy_exception, sqlalchemy.exc.OperationalError)
        no_connection = context.connection is None and is_operational
        unavailable = context.is_disconnect or no_connection or state[:2] in _UNAVAILABLE_STATES
    if unavailable and not context.is_pre_ping:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageUnavailableError(hide_passwords(reason))


def _is_pool_timeout(error: Exception) -> bool:
    """Recognise that no connection was free in time: all of them wait for the database."""
    return isinstance(error, StorageInternalError) and isinstance(
        error.__cause__, sqlalchemy.exc.TimeoutError
    )
