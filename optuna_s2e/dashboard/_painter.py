"""Paints the studies of a storage whose own search paints no pages."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import PAINTED_KEY
from optuna_s2e.analysis import Snapshot
from optuna_s2e.dashboard._study_page import write_study

INTERVAL = 10.0  # seconds between two looks, as between two polls of an open page
MAX_SHARE = 0.1  # of the time that painting takes
BEHIND = 12  # trials: two generations of the default size; a reporter is never so far behind


class Painter:
    """Write plots and status pages where no reporter does, while a dashboard is open.

    A study is painted if trials have completed since it was painted last, and a reporter that
    would paint it is not at work: at the first look, if no trial completed between two looks, or
    if many did. Studies without schedules in which S2ESampler drew nothing are left alone.

    Args:
        storage: The storage that the dashboard shows. Its trials are read, so that the first page
            does not wait for that.
        read_only: Whether to write nothing.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler
        >>> from optuna_s2e.dashboard import Painter
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(study_name="a", sampler=S2ESampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
        >>> painter = Painter(study._storage)
        >>> painter.look(), painter.look()
        (['a'], [])
    """

    def __init__(self, storage: BaseStorage, *, read_only: bool = False) -> None:
        self._storage = storage
        self._read_only = read_only
        self._seen: dict[str, int] = {}  # completed trials at the last look, by name of the study
        self._left: set[str] = set()  # names of studies that stay as they are

    def look(self) -> list[str]:
        """Paint the studies that are due.

        Returns:
            The names of the studies that were painted or, if nothing may be written, those whose
            pages are missing or behind.
        """
        return [name for name in optuna.get_all_study_names(self._storage) if self._paint(name)]

    def keep_looking(self) -> NoReturn:
        """Look every ten seconds. An error of the storage is printed once, and looking goes on."""
        told = False
        while True:
            began = time.monotonic()
            try:
                names = self.look()
            except Exception as error:
                first_line = (str(error) or type(error).__name__).splitlines()[0]
                message = f"The plots are not kept up to date: {first_line}"
            else:
                message = ""
                if names and self._read_only:
                    message = (
                        f"The plots of {', '.join(map(repr, names))} are missing or out of date. "
                        "`s2e dashboard` without --read-only paints them."
                    )
            if message and not told:
                print(message, file=sys.stderr, flush=True)
                told = True
            time.sleep(max(INTERVAL, (time.monotonic() - began) / MAX_SHARE))

    def _paint(self, name: str) -> bool:
        try:
            study = optuna.load_study(study_name=name, storage=self._storage)
        except KeyError:  # deleted or renamed a moment ago
            return False
        trials = _optuna.all_trials(study)
        n_complete = sum(t.state == TrialState.COMPLETE for t in trials)
        last, self._seen[name] = self._seen.get(name), n_complete
        painted = _optuna.study_system_attrs(study).get(PAINTED_KEY)
        if not isinstance(painted, int):  # never, or damaged
            painted = 0
        goes_on = last is not None and n_complete != last  # and perhaps its reporter paints
        if n_complete == painted or (goes_on and n_complete - painted < BEHIND):
            return False
        if n_complete == last and name in self._left:
            return False
        is_ours = len(study.directions) == 1 and _is_ours(study, trials)
        if is_ours and not self._read_only:
            write_study(study, trials)
        else:
            self._left.add(name)
        return is_ours


def _is_ours(study: Study, trials: Sequence[FrozenTrial]) -> bool:
    snapshot = Snapshot.of(study, trials=trials)
    return snapshot.is_s2e or snapshot.schedule_space is not None
