"""The `s2e` command: reads the command line, runs one command and returns its exit code.

An error that a user can mend becomes one line on stderr and exit code 2. What a command needs is
imported when the command is given.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import optuna_s2e
from optuna_s2e.cli import _interrupt

HELP = """\
Learn from data with wrong labels.

A classifier that the wrong labels do not mislead, and the list of them:

    s2e fit data.csv --label class --out model
    s2e predict model new.csv --out predictions.csv
    s2e label-errors model          # more or fewer of them

A search trains Co-teaching under many schedules R(t), the share of samples
that epoch t trains on, and finds one with a low validation error:

    s2e search --data digits --noise symmetric --noise-rate 0.5
    s2e status                      # where the search stands
    s2e dashboard                   # the search in a browser, while it runs
    s2e evaluate                    # its schedule on test data, beside others
    s2e export --out schedule.json  # its schedule, to train with

`s2e COMMAND --help` explains a command.
"""


class Command(NamedTuple):
    """A command; its module `_NAME` has `HELP`, `add_options(parser)` and `run(args)`.

    Attributes:
        summary: The first line of its help.
        at_ctrl_c: What is said at Ctrl-C, unless the module says more.
        has_storage: Whether it takes --storage.
    """

    summary: str
    at_ctrl_c: str = _interrupt.NOTHING_DONE
    has_storage: bool = True


_GOES_ON = "Interrupted: completed trials are kept; the same command goes on with them."

COMMANDS = {
    "fit": Command("Fit a classifier to data with wrong labels, and list the wrong ones."),
    "predict": Command("Predict new data with a fitted model.", has_storage=False),
    "label-errors": Command("List the labels that are most likely wrong.", has_storage=False),
    "search": Command("Search the schedule R(t) for data with wrong labels.", _GOES_ON),
    "worker": Command("Join a search from any machine that reaches its storage.", _GOES_ON),
    "status": Command("Show where a search stands."),
    "evaluate": Command("Compare the schedule of a search with others on the test data."),
    "export": Command("Write the schedule of a search to a JSON file."),
    "dashboard": Command("Show the searches of a storage in a browser.", "Stopped."),
    "doctor": Command("Check the installation, the device and the storage."),
}
EXIT_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, as `optuna_s2e.cli.main` describes it."""
    if argv is None:
        _open_closed_streams()
        warnings.formatwarning = _one_line_warning
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = make_parser().parse_args(argv)
    except SystemExit as end:  # after --help, --version and a wrong command line
        return int(end.code or 0)
    args.argv = argv
    try:
        code: int = _module(args.command).run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _interrupt.print_line()
    except BrokenPipeError:  # `s2e status | head`: nobody reads on
        _interrupt.discard_output()
        return EXIT_ERROR
    except Exception as error:
        from optuna_s2e.cli._errors import MENDABLE, one_line

        if args.traceback or not isinstance(error, MENDABLE):
            raise
        print(f"s2e {args.command}: error: {one_line(error, args)}", file=sys.stderr)
        return EXIT_ERROR


def _open_closed_streams() -> None:
    """Open what the caller has closed (`s2e status >&-`): nobody reads it, and Python has none."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    line: str | None = None,
) -> str:  # fmt: skip
    return f"Warning: {' '.join(str(message).split())}\n"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="s2e", usage="s2e [--version] COMMAND [options]", description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(
        title="commands", prog="s2e", dest="command", required=True, metavar="COMMAND",
        parser_class=_CommandParser,
    )  # fmt: skip
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary, usage=f"s2e {name} [options]",
                            formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    return parser


def _module(command: str) -> Any:
    module = command.replace("-", "_")
    return import_module(f"optuna_s2e.cli._{module}")


_WORDS = {
    r"(\S+): (must .*)": r"\1 \2",
    r"(\S+): invalid choice: (.*) \(choose from (.*)\)": r"\1 must be one of \3, but got \2",
    r"(\S+): expected one argument":
        r"\1 must have a value; one that begins with a dash is written \1=-x",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        from optuna_s2e.storages import hide_passwords

        for argparse_says, we_say in _WORDS.items():
            message = re.sub(f"^argument {argparse_says}$", we_say, message)
        message = hide_passwords(message).rstrip(".")
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}. See `{self.prog} --help`.\n")


class _CommandParser(_Parser):
    """The parser of one command; it gets its options when the command is given."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        name = self.prog.split()[-1]
        module, command = _module(name), COMMANDS[name]
        _interrupt.say_at_ctrl_c(command.at_ctrl_c)
        self.description = f"{command.summary}\n\n{module.HELP}"
        if command.has_storage:
            self.add_argument(
                "--storage", default="sqlite:///s2e.db", metavar="URL",
                help="where the study is kept (default %(default)s)",
            )  # fmt: skip
        module.add_options(self)
        self.add_argument(
            "--traceback", action="store_true", help="after an error, show where it came from"
        )
        known, rest = super().parse_known_args(args, namespace)
        if rest:  # the parser of all commands would say it, and name its own help
            self.error(f"{rest[0]!r} is no option of this command")
        return known, rest


class _Version(argparse.Action):
    """Print the versions and exit; they are looked up only when they are wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        shown = ", ".join(f"{name} {_version(name)}" for name in ("optuna", "torch"))
        print(f"s2e {optuna_s2e.__version__} ({shown})")
        parser.exit()


def _version(distribution: str) -> str:
    """Return the version of an installed distribution, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
