"""Which space a study searches: by a noise rate that is given, or estimated once per study.

An estimate is recorded with the study and read by all who join. Workers that begin at once may
each make one; the first one that is recorded counts. A system attribute of the study decides: it
is looked at and written in one step. The user attribute of the same name is a copy for whoever
reads the study; trials away from their storage (`optimize_batch`) have that one alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import BaseTrial, Trial

from optuna_s2e import _optuna
from optuna_s2e._attributes import NOISE_KEY, RecordedNoise, read_noise
from optuna_s2e._checks import check_number
from optuna_s2e.coteaching._noise_estimate import NoiseEstimate
from optuna_s2e.schedules import ScheduleSpace

ESTIMATE = "estimate"  # a noise rate that is not given
_ANY_RATE = 0.5  # to see whether a kind of space takes a noise rate
_one_at_a_time = threading.Lock()  # the trials of one process (`n_jobs`) wait for one estimate

Progress = Callable[[int, int], None]


class StudySpaces:
    """The spaces of schedules that the studies of one objective search.

    Args:
        n_epochs: T, as in `ScheduleSpace`.
        kind: Name of the formulas, as in `ScheduleSpace`.
        noise_rate: As in `ScheduleSpace`, or "estimate".
        estimate: Makes the estimate; its argument shows the progress, or is None.
        seed: What `estimate` is seeded with, to be recorded; None if that is not known.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        n_epochs: int,
        kind: str,
        noise_rate: float | str | None,
        estimate: Callable[[Progress | None], NoiseEstimate],
        seed: int | None,
    ) -> None:
        self.n_epochs, self.kind = n_epochs, kind
        self.noise_rate = _checked(noise_rate)
        self._estimate, self._seed = estimate, seed
        self._at(_ANY_RATE if noise_rate == ESTIMATE else self.noise_rate)  # it checks the others

    def _at(self, noise_rate: Any) -> ScheduleSpace:
        return ScheduleSpace(self.n_epochs, self.kind, noise_rate=noise_rate)

    @property
    def given(self) -> ScheduleSpace:
        """The space of every study.

        Raises:
            ValueError: If each study has its own.
        """
        if self.noise_rate == ESTIMATE:
            raise ValueError(
                "The space follows from an estimate, which belongs to a study: "
                "objective.prepare_study(study) returns it."
            )
        return self._at(self.noise_rate)

    def of_study(self, study: Study, progress: Progress | None = None) -> ScheduleSpace:
        """Return the space of a study. Make and record an estimate if it needs one and has none.

        Raises:
            ValueError: If the study does not minimise one objective.
            RuntimeError: If the study cannot be written to.
            Exception: What `estimate` raises.
        """
        if study.directions != [StudyDirection.MINIMIZE]:
            raise ValueError(
                "CoteachingObjective returns one loss, so its study must minimise one objective, "
                f"but got {[direction.name.lower() for direction in study.directions]}. Make it "
                'with optuna.create_study(direction="minimize").'
            )
        if self.noise_rate != ESTIMATE:
            return self.given
        noise = read_noise(study.user_attrs)
        if noise is None:
            with _one_at_a_time:
                noise = self._settle(study, progress)
        return self._at(noise.noise_rate)

    def of_trial(self, trial: BaseTrial) -> ScheduleSpace:
        """Return the space of the study of a trial; the whole one for a trial that is repeated."""
        return self.of_study(trial.study) if isinstance(trial, Trial) else self._at(None)

    def forget(self, study: Study) -> None:
        """Let a study be estimated anew, because its data or its network are others now."""
        _optuna.set_study_system_attr(study, NOISE_KEY, None)
        study.set_user_attr(NOISE_KEY, None)

    def _settle(self, study: Study, progress: Progress | None) -> RecordedNoise:
        """Make an estimate, unless there is one; return the one that counts."""
        held = _optuna.study_system_attrs(study).get(NOISE_KEY)
        if read_noise({NOISE_KEY: held}) is None:  # missing or damaged
            own = _to_attr(self._estimate(progress), self._seed)
            held = _optuna.settle_study_system_attr(study, NOISE_KEY, held, own)
        try:
            study.set_user_attr(NOISE_KEY, held)
        except RuntimeError as error:  # of a trial away from its storage
            raise RuntimeError(
                "The noise must be estimated before the trials of optimize_batch run: pass it the "
                "CoteachingObjective itself, or call objective.prepare_study(study) first."
            ) from error
        noise = read_noise({NOISE_KEY: held})
        assert noise is not None  # this process has written it, or another one
        return noise


def _checked(noise_rate: float | str | None) -> float | str | None:
    if noise_rate is None or noise_rate == ESTIMATE:
        return noise_rate
    if isinstance(noise_rate, str):
        raise ValueError(
            f"noise_rate must be {ESTIMATE!r}, a number or None, but got {noise_rate!r}."
        )
    return check_number("noise_rate", noise_rate, 0, 1)


def _to_attr(estimate: NoiseEstimate, seed: int | None) -> dict[str, Any]:
    """Return what a study records of an estimate, as JSON values."""
    return RecordedNoise(
        estimate.noise_rate,
        estimate.interval,
        estimate.transition_matrix.tolist(),
        estimate.used_clean_labels,
        seed,
    ).to_attr()
