"""Which parameters are active at a point, learned from trials that ran.

A conditional parameter is active, that is, the objective asks for it, only where another parameter
has certain values: the depth of a tree where the model is a tree, the width of layer 3 where there
are three layers or more. Theta describes it everywhere (`history.space_of`), so each draw has a
coordinate for it that the objective may never read; a model of the loss should not read it either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from optuna_s2e._typing import BoolArray, FloatArray
from optuna_s2e.distributions import SearchSpace


@dataclass(frozen=True)
class Gate:
    """A parameter is active where another one, its gate, is active and has such values.

    Attributes:
        column: Of the gate.
        categories: Indices that let it through; None for numbers, and if all do.
        low: Coordinates from here on do.
        high: Coordinates up to here do.
    """

    column: int
    categories: frozenset[int] | None = None
    low: float = -math.inf
    high: float = math.inf

    def passes(self, coordinates: FloatArray) -> BoolArray:
        """Say for coordinates (N,) of the gate whether they let through."""
        if self.categories is not None:
            return np.isin(coordinates, list(self.categories))
        return np.asarray((self.low <= coordinates) & (coordinates <= self.high))


@dataclass(frozen=True)
class Conditions:
    """The gates of conditional parameters, by column, gates before what they gate."""

    gates: Mapping[int, Gate] = field(default_factory=dict)

    def active(self, x: FloatArray) -> BoolArray:
        """Return which coordinates of draws x (N, d) the objective would ask for, (N, d)."""
        active = np.ones(x.shape, dtype=bool)
        for column, gate in self.gates.items():
            active[:, column] = active[:, gate.column] & gate.passes(x[:, gate.column])
        return active


def conditions_of(space: SearchSpace, x: FloatArray, active: BoolArray) -> Conditions:
    """Find a gate for each parameter that some trials do not have.

    The gate is a parameter one of whose values, or a threshold, tells all trials that had the
    parameter from all that did not: categorical ones are tried first, then ints, then floats,
    which separate few trials by chance. Where none does, the parameter counts as active.

    Args:
        space: What the coordinates mean.
        x: Coordinates of trials that ran, (N, d).
        active: Which of them the objective asked for, (N, d).
    """
    counts = active.sum(axis=0)
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    kinds = [_rank(d) for d in space.distributions.values()]
    gates: dict[int, Gate] = {}
    for place, column in enumerate(order):
        if counts[column] == len(active):
            continue
        if not counts[column]:
            gates[column] = Gate(column, frozenset())  # never
            continue
        others = sorted(order[:place], key=lambda i: (kinds[i], i))  # never in a circle
        found = (
            _gate(i, x[:, i], active[:, i], active[:, column], categorical=kinds[i] == 0)
            for i in others
        )
        gate = next((g for g in found if g is not None), None)
        if gate is not None:
            gates[column] = gate
    return Conditions(gates)


def _rank(distribution: BaseDistribution) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return 0
    return 2 if isinstance(distribution, FloatDistribution) and distribution.step is None else 1


def _gate(
    column: int, values: FloatArray, active: BoolArray, gated: BoolArray, *, categorical: bool
) -> Gate | None:
    """Return the gate at a column, with values (N,), if it tells `gated` (N,) from the rest."""
    if (gated & ~active).any():
        return None
    inside, outside = values[gated], values[active & ~gated]
    if not outside.size:
        return Gate(column)
    if categorical:
        through = frozenset(inside.astype(int).tolist())
        return None if through & set(outside.astype(int).tolist()) else Gate(column, through)
    if inside.min() > outside.max():
        return Gate(column, low=float(inside.min() + outside.max()) / 2)
    if inside.max() < outside.min():
        return Gate(column, high=float(inside.max() + outside.min()) / 2)
    return None
