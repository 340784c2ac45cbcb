"""The `s2e` command: reads the command line, runs one command and returns its exit code.

An error that a user can mend becomes one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn, Protocol

from optuna.exceptions import StorageInternalError

import optuna_s2e
from optuna_s2e.cli import _dashboard, _evaluate, _export, _search, _status, _worker
from optuna_s2e.cli._common import EXIT_CODES, EXIT_ERROR
from optuna_s2e.storages import hide_passwords, mask_url

HELP = """\
Search sample-selection schedules for learning with noisy labels.

A search trains Co-teaching under many schedules R(t), the share of samples
that epoch t trains on, and finds one with a low validation error.

    s2e search --data digits --noise symmetric --noise-rate 0.5 --trials 60
    s2e status                      # where the search stands
    s2e dashboard                   # the search in a browser, while it runs
    s2e evaluate                    # its schedule on test data, beside others
    s2e export --out schedule.json  # its schedule, to train with

`s2e COMMAND --help` explains a command.
"""


class Command(Protocol):
    """What the module of a command defines.

    Attributes:
        HELP: Its help text, in lines of at most 80 columns. The list of commands shows the first.
    """

    HELP: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that the command takes besides --storage and --traceback."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command and return its exit code; `args.argv` is the command line as given."""


COMMANDS: dict[str, Command] = {
    "search": _search,
    "worker": _worker,
    "status": _status,
    "evaluate": _evaluate,
    "export": _export,
    "dashboard": _dashboard,
}


# names of arguments whose options are called otherwise
_ALIASES = {"url": "storage", "root": "data_root", "n_epochs": "epochs", "kind": "space"}
_MENDABLE = (ValueError, OSError, ImportError, RuntimeError, StorageInternalError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name. None takes those of the process.

    Returns:
        0, or 1 (`s2e status --verify` found a difference), 2 (error), 130 (Ctrl-C), 143 (SIGTERM).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = make_parser().parse_args(argv)
    except SystemExit as end:  # after --help, --version and a wrong command line
        return int(end.code or 0)
    args.argv = argv
    try:
        return COMMANDS[args.command].run(args)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return EXIT_CODES["SIGINT"]
    except _MENDABLE as error:
        if args.traceback:
            raise
        print(f"s2e {args.command}: error: {_one_line(error, args)}", file=sys.stderr)
        return EXIT_ERROR


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="s2e", usage="s2e [--version] COMMAND [options]", description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(
        title="commands", prog="s2e", dest="command", required=True, metavar="COMMAND"
    )
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, usage=f"s2e {name} [options]", description=command.HELP,
            help=command.HELP.partition("\n")[0],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.add_argument(
            "--storage", default="sqlite:///s2e.db", metavar="URL",
            help="where the study is kept (default %(default)s)",
        )  # fmt: skip
        command.add_options(sub)
        sub.add_argument(
            "--traceback", action="store_true", help="after an error, show where it came from"
        )
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (--[\w-]+): (?=\1 )", "", message)  # it names the option
        message = hide_passwords(message).rstrip(".")
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}. See `{self.prog} --help`.\n")


class _Version(argparse.Action):
    """Print the versions and exit; they are looked up only when they are wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        shown = ", ".join(f"{name} {_version(name)}" for name in ("optuna", "torch"))
        print(f"s2e {optuna_s2e.__version__} ({shown})")
        parser.exit()


def _version(distribution: str) -> str:
    """Return the version of an installed distribution, without importing it."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _one_line(error: Exception, args: argparse.Namespace) -> str:
    """Return what an error says, in the words of the command line and without passwords."""
    text = str(error) or type(error).__name__
    if isinstance(error, StorageInternalError) and error.__cause__:  # Optuna's text is a guess
        text += " The storage says: " + str(error.__cause__).partition("\n")[0]
    text = text.replace(args.storage, mask_url(args.storage))  # its password may hold anything
    line = hide_passwords(" ".join(text.split()))
    argument, _, rest = line.partition(" ")
    option = _ALIASES.get(argument, argument)
    if option in vars(args):  # "noise_rate must be ..."
        line = f"--{option.replace('_', '-')} {rest}"
    return line.replace('on_config_change="adopt"', "--on-config-change adopt")
