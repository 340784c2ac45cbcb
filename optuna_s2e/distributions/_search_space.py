r"""Optuna's parameters as coordinates of p_theta, both ways.

Notation
    d           number of searched parameters                                     scalar
    x           coordinates of one draw, one per parameter: a number in (0, 1),
                or a category's index                                             (d,)
    X           points of p_theta: simplexes as their weights, the rest as in x   (K, n_columns)

Simplexes come first, then the other parameters; both are ordered by name. Floats and ints, with
or without log or step, are mapped to the unit interval so that theta = 1 is Optuna's own uniform
distribution. Many coordinates stand for one value of a discrete parameter, and the score of a draw
needs the coordinate. So a trial records x; it cannot be computed from the values.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from optuna_s2e._typing import BoolArray, FloatArray
from optuna_s2e.distributions._categorical import Categorical
from optuna_s2e.distributions._dirichlet import Beta, Dirichlet
from optuna_s2e.distributions._family import EPSILON, Family
from optuna_s2e.distributions._search_distribution import SearchDistribution
from optuna_s2e.distributions._simplex import find_simplexes, unit_from_weights, weights_from_unit

_Number = TypeVar("_Number", float, FloatArray)

_TINY = 2.0**-53  # distance kept from 0 and 1, where the encoding of a simplex is not unique


def decode(coordinate: float, distribution: BaseDistribution) -> Any:
    """Return the value of a parameter at a coordinate.

    Args:
        coordinate: A number in (0, 1), or the index of a category.
        distribution: Optuna's distribution of the parameter.

    Returns:
        A Python float or int, or a choice.

    Raises:
        ValueError: If the distribution is of a type that cannot be searched.

    Example:
        >>> from optuna.distributions import IntDistribution
        >>> from optuna_s2e.distributions import decode
        >>> decode(0.99, IntDistribution(1, 10))
        10
    """
    match distribution:
        case CategoricalDistribution():
            return distribution.choices[int(coordinate)]
        case FloatDistribution(low=low, high=high, log=log, step=step):
            if step is not None:
                return min(low + step * _cell(coordinate, _n_values(distribution)), high)
            if log:
                value = math.exp(_between(math.log(low), math.log(high), coordinate))
            else:
                value = _between(low, high, coordinate)
            return min(max(value, low), high)
        case IntDistribution(low=low, high=high, log=log, step=step):
            if log:
                value = math.exp(_between(math.log(low - 0.5), math.log(high + 0.5), coordinate))
                return min(max(round(value), low), high)
            return _grid_int(distribution, _cell(coordinate, _n_values(distribution)))
    raise ValueError(f"Parameters of type {type(distribution).__name__} cannot be searched.")


def decode_column(coordinates: FloatArray, distribution: BaseDistribution) -> FloatArray:
    """Return the values of a numerical parameter at many coordinates.

    Args:
        coordinates: Numbers in (0, 1), (K,).
        distribution: Optuna's distribution of the parameter.

    Returns:
        Values, (K,).

    Raises:
        ValueError: If the distribution is of a type that cannot be searched.

    Example:
        >>> import numpy as np
        >>> from optuna.distributions import FloatDistribution
        >>> from optuna_s2e.distributions import decode_column
        >>> decode_column(np.array([0.25, 0.5]), FloatDistribution(0, 8)).tolist()
        [2.0, 4.0]
    """
    match distribution:
        case FloatDistribution(low=low, high=high, log=log, step=None):
            if log:
                values = np.exp(_between(math.log(low), math.log(high), coordinates))
            else:
                values = _between(low, high, coordinates)
            return np.clip(values, low, high)
    return np.array([decode(c, distribution) for c in coordinates.tolist()], dtype=np.float64)


def encode(value: Any, distribution: BaseDistribution) -> float:
    """Return the coordinate of a value; for a discrete value the middle of its interval.

    Raises:
        ValueError: If the distribution is of a type that cannot be searched.
    """
    internal = distribution.to_internal_repr(value)
    match distribution:
        case CategoricalDistribution():
            return internal
        case FloatDistribution(low=low, high=high, log=log, step=step):
            if step is not None:
                u = (round((internal - low) / step) + 0.5) / _n_values(distribution)
            elif log:
                u = _share(math.log(low), math.log(high), math.log(internal))
            else:
                u = _share(low, high, internal)
        case IntDistribution(low=low, high=high, log=log, step=step):
            if log:
                u = _share(math.log(low - 0.5), math.log(high + 0.5), math.log(internal))
            else:  # as ints, because floats cannot hold every large int
                u = (2 * ((int(value) - low) // step) + 1) / (2 * _n_values(distribution))
        case _:
            raise ValueError(
                f"Parameters of type {type(distribution).__name__} cannot be searched."
            )
    return min(max(u, EPSILON), 1.0 - EPSILON)


def same_distribution(a: BaseDistribution, b: BaseDistribution) -> bool:
    """Return whether two distributions are equal: a == b, but fast if there are many choices.

    Args:
        a: A distribution of Optuna.
        b: Another one.

    Example:
        >>> from optuna.distributions import CategoricalDistribution
        >>> from optuna_s2e.distributions import same_distribution
        >>> same_distribution(CategoricalDistribution("ab"), CategoricalDistribution("ab"))
        True
    """
    match a, b:
        case CategoricalDistribution(), CategoricalDistribution() if a.choices == b.choices:
            return True
    return bool(a == b)


def same_value(distribution: BaseDistribution, a: Any, b: Any) -> bool:
    """Return whether two values of a parameter are equal up to another platform's rounding.

    Args:
        distribution: Optuna's distribution of the parameter.
        a: A value of the distribution.
        b: Another one.

    Returns:
        Whether they differ by at most 1e-9 of the range, and also by at most 1e-9 of their size or
        by at most 1e-12.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> from optuna_s2e.distributions import same_value
        >>> same_value(FloatDistribution(0, 1), 0.3, 0.1 + 0.2)
        True
    """
    # Internal values: the index of a category (which may be NaN), ints as the storage keeps them.
    x, y = distribution.to_internal_repr(a), distribution.to_internal_repr(b)
    close = math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(distribution, FloatDistribution | IntDistribution):  # the range may be narrow
        close = close and abs(x - y) <= 1e-9 * (distribution.high - distribution.low)
    return close


@dataclass(frozen=True)
class SearchSpace:
    """The parameters that theta describes, in the order of the coordinates x.

    Attributes:
        distributions: Optuna's distributions by name, in the order of the coordinates.
        tags: Single-valued parameters that give the others their meaning: the name, version and
            number of epochs of a schedule space. Empty for other objectives.

    Example:
        >>> import numpy as np
        >>> from optuna.distributions import FloatDistribution, IntDistribution
        >>> from optuna_s2e.distributions import SearchSpace
        >>> space = SearchSpace.of({"x": FloatDistribution(0, 4), "n": IntDistribution(1, 4)})
        >>> space.names, space.distribution.n_theta
        (('n', 'x'), 4)
        >>> space.decode(np.array([0.1, 0.75]))
        {'n': 1, 'x': 3.0}
    """

    distributions: Mapping[str, BaseDistribution]
    tags: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, distributions: Mapping[str, BaseDistribution], tags: Mapping[str, Any] | None = None
    ) -> SearchSpace:
        """Make the space of these parameters, without the single-valued ones.

        Args:
            distributions: Optuna's distributions by name.
            tags: See the class. None means no tags.
        """
        free = {n: d for n, d in distributions.items() if not d.single()}
        in_simplexes = [name for names in find_simplexes(free) for name in names]
        others = sorted(free.keys() - set(in_simplexes))
        return cls({name: free[name] for name in in_simplexes + others}, dict(tags or {}))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters' names in the order of the coordinates, length d."""
        return tuple(self.distributions)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the parameters, their distributions and the tags: 16 hex digits."""
        parameters = [[n, distribution_to_json(d)] for n, d in self.distributions.items()]
        text = json.dumps([parameters, sorted(self.tags.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _simplexes(self) -> list[list[str]]:
        return find_simplexes(self.distributions)

    @cached_property
    def distribution(self) -> SearchDistribution:
        """p_theta over this space."""
        families: list[Family] = [Dirichlet(len(names) + 1) for names in self._simplexes]
        n_others = len(self.names) - sum(len(names) for names in self._simplexes)
        for name in self.names[len(self.names) - n_others :]:
            d = self.distributions[name]
            if isinstance(d, CategoricalDistribution):
                families.append(Categorical(len(d.choices)))
            else:
                families.append(Beta())
        return SearchDistribution(tuple(families))

    def points(self, x: FloatArray) -> FloatArray:
        """Return the points X (K, n_columns) of draws x (K, d)."""
        columns, start = [], 0
        for names in self._simplexes:
            stop = start + len(names)
            weights = np.maximum(weights_from_unit(x[:, start:stop]), EPSILON)
            columns.append(weights / weights.sum(axis=1, keepdims=True))
            start = stop
        return np.concatenate([*columns, x[:, start:]], axis=1)

    def coordinates(self, points: FloatArray) -> FloatArray:
        """Return the draws x (K, d) of points X (K, n_columns): invert `points`."""
        columns, start = [], 0
        for names in self._simplexes:
            stop = start + len(names) + 1
            u = unit_from_weights(points[:, start:stop])
            columns.append(np.clip(u, _TINY, 1.0 - _TINY))
            start = stop
        return np.concatenate([*columns, points[:, start:]], axis=1)

    def decode(self, x: FloatArray) -> dict[str, Any]:
        """Return the values of the parameters of one draw x (d,), by name."""
        coordinates = x.tolist()  # pure Python floats
        return {
            name: decode(c, d)
            for c, (name, d) in zip(coordinates, self.distributions.items(), strict=True)
        }

    def encode(self, params: Mapping[str, Any]) -> FloatArray:
        """Return the coordinates x (d,) of the parameters of a trial.

        A parameter that the trial does not have gets the middle of its range, or the first
        category.

        Args:
            params: Values by name.
        """
        return np.array([
            encode(params[n], d) if n in params
            else 0.0 if isinstance(d, CategoricalDistribution) else 0.5
            for n, d in self.distributions.items()
        ])  # fmt: skip

    def active(self, params: Container[str]) -> BoolArray:
        """Return which parameters of the space a trial has, (d,)."""
        return np.array([name in params for name in self.names], dtype=bool)

    def unit_features(self, x: FloatArray, active: BoolArray) -> FloatArray:
        """Return features of draws: the more two draws differ, the larger is their distance.

        Args:
            x: Coordinates of the draws, (K, d).
            active: Which coordinates the objective asks for, (K, d). The others are replaced by
                the middle of their range.

        Returns:
            Features, (K, n_features): the weights of simplexes, coordinates of numbers, and
            categories as one-hot vectors at distance 1 from each other. If the space has many
            categories, the feature of a parameter is the number of its category instead, or -1
            where the objective does not ask for the parameter.
        """
        many = self.distribution.has_many_categories
        points = self.points(x)
        columns, start, at = [], 0, 0
        for family in self.distribution.families:
            block = points[:, start : start + family.n_columns]
            middle = 0.5
            if isinstance(family, Categorical) and many:
                middle = -1.0
            elif isinstance(family, Categorical):
                block = (block == np.arange(family.n)) / math.sqrt(2.0)
                middle = math.sqrt(0.5) / family.n
            elif isinstance(family, Dirichlet):
                middle = 1.0 / family.n_columns
            columns.append(np.where(active[:, at : at + 1], block, middle))
            start += family.n_columns
            at += family.n_columns - isinstance(family, Dirichlet)
        return np.concatenate(columns, axis=1)

    @property
    def feature_sizes(self) -> list[int]:
        """Number of features of each family in `unit_features`."""
        many = self.distribution.has_many_categories
        return [
            f.n if isinstance(f, Categorical) and not many else f.n_columns
            for f in self.distribution.families
        ]

    @property
    def numbered_features(self) -> BoolArray:
        """Which features are numbers of categories, (n_features,)."""
        many = self.distribution.has_many_categories
        numbered = [isinstance(f, Categorical) and many for f in self.distribution.families]
        return np.repeat(np.array(numbered, dtype=bool), self.feature_sizes)

    def sample(self, theta: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Draw one x (d,) from p_theta."""
        x: FloatArray = self.coordinates(self.distribution.sample(theta, rng, 1))[0]
        return x


