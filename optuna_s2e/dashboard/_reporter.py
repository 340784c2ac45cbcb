"""The reporter: shows a search on optuna-dashboard while it runs, and never hurts it."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.artifacts import upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import (
    ARTIFACT_DIR_KEY,
    COMMAND_KEY,
    CURVES_KEY,
    DRAW_KEY,
    GENERATION_KEY,
    KEEP_RATE_FINAL_KEY,
    KEEP_RATE_MEAN_KEY,
    N_TRIALS_KEY,
    OBJECTIVE_KEY,
    curves_to_json,
    read_curves,
)
from optuna_s2e.analysis import Story, closes_generation
from optuna_s2e.dashboard import _notes as notes
from optuna_s2e.dashboard._artifacts import ArtifactFolder, is_uuid
from optuna_s2e.dashboard._pictures import picture
from optuna_s2e.history import Ledger, Record, Rules
from optuna_s2e.schedules import Schedule
from optuna_s2e.visualization import figures

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

PICTURE = "schedule.svg"  # file name of the one artifact of a trial
LIVE_INTERVAL = 2.0  # seconds at least between two updates of a running trial
MAX_LIVE_INTERVAL = 60.0
LIVE_SHARE = 0.01  # of a trial's time that its live updates may take
MAX_BASELINES = 5
MAX_PAINTS = 3  # of the same plots, until what is stored is whole

# Titles are numbered: the dashboard shows the plots in random order. No ":" in the ids: the study
# page would answer with an error.
PLOTS: tuple[tuple[str, Callable[[Story], figures.Figure]], ...] = (
    ("s2e_1_schedules", figures.schedules),
    ("s2e_2_theta", figures.theta),
    ("s2e_3_generations", figures.generations),
    ("s2e_4_curves", figures.learning_curves),
)


@dataclass
class _Live:
    """What the reporter knows of a running trial."""

    due: float  # when it may be updated again, as time.monotonic()
    artifact: str | None = None
    generation: int | None = None
    metric: str = ""  # name of the study's value


class DashboardReporter:
    """Show a search on optuna-dashboard while it runs.

    Give it to the objective, which shows it each running trial, and to the callbacks of
    `study.optimize` or `optimize_batch`, for what belongs to a generation:

    - each trial: one picture (R(t), validation error, label precision) that follows the training,
      a note with key numbers, and the user attributes `generation`, `keep_rate_mean` and
      `keep_rate_final`;
    - the study, each time that a generation is complete: four plots, and a note that says where
      the search stands. A person's own text in the notes is kept.

    Whatever goes wrong with any of it (no optuna-dashboard, no disk space, a study that was
    renamed by a click), the search goes on, with one warning. Live updates of a trial take at
    most 1 % of its time.

    Args:
        artifact_store: Where the pictures go: a folder, or an artifact store of Optuna's; None
            for no pictures. The dashboard must be started on the same one, as `s2e dashboard`
            does.
        n_trials: Completed trials that the search is to end with, for its estimate of the end;
            the study's pages are brought up to date when it gets there.

    Example:
        >>> import optuna, tempfile
        >>> from optuna_s2e import S2ESampler, ScheduleSpace
        >>> from optuna_s2e.dashboard import DashboardReporter
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> reporter = DashboardReporter(tempfile.mkdtemp())
        >>> def objective(trial):
        ...     schedule = ScheduleSpace(n_epochs=5).suggest(trial)
        ...     errors = []
        ...     for keep_rate in schedule.keep_rates:  # one epoch of your training
        ...         errors.append(float(keep_rate) / 2)
        ...         reporter.show(trial, schedule, {"error": errors})
        ...     reporter.show(trial, schedule, {"error": errors}, final=True)
        ...     return errors[-1]
        >>> study = optuna.create_study(sampler=S2ESampler(seed=0))
        >>> study.optimize(objective, n_trials=6, callbacks=[reporter])
        >>> from optuna_dashboard import get_note
        >>> "Generation 1" in get_note(study)
        True
    """

    def __init__(
        self, artifact_store: ArtifactStore | str | Path | None, *, n_trials: int | None = None
    ) -> None:
        if isinstance(artifact_store, str | Path):
            artifact_store = ArtifactFolder(artifact_store)
        self._store = artifact_store
        self._n_trials = n_trials
        self._live: dict[tuple[int, int], _Live] = {}  # by storage and trial
        self._noted: set[tuple[int, int]] = set()  # trials whose last note is written
        self._painted: set[str] = set()  # names of studies
        self._ledgers: dict[tuple[int, int], Ledger] = {}  # by storage and study
        self._warned = False
        self._available = is_available()
        if self._available:
            importlib.import_module("optuna_dashboard")  # takes a second: not in the first trial
        else:
            self._warn('optuna-dashboard is missing: pip install "optuna-s2e[dashboard]"')

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ledgers": {}}  # it travels with an objective, to each trial

    def show(
        self,
        trial: Trial,
        schedule: Schedule,
        curves: Mapping[str, Sequence[float]],
        *,
        final: bool = False,
    ) -> None:
        """Show where a running trial stands; cheap to call after every epoch.

        Args:
            trial: The trial, as the objective got it.
            schedule: Its R(t).
            curves: One value per finished epoch by name: "error", "loss" (of the validation),
                "label_precision", "train_accuracy"; NaN where unknown.
            final: Whether the training has ended: the last call of a trial.
        """
        if not self._available or not isinstance(trial, Trial):
            return
        key = _key(trial.study, trial)
        live = self._live.get(key)
        if live is not None and not final and time.monotonic() < live.due:
            return
        if live is None:
            live = self._live[key] = _Live(due=time.monotonic() + LIVE_INTERVAL)
            with self._harmless():
                self._begin(trial, schedule, live)
            if not final:
                return
        started = time.monotonic()
        with self._harmless():
            self._update(trial, schedule, curves, live, final=final)
            if final:
                _record_curves(trial, curves)
        ended = time.monotonic()
        pause = (ended - started) / LIVE_SHARE
        live.due = ended + min(max(pause, LIVE_INTERVAL), MAX_LIVE_INTERVAL)
        if final:
            self._live.pop(key, None)
            self._noted.add(key)

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Bring the study's pages up to date if this trial completed a generation."""
        key = _key(study, trial)
        self._live.pop(key, None)
        if not self._available:
            return
        with self._harmless():
            if key not in self._noted and trial.state == TrialState.COMPLETE:
                self._note_elsewhere(study, trial)
            self._noted.discard(key)
            if self._is_due(study, trial):
                self.paint(study)

    def paint(self, study: Study) -> None:
        """Write the plots and the status page of a study from its stored trials.

        Raises:
            ImportError: If optuna-dashboard is missing.
            Exception: Whatever the storage raises.
        """
        self._write_attrs(study)
        story = Story.of(study)
        for _ in range(MAX_PAINTS):
            if _save_plots(study, story):
                break
            time.sleep(random.uniform(0.1, 1.0))  # another worker painted at the same time
            story = Story.of(study)
        pictures = {t.number: path for t in _shown(story) if (path := _picture_path(study, t))}
        text = notes.study_note(
            story,
            study_id=_optuna.study_id(study),
            url=_optuna.url_of(study),
            pictures=pictures,
            baselines=_baselines(study),
            now=datetime.now().astimezone(),
        )
        _save_note(study, text)
        self._painted.add(study.study_name)

    def repaint(self, study: Study) -> int:
        """Write everything anew from the stored trials: after a rename, a copy, an import.

        Pictures of finished trials that never had one cannot be added: Optuna refuses.

        Returns:
            The number of trials with a schedule, whose notes and pictures were written.

        Raises:
            ImportError: If optuna-dashboard is missing.
            Exception: Whatever the storage raises.
        """
        n_trials = 0
        for trial in _optuna.all_trials(study):
            if trial.state in (TrialState.WAITING, TrialState.RUNNING):
                continue
            try:
                schedule = Schedule.from_trial(trial)
            except ValueError:
                continue
            self._repaint_trial(study, trial, schedule)
            n_trials += 1
        self.paint(study)
        return n_trials

    def record_command(self, study: Study, argv: Sequence[str]) -> None:
        """Keep the command line of a search for its status page, without passwords."""
        with self._harmless():
            command = notes.shown_command(argv)
            if study.user_attrs.get(COMMAND_KEY) != command:
                study.set_user_attr(COMMAND_KEY, command)

    # --- a trial -----------------------------------------------------------------------------

    def _begin(self, trial: Trial, schedule: Schedule, live: _Live) -> None:
        attrs = _optuna.running_trial_attrs(trial)
        record = Record.from_attr(attrs.get(DRAW_KEY))
        names = trial.study.metric_names
        live.metric = names[0] if names else ""
        if record is not None:
            live.generation = record.generation
            trial.set_user_attr(GENERATION_KEY, record.generation)
        trial.set_user_attr(KEEP_RATE_MEAN_KEY, round(float(schedule.keep_rates.mean()), 4))
        trial.set_user_attr(KEEP_RATE_FINAL_KEY, round(float(schedule.keep_rates[-1]), 4))
        live.artifact = _artifact_of(attrs)  # a retry has that of its first try
        if live.artifact is None and self._store is not None:
            try:
                live.artifact = self._upload(trial, picture(trial.number, schedule, {}, epoch=0))
            except Exception:  # it is registered all the same, and a later picture may find space
                live.artifact = _artifact_of(_optuna.running_trial_attrs(trial))
                raise

    def _upload(self, trial: Trial, svg: str) -> str:
        assert self._store is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, PICTURE)
            path.write_text(svg)
            return upload_artifact(
                artifact_store=self._store, file_path=str(path), study_or_trial=trial
            )

    def _update(
        self,
        trial: Trial,
        schedule: Schedule,
        curves: Mapping[str, Sequence[float]],
        live: _Live,
        *,
        final: bool,
    ) -> None:
        """Draw the picture again, and the note, whose link makes the page fetch the picture."""
        n_done = max((len(c) for c in curves.values()), default=0)
        if live.artifact is not None and self._store is not None:
            value = notes.value_now(curves, live.metric)
            svg = picture(
                trial.number, schedule, curves, value=value, epoch=None if final else n_done
            )
            with self._harmless():
                self._store.write(live.artifact, io.BytesIO(svg.encode()))
        study_id, identifier = _optuna.study_id(trial.study), _optuna.trial_id(trial)
        path = _path(study_id, identifier, live.artifact)
        text = notes.trial_note(
            schedule, curves, generation=live.generation, picture=path, running=not final
        )
        _save_note(trial, text)

    def _note_elsewhere(self, study: Study, trial: FrozenTrial) -> None:
        """Write the note of a trial that ran where the study could not be written to."""
        try:
            schedule = Schedule.from_trial(trial)
        except ValueError:  # it has none
            return
        self._note_trial(study, trial, schedule, _recorded_curves(trial))

    def _repaint_trial(self, study: Study, trial: FrozenTrial, schedule: Schedule) -> None:
        curves = _recorded_curves(trial)
        artifact = _artifact_of(trial.system_attrs)
        if artifact is not None and self._store is not None:
            svg = picture(trial.number, schedule, curves, value=trial.value)
            self._store.write(artifact, io.BytesIO(svg.encode()))
        self._note_trial(study, trial, schedule, curves)

    def _note_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        schedule: Schedule,
        curves: Mapping[str, Sequence[float]],
    ) -> None:
        record = Record.from_attr(trial.system_attrs.get(DRAW_KEY))
        text = notes.trial_note(
            schedule,
            curves,
            generation=record.generation if record is not None else None,
            picture=_picture_path(study, trial),
            running=False,
        )
        _save_note(_optuna.note_target(study, trial), text)

    # --- a study -----------------------------------------------------------------------------

    def _is_due(self, study: Study, trial: FrozenTrial) -> bool:
        if study.study_name not in self._painted:
            return True  # a new study, or one that was resumed, renamed or copied
        if trial.state != TrialState.COMPLETE:
            return False
        key = id(_optuna.storage_of(study)), _optuna.study_id(study)
        ledger = self._ledgers.setdefault(key, Ledger(Rules.of(study)))
        if closes_generation(study, trial, ledger):
            return True
        if self._n_trials is None:
            return False
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return len(done) >= self._n_trials

    def _write_attrs(self, study: Study) -> None:
        attrs = study.user_attrs
        wanted: dict[str, Any] = {N_TRIALS_KEY: self._n_trials}
        if isinstance(self._store, ArtifactFolder):
            wanted[ARTIFACT_DIR_KEY] = str(self._store.path)
        for name, value in wanted.items():
            if value is not None and attrs.get(name) != value:
                study.set_user_attr(name, value)

    # --- nothing hurts ---------------------------------------------------------------------------

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except UpdateFinishedTrialError:
            pass  # someone has failed the trial by a click
        except Exception as error:
            self._warn(
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"The dashboard's pages are not kept up to date ({reason}). The search goes on; "
                "`s2e dashboard --refresh` paints the pages from the stored trials.",
                RuntimeWarning,
                stacklevel=4,
            )


