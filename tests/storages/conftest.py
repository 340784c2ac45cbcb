from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def grpc_proxy(_postgres_server_url: str) -> Iterator[Any]:
    """One gRPC proxy in front of a database of its own, for tests with their own study names."""
    from servers import GrpcProxy, new_database

    proxy = GrpcProxy(new_database(_postgres_server_url))
    yield proxy
    proxy.kill()
