"""Processes of this and other machines: who is alive, and whose child this one is.

A process of a pool waits for its next task on a pipe whose other end it holds itself. So it never
sees that the process which made it was killed. `end_with` looks after that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

_INTERVAL = 1.0  # seconds between two looks at the driver

_watched: set[Process] = set()
_busy = threading.Event()  # this process of a pool runs a trial


class Process(NamedTuple):
    """A process, as all machines tell it from others.

    Attributes:
        machine: What tells apart machines and containers, as far as process numbers go.
        pid: Its number.
        started: When it began, as its system tells it.
    """

    machine: str
    pid: int
    started: str | None

    @property
    def lives(self) -> bool | None:
        """Whether it lives. None if it runs on another machine."""
        if self.machine != _machine():
            return None
        started = _start_of(self.pid)
        return started is not None and started == self.started


def this_process() -> Process:
    """Return this process."""
    return _process(os.getpid())


@cache
def _process(pid: int) -> Process:
    return Process(_machine(), pid, _start_of(pid))


def _machine() -> str:
    parts = [socket.gethostname(), f"{uuid.getnode():x}"]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux
        pass
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """Return when a process began, as the system tells it; None if it is dead."""
    try:
        fields = _stat(pid)
        return None if fields[0] in ("Z", "X") else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except OSError as error:
        return "unknown" if isinstance(error, PermissionError) else None
    return "unknown"


def _stat(pid: int) -> list[str]:
    """Return what Linux says of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


# --- a process of a pool -----------------------------------------------------------------------


@contextmanager
def busy_for(driver: Process) -> Iterator[None]:
    """Run a trial of a driver inside; from now on, end with the driver if this is its child."""
    if driver not in _watched:
        _watched.add(driver)
        if driver.lives and _is_child_of(driver.pid):
            threading.Thread(target=_end_with, args=(driver,), daemon=True).start()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, _at_ctrl_c)
                for name in ("SIGTERM", "SIGHUP"):
                    number = getattr(signal, name, None)  # Windows has no SIGHUP
                    if number and signal.getsignal(number) != signal.SIG_IGN:
                        signal.signal(number, _at_end)
    _busy.set()
    try:
        yield
    finally:
        _busy.clear()


def _is_child_of(pid: int) -> bool:
    """Say whether a process has made this one, itself, by a fork server or by its children."""
    parent = multiprocessing.parent_process()
    ancestor = os.getppid()
    if pid in (ancestor, None if parent is None else parent.pid):
        return True
    try:
        while ancestor not in (0, 1, pid):
            ancestor = int(_stat(ancestor)[1])
    except OSError:  # not Linux
        pass
    return ancestor == pid


def _end_with(driver: Process) -> None:
    """End this process and its own when the driver is dead, whatever they are doing."""
    parent = multiprocessing.parent_process()
    while driver.lives and (parent is None or parent.is_alive()):
        time.sleep(_INTERVAL)
    _end()


def _end(code: int = 1) -> NoReturn:
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(code)


def _at_end(number: int, frame: FrameType | None) -> NoReturn:
    _end(128 + number)


def _at_ctrl_c(number: int, frame: FrameType | None) -> None:
    """Interrupt the trial; without one, end: the pool would print a traceback."""
    if not _busy.is_set():
        _end(128 + number)
    raise KeyboardInterrupt


def _begin_process() -> None:
    _watched.clear()  # their threads are the parent's


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_process)
