"""What benchmarks of training measure with: clocks, memory, and a limit on what takes long."""

from __future__ import annotations

import ctypes
import gc
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


class TimeUp(BaseException):
    """A run took too long. It is no `Exception`, which `train_batch` would catch."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` in what runs inside, if it takes longer. Windows has no such alarm."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    # again and again: Python drops an exception that is raised inside a finalizer
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clock(device: torch.device) -> tuple[float, float]:
    """Return wall and processor seconds, after all work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], device: torch.device) -> tuple[float, float]:
    """Return what `clock` says less what it said."""
    now = clock(device)
    return now[0] - start[0], now[1] - start[1]


def memory(device: torch.device) -> tuple[float, float]:
    """Return MiB that are taken now, and the largest since `forget_peak`."""
    if device.type == "cuda":
        now, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        return now / 2**20, peak / 2**20
    if platform.system() != "Linux":
        return 0.0, float("nan")
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return tuple(int(lines[key].split()[0]) / 2**10 for key in ("VmRSS", "VmHWM"))


def forget_peak(device: torch.device) -> None:
    """Let the largest memory be what is taken now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif platform.system() == "Linux":
        with suppress(AttributeError):  # give back what is free, where the C library can
            ctypes.CDLL(None).malloc_trim(0)
        STATUS.with_name("clear_refs").write_text("5")
