r"""What one trial records of its draw, and how it is read back.

Notation
    record      the one system attribute of a drawn trial, key `s2e:draw`
    draw        a trial with a valid record: a point x drawn from a known theta
    opener      a draw that also records theta_m, its parent (the opener of generation m - 1) and
                its members (the trials whose losses moved theta_{m-1} to theta_m)

    slot        place of a draw in a search by batches (`optimize_batch`): generation m of K has
                the slots m K .. m K + K - 1

A record names its own trial, so a copied record is never taken for the draw of another trial.
Records that do not fit are ignored, never repaired. Generation 0 is theta = 1 and needs no opener:
its draws are independent and uniform, and each parameter can be drawn again from the recorded
seed. The key of a draw is the trial's number, or the slot and the attempt in a search by batches.

Version 2 packs long lists of an opener: members, and theta of large spaces, so that a record stays
small. All other records are of version 1, which older releases read.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt
from optuna.distributions import IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import (
    DRAW_KEY,
    FAILED_TRIAL_KEY,
    FAILURE_KEY,
    FIXED_PARAMS_KEY,
    RETRY_HISTORY_KEY,
)
from optuna_s2e.distributions import decode, keyed_coordinate, same_value
from optuna_s2e.estimators import UpdateSettings
from optuna_s2e.schedules import N_EPOCHS, TAGS

Tags = Mapping[str, int]

VERSION = 2
MAX_LISTED = 40  # members or components of theta; more are packed
MAX_ATTEMPTS = 1000  # of one slot
MAX_MEMBERS = 100_000
MAX_ALSO = 100  # trials that are no draws, of one opener
MAX_COORDINATES = 100_000
MAX_FLOAT = 1e308  # compared before any conversion: JSON has integers of any size


@dataclass(frozen=True)
class Record:
    """The validated content of one `s2e:draw` attribute.

    Attributes:
        trial: Number of the trial that was drawn. A retry keeps the record of its first try.
        generation: m, the index of the theta that it was drawn from.
        slot: Place of the draw in a search by batches. None in any other search.
        attempt: Number of draws of this slot that failed before, in [0, MAX_ATTEMPTS).
        seed: The key of the independent draws. Generation 0 only.
        settings: What theta depends on besides the draws, as a dictionary. Openers and
            generation 0 have it.
        opener: Number of the trial that recorded theta_m; None in generation 0.
        x: Coordinates of the draw, (d,); None in generation 0.
        parent: Number of the opener of generation m - 1; None in generation 1. Openers only.
        members: Numbers of the draws whose losses moved theta, in the order of the update.
            Openers only.
        also: Numbers of the other trials, no draws, whose losses the model knows from this
            generation on. Openers only.
        theta: theta_m, (n_theta,). Openers only.
        space: Fingerprint of the space. Openers only.
        model: Version of the model of the loss that moved theta. Openers only; 1 without a model.
    """

    trial: int
    generation: int
    seed: int | None = None
    settings: Mapping[str, Any] | None = None
    opener: int | None = None
    x: tuple[float, ...] | None = None
    parent: int | None = None
    members: tuple[int, ...] = ()
    also: tuple[int, ...] = ()
    theta: tuple[float, ...] | None = None
    space: str | None = None
    model: int = 1
    slot: int | None = None
    attempt: int = 0

    @property
    def key(self) -> int:
        """What keys the draw, beside seed and generation."""
        return self.trial if self.slot is None else Slot(self.slot, self.attempt).key

    @property
    def is_opener(self) -> bool:
        """Whether this draw opened its generation."""
        return self.theta is not None

    def to_attr(self) -> dict[str, Any]:
        """Return the attribute: JSON values, without the fields that do not apply."""
        attr: dict[str, Any] = {"v": 1, "trial": self.trial, "generation": self.generation}
        if self.slot is not None:
            attr |= {"slot": self.slot, "attempt": self.attempt}
        if self.generation == 0:
            return attr | {"seed": self.seed, "settings": self.settings}
        attr |= {"opener": self.opener, "x": self.x and list(self.x)}
        if self.theta is not None:
            attr |= {
                "parent": self.parent,
                "members": list(self.members),
                "theta": list(self.theta),
                "space": self.space,
                "settings": self.settings,
            }
            if self.model > 1:  # records of version 1 have no key
                attr["model"] = self.model
            if self.also:
                attr["also"] = list(self.also)
            if len(self.members) > MAX_LISTED:  # neighbours in time have similar numbers
                attr |= {"v": 2, "members": _pack(np.diff(self.members, prepend=0), "<i8")}
            if len(self.theta) > MAX_LISTED:
                attr |= {"v": 2, "theta": _pack(self.theta, "<f8")}
        return attr

    @classmethod
    def from_attr(cls, attr: Any) -> Record | None:
        """Read an attribute. Return None if it is no record that this release knows."""
        if not isinstance(attr, dict) or attr.get("v") not in (1, VERSION):
            return None
        trial, generation = attr.get("trial"), attr.get("generation")
        slot, attempt = attr.get("slot"), attr.get("attempt", 0)
        if not (_is_number(trial) and _is_number(generation)):
            return None
        if not ((slot is None or _is_number(slot)) and _is_number(attempt)):
            return None
        if attempt >= MAX_ATTEMPTS:
            return None
        draw = cls(trial, generation, slot=slot, attempt=attempt)
        if generation == 0:
            seed, settings = attr.get("seed"), attr.get("settings")
            if not (_is_number(seed) and _are_settings(settings)):
                return None
            return replace(draw, seed=seed, settings=settings)
        opener, x = attr.get("opener"), attr.get("x")
        if not (_is_number(opener) and _is_floats(x)):
            return None
        draw = replace(draw, opener=opener, x=tuple(x))
        return draw if "theta" not in attr else cls._opener_from_attr(attr, draw)

    @classmethod
    def _opener_from_attr(cls, attr: Mapping[str, Any], draw: Record) -> Record | None:
        parent, members, theta = attr.get("parent"), attr.get("members"), attr["theta"]
        model, also = attr.get("model", 1), attr.get("also", [])
        if attr["v"] == VERSION and isinstance(members, str):
            members = np.cumsum(_unpack(members, "<i8", MAX_MEMBERS)).tolist()
        if attr["v"] == VERSION and isinstance(theta, str):
            theta = _unpack(theta, "<f8", MAX_COORDINATES).tolist()
        fits = (
            draw.opener == draw.trial
            and ((parent is None and draw.generation == 1) or _is_number(parent))
            and isinstance(members, list)
            and 1 <= len(members) <= MAX_MEMBERS
            and all(map(_is_number, members))
            and len(set(members)) == len(members)
            and isinstance(also, list)
            and len(also) <= MAX_ALSO
            and all(map(_is_number, also))
            and _is_floats(theta)
            and _in_box(theta, attr.get("settings"))
            and isinstance(attr.get("space"), str)
            and _is_number(model)
            and model >= 1
        )
        if not fits or members is None:
            return None
        return replace(
            draw,
            settings=attr["settings"],
            parent=parent,
            members=tuple(members),
            also=tuple(also),
            theta=tuple(map(float, theta)),
            space=attr["space"],
            model=model,
        )


def _pack(numbers: npt.ArrayLike, dtype: str) -> str:
    """Return numbers of eight bytes each as compressed text."""
    return base64.b64encode(zlib.compress(np.asarray(numbers, dtype).tobytes())).decode()


def _unpack(text: str, dtype: str, limit: int) -> npt.NDArray[Any]:
    """Invert `_pack`. Return no numbers if the text is damaged or holds more than the limit."""
    unpacker, none = zlib.decompressobj(), np.empty(0, dtype)
    try:
        data = unpacker.decompress(base64.b64decode(text), 8 * limit + 1)
        return np.frombuffer(data, dtype) if unpacker.eof else none
    except (ValueError, zlib.error):
        return none


class Slot(NamedTuple):
    """A place in a search by batches.

    Attributes:
        number: m K + k for place k of generation m.
        attempt: How many draws of this slot have failed before.
    """

    number: int
    attempt: int

    @property
    def key(self) -> int:
        """What keys the draw and the objective's seed; at the first attempt the slot's number.

        So an undisturbed search by batches draws the same as one worker whose trials have the
        numbers of the slots.
        """
        return self.number + (self.attempt << 64)


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _in_box(theta: list[float], settings: Any) -> bool:
    """Say whether this release knows the recorded settings, and theta is within their bounds."""
    if not _are_settings(settings):
        return False
    low, high = settings["theta_bounds"]
    return bool(low <= min(theta) and max(theta) <= high)


def _are_settings(settings: Any) -> TypeGuard[dict[str, Any]]:
    """Say whether recorded settings are complete and this release knows all of them."""
    if not isinstance(settings, dict):
        return False
    try:
        known, consider_pruned = split_settings(settings)
    except (ValueError, TypeError, OverflowError):
        return False
    return settings.keys() == join_settings(known, consider_pruned).keys()


def join_settings(settings: UpdateSettings, consider_pruned: bool) -> dict[str, Any]:
    """Return all that theta depends on besides the space, as a record keeps it."""
    return {**settings.to_dict(), "consider_pruned_trials": consider_pruned}


def split_settings(recorded: Mapping[str, Any]) -> tuple[UpdateSettings, bool]:
    """Invert `join_settings`.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a name is unknown.
    """
    options = dict(recorded)
    consider_pruned = options.pop("consider_pruned_trials", None)
    if not isinstance(consider_pruned, bool):
        raise ValueError(f"consider_pruned_trials must be a bool, but got {consider_pruned!r}.")
    return UpdateSettings(**options), consider_pruned


def _is_floats(value: Any) -> TypeGuard[list[float]]:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MAX_COORDINATES
        and all(isinstance(v, int | float) and abs(v) <= MAX_FLOAT for v in value)
    )


class Draw(NamedTuple):
    """A trial with a valid record."""

    trial: FrozenTrial
    record: Record
    tags: Tags
    uniform: Mapping[str, float]  # generation 0: coordinates of the parameters really drawn

    @property
    def membership_order(self) -> tuple[datetime, int]:
        """Order in which draws become members: (time of completion, number)."""
        return (_optuna.completed_at(self.trial) or datetime.max, self.record.trial)


def own_record(attrs: Mapping[str, Any], trial: FrozenTrial) -> Record | None:
    """Return the record of a trial. The record of a retry is that of its first try.

    Args:
        attrs: The trial's system attributes, as the storage has them now.
        trial: The trial.
    """
    record = Record.from_attr(attrs.get(DRAW_KEY))
    if record is None:
        return None
    own = record.trial == trial.number or is_retry(attrs, record.trial)
    return record if own else None


def read_draw(trial: FrozenTrial) -> Draw | None:
    """Read a trial's record. Return None if it has none, or that of another trial.

    A trial whose parameters were fixed after it was drawn is no draw, like an enqueued one.
    """
    record = own_record(trial.system_attrs, trial)
    if record is None or FIXED_PARAMS_KEY in trial.system_attrs:
        return None
    known = record.generation == 0 and trial.state.is_finished()  # while running, more may come
    uniform = _uniform_coordinates(trial, record) if known else {}
    return Draw(trial, record, read_tags(trial), uniform)


def is_of_later_release(trial: FrozenTrial) -> bool:
    """Say whether a trial's record is of a version that this release does not know."""
    attr = trial.system_attrs.get(DRAW_KEY)
    return isinstance(attr, dict) and _is_number(attr.get("v")) and attr["v"] > VERSION


