"""`s2e worker --devices`: one worker for each device, each a process of its own.

This process trains nothing. It starts the workers, hands signals on to them and waits. They run
in sessions of their own, so that Ctrl-C in a terminal reaches each of them once, through this
process.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence

from optuna_s2e.cli._interrupt import EXIT_CODES

OPTION = "--devices"


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
            worker.send_signal(number)  # an ended one gets none
            told.add(name)

    before = {name: signal.signal(signal.Signals[name], hand_on) for name in EXIT_CODES}
    try:
        for i, device in enumerate(devices):
            if came:
                break
            name = f"worker {i + 1} on {device}"
            workers[name] = subprocess.Popen(
                [*words, "--device", device], start_new_session=True, stdin=subprocess.DEVNULL
            )
            print(f"{name}: process {workers[name].pid}", flush=True)
            if came and name not in told:  # a signal came while it was being started
                workers[name].send_signal(came[-1])
        codes = [_ended(name, worker, came) for name, worker in workers.items()]
    finally:
        for name, handler in before.items():
            signal.signal(signal.Signals[name], handler)
    if came:
        return EXIT_CODES[came[0].name]
    return next((code for code in codes if code), 0)


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
