"""What the dashboard shows of a study: four plots and a status page."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import OBJECTIVE_KEY, PAINTED_KEY
from optuna_s2e.analysis import Snapshot
from optuna_s2e.dashboard import _notes as notes
from optuna_s2e.dashboard._markdown import update_note
from optuna_s2e.dashboard._trial_page import find_picture, picture_path
from optuna_s2e.visualization import figures

MAX_BASELINES = 5
MAX_ATTEMPTS = 3  # to save the plots, until they are stored as they were written

# Titles are numbered: the dashboard shows the plots in random order. There is no ":" in the ids:
# the study page would answer with an error.
PLOTS: tuple[tuple[str, Callable[[Snapshot], figures.Figure]], ...] = (
    ("s2e_1_schedules", figures.schedules),
    ("s2e_2_theta", figures.theta),
    ("s2e_3_generations", figures.generations),
    ("s2e_4_curves", figures.learning_curves),
)


def write_study(study: Study, trials: Sequence[FrozenTrial] | None = None) -> None:
    """Write the plots and the status page of a study.

    Args:
        study: A study with one objective.
        trials: All its trials by number, if they were read just now. None reads them.
    """
    snapshot = Snapshot.of(study, trials=trials)
    for _ in range(MAX_ATTEMPTS):
        if _save_plots(study, snapshot):
            break
        time.sleep(random.uniform(0.1, 1.0))  # another worker saved them at the same time
        snapshot = Snapshot.of(study)
    note = notes.study_note(
        snapshot,
        study_id=_optuna.study_id(study),
        url=_optuna.url_of(study),
        pictures=_pictures(study, snapshot),
        baselines=_baselines(study),
    )
    update_note(study, note)
    n_complete = sum(t.state == TrialState.COMPLETE for t in snapshot.trials)
    _optuna.set_study_system_attr(study, PAINTED_KEY, n_complete)


class _Json:
    """A figure as optuna-dashboard saves it: it only calls `to_json`."""

    def __init__(self, figure: figures.Figure) -> None:
        self._figure = figure

    def to_json(self) -> str:
        return json.dumps(self._figure, separators=(",", ":"), allow_nan=False)


def _save_plots(study: Study, snapshot: Snapshot) -> bool:
    """Save the plots; return whether they are stored as they were written.

    A plot is stored in pieces, and two workers that save at once may mix theirs.
    """
    from optuna_dashboard import save_plotly_graph_object

    written = {}
    for number, (name, draw) in enumerate(PLOTS, start=1):
        try:
            figure = draw(snapshot)
        except ValueError:  # the study has none: no schedules, or no theta
            continue
        title = figure["layout"]["title"]
        title["text"] = f"{number} · {title['text']}"
        written[name] = _Json(figure)
        save_plotly_graph_object(study, written[name], graph_object_id=name)
    attrs = _optuna.study_system_attrs(study)
    return all(_stored_plot(attrs, name) == plot.to_json() for name, plot in written.items())


def _stored_plot(attrs: Mapping[str, Any], name: str) -> str:
    pieces: list[str] = []
    while isinstance(piece := attrs.get(f"dashboard:plot_data:{name}:{len(pieces)}"), str):
        pieces.append(piece)
    return "".join(pieces)


def _pictures(study: Study, snapshot: Snapshot) -> dict[int, str]:
    """Return the paths of the pictures of the best and the recommended trial, by number."""
    picked = snapshot.recommended.trial if snapshot.recommended is not None else None
    trials = [snapshot.best, snapshot.trials[picked] if picked is not None else None]
    paths = {
        t.number: picture_path(study, t, find_picture(t.system_attrs))
        for t in trials
        if t is not None
    }
    return {number: path for number, path in paths.items() if path is not None}


def _baselines(study: Study) -> list[tuple[int, str]]:
    """Return identifiers and names of the storage's other studies of the same objective."""
    own = study.user_attrs.get(OBJECTIVE_KEY)
    if own is None:
        return []
    beside = _optuna.studies_beside(study)
    return [(i, n) for i, n, attrs in beside if attrs.get(OBJECTIVE_KEY) == own][:MAX_BASELINES]
