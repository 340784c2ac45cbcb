"""What the dashboard shows of one trial: its picture, its note, its learning curves."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.artifacts import upload_artifact
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from optuna_s2e import _optuna
from optuna_s2e._attributes import CURVES_KEY, DRAW_KEY, curves_to_json, read_curves
from optuna_s2e.dashboard import _notes as notes
from optuna_s2e.dashboard._artifacts import is_uuid
from optuna_s2e.dashboard._markdown import update_note
from optuna_s2e.dashboard._pictures import picture
from optuna_s2e.history import Record
from optuna_s2e.schedules import Schedule

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

PICTURE = "schedule.svg"  # file name of the one artifact of a trial
MAX_ILLUSTRATED = 500  # trials with a note and a picture: the dashboard reads all notes per trial


def upload_picture(store: ArtifactStore, trial: Trial, svg: str) -> str:
    """Add the picture to a running trial; return the artifact's identifier."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, PICTURE)
        path.write_text(svg)
        return upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


def write_picture(store: ArtifactStore, artifact: str, svg: str) -> None:
    """Replace the picture of a trial."""
    store.write(artifact, io.BytesIO(svg.encode()))


def find_picture(attrs: Mapping[str, Any]) -> str | None:
    """Return the identifier of the picture that a trial's system attributes name, if any."""
    for key, value in attrs.items():
        if key.startswith("artifacts:") and isinstance(value, str):
            try:
                meta = json.loads(value)
            except ValueError:
                continue
            if isinstance(meta, dict) and meta.get("filename") == PICTURE:
                artifact = str(meta.get("artifact_id"))
                if is_uuid(artifact):  # it becomes part of a link and a file name
                    return artifact
    return None


def picture_path(study: Study, trial: FrozenTrial | Trial, artifact: str | None) -> str | None:
    """Return the picture's path on the dashboard; new at each call, so that pages fetch it."""
    if artifact is None:
        return None
    study_id, trial_id = _optuna.study_id(study), _optuna.trial_id(trial)
    return f"/artifacts/{study_id}/{trial_id}/{artifact}?v={time.time_ns() // 1_000_000}"


def write_finished_trial(
    study: Study, trial: FrozenTrial, store: ArtifactStore | None = None
) -> bool:
    """Write the note of a finished trial, and its picture anew if it has one.

    Args:
        study: The study of the trial.
        trial: A finished trial.
        store: Where its picture is. None leaves the picture as it is.

    Returns:
        Whether anything is written: not for a trial without a schedule, or after the first 500.
    """
    if trial.number >= MAX_ILLUSTRATED:
        return False
    try:
        schedule = Schedule.from_trial(trial)
    except ValueError:
        return False
    recorded = read_curves(trial)
    curves = {n: c.tolist() for n, c in recorded.values.items()} if recorded else {}
    artifact = find_picture(trial.system_attrs)
    if artifact is not None and store is not None:
        write_picture(store, artifact, picture(trial.number, schedule, curves, value=trial.value))
    record = Record.from_attr(trial.system_attrs.get(DRAW_KEY))
    note = notes.trial_note(
        schedule,
        curves,
        generation=record.generation if record is not None else None,
        picture=picture_path(study, trial, artifact),
        running=False,
    )
    update_note(_optuna.note_target(study, trial), note)
    return True


def record_curves(trial: Trial, curves: Mapping[str, Sequence[float]]) -> None:
    """Keep the learning curves of a trial whose objective has not kept them itself."""
    known = {n: np.asarray(c, dtype=np.float64)[:, None] for n, c in curves.items() if len(c)}
    same_length = len({len(c) for c in known.values()}) == 1
    if same_length and CURVES_KEY not in _optuna.running_trial_attrs(trial):
        _optuna.set_running_trial_attr(trial, CURVES_KEY, curves_to_json(known))
