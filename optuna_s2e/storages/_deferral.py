"""Signals wait for the end of an operation: an exception amid a transaction would keep its lock.

Python runs the handler of a signal wherever the main thread happens to be. A KeyboardInterrupt
inside SQLAlchemy may leave a connection in a transaction, and an SQLite file locked for everybody.
One between the lines of Optuna's ask and tell leaves a trial RUNNING that nobody runs. So while
the main thread is in one of them, `_receive` stands in for the handlers. A signal that waited is
handed on

- at the end of the next operation that is neither in an ask nor in a tell,
- just before the next trial begins,
- or as soon as the main thread has left ask, tell and storage, which a thread tries out.

After MAX_WAIT it is handed on wherever the main thread is.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from optuna_s2e import _optuna

MAX_WAIT = 1.0  # seconds
_PAUSE = 0.01  # seconds between two tries to hand a signal on

# the signals whose handlers may raise an exception
_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # not on Windows

# All of these are the main thread's. Its handlers run amid its code, so the lock is reentrant.
_lock = threading.RLock()
_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}  # that `_receive` stands in for
_waiting: dict[int, float] = {}  # signals that wait, and since when
_sent_again: set[int] = set()  # by the thread, not from outside
_depth = 0  # operations under way, one inside another


def _begin_process() -> None:
    """Forget what belongs to the parent process: its thread may hold the lock."""
    global _lock
    _lock = threading.RLock()
    _waiting.clear()
    _sent_again.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_process)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let signals wait for the end of the block, which is an operation of a storage."""
    global _depth
    if not _is_main():
        yield  # handlers never interrupt it
        return
    _depth += 1
    try:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) and handler is not _receive:  # neither SIG_DFL nor SIG_IGN
                _handlers[number] = handler
                signal.signal(number, _receive)
        yield
    finally:
        _depth -= 1
        frame = sys._getframe()
        if _depth == 0 and not _optuna.is_asking_or_telling(frame):
            _hand_on(frame)


def before_trial() -> None:
    """Hand on the signals that wait. Call it between operations, before a trial begins."""
    if _is_main() and _depth == 0:
        _hand_on(sys._getframe())


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _receive(number: int, frame: FrameType | None) -> None:
    """Stand in for the handler of a signal: let it wait, or hand it on."""
    with _lock:
        again, new = number in _sent_again, number not in _waiting
        _sent_again.discard(number)
        if again and new:
            return  # it was handed on meanwhile
        since = _waiting.setdefault(number, time.monotonic())
    late = time.monotonic() - since > MAX_WAIT
    if late and _depth:
        _call(number, frame)
    elif late or not (_depth or _optuna.is_asking_or_telling(frame)):
        _hand_on(frame)
    elif new:
        with contextlib.suppress(RuntimeError):  # no thread can start: the operation hands it on
            _thread.start_new_thread(_send_again, (number,))


def _hand_on(frame: FrameType | None) -> None:
    """Give the handlers back, and call those whose signals wait."""
    for number, handler in list(_handlers.items()):
        if signal.getsignal(number) is _receive:  # else somebody has set another one meanwhile
            signal.signal(number, handler)
    for number in list(_waiting):
        _call(number, frame)


def _call(number: int, frame: FrameType | None) -> None:
    with _lock:
        waited = _waiting.pop(number, None) is not None
    if waited:
        _handlers[number](number, frame)


def _send_again(number: int) -> None:
    """Send a signal to the main thread again and again while it waits."""
    main = threading.main_thread().ident
    while True:
        time.sleep(_PAUSE)
        with _lock:
            if number not in _waiting or main is None:
                return
            _sent_again.add(number)
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(main, number)
            else:
                _thread.interrupt_main(signal.Signals(number))
