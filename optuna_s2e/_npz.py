"""Arrays of a user's .npz file, read without running any code that it may hold."""

from __future__ import annotations

import io
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Npz(NamedTuple):
    """Hold what `read_npz` returns.

    Attributes:
        arrays: The arrays that were asked for, by name.
        others: Names of the other arrays, sorted.
    """

    arrays: dict[str, npt.NDArray[Any]]
    others: list[str]


def read_npz(path: Path, names: Container[str] | None = None, content: bytes | None = None) -> Npz:
    """Read arrays from a .npz file.

    Args:
        path: The file.
        names: Arrays that are read if the file holds them. None reads all.
        content: What the file holds, if it was read already.

    Raises:
        ValueError: If the file is damaged, or holds Python objects.
        OSError: If it cannot be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from optuna_s2e._npz import read_npz
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.npz"
        ...     np.savez(path, x=np.zeros(2), note=np.array("mine"))
        ...     read_npz(path, {"x"}).others
        ['note']
    """
    try:
        with path.open("rb") if content is None else io.BytesIO(content) as stream:
            file = np.load(stream, allow_pickle=False)
            found = {name: file[name] for name in file.files if names is None or name in names}
            return Npz(found, sorted(set(file.files) - found.keys()))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {str(path)!r}.") from error
    except OSError:
        raise
    except Exception as error:  # NumPy raises a dozen kinds for damaged files
        remedy = " Save names as array.astype(str)." if "Object arrays" in str(error) else ""
        why = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{str(path)!r} is not a .npz file of plain arrays: {why}.{remedy}"
        ) from error
