"""Trials of earlier studies that a search learns from: which of them, and how a study keeps them.

The trials are copied into the study when its sampler first draws in it, and are the same for all
who join: every theta follows from the study alone, also after the earlier studies were deleted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from optuna.study import Study
from optuna.trial import TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import SOURCES_KEY
from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history._record import Rules

MAX_SOURCE_TRIALS = 100  # of all source studies together
MAX_LENGTH = 60_000  # of the attribute as JSON: MySQL's limit for an attribute


class SourceDraws(NamedTuple):
    """Trials of earlier studies as draws from a space.

    Attributes:
        x: Coordinates, (N, d).
        active: Which coordinates the trials had, (N, d).
        losses: Losses, minimised, (N,).
        studies: Number of the study of each draw, from 1, (N,).
    """

    x: FloatArray
    active: BoolArray
    losses: FloatArray
    studies: IntArray


@dataclass(frozen=True)
class Sources:
    """Trials of earlier studies.

    Attributes:
        names: Names of the studies.
        trials: Of each study: parameters and loss (minimised) of some completed trials.
    """

    names: tuple[str, ...] = ()
    trials: tuple[tuple[tuple[Mapping[str, Any], float], ...], ...] = ()

    @classmethod
    def of(cls, studies: Sequence[Study]) -> Sources:
        """Take the completed trials of studies, at most `MAX_SOURCE_TRIALS` in all.

        If a study has more than its share of them, they are spread evenly over the order of the
        losses, so that bad regions are known, too.

        Args:
            studies: Studies with one objective, in either direction.

        Raises:
            ValueError: If an argument is no study, there are more than `MAX_SOURCE_TRIALS`, a
                study has several objectives or no completed trial with a finite value, or a
                parameter has a value that is no JSON value.
        """
        if isinstance(studies, Study) or not all(isinstance(s, Study) for s in studies):
            raise ValueError(f"source_studies must be a list of studies, but got {studies!r}.")
        if len(studies) > MAX_SOURCE_TRIALS:
            raise ValueError(
                f"source_studies must be at most {MAX_SOURCE_TRIALS} studies, but got "
                f"{len(studies)}. Leave out those that are least alike."
            )
        per_study = MAX_SOURCE_TRIALS // max(1, len(studies))
        while True:
            own = cls(
                tuple(s.study_name for s in studies), tuple(_chosen(s, per_study) for s in studies)
            )
            if per_study == 1 or len(json.dumps(own.to_attr())) <= MAX_LENGTH:
                return own
            per_study = max(1, per_study // 2)

    def to_attr(self) -> dict[str, Any]:
        """Return the attribute of the study that learns from these trials, as JSON values."""
        studies = [
            {"name": name, "trials": [[dict(params), loss] for params, loss in trials]}
            for name, trials in zip(self.names, self.trials, strict=True)
        ]
        return {"v": 1, "studies": studies}

    def draws(self, space: SearchSpace) -> SourceDraws:
        """Return the trials that lie in a space, as draws from it."""
        x, active, losses, studies = [], [], [], []
        for number, trials in enumerate(self.trials, start=1):
            for params, loss in trials:
                if _lies_in(params, space):
                    x.append(space.encode(params))
                    active.append(space.active(params))
                    losses.append(loss)
                    studies.append(number)
        shape = (-1, len(space.names))
        return SourceDraws(
            np.array(x, dtype=np.float64).reshape(shape),
            np.array(active, dtype=bool).reshape(shape),
            np.array(losses, dtype=np.float64),
            np.array(studies, dtype=np.int64),
        )

    def outside(self, space: SearchSpace) -> list[str]:
        """Return the names of the studies of which no trial lies in a space."""
        inside = set(self.draws(space).studies.tolist())
        return [name for number, name in enumerate(self.names, start=1) if number not in inside]


def read_sources(attrs: Mapping[str, Any]) -> Sources | None:
    """Read the sources that the system attributes of a study hold. None if there are none.

    Raises:
        ValueError: If they are damaged, or of a later release.
    """
    attr = attrs.get(SOURCES_KEY)
    if attr is None:
        return None
    try:
        if attr["v"] != 1:
            raise ValueError(f"they are of version {attr['v']}")
        return Sources(
            tuple(str(s["name"]) for s in attr["studies"]),
            tuple(
                tuple((dict(params), float(loss)) for params, loss in s["trials"])
                for s in attr["studies"]
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The source trials that the study keeps cannot be read ({error}). Use the release of "
            "optuna_s2e that wrote them, or another study."
        ) from error


def record_sources(study: Study, own: Sources) -> Sources:
    """Record sources in a study, unless it holds some; return those that count.

    Args:
        study: The study that learns from them.
        own: What to record.
    """
    held = _optuna.settle_study_system_attr(study, SOURCES_KEY, None, own.to_attr())
    found = read_sources({SOURCES_KEY: held})
    assert found is not None  # this process has written it, or another one
    return found


def _chosen(study: Study, n: int) -> tuple[tuple[Mapping[str, Any], float], ...]:
    rules = Rules.of(study)
    found = [
        (t.params, rules.loss(t))
        for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if t.params and math.isfinite(rules.loss(t))
    ]
    if not found:
        raise ValueError(
            f"source_studies must have completed trials, but {study.study_name!r} has none with "
            "parameters and a finite value. Leave it out."
        )
    found.sort(key=lambda item: item[1])
    for name, value in (item for params, _ in found for item in params.items()):
        if not isinstance(value, str | int | float | None):
            raise ValueError(
                f"source_studies must have parameters that a storage can keep, but {name!r} in "
                f"{study.study_name!r} has the value {value!r}."
            )
    kept = np.unique(np.linspace(0, len(found) - 1, min(n, len(found))).round().astype(int))
    return tuple(found[i] for i in kept)


def _lies_in(params: Mapping[str, Any], space: SearchSpace) -> bool:
    """Say whether a trial has parameters of a space and all of them are in its ranges."""
    if any(params.get(name) != value for name, value in space.tags.items()):
        return False
    present = [n for n in space.names if n in params]
    return bool(present) and all(
        _optuna.contains(space.distributions[n], params[n]) for n in present
    )
