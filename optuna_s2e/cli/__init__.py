"""The `s2e` command, one module per command.

Each command is a module with `HELP` (what `s2e COMMAND --help` says), `add_options(parser)` and
`run(args)`, which returns the exit code. The modules import PyTorch, plots and the dashboard
inside functions: `s2e status` works where PyTorch is not installed, and `s2e --help` costs no
more than `import optuna_s2e`.
"""

from optuna_s2e.cli._main import main

__all__ = ["main"]
