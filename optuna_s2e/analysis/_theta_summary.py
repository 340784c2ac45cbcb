r"""What p_theta says of single parameters and of R(t): means, spreads, quantiles.

Notation
    theta       parameters of p_theta by generation, (n_generations, n_theta)
    k           weights of a simplex, or choices of a categorical parameter
    a, b        concentrations of a Beta: mean a / (a + b), variance mean (1 - mean) / (a + b + 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import Beta, Dirichlet, Family, SearchSpace
from optuna_s2e.schedules import ScheduleSpace

N_DRAWS = 256  # of p_theta, behind the mean and the band of R(t)


class Proportions(NamedTuple):
    """A simplex or a categorical parameter under p_theta.

    Attributes:
        name: Name of the simplex or the parameter.
        labels: One label per weight or choice, (k,).
        means: Expected weights or probabilities by generation, (n_generations, k). Rows sum
            to 1.
    """

    name: str
    labels: tuple[str, ...]
    means: FloatArray


class Marginal(NamedTuple):
    """A number under p_theta, in units of its range.

    Attributes:
        name: Name of the parameter.
        mean: Mean by generation, in (0, 1), (n_generations,).
        deviation: Standard deviation by generation, (n_generations,).
    """

    name: str
    mean: FloatArray
    deviation: FloatArray


class ThetaSummary(NamedTuple):
    """p_theta by generation, one entry per simplex, category or number."""

    proportions: list[Proportions]
    marginals: list[Marginal]


class Band(NamedTuple):
    """R(t) under p_theta: its mean and its 5 % and 95 % quantiles at the epochs t, (m,) each."""

    t: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


def summarize_theta(space: SearchSpace, thetas: FloatArray) -> ThetaSummary:
    """Take p_theta apart into its parameters.

    Args:
        space: The space that theta describes.
        thetas: theta by generation, (n_generations, n_theta).
    """
    summary = ThetaSummary([], [])
    names = iter(space.names)
    start = 0
    for family in space.distribution.families:
        theta = thetas[:, start : start + family.n_theta]
        start += family.n_theta
        total = theta.sum(axis=1)
        if isinstance(family, Beta):
            mean = theta[:, 0] / total
            deviation = np.sqrt(mean * (1.0 - mean) / (total + 1.0))
            summary.marginals.append(Marginal(next(names), mean, deviation))
        else:
            name, labels = _labels(family, names, space)
            summary.proportions.append(Proportions(name, labels, theta / total[:, None]))
    return summary


def keep_rate_band(
    schedules: ScheduleSpace, space: SearchSpace, theta: FloatArray, n_points: int
) -> Band | None:
    """Return the band of R(t) under p_theta.

    Args:
        schedules: The space of schedules.
        space: The space that theta describes.
        theta: Parameters of p_theta, (n_theta,).
        n_points: Number of evenly spaced epochs.

    Returns:
        The band. None if theta does not describe all searched parameters of a schedule.
    """
    if not schedules.tags.items() <= space.tags.items():
        return None
    draws = space.distribution.sample(theta, np.random.default_rng(0), N_DRAWS)
    decoded = [space.decode(x) for x in space.coordinates(draws)]
    if any(name not in decoded[0] for name in schedules.searched):  # one was fixed from the start
        return None
    rates = schedules.curves({n: [p[n] for p in decoded] for n in schedules.searched}, n_points)
    low, high = np.quantile(rates, [0.05, 0.95], axis=0)
    epochs = np.linspace(0.0, schedules.n_epochs - 1.0, n_points)
    return Band(epochs, rates.mean(axis=0), low, high)


def _labels(
    family: Family, names: Iterator[str], space: SearchSpace
) -> tuple[str, tuple[str, ...]]:
    """Return the name of a simplex or category and one label per weight or choice."""
    first = next(names)
    if isinstance(family, Dirichlet):
        for _ in range(family.k - 2):
            next(names)
        name = first.partition(".simplex")[0]
        return name, tuple(f"{name} {i}" for i in range(1, family.k + 1))
    distribution = space.distributions[first]
    assert isinstance(distribution, CategoricalDistribution)
    return first, tuple(f"{first} = {choice}" for choice in distribution.choices)
