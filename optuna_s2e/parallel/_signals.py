"""SIGTERM, SIGHUP and Ctrl-C, for workers and drivers: what was asked for is done in time.

A handler may run anywhere in the main thread. An exception that it raises may leave a transaction
open, and Python drops it where it falls into the callback of a weak reference or into `__del__`
(python/cpython#95959). Therefore

- the handler sets a flag first, which loops look at (`check`);
- it raises where trials run or are waited for (`interruptible`); elsewhere, what is under way may
  end within MAX_WAIT seconds;
- an alarm raises once more until the exception has arrived. What must be written of the
  interrupted trials has the time that is left (`_IN_ALL`): the storage may be away.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from types import FrameType
from typing import Any

import optuna

MAX_WAIT = 1.0  # seconds that a signal waits where no trial runs
_IN_ALL = {"SIGINT": 1.8, "SIGTERM": 10.0, "SIGHUP": 10.0}  # seconds after it; a person waits less
_CLOSING = 0.5  # seconds at least after an interruption
_AGAIN = 0.2  # seconds after which an exception that has not arrived is raised again
_POLL = 0.01

_HAS_ALARM = hasattr(signal, "SIGALRM")  # not on Windows: there, `check` alone finds what is lost

_logger = optuna.logging.get_logger(__name__)


class Stopped(KeyboardInterrupt):
    """What runs was interrupted by the signal that the message names."""


class Orders:
    """What the signals that this process received tell it to do.

    Args:
        grace: Seconds that a trial may go on running after SIGTERM and SIGHUP (a closed terminal).

    Attributes:
        stop: The name of the signal that came; None if none did.
        waits_itself: True: a storage that defers signals need not defer what this handles.
    """

    waits_itself = True

    def __init__(self, grace: float = 0.0) -> None:
        self.stop: str | None = None
        self._grace = grace
        self._process = os.getpid()
        self._old: dict[int, Any] = {}  # handlers, as they were
        self._interruptible = False
        self._deadline = inf  # when trials are interrupted, as `time.monotonic()`
        self._raised: Stopped | None = None
        self._arrived = False
        self._limit = inf  # when what follows an interruption is interrupted, too

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Obey these signals and a second one, unless someone else handles or ignores them."""
        if threading.current_thread() is threading.main_thread():
            for name in _IN_ALL:
                if not hasattr(signal, name):  # Windows has no SIGHUP
                    continue
                number = int(signal.Signals[name])
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._take(number)
        try:
            yield
        finally:
            self._alarm(0)
            for number, handler in self._old.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let signals interrupt the block: a trial, or waiting for trials.

        Raises:
            Stopped: If a signal came.
        """
        try:
            try:
                self._interruptible = True
                self.check()
                yield
            finally:
                self._interruptible = False
        except Stopped:
            self._arrived = True
            raise

    def check(self) -> None:
        """Raise if trials are to be interrupted: the exception of the handler may be lost.

        Raises:
            Stopped: If so.
        """
        if time.monotonic() < self._deadline:
            return
        if threading.current_thread() is not threading.main_thread():
            raise Stopped(self.stop)  # a trial on a pool of threads
        if not self._arrived:
            self._interrupt()

    def check_begin(self) -> None:
        """Raise if any signal came: no trial is to begin, although a running one might go on.

        Raises:
            Stopped: If so.
        """
        if self.stop is not None and not self._arrived:
            self._interrupt()

    @property
    def interrupted(self) -> bool:
        """Whether anything was interrupted."""
        return self._raised is not None

    # --- signals -----------------------------------------------------------------------------

    def _take(self, number: int) -> None:
        self._old[number] = signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process:  # a process that was forked from this one
            signal.signal(number, self._old[number])
            os.kill(os.getpid(), number)
            return
        if _HAS_ALARM and number == signal.SIGALRM:
            self._act(frame)
            return
        name, now = signal.Signals(number).name, time.monotonic()
        at_once = number == signal.SIGINT or self.stop is not None or not self._grace
        if not at_once:
            _logger.warning(f"{name}: the running trial may end within {self._grace:g} s.")
        self.stop = name
        self._deadline = min(self._deadline, now if at_once else now + self._grace)
        if self._raised is not None:
            self._limit = min(self._limit, now + _IN_ALL[name])
        if _HAS_ALARM and signal.SIGALRM not in self._old:
            self._take(signal.SIGALRM)
        self._act(frame)

    def _act(self, frame: FrameType | None) -> None:
        """Interrupt what runs, or look again later."""
        now = time.monotonic()
        if now < self._deadline:
            self._alarm(self._deadline - now)
        elif self._raised is None:
            at_home = self._interruptible and not _is_in_storage(frame)
            if at_home or now >= self._deadline + MAX_WAIT:
                self._interrupt()
            self._alarm(_POLL)
        elif now >= self._limit or not (self._arrived or self._is_on_its_way()):
            self._interrupt()
        else:
            self._alarm(min(_AGAIN, self._limit - now))

    def _interrupt(self) -> None:
        assert self.stop is not None
        if self._raised is None:
            now = time.monotonic()
            self._limit = max(now + _CLOSING, min(now, self._deadline) + _IN_ALL[self.stop])
        self._raised = Stopped(self.stop)
        self._alarm(_AGAIN)
        raise self._raised

    def _is_on_its_way(self) -> bool:
        """Say whether an `except` or `finally` clause is handling the exception right now."""
        error = sys.exception()
        while error is not None and error is not self._raised:
            error = error.__context__
        return error is not None

    def _alarm(self, seconds: float) -> None:
        if _HAS_ALARM and signal.SIGALRM in self._old:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3) if seconds else 0)


def _is_in_storage(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("optuna.storages."):
            return True
        frame = frame.f_back
    return False