def is_retry(attrs: Mapping[str, Any], first: int) -> bool:
    """Say whether these are the system attributes of a retry of trial `first`."""
    history = attrs.get(RETRY_HISTORY_KEY)
    return attrs.get(FAILED_TRIAL_KEY) == first or (isinstance(history, list) and first in history)


def failed_by_objective(trial: FrozenTrial) -> bool:
    """Say whether a trial of a batch failed because of its objective, not of a machine."""
    mark = trial.system_attrs.get(FAILURE_KEY)
    failed = trial.state == TrialState.FAIL
    return failed and isinstance(mark, dict) and mark.get("by") == "objective"


def read_tags(trial: FrozenTrial) -> dict[str, int]:
    """Return the parameters that name the schedule spaces of a trial, as `ScheduleSpace.tags`.

    Return none if they are not complete: the trial ended, or is being read, amid its suggestions.
    """
    return _complete_tags(trial, trial.distributions)


def read_leading_tags(trial: FrozenTrial) -> dict[str, int]:
    """Return the tags that a running trial has named before it searches any parameter.

    No parameter decides whether such a schedule is drawn, so every trial must have it.

    Args:
        trial: A trial as its own process knows it. Storages may change the order of parameters.
    """
    single = takewhile(lambda name: trial.distributions[name].single(), trial.distributions)
    return _complete_tags(trial, single)


