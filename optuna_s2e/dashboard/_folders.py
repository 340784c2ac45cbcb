"""Which folder holds the pictures of a storage's trials."""

from __future__ import annotations

from pathlib import Path

from optuna.storages import BaseStorage

from optuna_s2e._attributes import ARTIFACT_DIR_KEY
from optuna_s2e.storages import file_of


def find_artifact_dir(storage: BaseStorage, url: str) -> Path:
    """Return the folder that a study of the storage records, or else the default folder.

    It is safe to use any folder that the database names: `ArtifactFolder` reads only files whose
    name is a UUID.

    Args:
        storage: A storage.
        url: Its URL, for the default folder.

    Returns:
        The newest recorded folder that exists on this machine, or else the default folder.
    """
    for study in reversed(storage.get_all_studies()):
        recorded = study.user_attrs.get(ARTIFACT_DIR_KEY)
        if isinstance(recorded, str) and Path(recorded).is_dir():
            return Path(recorded)
    return default_artifact_dir(url)


def default_artifact_dir(url: str) -> Path:
    """Return the default folder: FILE.artifacts beside a database file, or else `s2e-artifacts`.

    Args:
        url: URL of a storage. Without a database file the folder is in the working folder.

    Example:
        >>> default_artifact_dir("sqlite:////data/s2e.db").as_posix()
        '/data/s2e.db.artifacts'
    """
    file = file_of(url)
    return Path("s2e-artifacts").absolute() if file is None else Path(f"{file}.artifacts")
