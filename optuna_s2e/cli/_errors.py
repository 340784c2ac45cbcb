"""An error as one line: in the words of the command line, and without passwords."""

from __future__ import annotations

from collections.abc import Container

from optuna.exceptions import StorageInternalError

from optuna_s2e.storages import hide_passwords

MENDABLE = (ValueError, OSError, ImportError, RuntimeError, StorageInternalError)

# names of arguments whose options are called otherwise
_ALIASES = {"url": "storage", "root": "data_root", "n_epochs": "epochs", "kind": "space"}


def one_line(error: Exception, options: Container[str]) -> str:
    """Return what an error says.

    Args:
        error: The error.
        options: Names of the command's options, such as "noise_rate".
    """
    text = str(error) or type(error).__name__
    if isinstance(error, StorageInternalError) and error.__cause__:  # Optuna's text is a guess
        text += " The storage says: " + str(error.__cause__).partition("\n")[0]
    line = hide_passwords(" ".join(text.split()))
    argument, _, rest = line.partition(" ")
    option = _ALIASES.get(argument, argument)
    if option in options:  # "noise_rate must be ..."
        line = f"--{option.replace('_', '-')} {rest}"
    return line.replace('on_config_change="adopt"', "--on-config-change adopt")
