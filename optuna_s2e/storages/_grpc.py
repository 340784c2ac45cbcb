"""Connections to Optuna's gRPC proxy."""

from __future__ import annotations

import warnings

import optuna
from optuna.exceptions import ExperimentalWarning

from optuna_s2e.storages._connection import Connection

_TIMEOUT = 10  # seconds that the first connection may take
_UNAVAILABLE_CODES = ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")


def connect_grpc(host: str, port: int) -> Connection:
    """Connect to a proxy server.

    Raises:
        ImportError: If grpcio is not installed.
        ConnectionError: If no server answers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
        storage.wait_server_ready(timeout=_TIMEOUT)
    except ImportError as error:
        raise ImportError(
            'Optuna\'s gRPC client is missing: pip install "optuna-s2e[grpc]"'
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"The storage grpc://{host}:{port} cannot be opened: no server answers."
        ) from error
    return Connection(storage, close=storage.close, is_unavailable=_is_unavailable)


def _is_unavailable(error: Exception) -> bool:
    code = getattr(error, "code", None)  # of grpc.RpcError, which may not be installed
    return callable(code) and getattr(code(), "name", None) in _UNAVAILABLE_CODES
