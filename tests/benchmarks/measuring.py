"""What benchmarks of training measure with: clocks, memory, and limits on what takes long."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

STATUS = Path("/proc/self/status")
GRACE = 10.0  # seconds that a run which is stopped has for its end
AGAIN = 75  # exit code of a process that cannot go on, where a new one can


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


@contextmanager
def watchdog(seconds: float, give_up: Callable[[], object]) -> Iterator[None]:
    """Call a function in a thread, if what runs inside takes longer.

    No exception stops a process that waits for a device.
    """
    thread = threading.Timer(seconds, give_up)
    thread.daemon = True
    thread.start()
    try:
        yield
    finally:
        thread.cancel()


def leave() -> NoReturn:
    """End this process at once, whatever its other threads wait for; a new one may go on."""
    sys.stdout.flush()
    os._exit(AGAIN)


def in_new_processes(limit: float, out: Path | None) -> NoReturn:
    """Run this program in processes of its own, until one ends by itself or the time is over.

    Args:
        limit: Seconds for all of them.
        out: What `--out` says. If that is nothing, it is a file that goes when all is over.
    """
    start, code = time.monotonic(), AGAIN
    with tempfile.TemporaryDirectory() as folder:
        options = ["--one-process", "--out", str(out or Path(folder, "out.json"))]
        while code == AGAIN and (left := limit - (time.monotonic() - start)) > 0:
            command = [sys.executable, *sys.argv, *options, "--limit", f"{left:.3f}"]
            code = subprocess.run(command, check=False).returncode
    if code == AGAIN:
        print("stopped at --limit: run the same command again")
    sys.exit(0 if code == AGAIN else code)


def is_well(device: torch.device) -> bool:
    """Whether a device still answers, and its memory can be given back.

    After an error in a kernel neither is so, and not the latter if a recording failed (PyTorch
    before 2.12).
    """
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
    return True


def write_json(path: Path, document: Any) -> None:
    """Write a file as a whole: who is killed meanwhile leaves the one before."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(document, indent=1) + "\n")
    new.replace(path)


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
