"""The `s2e` command, one module per sub-command."""

from optuna_s2e.cli._main import main

__all__ = ["main"]
