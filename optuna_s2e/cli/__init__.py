"""The `s2e` command, one module per command.

Each command is a module with `HELP` (what `s2e COMMAND --help` says after the summary),
`add_options(parser)` and `run(args)`, which returns the exit code. A module is imported when its
command is given, and imports PyTorch, plots and the dashboard inside functions: `s2e --help` is
quick, and `s2e status` works where PyTorch is not installed.
"""

from optuna_s2e.cli import _interrupt

TYPE_CHECKING = False  # true for a type checker
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name. None takes those of the process, which then
            ends at once at Ctrl-C, SIGTERM and SIGHUP; with arguments, this function returns.

    Returns:
        0, or 1 (`s2e status --verify` found a difference), 2 (error), 129 (SIGHUP), 130 (Ctrl-C),
        143 (SIGTERM).
    """
    if argv is None:
        _interrupt.end_process_at_ctrl_c()  # first: all that follows takes time to import
    from optuna_s2e.cli import _main

    code = _main.main(argv)
    if argv is None and code in _interrupt.EXIT_CODES.values():
        _interrupt.end_process(code)
    return code