def _complete_tags(trial: FrozenTrial, names: Iterable[str]) -> dict[str, int]:
    of = trial.distributions
    tags = {
        name: trial.params[name]
        for name in names
        if name in TAGS and isinstance(of[name], IntDistribution) and of[name].single()
    }
    return tags if N_EPOCHS in tags and len(tags) > 1 else {}


def _uniform_coordinates(trial: FrozenTrial, record: Record) -> dict[str, float]:
    """Draw the parameters of generation 0 again; return those that the trial really has.

    Someone else has set the others (`PartialFixedSampler`).
    """
    assert record.seed is not None
    coordinates = {}
    for name, d in trial.distributions.items():
        if not d.single():
            c = keyed_coordinate(record.seed, record.key, name, d)
            if same_value(d, decode(c, d), trial.params[name]):
                coordinates[name] = c
    return coordinates


@dataclass(frozen=True)
class Rules:
    """How a reader of the records counts.

    Attributes:
        maximize: Direction of the study.
        consider_pruned: Whether a pruned trial counts, with its last reported value.
    """

    maximize: bool = False
    consider_pruned: bool = False

    @classmethod
    def of(cls, study: Study, consider_pruned: bool = False) -> Rules:
        """Take the direction from the study.

        Raises:
            ValueError: If the study has several objectives.
        """
        if len(study.directions) != 1:
            raise ValueError("The study must have one objective: S2E is not multi-objective.")
        return cls(study.direction == StudyDirection.MAXIMIZE, consider_pruned)

    def counts(self, trial: FrozenTrial) -> bool:
        """Whether a trial's value may enter an update."""
        return trial.state == TrialState.COMPLETE or (
            self.consider_pruned and trial.state == TrialState.PRUNED
        )

    def loss(self, trial: FrozenTrial) -> float:
        """Return f(x), minimised. A pruned trial that reported nothing has the worst value."""
        if trial.value is None or math.isnan(trial.value):
            return math.inf
        return -trial.value if self.maximize else trial.value
