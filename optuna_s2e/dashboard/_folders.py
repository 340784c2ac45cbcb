"""Which folder holds the pictures of a storage's trials."""

from __future__ import annotations

from pathlib import Path

from optuna.storages import BaseStorage

from optuna_s2e._attributes import ARTIFACT_DIR_KEY


def find_artifact_dir(storage: BaseStorage, url: str) -> Path:
    """Return the folder that a study of the storage records, if it is here, else the default.

    The folder may safely be anything that the database says: `ArtifactFolder` reads only files
    that are named by a UUID.
    """
    for study in reversed(storage.get_all_studies()):
        recorded = study.user_attrs.get(ARTIFACT_DIR_KEY)
        if isinstance(recorded, str) and Path(recorded).is_dir():
            return Path(recorded)
    return default_artifact_dir(url)


def default_artifact_dir(url: str) -> Path:
    """Return FILE.artifacts beside a database file, `s2e-artifacts` in the working folder else.

    Example:
        >>> default_artifact_dir("sqlite:////data/s2e.db").as_posix()
        '/data/s2e.db.artifacts'
    """
    scheme, _, path = url.partition(":///")
    file = path.partition("?")[0]
    if scheme.partition("+")[0] in ("sqlite", "journal") and file not in ("", ":memory:"):
        return Path(f"{file}.artifacts").absolute()
    return Path("s2e-artifacts").absolute()
