"""The study of a classifier's search: how long it is, where it is kept, and to what it belongs.

A study in a storage records the fingerprint of its data, the settings that its losses depend on
and its seed. A fit that was stopped goes on from there. The noise that the search follows is
recorded as in every study (`s2e:noise`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import optuna
from optuna.study import Study

from optuna_s2e._attributes import CLASSIFIER_KEY
from optuna_s2e._checks import check_int
from optuna_s2e.sampler import S2ESampler
from optuna_s2e.storages import open_storage

VERSION = 2  # of the record; 1 held the noise itself
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from printing a line for each trial; a progress bar counts them."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


class Budget(NamedTuple):
    """How long a search is: a number of trainings, or a time in seconds."""

    n_trials: int | None
    seconds: float | None

    @classmethod
    def read(cls, budget: object) -> Self:
        """Read it as users write it: 12, "90 s", "10 min", "2 h".

        Raises:
            ValueError: If it is neither a number of trainings nor such a time.

        Example:
            >>> from optuna_s2e.classifier._study import Budget
            >>> Budget.read("10 min"), Budget.read(12)
            (Budget(n_trials=None, seconds=600.0), Budget(n_trials=12, seconds=None))
        """
        if not isinstance(budget, str):
            return cls(check_int("budget", budget, 1), None)
        number = budget.rstrip("abcdefghijklmnopqrstuvwxyz ")
        unit = budget[len(number) :].strip()
        try:
            seconds = float(number) * _SECONDS[unit]
        except (KeyError, ValueError):
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            raise ValueError(
                "budget must be a number of trainings or a time such as '90 s', '10 min' or "
                f"'2 h', but got {budget!r}."
            )
        return cls(None, seconds)


@dataclass(frozen=True)
class SearchStudy:
    """A study that a classifier searches in.

    Attributes:
        study: The study; its sampler has the seed.
        seed: Seed that the study began with.
    """

    study: Study
    seed: int

    @classmethod
    def open(
        cls,
        storage: str | None,
        name: str | None,
        *,
        fingerprint: str,
        settings: Mapping[str, Any],
        seed: int,
        is_seed_given: bool,
    ) -> Self:
        """Make the study, or open the one that is there.

        Args:
            storage: URL, as in `open_storage`; None keeps the study in memory.
            name: Name of the study; None derives it from all that the search depends on.
            fingerprint: What tells the data from others.
            settings: What else the losses depend on, in JSON's types.
            seed: Seed of a new study.
            is_seed_given: Whether the user gave the seed. If not, an old study keeps its own.

        Raises:
            ValueError: If the study belongs to other data, or was searched with other arguments.
            ConnectionError: If the storage cannot be reached.
        """
        record = {"v": VERSION, "data": fingerprint, **settings, "seed": seed}
        if name is None:
            own = record if is_seed_given else {**record, "seed": None}
            text = json.dumps(own, sort_keys=True)
            name = f"noisy-labels-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        study = optuna.create_study(
            storage=None if storage is None else open_storage(storage),
            study_name=name,
            load_if_exists=True,
        )
        recorded = study.user_attrs.get(CLASSIFIER_KEY)
        if recorded is None:
            if study.get_trials(deepcopy=False):
                raise ValueError(
                    f"Study {name!r} holds trials that no classifier made. "
                    "Take another study_name."
                )
            study.set_user_attr(CLASSIFIER_KEY, record)
        else:
            _check_same(name, recorded, record, is_seed_given)
            record = recorded
        study.sampler = S2ESampler(seed=record["seed"])
        return cls(study, record["seed"])


def _check_same(
    name: str, recorded: Mapping[str, Any], asked: Mapping[str, Any], is_seed_given: bool
) -> None:
    """Refuse a study that was made for something else.

    Raises:
        ValueError: If it was.
    """
    if recorded.get("v") != asked["v"]:
        raise ValueError(
            f"Study {name!r} was written by another release of optuna_s2e. "
            "Take another study_name."
        )
    if recorded.get("data") != asked["data"]:
        raise ValueError(
            f"Study {name!r} was searched on other data. Take another study_name, or fit the same "
            "data to go on."
        )
    for key in asked if is_seed_given else asked.keys() - {"seed"}:
        if recorded.get(key) != asked[key]:
            label = "random_state" if key == "seed" else key
            raise ValueError(
                f"Study {name!r} was searched with another {label} ({recorded.get(key)!r}, now "
                f"{asked[key]!r}). Take the same {label} to go on, or another study_name."
            )
