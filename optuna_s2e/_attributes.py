"""Every attribute that this package writes to a study or a trial, and how they are read.

The state of a search is in the trials: `DRAW_KEY` decides, all others only show or remember.
Values are JSON. docs/architecture.md says what they hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from optuna_s2e._typing import FloatArray

# System attributes of a trial
DRAW_KEY = "s2e:draw"  # the record of its draw: what theta follows from
FAILURE_KEY = "s2e:failure"  # why a trial of a batch failed: {"by": "objective", "reason": ...}
REPEATS_KEY = "s2e:repeats"  # the trial, lost by a machine, in whose place it was enqueued
WORKER_KEY = "s2e:worker"  # host and process of the worker that runs it
SAMPLER_KEY = "s2e:sampler"  # name of the sampler that drew it, if that is not S2E's
CURVES_KEY = "coteaching:curves"  # its learning curves

# System attribute of a study (the lease of its driver) and of a trial (the driver's identifier)
DRIVER_KEY = "s2e:driver"

# System attributes of a study
PAINTED_KEY = "s2e:painted"  # how many trials were complete when its pages were written last
SOURCES_KEY = "s2e:sources"  # trials of earlier studies that its model learns from

# User attributes of a study
SEARCH_KEY = "s2e:search"  # settings of the search, for workers that join
OBJECTIVE_KEY = "s2e:objective"  # settings of the package's own objective
COMMAND_KEY = "s2e:command"  # the command line of `s2e search`
N_TRIALS_KEY = "s2e:n_trials"  # completed trials that the search ends with
MAX_TRIALS = 10**9  # that it may say
CLASSIFIER_KEY = "s2e:classifier"  # data, settings and seed of a classifier's search
ARTIFACT_DIR_KEY = "s2e:artifact_dir"  # the folder of the trials' pictures
NOISE_KEY = "s2e:noise"  # how many labels are wrong, by the estimate that the search follows

# User attributes of a trial
SEED_KEY = "seed"  # what its objective seeds itself with
STOPPED_BY_KEY = "stopped_by"  # the signal that failed a trial which did nothing wrong
GENERATION_KEY = "generation"
KEEP_RATE_MEAN_KEY = "keep_rate_mean"
KEEP_RATE_FINAL_KEY = "keep_rate_final"

# System attributes of a trial that Optuna writes
FIXED_PARAMS_KEY = "fixed_params"  # the parameters of an enqueued trial
FAILED_TRIAL_KEY = "failed_trial"  # the trial that this one is a retry of
RETRY_HISTORY_KEY = "retry_history"  # the trials that this one is a retry of

MAX_EPOCHS = 400  # recorded; keeps the JSON below 60 kB, MySQL's limit for an attribute
_MAX_LENGTH = 60_000
_MAX_MATRIX_LENGTH = 50_000  # about 80 classes


class Curves(NamedTuple):
    """Learning curves as recorded.

    Attributes:
        epochs: The recorded epochs, increasing ints, (m,).
        values: Curves by name, finite, mean over the networks, (m,) each.
    """

    epochs: npt.NDArray[np.int64]
    values: Mapping[str, FloatArray]


def curves_to_json(curves: Mapping[str, FloatArray]) -> str:
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


def read_curves(trial: FrozenTrial) -> Curves | None:
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


class RecordedNoise(NamedTuple):
    """How many labels are wrong, by an estimate that a study records.

    Attributes:
        noise_rate: Share of wrong labels, in [0, 1].
        interval: Its 95 % interval.
        transition_matrix: P(given label | true class), rows sum to 1, (C, C) as nested lists. None
            if there are too many classes to record it.
        used_clean_labels: Whether clean validation labels were used.
        seed: Seed of the estimate; None if it was made elsewhere.
    """

    noise_rate: float
    interval: tuple[float, float]
    transition_matrix: Sequence[Sequence[float]] | None
    used_clean_labels: bool
    seed: int | None

    def __str__(self) -> str:
        """Return it as one line, in percent."""
        rate, low, high = (f"{100 * share:.0f}" for share in (self.noise_rate, *self.interval))
        aid = "" if self.used_clean_labels else ", found without clean labels"
        return f"Noise rate, estimated: {rate} % of the labels are wrong [{low}, {high}]{aid}"

    def to_attr(self) -> dict[str, Any]:
        """Return it as JSON, with four digits: what is read back is what all use."""
        matrix = self.transition_matrix
        rows = None if matrix is None else [[round(p, 4) for p in row] for row in matrix]
        if len(json.dumps(rows)) > _MAX_MATRIX_LENGTH:
            rows = None
        return {
            "v": 1,
            **self._asdict(),
            "noise_rate": round(self.noise_rate, 4),
            "interval": [round(end, 4) for end in self.interval],
            "transition_matrix": rows,
        }


def read_noise(attrs: Mapping[str, Any]) -> RecordedNoise | None:
    """Read the estimate that the user attributes of a study hold.

    Returns:
        The estimate. None if there is none, or it is damaged or of a later version.
    """
    try:
        attr = dict(attrs[NOISE_KEY])
        if attr.pop("v") != 1:
            return None
        found = RecordedNoise(**attr)
        low, high = found.interval
        shares = (low, found.noise_rate, high)
        sound = all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares)
        return found._replace(interval=(low, high)) if sound else None
    except (KeyError, TypeError, ValueError):
        return None
