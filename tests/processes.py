"""Real processes for tests, forked from a server that has imported what takes long to import.

They start in milliseconds and are like any other process: they have their own memory, storages
and signals. The server is one process per run of pytest and knows nothing of the tests.
"""

import contextlib
import faulthandler
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])
PATIENCE = 240  # seconds until a test fails that waits; the machine may be busy
HANGS = PATIENCE - 10  # longer than any process of the tests runs
_numbers = itertools.count()


@cache
def _start_server() -> None:
    """Start the server in this folder, where it finds what it imports."""
    with contextlib.chdir(Path(__file__).parent):
        forkserver.ensure_running()


class Process:
    """A function in a process of its own, in the working folder; its prints go to files there.

    Args:
        target: A function of a module.
        args: Its arguments.
        session: Whether the process leads a session, whose processes can be killed together.
        env: Variables that the process has besides those of the tests.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        *args: Any,
        session: bool = False,
        env: dict[str, str] | None = None,
    ) -> None:
        _start_server()
        folder, number = Path.cwd(), next(_numbers)
        self._out, self._err = (folder / f"{number}.{name}" for name in ("out", "err"))
        how = (folder, self._out, self._err, session, env or {})
        self._process = CONTEXT.Process(target=_run, args=(target, args, *how))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def printed(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    @property
    def errors(self) -> str:
        return self._err.read_text() if self._err.exists() else ""

    def send_signal(self, sign: int) -> None:
        if self.is_alive():
            os.kill(self.pid, sign)

    def kill_session(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit code; minus the signal that killed the process."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"the process does not end: {self.errors}"
        return self._process.exitcode

    def stop(self, sign: int) -> tuple[int, str, str]:
        """Send a signal; return the exit code, what was printed, and the errors."""
        self.send_signal(sign)
        return self.wait(), self.printed, self.errors


class Command(Process):
    """The `s2e` command in a process of its own."""

    def __init__(self, *argv: str, env: dict[str, str] | None = None) -> None:
        super().__init__(_command, argv, env=env)


def _command(argv: list[str]) -> None:
    from optuna_s2e.cli import main

    sys.exit(main(argv))


def _run(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    folder: Path,
    out: Path,
    err: Path,
    session: bool,
    env: dict[str, str],
) -> None:
    if session:
        os.setsid()
    # a background job of a shell ignores SIGINT, and so do its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= env
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    faulthandler.dump_traceback_later(HANGS, exit=True)  # a process that hangs says where
    target(*args)


def wait_until(condition: Callable[[], bool], process: Process) -> None:
    """Wait for a condition while a process lives; leave it most of the core."""
    end = time.monotonic() + PATIENCE
    while True:
        began = time.monotonic()
        if condition():
            return
        assert process.is_alive(), process.errors
        assert time.monotonic() < end, "the process makes no progress"
        time.sleep(max(0.02, 4 * (time.monotonic() - began)))
