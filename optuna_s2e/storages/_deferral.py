"""Signals wait for the end of an operation: an exception amid a transaction would keep its lock.

Python runs the handler of a signal wherever the main thread happens to be. A KeyboardInterrupt
inside SQLAlchemy may leave a connection in a transaction, and an SQLite file locked for everybody.
One between the lines of Optuna's ask and tell leaves a trial RUNNING that nobody runs. So while
the main thread is in one of them, a `_StandIn` takes the place of each handler. A signal that
waited is handed on

- at the end of the next operation that is neither in an ask nor in a tell,
- just before the next trial begins, and at the end of Optuna's loop,
- or as soon as the main thread has left ask, tell and storage, which a thread tries out.

After MAX_WAIT it is handed on wherever the main thread is, again and again until the exception
that its handler raises has ended the operation: Python drops one that is raised inside a callback
of the garbage collector or inside a `__del__`. In Optuna's loop the stand-ins stay
from the first operation of a trial to its end: a tell begins before its first operation does. A
handler with an attribute `waits_itself` that is true raises nothing amid an operation, and keeps
its place.
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
from optuna_s2e._chain import chain

MAX_WAIT = 1.0  # seconds
_PAUSE = 0.01  # seconds between two tries to hand a signal on

_Handler = Callable[[int, FrameType | None], Any]

# the signals whose handlers may raise an exception
_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # not on Windows

# All of these are the main thread's. Its handlers run amid its code, so the lock is reentrant.
_lock = threading.RLock()
_waiting: dict[int, tuple[float, _Handler]] = {}  # signals that wait: since when, and for whom
_senders: set[int] = set()  # signals that a thread sends again
_sent_again: set[int] = set()  # by the thread, not from outside
_raised: dict[int, BaseException] = {}  # by handlers amid the operation under way


class _OfThread(threading.local):
    depth = 0  # operations under way, one inside another. A fork keeps those of its thread only


_main = _OfThread()


def _begin_process() -> None:
    """Forget what belongs to the parent process: its thread may hold the lock."""
    global _lock
    _lock = threading.RLock()
    _waiting.clear()
    _senders.clear()
    _sent_again.clear()
    _raised.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_process)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let signals wait for the end of the block, which is an operation of a storage.

    A block that their handlers interrupt nevertheless raises what they raised, even where it
    wrapped it in another error.
    """
    if not _is_main():
        yield  # handlers never interrupt it
        return
    _main.depth += 1
    try:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) and not getattr(handler, "waits_itself", False):
                signal.signal(number, _StandIn(handler))
        yield
    except BaseException as error:
        if (raised := _end_waiting_of_raised(error)) is None or raised is error:
            raise
        raise raised from None  # what wraps it may say that the storage failed
    finally:
        _main.depth -= 1
        frame = sys._getframe()
        if _main.depth == 0:
            _raised.clear()
        if _main.depth == 0 and not _optuna.is_asking_or_telling(frame):
            _hand_on(frame)


def hand_on() -> None:
    """Hand on the signals that wait. Call it where an exception does no harm: between trials."""
    if _is_main() and _main.depth == 0:
        _hand_on(sys._getframe())


def is_of_handler(error: Exception) -> bool:
    """Whether a signal's handler raised the error amid the operation under way."""
    return any(error is raised for raised in _raised.values())


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


class _StandIn:
    """Stands in for the handler of a signal: lets the signal wait, or hands it on.

    It knows its handler. Somebody may take it for the handler, and put it back later.
    """

    waits_itself = True

    def __init__(self, handler: _Handler) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with _lock:
            again, new = number in _sent_again, number not in _waiting
            _sent_again.discard(number)
            if again and new:
                return  # it was handed on meanwhile
            since, _ = _waiting.setdefault(number, (time.monotonic(), self.handler))
        late = time.monotonic() - since > MAX_WAIT
        if late and _main.depth:
            self._interrupt(number, frame)
        elif late or not (_main.depth or _optuna.is_asking_or_telling(frame)):
            _hand_on(frame)
        elif new:
            _start_to_send_again(number)

    @staticmethod
    def _interrupt(number: int, frame: FrameType | None) -> None:
        """Call the handler amid an operation; if it raises, the signal waits on."""
        if (handler := _end_waiting(number)) is None:
            return
        try:
            handler(number, frame)
        except BaseException as error:
            _raised[number] = error
            with _lock:
                _waiting[number] = (time.monotonic(), handler)
            _start_to_send_again(number)
            raise


def _hand_on(frame: FrameType | None) -> None:
    """Give the handlers back, and call those whose signals wait, which may raise, last.

    Amid a trial of Optuna's loop the stand-ins stay.
    """
    give_back = not _optuna.is_in_trial(frame)
    for number in sorted(_SIGNALS, key=_waiting.__contains__):
        waiting = _end_waiting(number)  # first: no more of them are sent to the handler itself
        handler = signal.getsignal(number)
        if give_back and isinstance(handler, _StandIn):
            signal.signal(number, handler.handler)
        if waiting is not None:
            waiting(number, frame)


def _end_waiting(number: int) -> _Handler | None:
    """Return the handler of a signal that waits no longer; None if it did not wait."""
    with _lock:
        _, handler = _waiting.pop(number, (0.0, None))
    return handler


def _end_waiting_of_raised(error: BaseException | None) -> BaseException | None:
    """Return what a handler raised, the error or one behind it; its signal waits no longer."""
    for link in chain(error):
        for number, raised in _raised.items():
            if raised is link:
                _end_waiting(number)
                return raised
    return None


def _start_to_send_again(number: int) -> None:
    with _lock:
        if number in _senders:
            return
        with contextlib.suppress(RuntimeError):  # no thread can start: an operation hands it on
            _thread.start_new_thread(_send_again, (number,))
            _senders.add(number)


def _send_again(number: int) -> None:
    """Send a signal to the main thread again and again while it waits."""
    main = threading.main_thread().ident
    while True:
        time.sleep(_PAUSE)
        with _lock:
            if number not in _waiting or main is None:
                _senders.discard(number)
                return
            _sent_again.add(number)
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(main, number)
            else:
                _thread.interrupt_main(signal.Signals(number))
