"""`open_storage`: choose the kind of storage by its URL, connect, and wrap it for many workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from optuna.storages import BaseStorage

from optuna_s2e._checks import check_int, check_number
from optuna_s2e.storages._connection import (
    Connection,
    ProcessLocalConnection,
    ServerNotReadyError,
    retry_for,
)
from optuna_s2e.storages._grpc import connect_grpc
from optuna_s2e.storages._journal import connect_journal
from optuna_s2e.storages._rdb import connect_rdb
from optuna_s2e.storages._retry import RetryingStorage, StaleTrialCallback
from optuna_s2e.storages._urls import mask_url, parse_database, parse_grpc, parse_journal

DEFAULT_PATIENCE = 300.0  # seconds


def open_storage(
    url: str,
    *,
    create: bool = True,
    patience: float = DEFAULT_PATIENCE,
    heartbeat_interval: int | None = None,
    stale_trial_callback: StaleTrialCallback | None = None,
) -> BaseStorage:
    """Open a storage of Optuna for searches with several workers.

    A search is correct on any storage of Optuna. This one also survives:

    - A database server that restarts or is unavailable for less than `patience`. Operations wait
      and are tried again. An operation that was carried out although its acknowledgement was lost
      is not repeated. The heartbeat goes on. The log says once that the storage is unavailable,
      and once that it is available again.
    - A worker that is suspended, or whose machine is gone, in the middle of a write: PostgreSQL
      undoes that write after half a minute.
    - Many writers on one SQLite file. A write-ahead log lets readers and a writer work at the same
      time, writers wait for each other for up to a minute, and a transaction that will write takes
      the lock before it reads.
    - Forks and pickling: each process opens the storage for itself.
    - A journal file whose last line was cut by a full disk.

    If the storage cannot be reached when it is opened, the error comes at once. A server that
    answers, but is starting, stopping or has no connection left, is waited for.

    Args:
        url: `sqlite:///FILE`, `postgresql+psycopg://USER@HOST/DATABASE` (`postgresql://` too), any
            other URL that SQLAlchemy knows, `journal:///FILE` for Optuna's journal file, or
            `grpc://HOST:PORT` for Optuna's gRPC proxy. In the URL of a database, %20 stands for a
            blank, as anywhere in URLs; what follows `journal:///` is the file as it is. A leading
            ~ stands for the home folder.
        create: Whether a file, or the tables of Optuna in a database, are made if they are
            missing. False raises ConnectionError then: for whoever only reads, or joins others.
        patience: For how long one operation is tried again, in seconds, at least 0.
        heartbeat_interval: Seconds between two heartbeats of a running trial under
            `study.optimize`, at least 1. A trial without a heartbeat for longer than `patience`
            plus two intervals is failed by the next worker that asks. Only databases have
            heartbeats. The search never needs them. None: no heartbeat.
        stale_trial_callback: Called with the study and such a trial after it was failed, for
            example `optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2)`. None: nothing
            is called.

    Returns:
        A storage for `optuna.create_study(storage=...)`.

    Raises:
        ValueError: If `url` is no storage URL, or an argument is out of range.
        ImportError: If the database's driver is missing.
        ConnectionError: If the storage cannot be reached or opened. The message shows no password.

    Example:
        >>> import optuna
        >>> from optuna_s2e import open_storage
        >>> study = optuna.create_study(storage=open_storage("sqlite:///:memory:"))
    """
    patience = check_number("patience", patience, 0.0)
    if heartbeat_interval is not None:
        heartbeat_interval = check_int("heartbeat_interval", heartbeat_interval, 1)
    if not isinstance(url, str):
        raise ValueError(f"url must be a str such as 'sqlite:///s2e.db', but got {url!r}.")
    scheme = url.partition(":")[0] if "://" in url else ""
    if heartbeat_interval is not None and scheme in ("journal", "grpc"):
        raise ValueError(
            f"heartbeat_interval must be None for {scheme}://, but got {heartbeat_interval}. Only "
            "databases have heartbeats."
        )
    connect: Callable[[], Connection]
    if scheme == "journal":
        name, connect = url, partial(connect_journal, parse_journal(url), create)
    elif scheme == "grpc":
        host, port = parse_grpc(url)
        name, connect = f"grpc://{host}:{port}", partial(connect_grpc, host, port)
    else:
        parsed = parse_database(url)
        grace = None if heartbeat_interval is None else int(patience) + 2 * heartbeat_interval
        name = mask_url(parsed)
        connect = partial(connect_rdb, parsed, create, heartbeat_interval, grace)
    connection = ProcessLocalConnection(connect)
    retry_for(patience, ServerNotReadyError)(connection.get)
    return RetryingStorage(
        connection,
        name=name,
        patience=patience,
        heartbeat_interval=heartbeat_interval,
        stale_trial_callback=stale_trial_callback,
    )
