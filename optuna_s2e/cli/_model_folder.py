"""The folder of a fitted model: what lies in it, and when a command may write there.

`fit.json` says what the model was fitted to and what was found; `model.npz` is written last, so
that a folder that holds it is whole. Nothing is written into a folder that is not ours.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna_s2e.cli import _common
from optuna_s2e.cli._samples import Samples, Source

if TYPE_CHECKING:
    import pandas as pd

    from optuna_s2e.classifier import NoisyLabelClassifier

FORMAT, VERSION = "optuna_s2e.fit", 1
RESULTS, MODEL, SCHEDULE, FILES = "fit.json", "model.npz", "schedule.json", "files.json"
ERRORS = ("label-errors.html", "label-errors.csv", "label-errors.json")
ERRORS_HEADER = "index,given_label,suggested_label,quality,evidence"
PREDICTIONS_HEADER = "index,prediction,probability"
_FIT_ANEW = "Fit the model anew, into another folder."


class ModelFolder:
    """A folder that holds a fitted model, or will hold one.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def file(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.path / name

    def prepare(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what the folder says of the same fit; None if that has not been made yet.

        Args:
            asked: What the fit depends on, in JSON's types.

        Raises:
            ValueError: If the folder holds anything else, or nobody may write there.
        """
        remedy = "Name another folder, or remove this one."
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--out must be a folder, but {str(self)!r} is a file.")
        if not self.path.exists() or not any(self.path.iterdir()):
            _check_writable(self.path)
            return None
        if not self.file(RESULTS).exists():
            raise ValueError(
                f"--out must be a new folder, but {str(self)!r} holds files that `s2e fit` did "
                f"not write, such as {min(p.name for p in self.path.iterdir())!r}. Name another "
                "folder."
            )
        document = self.read()
        for name, value in asked.items():
            if document["fitted_to"].get(name) != value:
                raise ValueError(
                    f"--out must be a new folder, but {str(self)!r} holds a model that was "
                    f"fitted to {document['data']['path']!r} with "
                    f"{_difference(name, document['fitted_to'].get(name), value)}. {remedy}"
                )
        _check_writable(self.path)
        return document if self.file(MODEL).exists() else None

    def read(self) -> dict[str, Any]:
        """Return what `fit.json` says.

        Raises:
            ValueError: If it is not ours.
            OSError: If it cannot be read.
        """
        check_no_file_of_a_model(self.path)
        try:
            document = json.loads(self.file(RESULTS).read_text(encoding="utf-8"))
            is_ours = document["format"] == FORMAT and document["version"] == VERSION
            if is_ours:  # what the commands read
                _ = document["fitted_to"]["form"]["kind"], document["fitted_to"]["data"]
                _ = document["data"]["source"]["drop"], document["noise"]["text"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"{str(self)!r} holds no model: {RESULTS} is missing. "
                "`s2e fit DATA --label COLUMN --out "
                f"{'NEW_FOLDER' if self.path.exists() else shlex.quote(str(self))}` makes one."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{str(self.file(RESULTS))!r} is damaged: {error}. {_FIT_ANEW}"
            ) from error
        if not is_ours:
            raise ValueError(
                f"{str(self.file(RESULTS))!r} was not written by this release of optuna_s2e. "
                f"{_FIT_ANEW}"
            )
        return document  # type: ignore[no-any-return]

    def load(self) -> tuple[dict[str, Any], NoisyLabelClassifier]:
        """Return what `fit.json` says, and the model.

        Raises:
            ValueError: If one of them is damaged.
            OSError: If one of them is missing.
        """
        document = self.read()
        if not self.file(MODEL).exists():
            raise FileNotFoundError(
                f"{str(self)!r} holds no {MODEL}: the fit was stopped. The same `s2e fit` again "
                "makes it."
            )
        from optuna_s2e.classifier import NoisyLabelClassifier

        try:
            return document, NoisyLabelClassifier.load(self.file(MODEL))
        except ValueError as error:
            raise ValueError(f"{error} {_FIT_ANEW}") from error

    def write(
        self,
        document: Mapping[str, Any],
        model: NoisyLabelClassifier,
        samples: Samples,
        title: str,
    ) -> None:
        """Write the model, the list of label errors and what was found."""
        with _common.naming("--out", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_document(document)
            if samples.files is not None:
                self.file(FILES).write_text(json.dumps(samples.files, indent=0), encoding="utf-8")
            model.schedule_.save(self.file(SCHEDULE))
            write_label_errors(
                model.find_label_errors(), self.path, samples.x, samples.files, title
            )
            model.save(self.file(MODEL))

    def write_document(self, document: Mapping[str, Any]) -> None:
        """Write `fit.json`."""
        known = {"format": FORMAT, "version": VERSION, **document}
        text = json.dumps(_common.finite(known), indent=1, allow_nan=False)
        self.file(RESULTS).write_text(text, encoding="utf-8")

    def training_inputs(self, document: Mapping[str, Any]) -> tuple[Any, list[str] | None, str]:
        """Return the training inputs and their files, and why the inputs are None if they are."""
        files = None
        if self.file(FILES).exists():
            files = json.loads(self.file(FILES).read_text(encoding="utf-8"))
        own = document["data"]["source"]
        source = Source(**{**own, "drop": tuple(own["drop"])})
        try:
            samples = source.read()
        except (ValueError, OSError, ImportError) as error:
            return None, files, f"The data cannot be shown: {error}"
        if samples.digest != document["fitted_to"]["data"]:
            return None, files, f"The data cannot be shown: {source.data!r} has changed."
        return samples.x, files, ""


def is_model(path: Path) -> bool:
    """Return whether a path is the folder of a model, whole or not."""
    return (path / RESULTS).is_file() or (path / MODEL).is_file()


def check_no_file_of_a_model(path: Path) -> None:
    """Refuse a file of the folder of a model: it is the folder that commands take.

    Raises:
        ValueError: If it is one.
    """
    if path.name in (MODEL, RESULTS, SCHEDULE, FILES, *ERRORS) and is_model(path.parent):
        raise ValueError(
            f"{str(path)!r} is a file of a model. Name its folder, {str(path.parent)!r}."
        )


def write_label_errors(
    errors: pd.DataFrame, folder: Path, inputs: Any, files: list[str] | None, title: str
) -> None:
    """Write a list of label errors into a folder.

    Raises:
        ValueError: If files of these names are there that this package did not write.
    """
    from optuna_s2e.coteaching import save_label_errors

    check_errors_folder(folder)
    with _common.naming("--out", folder):
        save_label_errors(errors, folder, inputs=inputs, title=title, names=files)


def check_errors_folder(folder: Path) -> None:
    """Refuse a folder that a list of label errors cannot be written to.

    Raises:
        ValueError: If it is none, or holds files of these names that this package did not write.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out must be a folder, but {str(folder)!r} is a file.")
    check_replaceable("--out", folder / ERRORS[1], ERRORS_HEADER)
    if not (folder / ERRORS[1]).exists() and not is_model(folder):
        for name in ERRORS:
            check_replaceable("--out", folder / name, "")
    _check_writable(folder)


def check_replaceable(option: str, path: Path, header: str) -> None:
    """Refuse to replace a file that this package did not write.

    Args:
        option: The option that named it.
        path: The file; it may be missing.
        header: The first line of our files; "" if none of them may be there.

    Raises:
        ValueError: If there is such a file.
    """
    if not path.exists():
        return
    first = ""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline().rstrip("\r\n")
    is_ours = first == header or first.startswith(  # the name of a class may need the quotation
        (f"{header},probability of ", f'{header},"probability of ')
    )
    if not header or not is_ours:
        raise _common.not_ours(option, path)


def _check_writable(path: Path) -> None:
    """Refuse a folder that cannot be written to, before anything is trained."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    with _common.naming("--out", path):
        handle, probe = tempfile.mkstemp(dir=existing, prefix=".s2e-")
        os.close(handle)
        os.unlink(probe)


def _difference(name: str, there: object, here: object) -> str:
    """Say in which way a fit is another one."""
    if name in ("data", "clean_labels", "form"):
        return {"data": "other content", "form": "other columns or options of the data"}.get(
            name, "other clean labels"
        )
    if name == "quick":
        return "--quick, now without" if there else "no --quick, now with it"
    return f"{name.replace('_', ' ')} {there!r}, now {here!r}"
