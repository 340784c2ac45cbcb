"""Optuna's own storages, opened so that several processes can share them and survive outages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import tenacity
from optuna.storages import BaseStorage

from optuna_s2e.storages._grpc import connect_grpc
from optuna_s2e.storages._journal import connect_journal
from optuna_s2e.storages._rdb import connect_rdb
from optuna_s2e.storages._retry import (
    Backend,
    PatientStorage,
    ServerNotReadyError,
    StaleTrialCallback,
)
from optuna_s2e.storages._urls import hide_passwords, parse_grpc, parse_url

DEFAULT_PATIENCE = 300.0  # seconds


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
        name, connect = url, partial(connect_journal, url)
    elif scheme == "grpc":
        host, port = parse_grpc(url)
        name, connect = f"grpc://{host}:{port}", partial(connect_grpc, host, port)
    else:
        parsed = parse_url(url)
        name = hide_passwords(parsed.render_as_string())
        grace = None if heartbeat_interval is None else int(patience) + 2 * heartbeat_interval
        connect = partial(connect_rdb, parsed, heartbeat_interval, grace)
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
