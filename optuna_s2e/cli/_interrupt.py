"""Ctrl-C outside of running trials: one line says what is kept, and the process ends at once.

Python's own handler raises KeyboardInterrupt. Amid an import that ends in a traceback, or an
extension turns it into an ImportError; in the callback of a weak reference it is lost. No command
needs the exception: what it has written is whole at any moment, as it must be for `kill -9`. While
trials run, `optuna_s2e.parallel` decides what a signal does.
"""

import os
import signal
import sys

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}  # as shells have them
NOTHING_DONE = "Interrupted: nothing was changed; the same command begins anew."

_line = NOTHING_DONE


def say_at_ctrl_c(line: str) -> None:
    """Set the line that is printed at Ctrl-C: what is kept, and how to go on."""
    global _line
    _line = line


def print_line() -> int:
    """Print the line; return the exit code."""
    _flush()
    os.write(2, f"\n{_line}\n".encode())
    return EXIT_CODES["SIGINT"]


def discard_output() -> None:
    """Let nobody read what is printed from here on: whoever did has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_process_at_ctrl_c() -> None:
    """Let Ctrl-C end this process, unless it ignores Ctrl-C, as a background job does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def end_process(code: int) -> None:
    """End this process at once: Python takes seconds to clear thousands of modules away."""
    _flush()
    os._exit(code)


def _flush() -> None:
    try:  # noqa: SIM105 (contextlib takes long to import)
        sys.stdout.flush()
    except (OSError, RuntimeError):  # nobody reads it, or it is being written to
        pass


def _end(number: int, frame: object) -> None:
    os._exit(print_line())
