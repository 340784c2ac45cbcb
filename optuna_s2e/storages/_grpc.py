"""Optuna's gRPC proxy."""

from __future__ import annotations

import warnings

import optuna
from optuna.exceptions import ExperimentalWarning

from optuna_s2e.storages._retry import (
    Backend,
    do_nothing,
)

_GRPC_AWAY = ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")


def connect_grpc(host: str, port: int) -> Backend:
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
    return Backend(storage, storage.close, do_nothing, _is_grpc_away)


def _is_grpc_away(error: Exception) -> bool:
    code = getattr(error, "code", None)  # of grpc.RpcError, which may not be installed
    return callable(code) and getattr(code(), "name", None) in _GRPC_AWAY
