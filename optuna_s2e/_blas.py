"""Linear algebra on one thread: the same bits however many threads a process has.

BLAS splits a product or a factorisation among its threads, and sums in another order then: from
about 130 rows on, a model fitted by a worker with one thread is not the one that a process with
eight would recompute. A sampler's matrices are small; one thread is also the fastest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import scipy.linalg  # noqa: F401  (loads its BLAS, so that it is found)
from threadpoolctl import ThreadpoolController

_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # another thread may hold it while this one forks
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS use one thread; only one thread of the process at a time is inside.

    The number of threads belongs to the process: without the lock, who leaves last would restore
    what who came second has found.
    """
    with _lock, _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
