"""From which space a draw is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import (
    SearchSpace,
    decode,
    intersection,
    keyed_coordinate,
    same_distribution,
    same_value,
    union,
)
from optuna_s2e.history._record import Draw, Record


def space_of(members: Sequence[Draw], *, conditional: bool = True) -> SearchSpace:
    """Return the space of a first generation: the parameters that its members were drawn with.

    Args:
        members: Completed draws of generation 0. Only parameters that were drawn count; a
            parameter that `PartialFixedSampler` fixes was not. Tags on which they disagree, such
            as the numbers of epochs in two branches, are left out like parameters.
        conditional: Whether parameters that only some members have count, as they do in searches
            that start with this release.
    """
    named = sorted({item for d in members for item in d.tags.items()})
    values = Counter(name for name, _ in named)
    tags = {name: value for name, value in named if values[name] == 1}
    set_by_others = {n for d in members for n in d.trial.distributions if n not in d.uniform}
    drawn: list[Mapping[str, BaseDistribution]] = [
        {n: d.trial.distributions[n] for n in d.uniform if n not in set_by_others} for d in members
    ]
    return SearchSpace.of(union(drawn) if conditional else intersection(drawn), tags)


def locate(draw: Draw, space: SearchSpace, openers: Mapping[int, Record]) -> FloatArray | str:
    """Return the coordinates x (d,) of a draw from a space, or why it is not from that space.

    A parameter or schedule of the space that the objective did not ask for (another branch) was
    drawn, too, and counts.
    """
    trial, record = draw.trial, draw.record
    if any(space.tags.get(n, v) != v for n, v in draw.tags.items()):
        return other_schedule(draw, space)
    present = {n: trial.distributions[n] for n in space.names if n in trial.distributions}
    for name, d in present.items():
        if not same_distribution(d, space.distributions[name]):
            return f"parameter {name!r} is {d}, theta describes {space.distributions[name]}"
    if not present:
        return f"it has none of the parameters {list(space.names)}"
    if record.generation == 0:
        assert record.seed is not None
        x = [keyed_coordinate(record.seed, record.key, n, d)
             for n, d in space.distributions.items()]  # fmt: skip
    else:
        opener = openers.get(record.opener) if record.opener is not None else None
        if opener is None or opener.space != space.fingerprint:
            return "it was drawn from a theta of another space"
        if record.x is None or not is_in_cube(record.x, space):
            return "its recorded coordinates are not in the space"
        x = list(record.x)
    for name, c in zip(space.names, x, strict=True):
        d = space.distributions[name]
        if name in present and not same_value(d, decode(c, d), trial.params[name]):
            return f"parameter {name!r} was set by someone else"  # PartialFixedSampler, an edit
    return np.array(x, dtype=np.float64)


def is_in_cube(x: Sequence[float], space: SearchSpace) -> bool:
    """Return whether x can be coordinates of a draw from a space."""
    if len(x) != len(space.names):
        return False
    return all(
        float(c).is_integer() and 0 <= c < len(d.choices)
        if isinstance(d, CategoricalDistribution)
        else 0 < c < 1
        for c, d in zip(x, space.distributions.values(), strict=True)
    )


def other_schedule(draw: Draw, space: SearchSpace) -> str:
    """Say that a draw is not from a space because it names another schedule space."""
    return f"its schedule space is {dict(draw.tags)}, not {dict(space.tags)}"
