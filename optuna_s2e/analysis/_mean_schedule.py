r"""The mean of the trained schedules that the model expects to be best.

Notation
    R_i(t)      schedule of a trained trial i, on a grid of epochs                    (N, m)
    f_i         its loss as the model expects it, without the luck of one training    (N,)
    sigma       standard deviation of the measured losses, without far outliers       scalar
    w_i         weight, proportional to exp(-(f_i - min f) / (h sigma))               (N,)

The best of many trials was lucky, and so, in part, is the lowest f_i. The middle of the good
region is not: \sum_i w_i R_i(t). It is a schedule, for the values in (0, 1] are convex. A formula
of few parameters may miss it, so it also gets the parameters of the nearest schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from scipy.optimize import least_squares

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import SearchSpace, decode_column
from optuna_s2e.schedules import Schedule, ScheduleSpace

TEMPERATURE = 0.2  # h, chosen on the part "tune" of `studies/landscapes.py`
_DIGITS = 6  # of R(t): other machines compute the same
_STEP = 1e-6  # of a coordinate in (0, 1), for derivatives
_TOLERANCE = 1e-4  # at which the nearest schedule is near enough, relative
_MAX_POINTS = 1000  # epochs at which the nearest schedule is compared
_MAX_STEPS = 30  # towards it


def mean_weights(expected: FloatArray, deviation: float) -> FloatArray:
    """Return the weights w of the trained schedules; they sum to 1.

    Args:
        expected: f, (N,), N > 0.
        deviation: sigma, positive.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.analysis._mean_schedule import mean_weights
        >>> mean_weights(np.array([0.1, 0.1, 9.0]), 1.0).round(3).tolist()
        [0.5, 0.5, 0.0]
    """
    with np.errstate(over="ignore"):  # losses may be of any size
        weights = np.exp(-(expected - expected.min()) / deviation / TEMPERATURE)
    return np.asarray(weights / weights.sum())


def mean_schedule(
    space: ScheduleSpace, trained: Sequence[Mapping[str, Any]], weights: FloatArray
) -> Schedule:
    """Return the weighted mean of schedules of one space, without parameters.

    Args:
        space: The space.
        trained: Parameters of the N schedules.
        weights: w, (N,).

    Example:
        >>> import numpy as np
        >>> from optuna_s2e import ScheduleSpace, coteaching_schedule
        >>> from optuna_s2e.analysis._mean_schedule import mean_schedule
        >>> pair = [coteaching_schedule(3, rate, 1).params for rate in (0.2, 0.4)]
        >>> mean_schedule(ScheduleSpace(3), pair, np.array([0.5, 0.5])).keep_rates.round(3)
        array([1. , 0.7, 0.7])
    """
    columns = {name: [params[name] for params in trained] for name in space.searched}
    rates = np.round(weights @ space.curves(columns, space.n_epochs), _DIGITS)
    return Schedule(rates)


def nearest_params(
    space: ScheduleSpace,
    ranges: Mapping[str, BaseDistribution],
    trained: Sequence[Mapping[str, Any]],
    schedule: Schedule,
) -> dict[str, Any]:
    """Return the parameters within some ranges whose R(t) is nearest, in root mean square.

    Args:
        space: The space.
        ranges: Distributions of the searched parameters by name, floats.
        trained: Parameters of schedules of the space, at least one. The nearest is the start.
        schedule: R(t), of the space's number of epochs.

    Returns:
        Parameters by name, tags first.
    """
    n_points = min(space.n_epochs, _MAX_POINTS)
    epochs = np.linspace(0.0, space.n_epochs - 1.0, n_points)
    target = np.interp(epochs, np.arange(space.n_epochs), schedule.keep_rates)
    searched = SearchSpace.of({name: ranges[name] for name in space.searched})

    def off_target(x: FloatArray) -> FloatArray:
        """Return how far draws x, (K, d), are from the target, (K, n_points)."""
        ranges = searched.distributions.items()
        columns = {n: decode_column(x[:, i], d) for i, (n, d) in enumerate(ranges)}
        return np.asarray(space.curves(columns, n_points) - target)

    def slopes(x: FloatArray) -> FloatArray:
        """Return the derivatives, (n_points, d), all from one evaluation of R(t)."""
        steps = np.diag(np.where(x < 0.5, _STEP, -_STEP))
        changes = off_target(x + steps) - off_target(x[None])
        return np.asarray(changes / steps.sum(axis=1, keepdims=True)).T

    def off_target_at(x: FloatArray) -> FloatArray:
        return np.asarray(off_target(x[None])[0])

    x = np.clip([searched.encode(params) for params in trained], 2 * _STEP, 1.0 - 2 * _STEP)
    found = least_squares(
        off_target_at,
        x[int(np.argmin((off_target(x) ** 2).sum(axis=1)))],
        slopes,
        bounds=(_STEP, 1.0 - _STEP),
        ftol=_TOLERANCE,
        xtol=_TOLERANCE,
        max_nfev=_MAX_STEPS,
    )
    return {**space.tags, **searched.decode(found.x)}