def intersection(
    spaces: list[Mapping[str, BaseDistribution]],
) -> dict[str, BaseDistribution]:
    """Return the parameters that all of these trials share, with equal distributions.

    Args:
        spaces: Distributions by name of each trial, at least one trial.

    Returns:
        Distributions by name, in the order of the first trial.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> from optuna_s2e.distributions import intersection
        >>> unit = FloatDistribution(0, 1)
        >>> sorted(intersection([{"a": unit, "b": unit}, {"a": unit, "c": unit}]))
        ['a']
    """
    first, *rest = spaces
    return {
        n: d for n, d in first.items() if all(n in s and same_distribution(s[n], d) for s in rest)
    }


def union(spaces: list[Mapping[str, BaseDistribution]]) -> dict[str, BaseDistribution]:
    """Return every parameter whose distribution is equal in all trials that have it.

    Args:
        spaces: Distributions by name of each trial, at least one trial.

    Returns:
        Distributions by name. Empty if no parameter is shared by all trials, because they are
        then trials of different objectives.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> from optuna_s2e.distributions import union
        >>> unit = FloatDistribution(0, 1)
        >>> sorted(union([{"a": unit, "b": unit}, {"a": unit, "c": unit}]))
        ['a', 'b', 'c']
    """
    if not intersection(spaces):
        return {}
    found: dict[str, BaseDistribution] = {}
    for space in spaces:
        found = {**space, **found}
    return {
        n: d for n, d in found.items() if all(same_distribution(s[n], d) for s in spaces if n in s)
    }


