"""Features of draws, which the model of the loss sees: R(t) for schedules, else unit coordinates.

The loss of a schedule depends on its parameters through R(t) alone, and draws that are far apart
in the parameters may have the same curve. Distances between curves say which draws are alike.
"""

from __future__ import annotations

import numpy as np

from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.distributions import SearchSpace, decode_column
from optuna_s2e.schedules import find_space

N_POINTS = 32  # points of the grid on which schedules are compared


def featurize(space: SearchSpace, x: FloatArray, active: BoolArray | None = None) -> FloatArray:
    """Return the features of draws, in which distance means difference.

    Args:
        space: Space of the draws.
        x: Coordinates of the draws, (N, d).
        active: Which coordinates the objective asks for, (N, d). None means all. The others have
            no influence on the features.

    Returns:
        Features, (N, n_features). If the space's tags name a schedule space, the first `N_POINTS`
        are R on a grid, scaled so that distance is the root mean square over the grid. The other
        parameters follow as in `SearchSpace.unit_features`. If one of the schedule's parameters is
        fixed, and so not in the space, R is unknown and all parameters are such others.

    Raises:
        ValueError: If the tags name a schedule space that this release does not know.

    Example:
        >>> import numpy as np
        >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
        >>> from optuna_s2e.distributions import SearchSpace
        >>> from optuna_s2e.surrogate import featurize
        >>> space = SearchSpace.of(
        ...     {"a": FloatDistribution(0, 9), "b": CategoricalDistribution(["x", "y"])}
        ... )
        >>> featurize(space, np.array([[0.25, 1.0]])).round(2).tolist()
        [[0.25, 0.0, 0.71]]
    """
    active = np.ones(x.shape, dtype=bool) if active is None else active
    own = _schedule_names(space)
    if not own:
        return space.unit_features(x, active)
    schedules = find_space(space.tags)
    columns = dict(zip(space.names, x.T, strict=True))
    params = {n: decode_column(columns[n], space.distributions[n]) for n in own}
    curves: FloatArray = schedules.curves(params, N_POINTS) / np.sqrt(N_POINTS)
    rest = _others(space)
    if rest is None:
        return curves
    at = [space.names.index(n) for n in rest.names]
    return np.concatenate([curves, rest.unit_features(x[:, at], active[:, at])], axis=1)


def feature_groups(space: SearchSpace) -> IntArray:
    """Return which parameter each feature of `featurize` belongs to; a schedule counts as one.

    Args:
        space: Space of the draws.

    Returns:
        Numbers 0 .. G - 1 of the parameters, (n_features,).

    Example:
        >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
        >>> from optuna_s2e.distributions import SearchSpace
        >>> from optuna_s2e.surrogate import feature_groups
        >>> space = SearchSpace.of(
        ...     {"a": FloatDistribution(0, 9), "b": CategoricalDistribution(["x", "y"])}
        ... )
        >>> feature_groups(space).tolist()
        [0, 1, 1]
    """
    others = _others(space)
    sizes = [N_POINTS] * bool(_schedule_names(space))
    sizes += others.feature_sizes if others is not None else []
    return np.repeat(np.arange(len(sizes)), sizes)


def numbered_features(space: SearchSpace) -> BoolArray:
    """Return which features of `featurize` are numbers of categories: equal or not, never near.

    Args:
        space: Space of the draws.

    Returns:
        True or False, (n_features,). All are False unless the space has many categories.

    Example:
        >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
        >>> from optuna_s2e.distributions import SearchSpace
        >>> from optuna_s2e.surrogate import numbered_features
        >>> space = SearchSpace.of(
        ...     {"a": FloatDistribution(0, 9), "b": CategoricalDistribution(range(1000))}
        ... )
        >>> numbered_features(space).tolist()
        [False, True]
    """
    numbered, others = np.zeros(len(feature_groups(space)), dtype=bool), _others(space)
    if others is not None:  # they come last
        of_others = others.numbered_features
        numbered[len(numbered) - len(of_others) :] = of_others
    return numbered


def _others(space: SearchSpace) -> SearchSpace | None:
    """Return the space of the parameters that belong to no schedule, if any."""
    own = _schedule_names(space)
    others = {n: d for n, d in space.distributions.items() if n not in own}
    return SearchSpace.of(others) if others else None


def _schedule_names(space: SearchSpace) -> list[str]:
    """Return the parameters that R(t) follows from, if the space has tags and all of them."""
    if not space.tags:
        return []
    searched = find_space(space.tags).distributions
    names = [n for n, d in searched.items() if not d.single()]
    return names if set(names) <= space.distributions.keys() else []