def _key(study: Study, trial: FrozenTrial | Trial) -> tuple[int, int]:
    return id(_optuna.storage_of(study)), _optuna.trial_id(trial)


def is_available() -> bool:
    """Return whether optuna-dashboard is installed."""
    return importlib.util.find_spec("optuna_dashboard") is not None


class _Json:
    """A figure as optuna-dashboard saves it: it asks for nothing but `to_json`."""

    def __init__(self, figure: figures.Figure) -> None:
        self._figure = figure

    def to_json(self) -> str:
        return json.dumps(self._figure, separators=(",", ":"), allow_nan=False)


def _save_plots(study: Study, story: Story) -> bool:
    """Save the plots; return whether they are stored as they were written.

    A plot is stored in pieces, and two workers that save at once may mix theirs.
    """
    from optuna_dashboard import save_plotly_graph_object

    written = {}
    for number, (name, draw) in enumerate(PLOTS, start=1):
        try:
            figure = draw(story)
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


def _save_note(target: Any, text: str) -> None:
    from optuna_dashboard import get_note, save_note

    save_note(target, notes.merge(get_note(target), text))


def _recorded_curves(trial: FrozenTrial) -> dict[str, list[float]]:
    recorded = read_curves(trial)
    return {n: c.tolist() for n, c in recorded.values.items()} if recorded else {}


