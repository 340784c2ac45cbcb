"""Conditions of conditional parameters: where each parameter is active, learned from trials.

A conditional parameter is active, that is, the objective asks for it, only where another parameter
has certain values: the depth of a tree if the model is a tree, the width of layer 3 if there are
three layers or more. theta describes a conditional parameter everywhere, so each draw has a
coordinate for it, even if the objective never reads it. The model of the loss must not read such a
coordinate either.
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
class Condition:
    """Where one parameter is active: where its parent is active and has certain values.

    Attributes:
        parent: Column of the parent, the parameter that decides.
        categories: Indices of the parent's categories that make the parameter active. None if the
            parent is a number, or if all its values make it active.
        low: Smallest coordinate of a numerical parent that makes the parameter active.
        high: Largest coordinate of a numerical parent that makes the parameter active.
    """

    parent: int
    categories: frozenset[int] | None = None
    low: float = -math.inf
    high: float = math.inf

    def holds(self, coordinates: FloatArray) -> BoolArray:
        """Return whether the condition holds at coordinates (N,) of the parent, (N,)."""
        if self.categories is not None:
            return np.isin(coordinates, list(self.categories))
        return np.asarray((self.low <= coordinates) & (coordinates <= self.high))


@dataclass(frozen=True)
class Conditions:
    """The conditions of a space's parameters.

    Attributes:
        by_column: Condition by column of the conditional parameter. A parent comes before the
            parameters that depend on it.
    """

    by_column: Mapping[int, Condition] = field(default_factory=dict)

    def active(self, x: FloatArray) -> BoolArray:
        """Return which coordinates of draws x (N, d) the objective would ask for, (N, d)."""
        active = np.ones(x.shape, dtype=bool)
        for column, condition in self.by_column.items():
            parent = condition.parent
            active[:, column] = active[:, parent] & condition.holds(x[:, parent])
        return active


def find_conditions(space: SearchSpace, x: FloatArray, active: BoolArray) -> Conditions:
    """Find a condition for each parameter that some trials do not have.

    The parent is a parameter one of whose values, or a threshold, separates the trials that had
    the conditional parameter from those that did not. Categorical parents are tried first, then
    ints, then floats, because floats separate few trials by chance. If no parent is found, the
    parameter counts as active everywhere.

    Args:
        space: Space of the trials.
        x: Coordinates of trials that ran, (N, d).
        active: Which coordinates the objective asked for, (N, d).

    Returns:
        The conditions that were found.

    Example:
        >>> import numpy as np
        >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
        >>> from optuna_s2e.distributions import SearchSpace
        >>> from optuna_s2e.surrogate import find_conditions
        >>> space = SearchSpace.of(
        ...     {"depth": FloatDistribution(0, 1), "model": CategoricalDistribution(["a", "b"])}
        ... )
        >>> x, active = np.array([[0.3, 0.0], [0.7, 1.0]]), np.array([[True, True], [False, True]])
        >>> find_conditions(space, x, active).active(np.array([[0.5, 1.0]])).tolist()
        [[False, True]]
    """
    counts = active.sum(axis=0)
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    kinds = [_rank(d) for d in space.distributions.values()]
    by_column: dict[int, Condition] = {}
    for place, column in enumerate(order):
        if counts[column] == len(active):
            continue
        if not counts[column]:
            by_column[column] = Condition(column, frozenset())  # never active
            continue
        # Only parameters that come earlier in the order: conditions never form a circle.
        parents = sorted(order[:place], key=lambda i: (kinds[i], i))
        found = (
            _condition(i, x[:, i], active[:, i], active[:, column], categorical=kinds[i] == 0)
            for i in parents
        )
        condition = next((c for c in found if c is not None), None)
        if condition is not None:
            by_column[column] = condition
    return Conditions(by_column)


def _rank(distribution: BaseDistribution) -> int:
    """Return the order in which parents are tried: 0 categories, 1 discrete numbers, 2 floats."""
    if isinstance(distribution, CategoricalDistribution):
        return 0
    return 2 if isinstance(distribution, FloatDistribution) and distribution.step is None else 1


def _condition(
    parent: int,
    values: FloatArray,
    parent_active: BoolArray,
    active: BoolArray,
    *,
    categorical: bool,
) -> Condition | None:
    """Return the condition on a parent with values (N,) that explains `active` (N,), if any."""
    if (active & ~parent_active).any():
        return None
    inside, outside = values[active], values[parent_active & ~active]
    if not outside.size:
        return Condition(parent)
    if categorical:
        categories = frozenset(inside.astype(int).tolist())
        if categories & set(outside.astype(int).tolist()):
            return None
        return Condition(parent, categories)
    if inside.min() > outside.max():
        return Condition(parent, low=float(inside.min() + outside.max()) / 2)
    if inside.max() < outside.min():
        return Condition(parent, high=float(inside.max() + outside.min()) / 2)
    return None
