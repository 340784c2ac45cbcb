"""Learning curves of a trial: one JSON system attribute, both ways.

Kept beside the trial and off the dashboard's pages, where a list of numbers would be a line of
nine thousand pixels. The attribute survives copies and renames of a study.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from optuna_s2e._typing import FloatArray

CURVES_KEY = "coteaching:curves"
MAX_EPOCHS = 400  # recorded; keeps the JSON below 60 kB, MySQL's limit for an attribute
_MAX_LENGTH = 60_000


class Curves(NamedTuple):
    """Learning curves as recorded.

    Attributes:
        epochs: The recorded epochs, increasing ints, (m,).
        values: Curves by name, finite, mean over the networks, (m,) each.
    """

    epochs: npt.NDArray[np.int64]
    values: Mapping[str, FloatArray]


def to_json(curves: Mapping[str, FloatArray]) -> str:
    """Return curves as JSON, thinned to at most 400 epochs: {name: [network 0, network 1]}.

    Args:
        curves: By name, one row per epoch, one column per network, (T, n_networks). A curve with
            non-finite values is recorded as unknown.
    """
    n_epochs = len(next(iter(curves.values())))
    stride = math.ceil(n_epochs / MAX_EPOCHS)
    epochs = np.arange(n_epochs)[::-stride][::-1]  # the last one included
    document: dict[str, Any] = {"version": 1, "epochs": epochs.tolist()}
    for name, curve in curves.items():
        chosen = np.asarray(curve, dtype=np.float64)[epochs].T
        known = bool(np.isfinite(chosen).all())
        document[name] = np.round(chosen, 4).tolist() if known else None
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def read(trial: FrozenTrial) -> Curves | None:
    """Read the curves of a trial; None if it has none, or damaged ones."""
    text = trial.system_attrs.get(CURVES_KEY)
    if not isinstance(text, str) or len(text) > _MAX_LENGTH:
        return None
    try:
        document = json.loads(text)
        epochs = np.array(document.pop("epochs"), dtype=np.int64)
        if document.pop("version") != 1 or epochs.ndim != 1 or not (np.diff(epochs) > 0).all():
            return None
        values = {
            name: np.array(rows, dtype=np.float64).mean(axis=0)
            for name, rows in document.items()
            if rows is not None
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    sound = all(v.shape == epochs.shape and np.isfinite(v).all() for v in values.values())
    return Curves(epochs, values) if sound and len(epochs) else None