def _record_curves(trial: Trial, curves: Mapping[str, Sequence[float]]) -> None:
    """Keep the curves of an objective that has not done it itself."""
    known = {n: np.asarray(c, dtype=np.float64)[:, None] for n, c in curves.items() if len(c)}
    same_length = len({len(c) for c in known.values()}) == 1
    if same_length and CURVES_KEY not in _optuna.running_trial_attrs(trial):
        text = curves_to_json(known)
        _optuna.set_running_trial_attr(trial, CURVES_KEY, text)


def _artifact_of(attrs: Mapping[str, Any]) -> str | None:
    """Return the identifier of the trial's picture among its system attributes."""
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


def _path(study_id: int, trial_id: int, artifact: str | None) -> str | None:
    """Return the picture's path on the dashboard; new at each call, so that pages fetch it."""
    if artifact is None:
        return None
    return f"/artifacts/{study_id}/{trial_id}/{artifact}?v={time.time_ns() // 1_000_000}"


def _picture_path(study: Study, trial: FrozenTrial) -> str | None:
    artifact = _artifact_of(trial.system_attrs)
    return _path(_optuna.study_id(study), _optuna.trial_id(trial), artifact)


def _shown(story: Story) -> list[FrozenTrial]:
    """Return the best and the recommended trial."""
    picked = story.recommended.trial if story.recommended is not None else None
    found = [story.best, story.trials[picked] if picked is not None else None]
    return [t for t in found if t is not None]


def _baselines(study: Study) -> list[tuple[int, str]]:
    """Return identifiers and names of the studies of the same objective in the storage."""
    own = study.user_attrs.get(OBJECTIVE_KEY)
    if own is None:
        return []
    beside = _optuna.studies_beside(study)
    return [(i, n) for i, n, attrs in beside if attrs.get(OBJECTIVE_KEY) == own][:MAX_BASELINES]
