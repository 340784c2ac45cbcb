"""Studies, objectives and storages that the tests of batches share."""

import hashlib
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState

from optuna_s2e import S2ESampler, generations
from optuna_s2e.analysis import Snapshot, verify

K = 4


def parabola(trial: Trial) -> float:
    x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(3)]
    kind = trial.suggest_categorical("kind", ["a", "b"])
    time.sleep(random.random() * 0.01)  # any order of completion
    return sum((v - 0.3) ** 2 for v in x) + (kind == "b")


def noisy(trial: Trial) -> float:
    return parabola(trial) + np.random.default_rng(trial.user_attrs["seed"]).normal()


def new_study(storage: Any = None, *, size: int = K, **options: Any) -> optuna.Study:
    settings = {"population_size": size, "seed": 0, "estimator": "natural"} | options
    return optuna.create_study(
        study_name="s", storage=storage, sampler=S2ESampler(**settings), load_if_exists=True
    )


def thetas(study: optuna.Study, n: int | None = None) -> str:
    return hashlib.sha256(b"".join(g.theta.tobytes() for g in generations(study)[:n])).hexdigest()


def states(study: optuna.Study) -> set[TrialState]:
    return {t.state for t in study.get_trials(deepcopy=False)}


def assert_sound(study: optuna.Study) -> None:
    verified = verify(Snapshot.of(study))
    assert verified.sound
    assert "bit for bit" in verified.message
    assert TrialState.RUNNING not in states(study)
    members = [n for g in generations(study) for n in g.members]
    assert len(members) == len(set(members))


class Dead(BaseException):
    """Stands for kill -9: nothing after it happens."""


class DyingStorage(InMemoryStorage):
    """Dies at the n-th write, before or after it took place."""

    def __init__(self, n: int, after: bool) -> None:
        super().__init__()
        self.left, self.after = n, after

    def _write(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.after):
            raise Dead
        result = method(*args, **kwargs)
        if self.left == 0:
            raise Dead
        return result

    def create_new_trial(self, *args: Any, **kwargs: Any) -> int:
        return self._write(super().create_new_trial, *args, **kwargs)  # type: ignore[no-any-return]

    def set_trial_param(self, *args: Any) -> None:
        self._write(super().set_trial_param, *args)

    def set_trial_user_attr(self, *args: Any) -> None:
        self._write(super().set_trial_user_attr, *args)

    def set_trial_system_attr(self, *args: Any) -> None:
        self._write(super().set_trial_system_attr, *args)

    def set_study_system_attr(self, *args: Any) -> None:
        self._write(super().set_study_system_attr, *args)

    def set_trial_state_values(self, *args: Any, **kwargs: Any) -> bool:
        return self._write(super().set_trial_state_values, *args, **kwargs)  # type: ignore[no-any-return]


def completed(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
