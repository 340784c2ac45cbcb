"""Linear algebra on one thread: the same bits, however many threads a process has.

BLAS splits products and factorisations among its threads, and the number of threads changes the
order of its sums. From about 130 rows on, a worker with one thread and a process with eight
threads would fit models with other last digits. The matrices of a sampler are small: one thread
is also the fastest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import scipy.linalg  # noqa: F401  (loads its BLAS, so that the controller finds it)
from threadpoolctl import ThreadpoolController

_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # another thread may hold the lock while this one forks
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS use one thread inside. Other threads of the process wait until this one leaves.

    The number of BLAS threads belongs to the process. Without the lock, a second thread would find
    the number 1, and restore it when it leaves last.
    """
    with _lock, _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