def _n_values(d: FloatDistribution | IntDistribution) -> int:
    if isinstance(d, IntDistribution):
        return (d.high - d.low) // d.step + 1
    assert d.step is not None
    return round((d.high - d.low) / d.step) + 1


def _cell(u: float, n: int) -> int:
    return min(int(u * n if n <= 2**53 else Fraction(u) * n), n - 1)


def _grid_int(d: IntDistribution, cell: int) -> int:
    """Return the value of a cell of the grid of an int parameter; cells count from 0.

    Storages keep values as floats. Beyond 2^53 only some ints are floats. If the value of the cell
    is none of them, the nearest cell below (or else above) whose value is a float takes its place.
    """
    value = d.low + d.step * cell
    spacing = 1 << max(0, abs(value).bit_length() - 53)  # of floats of this size
    common = math.gcd(d.step, spacing)
    if value % spacing == 0 or d.low % common:
        return value
    period = spacing // common  # of the cells whose values are floats
    first = -d.low // common * pow(d.step // common, -1, period)
    below = cell - (cell - first) % period
    for other in (below, below + period):
        found = d.low + d.step * other
        if d.low <= found <= d.high and float(found) == found:
            return found
    return value


def _between(low: float, high: float, u: _Number) -> _Number:
    return low * (1.0 - u) + high * u  # no overflow for [-1e308, 1e308], exactly u for [0, 1]


def _share(low: float, high: float, value: float) -> float:
    if math.isinf(high - low):  # the width of [-1e308, 1e308] is no float
        return (value / 2 - low / 2) / (high / 2 - low / 2)
    # A logarithmic range may be so narrow that the logarithms of its ends are equal.
    return (value - low) / (high - low) if low < high else 0.5
