"""`s2e worker --devices`: one worker for each device, each a process of its own.

This process trains nothing. It starts the workers, hands signals on to them and waits. They run
in sessions of their own, so that Ctrl-C in a terminal reaches each of them once, through this
process. No worker outlives it: whatever ends it stops them, and they look after it themselves in
case that it is killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

OPTION = "--devices"
_PARENT = "S2E_WORKERS_PARENT"  # variable of a worker: the process that has started it
_INTERVAL = 1.0  # seconds between a worker's looks at it
_SIGNALS = [  # that end a process, if it does not ignore them
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def read_devices(text: str) -> list[str]:
    """Return the names of devices; ["all"] for all GPUs."""
    names = text.split(",")
    if not all(names) or ("all" in names and len(names) > 1):
        raise argparse.ArgumentTypeError(
            f"must be 'all' or names with commas between, such as cuda:0,cuda:1, but got {text!r}"
        )
    return names


def run_workers(args: argparse.Namespace) -> int:
    """Run a worker on each device until all have ended.

    Returns:
        The exit code: that of a signal that came, or of the first worker that failed, or 0.

    Raises:
        ValueError: If a device is missing, or other options say which device or objective it is.
        OSError: If a worker cannot be started.
    """
    for given, other in ((args.device != "auto", "--device"), (args.objective, "--objective")):
        if given:
            raise ValueError(f"{OPTION} and {other} cannot be given together: leave one out.")
    devices = _found(args.devices)
    words = [sys.executable, "-m", "optuna_s2e", *_without_option(args.argv)]
    workers: dict[str, subprocess.Popen[bytes]] = {}
    came: list[signal.Signals] = []
    told: set[str] = set()  # workers that a signal was handed on to

    def hand_on(number: int, frame: object) -> None:
        came.append(signal.Signals(number))
        for name, worker in workers.items():
            _stop(worker, number)
            told.add(name)

    heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, hand_on) for number in heeded}
    try:
        for i, device in enumerate(devices):
            if came:
                break
            name = f"worker {i + 1} on {device}"
            try:
                workers[name] = subprocess.Popen(
                    [*words, "--device", device],
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, _PARENT: str(os.getpid())},
                )
            except OSError as error:
                raise OSError(f"{name} cannot be started: {error}. No worker is left.") from error
            print(f"{name}: process {workers[name].pid}", flush=True)
            if came and name not in told:  # a signal came while it was being started
                _stop(workers[name], came[-1])
        codes = [_ended(name, worker, came) for name, worker in workers.items()]
    finally:
        for worker in workers.values():  # after an error, those that have not ended
            _stop(worker, signal.SIGTERM)
        for worker in workers.values():
            worker.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        return 128 + came[0]
    return next((code for code in codes if code), 0)


def stop_with_parent() -> None:
    """Stop this process, as SIGTERM does, if `run_workers` has started it and is killed."""
    parent = os.environ.pop(_PARENT, None)

    def watch() -> None:
        while os.getppid() == int(str(parent)):
            time.sleep(_INTERVAL)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def _stop(worker: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a worker, unless it has ended. It knows SIGINT and SIGTERM."""
    worker.send_signal(number if number == signal.SIGINT else signal.SIGTERM)


def _ended(name: str, worker: subprocess.Popen[bytes], came: Sequence[object]) -> int:
    """Wait for a worker; say how it ended unless all is well; return its exit code."""
    code = worker.wait()
    if code < 0:  # killed by a signal, which shells show as 128 more
        code = 128 - code
    if code and not came:
        print(f"{name}: ended with exit code {code}", file=sys.stderr, flush=True)
    return code


def _found(names: list[str]) -> list[str]:
    """Return the devices; "all" is every GPU."""
    from optuna_s2e.coteaching import find_device

    if names != ["all"]:
        return [str(find_device(name)) for name in names]
    import torch

    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if n == 0:
        raise ValueError(f"{OPTION} all: torch finds no CUDA device. `s2e worker` takes the CPU.")
    return [f"cuda:{i}" for i in range(n)]


def _without_option(argv: Sequence[str]) -> list[str]:
    """Return the command line without --devices and its value."""
    kept = []
    words = iter(argv)
    for word in words:
        if word == OPTION:
            next(words, None)
        elif not word.startswith(f"{OPTION}="):
            kept.append(word)
    return kept
