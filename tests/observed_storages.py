"""Real storages that count how often all trials are read, or grow while they are looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial


class CountingStorage(InMemoryStorage):
    """A storage that counts how often all trials of a study are read."""

    def __init__(self) -> None:
        super().__init__()
        self.n_reads = 0

    def get_all_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        self.n_reads += 1
        return super().get_all_trials(*args, **options)


class GrowingStorage(InMemoryStorage):
    """A storage to which another worker adds a trial before each read."""

    def __init__(self) -> None:
        super().__init__()
        self._coming: Iterator[FrozenTrial] = iter(())
        self._study_id = -1

    @contextmanager
    def growing(self, study: optuna.Study, trials: list[FrozenTrial]) -> Iterator[None]:
        """Let the trials come one by one, before each read of any kind."""
        self._study_id, self._coming = study._study_id, iter(trials)
        yield
        self._coming = iter(())

    def _grow(self) -> None:
        coming, self._coming = self._coming, iter(())  # writing reads, too
        trial = next(coming, None)
        if trial is not None:
            self.create_new_trial(self._study_id, template_trial=trial)
        self._coming = coming

    def get_all_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        self._grow()
        return super().get_all_trials(*args, **options)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        self._grow()
        return super().get_trial(trial_id)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        self._grow()
        return super().get_best_trial(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        self._grow()
        return super().get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        self._grow()
        return super().get_study_system_attrs(study_id)

    def get_study_directions(self, study_id: int) -> list[optuna.study.StudyDirection]:
        self._grow()
        return super().get_study_directions(study_id)

    def get_study_name_from_id(self, study_id: int) -> str:
        self._grow()
        return super().get_study_name_from_id(study_id)
