"""Studies and objectives that the tests of the sampler share."""

import math
from typing import Any

import numpy as np
import optuna

from optuna_s2e import S2ESampler, ScheduleSpace, generations, replay, suggest_simplex
from optuna_s2e._attributes import DRAW_KEY

K = 4


def quadratic(trial: optuna.Trial) -> float:
    return sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(3))


def mixed(trial: optuna.Trial) -> float:
    weights = suggest_simplex(trial, "w", 3)
    value = abs(math.log10(trial.suggest_float("lr", 1e-4, 1, log=True)) + 2)
    value += 0.1 * trial.suggest_int("depth", 1, 8) + float(weights[0])
    return value + (trial.suggest_categorical("act", ["relu", "tanh"]) == "tanh")


def make_study(**kwargs: Any) -> optuna.Study:
    settings = {"population_size": K, "estimator": "natural", "seed": 0} | kwargs
    return optuna.create_study(sampler=S2ESampler(**settings))


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [t.params for t in study.trials]


def record(trial: optuna.trial.FrozenTrial) -> Any:
    return trial.system_attrs.get(DRAW_KEY)


def assert_replays(study: optuna.Study) -> None:
    told, computed = generations(study), replay(study)
    assert [g.index for g in told] == list(range(len(told)))
    assert len(told) == len(computed)
    for a, b in zip(told, computed, strict=True):
        assert np.array_equal(a.theta, b.theta)
        assert (a.opener, a.members, a.trials) == (b.opener, b.members, b.trials)
    members = [n for g in told for n in g.members]
    assert len(members) == len(set(members))


def schedule_objective(n_epochs: int, kind: str) -> Any:
    space = ScheduleSpace(n_epochs, kind)
    return lambda trial: float(np.mean(space.suggest(trial).keep_rates))
