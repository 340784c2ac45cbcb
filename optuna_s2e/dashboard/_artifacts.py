"""A folder of trial pictures: an artifact store of Optuna that stays inside its folder."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # not on Windows


def is_uuid(artifact_id: str) -> bool:
    """Return whether a name is a UUID, as Optuna gives to artifacts."""
    return _UUID.fullmatch(artifact_id) is not None


class ArtifactFolder:
    """Keep artifacts as files of one folder, named by their UUIDs.

    It differs from `optuna.artifacts.FileSystemArtifactStore` in three ways. Whatever a database
    says, no name leads out of the folder and no link is followed. A file is written whole or not
    at all, and only its owner can read it. A folder that was deleted is made again.

    Args:
        path: The folder. It is made at the first write.

    Example:
        >>> import io, tempfile
        >>> from optuna_s2e.dashboard import ArtifactFolder
        >>> folder = ArtifactFolder(tempfile.mkdtemp())
        >>> folder.write("c0ffee00-0000-4000-8000-000000000000", io.BytesIO(b"picture"))
        >>> folder.open_reader("../etc/passwd")
        Traceback (most recent call last):
        ...
        optuna.artifacts.exceptions.ArtifactNotFound: artifact_id must be a UUID, but got '../etc/passwd'.
    """  # noqa: E501

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()

    def __repr__(self) -> str:
        return f"ArtifactFolder({str(self.path)!r})"

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact for reading.

        Args:
            artifact_id: UUID of the artifact.

        Raises:
            ArtifactNotFound: If there is no artifact of that name, or it is no plain file.
        """
        try:
            descriptor = os.open(self._file(artifact_id), os.O_RDONLY | _NO_LINKS)
        except OSError as error:
            raise ArtifactNotFound(f"artifact {artifact_id} cannot be read: {error}") from error
        return open(descriptor, "rb")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write or replace an artifact.

        Args:
            artifact_id: UUID of the artifact.
            content_body: An open file, from which the content is read.

        Raises:
            ArtifactNotFound: If the name is no UUID.
            OSError: If the file cannot be written.
        """
        target = self._file(artifact_id)
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=self.path, prefix=".part-")  # of mode 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(content_body.read())
            os.replace(part, target)
        except BaseException:
            os.unlink(part)
            raise

    def remove(self, artifact_id: str) -> None:
        """Delete an artifact if it is there.

        A missing file is no error: it must not prevent the deletion of a study.

        Args:
            artifact_id: UUID of the artifact.

        Raises:
            ArtifactNotFound: If the name is no UUID.
        """
        self._file(artifact_id).unlink(missing_ok=True)

    def _file(self, artifact_id: str) -> Path:
        if not is_uuid(artifact_id):
            raise ArtifactNotFound(f"artifact_id must be a UUID, but got {artifact_id!r}.")
        return self.path / artifact_id
