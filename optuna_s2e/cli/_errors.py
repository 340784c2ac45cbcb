"""An error as one line: in the words of the command line, and without passwords."""

from __future__ import annotations

import argparse
import re
from collections.abc import Container

from optuna.exceptions import StorageInternalError

from optuna_s2e.storages import hide_passwords, mask_url

MENDABLE = (ValueError, OSError, ImportError, RuntimeError, StorageInternalError)

# names of arguments whose options are called otherwise
_ALIASES = {
    "data set": "data",
    "data.name": "data",
    "url": "storage",
    "root": "data_root",
    "n_epochs": "epochs",
    "n_trials": "trials",
    "kind": "space",
}
# words about Python -> words about the command line
_WORDS = {
    r'on_config_change="adopt"': "--on-config-change adopt",
    r" or a function \(.* at each call": "",
    r", but got None": ", but it is missing",
    r"Choose another (?=port|host)": "Choose another --",
    r"np\.str_\(('.*?')\)": r"\1",
    r"Drop it, turn it into numbers .* if it is one":
        "Leave it out with --drop, or turn it into numbers",
    r"mark them as missing \(NaN\)": "empty the cells",
    r"Replace it by NaN \(missing\) or by": "Empty the cell, or replace it by",
    r"\.\.$": ".",
}  # fmt: skip


def one_line(error: Exception, args: argparse.Namespace) -> str:
    """Return what an error says.

    Args:
        error: The error.
        args: The command line.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, StorageInternalError) and error.__cause__:  # Optuna's text is a guess
        text += " The storage says: " + str(error.__cause__).partition("\n")[0]
    storage = getattr(args, "storage", None)
    if storage:  # its password may hold anything
        text = text.replace(storage, mask_url(storage))
    line = hide_passwords(" ".join(text.split()))
    for python, command_line in _WORDS.items():
        line = re.sub(python, command_line, line)
    return name_options(line, vars(args))


def name_options(text: str, options: Container[str]) -> str:
    """Return a text that names options of the command line in place of arguments.

    Args:
        text: A text such as "n_epochs must be ...", or "...: config.batch_size is 8, there 4".
        options: Names of the command's options, such as "epochs".
    """

    def option(found: re.Match[str]) -> str:
        name = _ALIASES.get(found[0], found[0].rpartition(".")[2])
        return f"--{name.replace('_', '-')}" if name in options else found[0]

    text = re.sub(r"^[a-z_]+( set)?(?= (must|needs|cannot|'))", option, text)
    return re.sub(r"\b[a-z_.]+(?= is [^ ]+, (was|there) )", option, text)
