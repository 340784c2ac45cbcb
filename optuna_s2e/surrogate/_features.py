"""What a model of the loss sees of a point: R(t) for schedules, unit coordinates for the rest.

The loss of a schedule depends on its parameters through R(t) alone, and points that are far apart
in the parameters may be the same curve. Distances between curves say what is alike.
"""

from __future__ import annotations

import numpy as np

from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.distributions import Categorical, SearchSpace, decode_column
from optuna_s2e.schedules import find_space

N_POINTS = 32  # of the grid on which schedules are compared


def features(space: SearchSpace, x: FloatArray, active: BoolArray | None = None) -> FloatArray:
    """Return the features of draws, in which distance means difference.

    Args:
        space: What the coordinates mean.
        x: Coordinates, (N, d).
        active: Which of them the objective asks for, (N, d); None is all. The others make no
            difference.

    Returns:
        (N, n_features): R on a grid, scaled so that distance is the root mean square over the
        grid, if the space's tags name a schedule space; then the other parameters as in
        `SearchSpace.unit_features`.

    Raises:
        ValueError: If the tags name a schedule space that this release does not know.
    """
    active = np.ones(x.shape, dtype=bool) if active is None else active
    if not space.tags:
        return space.unit_features(x, active)
    schedules = find_space(space.tags)
    own = [n for n, d in schedules.distributions.items() if not d.single()]
    columns = dict(zip(space.names, x.T, strict=True))
    params = {n: decode_column(columns[n], space.distributions[n]) for n in own}
    curves: FloatArray = schedules.curves(params, N_POINTS) / np.sqrt(N_POINTS)
    others = {n: d for n, d in space.distributions.items() if n not in own}
    if not others:
        return curves
    rest = SearchSpace.of(others)
    at = [space.names.index(n) for n in rest.names]
    return np.concatenate([curves, rest.unit_features(x[:, at], active[:, at])], axis=1)


def groups(space: SearchSpace) -> IntArray:
    """Return which parameter each feature belongs to, (n_features,); a schedule is one."""
    curves = find_space(space.tags).distributions if space.tags else {}
    others = {n: d for n, d in space.distributions.items() if n not in curves}
    families = SearchSpace.of(others).distribution.families if others else ()
    sizes = [N_POINTS] * bool(curves)
    sizes += [f.n if isinstance(f, Categorical) else f.n_columns for f in families]
    return np.repeat(np.arange(len(sizes)), sizes)
