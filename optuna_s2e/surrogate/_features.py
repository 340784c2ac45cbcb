"""Features of draws for the model of the loss: R(t) for schedules, else unit coordinates.

The loss of a schedule depends on its parameters through R(t) alone, and draws that are far apart
in the parameters may have the same curve. So the model compares draws by their curves.
"""

from __future__ import annotations

import numpy as np

from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.distributions import SearchSpace, decode_column
from optuna_s2e.schedules import ScheduleSpace, find_spaces

N_POINTS = 32  # points of the grid on which schedules are compared


def featurize(space: SearchSpace, x: FloatArray, active: BoolArray | None = None) -> FloatArray:
    """Return the features of draws: the more two draws differ, the larger is their distance.

    Args:
        space: Space of the draws.
        x: Coordinates of the draws, (N, d).
        active: Which coordinates the objective asks for, (N, d). None means all. The others have
            no influence on the features.

    Returns:
        Features, (N, n_features). Each schedule space that the space's tags name has `N_POINTS`
        features: R on a grid, scaled so that distance is the root mean square over the grid. R is
        1 where the objective asks for no such schedule. The other parameters follow as in
        `SearchSpace.unit_features`. If a parameter of a schedule is fixed, it is not in the space
        and R is unknown. Then all parameters of that schedule count as other parameters.

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
    blocks: list[FloatArray] = []
    columns = {name: i for i, name in enumerate(space.names)}
    schedules = _schedules(space)
    for schedule, own in schedules:
        params = {n: decode_column(x[:, columns[n]], space.distributions[n]) for n in own}
        asked = active[:, [columns[n] for n in own]].all(axis=1, keepdims=True)
        curves = np.where(asked, schedule.curves(params, N_POINTS), 1.0)
        blocks.append(curves / np.sqrt(N_POINTS))
    others = _others(space, schedules)
    if others is not None:
        at = [columns[n] for n in others.names]
        blocks.append(others.unit_features(x[:, at], active[:, at]))
    return np.concatenate(blocks, axis=1)


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
    schedules = _schedules(space)
    others = _others(space, schedules)
    sizes = [N_POINTS] * len(schedules)
    sizes += others.feature_sizes if others is not None else []
    return np.repeat(np.arange(len(sizes)), sizes)


def numbered_features(space: SearchSpace) -> BoolArray:
    """Return which features of `featurize` are numbers of categories, which are equal or not.

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
    numbered = np.zeros(len(feature_groups(space)), dtype=bool)
    others = _others(space, _schedules(space))
    if others is not None:  # they come last
        of_others = others.numbered_features
        numbered[len(numbered) - len(of_others) :] = of_others
    return numbered


def _schedules(space: SearchSpace) -> list[tuple[ScheduleSpace, list[str]]]:
    """Return the schedule spaces of which a space has all parameters, and their names."""
    found = [(s, s.searched) for s in find_spaces(space.tags)]
    return [(s, names) for s, names in found if set(names) <= space.distributions.keys()]


def _others(
    space: SearchSpace, schedules: list[tuple[ScheduleSpace, list[str]]]
) -> SearchSpace | None:
    """Return the space of the parameters that belong to none of these schedules, if any."""
    if not schedules:
        return space if space.names else None
    own = {name for _, names in schedules for name in names}
    others = {n: d for n, d in space.distributions.items() if n not in own}
    return SearchSpace.of(others) if others else None
