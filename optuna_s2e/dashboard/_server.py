"""The launcher: optuna-dashboard on a storage and its pictures, while a block of code runs."""

from __future__ import annotations

import base64
import errno
import hmac
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage
from optuna.study import Study

from optuna_s2e import _optuna
from optuna_s2e._checks import check_int
from optuna_s2e.dashboard._answers import App, NotesApart, StudyAnswers, edited
from optuna_s2e.dashboard._artifacts import ArtifactFolder
from optuna_s2e.storages import open_storage

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

_STUDY_PATH = re.compile(r"/api/studies/(\d+)")
_PAGE_PATH = re.compile(r"/dashboard(?:/.*)?")
_PAGE_OF_STUDY = re.compile(r"/dashboard/studies/(\d+)(?:/.*)?")
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
# a picture is shown, but no script in an uploaded document runs
_ARTIFACT_HEADERS = [
    ("Content-Security-Policy", "sandbox; default-src 'none'; style-src 'unsafe-inline'"),
    ("X-Content-Type-Options", "nosniff"),
]
# The page's own text colour tells whether it is dark: all texts are legible on either background.
# Our plots come before Optuna's, and do not touch each other.
_STYLE = b"""<style>
[id^="user-defined-plot:s2e_"] text { fill: currentColor !important; }
a:not([class]) { color: color-mix(in srgb, currentColor, #1f6feb); }
a:not([class]):has(> img) { color: inherit; }
img[src^="/artifacts/"] { background: rgb(from currentColor calc(255 - r) calc(255 - g) calc(255 - b) / 1); }
.MuiGrid-root:not(.MuiGrid-container):has([id^="user-defined-plot:s2e_"]) {
    order: -1; padding: 16px 0 0 16px;
}
</style>
</head>"""  # noqa: E501


@contextmanager
def serve(
    storage: Study | BaseStorage | str,
    artifact_store: ArtifactStore | str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    read_only: bool = False,
    password: str | None = None,
) -> Iterator[str]:
    """Run optuna-dashboard in the background while the block runs; yield its address.

    Every request has a thread of its own. For very many readers use a real web server.

    Args:
        storage: A study, a storage or its URL.
        artifact_store: Where the pictures are: the folder or the artifact store that the reporter
            has. None shows no pictures.
        host: Address to listen on. The default admits this machine only.
        port: Port to listen on. 0 takes a free one.
        read_only: Whether to refuse every change: notes, names, trials, studies.
        password: Password that each visitor must give (with any user name). It travels as plain
            text unless a proxy adds TLS. None asks for none.

    Yields:
        The address of the pages.

    Raises:
        ImportError: If optuna-dashboard is missing.
        ValueError: If the port is no int in [0, 65535].
        OSError: If the port is taken, or the host is no address of this machine.

    Example:
        >>> import optuna, urllib.request
        >>> from optuna_s2e.dashboard import serve
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study()
        >>> with serve(study) as address:
        ...     study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        ...     page = urllib.request.urlopen(address).read()
        >>> b"<title>Optuna Dashboard" in page
        True
    """
    port = check_int("port", port, 0, 65_535)
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise ImportError(
            'optuna-dashboard is missing: pip install "optuna-s2e[dashboard]"'
        ) from error
    if isinstance(storage, Study):
        storage = _optuna.storage_of(storage)
    elif isinstance(storage, str):
        storage = open_storage(storage, create=False)
    if isinstance(artifact_store, str | Path):
        artifact_store = ArtifactFolder(artifact_store)
    hosts = LOOPBACK if host in LOOPBACK and password is None else None
    looks = wsgi(NotesApart(storage), artifact_store)
    answers = StudyAnswers(looks, storage)
    app = _guarded(wsgi(storage, artifact_store), looks, answers, read_only, password, hosts)
    try:
        server = make_server(host, port, app, _Server, _Quiet)
    except OSError as error:
        remedy = (
            "Choose another port; 0 takes a free one."
            if error.errno in (errno.EADDRINUSE, errno.EACCES)
            else "Choose another host: an address of this machine."
        )
        raise OSError(
            f"The dashboard cannot listen on {host}:{port} ({error.strerror or error}). {remedy}"
        ) from error
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
    )
    thread.start()
    answers.read_ahead()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}/dashboard"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False  # a browser may hold its connection open for minutes

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about visitors that hang up."""


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests: an open page sends one every few seconds."""


def _guarded(
    app: App,
    looks: App,
    study_of: StudyAnswers,
    read_only: bool,
    password: str | None,
    hosts: tuple[str, ...] | None,
) -> App:
    """Restrict who may ask the dashboard, what may change, and what artifacts may do.

    Args:
        app: The dashboard.
        looks: The dashboard of the same storage, whose trials are as people should see them: it
            answers what only asks.
        study_of: Answers with a study.
        read_only: Whether to refuse every change.
        password: Password of all visitors.
        hosts: The names under which it may be asked. None: any.
    """

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        name = environ.get("HTTP_HOST", "").rpartition(":")[0] or environ.get("HTTP_HOST", "")
        if hosts is not None and name not in hosts:  # another site's name rebound to us
            return _refuse(start, "403 Forbidden", f"This dashboard answers to {hosts[0]} only.")
        if password is not None and not _knows(environ.get("HTTP_AUTHORIZATION", ""), password):
            ask = ("WWW-Authenticate", 'Basic realm="optuna_s2e", charset="UTF-8"')
            return _refuse(start, "401 Unauthorized", "The password is wrong or missing.", ask)
        changes = environ["REQUEST_METHOD"] not in ("GET", "HEAD", "OPTIONS")
        if read_only and changes:
            return _refuse(start, "403 Forbidden", "This dashboard is read-only.")
        path = environ.get("PATH_INFO", "")
        if not changes and (study := _STUDY_PATH.fullmatch(path)):
            return study_of(int(study[1]), environ, start)
        if path.startswith("/api/") and not changes:
            return looks(environ, start)
        if page := _PAGE_OF_STUDY.fullmatch(path):
            study_of.prepare(int(page[1]))
        if _PAGE_PATH.fullmatch(path):
            return edited(app, environ, start, _styled)
        if not path.startswith("/artifacts/"):
            return app(environ, start)

        def start_artifact(status: str, headers: list[Any], *rest: Any) -> Any:
            return start(status, headers + _ARTIFACT_HEADERS, *rest)

        return app(environ, start_artifact)

    return guarded


def _styled(page: bytes) -> bytes:
    return page.replace(b"</head>", _STYLE, 1)


def _knows(authorization: str, password: str) -> bool:
    scheme, _, credentials = authorization.partition(" ")
    try:
        given = base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return False
    return scheme.lower() == "basic" and hmac.compare_digest(given, password.encode())


def _refuse(start: Callable[..., Any], status: str, reason: str, *more: Any) -> list[bytes]:
    """Answer with the reason as JSON, which the dashboard's pages show."""
    start(status, [("Content-Type", "application/json"), *more])
    return [json.dumps({"reason": reason}).encode()]
