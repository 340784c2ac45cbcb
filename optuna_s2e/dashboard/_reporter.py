"""The reporter: shows a search on optuna-dashboard while it runs, and never hurts it."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import (
    ARTIFACT_DIR_KEY,
    COMMAND_KEY,
    DRAW_KEY,
    FIXED_PARAMS_KEY,
    GENERATION_KEY,
    KEEP_RATE_FINAL_KEY,
    KEEP_RATE_MEAN_KEY,
)
from optuna_s2e._checks import check_int
from optuna_s2e.analysis import closes_generation
from optuna_s2e.dashboard import _notes as notes
from optuna_s2e.dashboard import _trial_page as trial_page
from optuna_s2e.dashboard._artifacts import ArtifactFolder
from optuna_s2e.dashboard._markdown import update_note
from optuna_s2e.dashboard._pictures import picture
from optuna_s2e.dashboard._study_page import write_study
from optuna_s2e.history import Ledger, Record, Rules, extend_search
from optuna_s2e.schedules import Schedule

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

LIVE_INTERVAL = 2.0  # seconds at least between two updates of a running trial
MAX_LIVE_INTERVAL = 60.0
LIVE_SHARE = 0.01  # of a trial's time that its live updates may take


@dataclass
class _RunningTrial:
    """What the reporter knows of a running trial.

    Attributes:
        due: When it may be updated again, as `time.monotonic()`.
        artifact: Identifier of its picture.
        generation: The generation that it was drawn from.
        metric: Name of the study's value.
    """

    due: float
    artifact: str | None = None
    generation: int | None = None
    metric: str = ""


class DashboardReporter:
    """Show a search on optuna-dashboard while it runs.

    Give the reporter to the objective, which shows it each running trial, and to the callbacks of
    `study.optimize` or `optimize_batch`, for what belongs to a generation:

    - each trial: one picture (R(t), validation error, label precision) that follows the training,
      a note with key numbers, and the user attributes `generation`, `keep_rate_mean` and
      `keep_rate_final`. After the first 500 trials there are the attributes only: more pictures
      and notes would slow all pages down;
    - the study, each time that a generation is complete: four plots, and a note that says where
      the search stands. A person's own text in the notes is kept.

    If something goes wrong with any of it (no optuna-dashboard, no disk space, a study that was
    renamed by a click), the search goes on, with one warning. Live updates of a trial take at
    most 1 % of its time.

    Args:
        artifact_store: Where the pictures go: a folder, or an artifact store of Optuna's. None
            makes no pictures. The dashboard must be started on the same one, as `s2e dashboard`
            does.
        n_trials: Number of completed trials that the search ends with. The pages show how many
            are left, and they are written once more when it is reached. None if unknown.

    Raises:
        ValueError: If `n_trials` is no int of at least 1.

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
        self._n_trials = check_int("n_trials", n_trials, 1) if n_trials is not None else None
        self._running: dict[tuple[int, int], _RunningTrial] = {}  # by storage and trial
        self._noted: set[tuple[int, int]] = set()  # trials whose last note is written
        self._painted: set[str] = set()  # names of studies
        self._ledgers: dict[tuple[int, int], Ledger] = {}  # by storage and study
        self._lock = threading.Lock()  # of the ledgers: callbacks may run in several threads
        self._warned = False
        self._available = is_available()
        if self._available:
            importlib.import_module("optuna_dashboard")  # takes a second: not in the first trial
        else:
            self._warn('optuna-dashboard is missing: pip install "optuna-s2e[dashboard]"')

    def __getstate__(self) -> dict[str, Any]:
        # it travels with an objective, to each trial
        return {n: v for n, v in self.__dict__.items() if n not in ("_ledgers", "_lock")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _ledgers={}, _lock=threading.Lock())

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
            schedule: R(t) of the trial.
            curves: One value per finished epoch, by name: "error" and "loss" (both of the
                validation data), "label_precision", "train_accuracy". NaN where unknown.
            final: Whether the training has ended. The last call of a trial must say so.
        """
        if not self._available or not isinstance(trial, Trial):
            return
        key = _key(trial.study, trial)
        running = self._running.get(key)
        if running is not None and not final and time.monotonic() < running.due:
            return
        if running is None:
            running = self._running[key] = _RunningTrial(due=time.monotonic() + LIVE_INTERVAL)
            with self._harmless():
                self._begin(trial, schedule, running)
            if not final:
                return
        started = time.monotonic()
        with self._harmless():
            self._update(trial, schedule, curves, running, final=final)
            if final:
                trial_page.record_curves(trial, curves)
        ended = time.monotonic()
        pause = (ended - started) / LIVE_SHARE
        running.due = ended + min(max(pause, LIVE_INTERVAL), MAX_LIVE_INTERVAL)
        if final:
            self._running.pop(key, None)
            self._noted.add(key)

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Write the study's pages if this trial completed a generation.

        Args:
            study: The study.
            trial: A trial that has just finished.
        """
        key = _key(study, trial)
        self._running.pop(key, None)
        if not self._available:
            return
        with self._harmless():
            if key not in self._noted and trial.state == TrialState.COMPLETE:
                # it ran where the study could not be written to
                trial_page.write_finished_trial(study, trial)
            self._noted.discard(key)
            trials = self._trials_if_due(study, trial)
            if trials is not None:
                self._write_study(study, trials)

    def paint(self, study: Study) -> None:
        """Write the plots and the status page of a study from its stored trials.

        Args:
            study: A study with one objective.

        Raises:
            ImportError: If optuna-dashboard is missing.
            ValueError: If the study has several objectives.
            Exception: Whatever the storage raises.
        """
        self._write_study(study, None)

    def repaint(self, study: Study) -> int:
        """Write everything again from the stored trials: after a rename, a copy, an import.

        A finished trial that never had a picture stays without one, because Optuna refuses to add
        it.

        Args:
            study: A study with one objective.

        Returns:
            The number of trials with a schedule, whose notes and pictures were written.

        Raises:
            ImportError: If optuna-dashboard is missing.
            ValueError: If the study has several objectives.
            Exception: Whatever the storage raises.
        """
        trials = _optuna.all_trials(study)
        finished = [t for t in trials if t.state.is_finished()]
        written = [trial_page.write_finished_trial(study, t, self._store) for t in finished]
        self._write_study(study, trials)
        return sum(written)

    def record_command(self, study: Study, argv: Sequence[str]) -> None:
        """Keep the command line of a search for its status page, without passwords.

        Args:
            study: The study that the command searches.
            argv: The words of the command line.
        """
        with self._harmless():
            command = notes.shown_command(argv)
            if study.user_attrs.get(COMMAND_KEY) != command:
                study.set_user_attr(COMMAND_KEY, command)

    # --- a running trial ---------------------------------------------------------------------

    def _begin(self, trial: Trial, schedule: Schedule, running: _RunningTrial) -> None:
        attrs = _optuna.running_trial_attrs(trial)
        record = Record.from_attr(attrs.get(DRAW_KEY))
        names = trial.study.metric_names
        running.metric = names[0] if names else ""
        if record is not None and FIXED_PARAMS_KEY not in attrs:  # else it is no draw
            running.generation = record.generation
            trial.set_user_attr(GENERATION_KEY, record.generation)
        trial.set_user_attr(KEEP_RATE_MEAN_KEY, round(float(schedule.keep_rates.mean()), 4))
        trial.set_user_attr(KEEP_RATE_FINAL_KEY, round(float(schedule.keep_rates[-1]), 4))
        running.artifact = trial_page.find_picture(attrs)  # a retry has that of its first try
        illustrated = trial.number < trial_page.MAX_ILLUSTRATED
        if running.artifact is None and self._store is not None and illustrated:
            svg = picture(trial.number, schedule, {}, epoch=0)
            try:
                running.artifact = trial_page.upload_picture(self._store, trial, svg)
            except Exception:  # it is registered all the same, and a later picture may find space
                running.artifact = trial_page.find_picture(_optuna.running_trial_attrs(trial))
                raise

    def _update(
        self,
        trial: Trial,
        schedule: Schedule,
        curves: Mapping[str, Sequence[float]],
        running: _RunningTrial,
        *,
        final: bool,
    ) -> None:
        """Write the picture and the note, whose new link makes an open page fetch the picture."""
        if trial.number >= trial_page.MAX_ILLUSTRATED:
            return
        if running.artifact is not None and self._store is not None:
            n_done = max((len(c) for c in curves.values()), default=0)
            value = notes.value_now(curves, running.metric)
            epoch = None if final else n_done
            svg = picture(trial.number, schedule, curves, value=value, epoch=epoch)
            with self._harmless():
                trial_page.write_picture(self._store, running.artifact, svg)
        note = notes.trial_note(
            schedule,
            curves,
            generation=running.generation,
            picture=trial_page.picture_path(trial.study, trial, running.artifact),
            running=not final,
        )
        update_note(trial, note)

    # --- a study -----------------------------------------------------------------------------

    def _trials_if_due(self, study: Study, trial: FrozenTrial) -> Sequence[FrozenTrial] | None:
        """Return all trials if the study's pages must be written after this one; else None."""
        if study.study_name not in self._painted:
            return _optuna.all_trials(study)  # it is new, or was resumed, renamed or copied
        if trial.state != TrialState.COMPLETE:
            return None
        rules = Rules.of(study)
        key = id(_optuna.storage_of(study)), _optuna.study_id(study)
        with self._lock:
            ledger = self._ledgers.get(key)
            if ledger is None or ledger.rules != rules:
                ledger = self._ledgers[key] = Ledger(rules)
            trials = _optuna.all_trials(study)
            due = closes_generation(trial, trials, ledger.read(trials))
        if not due and self._n_trials is not None:
            due = sum(t.state == TrialState.COMPLETE for t in trials) >= self._n_trials
        return trials if due else None

    def _write_study(self, study: Study, trials: Sequence[FrozenTrial] | None) -> None:
        if self._n_trials is not None:
            extend_search(study, self._n_trials)
        if isinstance(self._store, ArtifactFolder):
            folder = str(self._store.path)
            if study.user_attrs.get(ARTIFACT_DIR_KEY) != folder:
                study.set_user_attr(ARTIFACT_DIR_KEY, folder)
        write_study(study, trials)
        self._painted.add(study.study_name)

    # --- nothing hurts a search --------------------------------------------------------------

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Turn errors into one warning."""
        try:
            yield
        except UpdateFinishedTrialError:
            pass  # someone has failed the trial by a click
        except Exception as error:
            first_line = str(error).splitlines()[0] if str(error) else ""
            self._warn(f"{type(error).__name__}: {first_line}")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"The dashboard's pages are not kept up to date ({reason}). The search goes on; "
                "`s2e dashboard --refresh` writes the pages from the stored trials.",
                RuntimeWarning,
                stacklevel=4,
            )


def _key(study: Study, trial: FrozenTrial | Trial) -> tuple[int, int]:
    return id(_optuna.storage_of(study)), _optuna.trial_id(trial)


def is_available() -> bool:
    """Return whether optuna-dashboard is installed."""
    return importlib.util.find_spec("optuna_dashboard") is not None
