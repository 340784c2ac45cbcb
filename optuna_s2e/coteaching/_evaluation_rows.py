"""The trained networks of an evaluation, in a file: what is trained once is not trained again.

A line is one training, in JSON: its key and its curves on the test data. The key is a digest of
all that the curves depend on, so a training under other settings, with other data or by another
release has another key. Lines are only appended. A line that a kill has cut is ignored.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._methods import METHODS, method_settings
from optuna_s2e.coteaching._steps import Method
from optuna_s2e.coteaching.data import NoisyData


class Training(NamedTuple):
    """All that a training depends on, but for data, network and configuration.

    Attributes:
        keep_rates: R(t), (T,); 1 if the method makes no use of it.
        seed: Its seed.
        method: What is trained.
        evaluate_on: "test" or "validation": the data that its curves are measured on.
    """

    keep_rates: FloatArray
    seed: int
    method: Method = METHODS["coteaching"]
    evaluate_on: str = "test"


class Row(NamedTuple):
    """One training: its curves, (T, 2) each; NaN where it was not trained."""

    error: FloatArray
    label_precision: FloatArray


class RowFile:
    """A file of rows, for trainings of one network on some data.

    Args:
        path: The file. It is made now if it is missing: what cannot be written fails early.
        data: The data, on the device of the trainings.
        network: Name of the network.
        config: Optimiser and mini-batches.

    Raises:
        OSError: If the file cannot be read or written.
    """

    def __init__(self, path: Path, data: NoisyData, network: str, config: TrainingConfig) -> None:
        self._path = path
        self._validation = _digest(data.x_val, data.y_val)
        self._setup = {
            "data": _digest(
                data.x, data.noisy_labels, data.clean_labels, data.x_test, data.y_test
            ),
            "network": network,
            "config": asdict(config),
            "device": data.x.device.type,
            "versions": package_versions(),
        }
        path.open("a").close()
        self._rows = dict(filter(None, map(_read, path.read_text().splitlines())))

    def find(self, training: Training) -> Row | None:
        """Return the row of a training. None if it is not in the file."""
        row = self._rows.get(self._key(training))
        shape = (len(training.keep_rates), 2)
        return row if row is not None and row.error.shape == shape else None

    def add(self, training: Training, row: Row) -> None:
        """Append the row of a training."""
        line = {"key": self._key(training), "seed": training.seed}
        line |= {name: curve.tolist() for name, curve in row._asdict().items()}
        with self._path.open("a") as file:
            file.write(f"\n{json.dumps(line)}\n")  # the line before it may have been cut

    def _key(self, training: Training) -> str:
        keep_rates, seed, method, evaluate_on = training
        what = {**self._setup, "keep_rates": keep_rates.tolist(), "seed": seed}
        if method != METHODS["coteaching"]:  # so that rows of earlier releases are found
            what["method"] = method_settings(method)
        if evaluate_on != "test":
            what["evaluate_on"] = evaluate_on
        if evaluate_on == "validation" or not method.is_pointwise:
            what["validation"] = self._validation
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions that the numbers of a training depend on."""
    versions = {"python": platform.python_version()}
    for name in ("optuna-s2e", "optuna", "torch", "numpy", "scipy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a checkout
            versions[name] = "not installed"
    return versions


def _read(line: str) -> tuple[str, Row] | None:
    try:
        found = json.loads(line)
        curves = (np.array(found[name], dtype=np.float64) for name in Row._fields)
        return str(found["key"]), Row(*curves)
    except (ValueError, TypeError, KeyError):
        return None


def _digest(*parts: torch.Tensor | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if part is not None:
            array = np.ascontiguousarray(part.cpu().numpy())
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()
