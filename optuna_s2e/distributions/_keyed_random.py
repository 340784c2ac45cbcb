"""Keyed random numbers: a draw is a function of its key alone.

A keyed (counter-based) generator computes a random number directly from a key, where an ordinary
generator carries a state from one number to the next. Equal keys give equal numbers in every
process, in every order and at any time; different keys give independent numbers. So workers share
no state, a lost trial can be drawn again, and a study can be recomputed from its records.
The key of a draw holds the seed, the generation, the number of the trial (or its slot in a batch)
and, for single parameters, the name. The generator is NumPy's Philox, seeded with a hash of the
key (`numpy.random.SeedSequence`).

References:
    Salmon, Moraes, Dror, Shaw. Parallel random numbers: as easy as 1, 2, 3. SC 2011 (Philox).
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_s2e.distributions._family import EPSILON
from optuna_s2e.distributions._search_space import decode


class Key(NamedTuple):
    """The key of one trial's draws.

    Attributes:
        seed: Seed of the search, >= 0.
        number: Number of the trial, or its slot in a batch, >= 0.
    """

    seed: int
    number: int


def keyed_rng(*key: int) -> np.random.Generator:
    """Return the generator of a key.

    Args:
        *key: Integers >= 0 of any size. Zeros at the end do not count, so use keys of one length
            for one purpose.

    Returns:
        A new generator. Generators of equal keys give equal numbers.

    Raises:
        ValueError: If an integer is negative.

    Example:
        >>> from optuna_s2e.distributions import keyed_rng
        >>> keyed_rng(0, 7).random() == keyed_rng(0, 7).random() != keyed_rng(0, 8).random()
        True
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def keyed_coordinate(seed: int, number: int, name: str, distribution: BaseDistribution) -> float:
    """Draw the coordinate of one parameter from theta = 1, the uniform distribution.

    Args:
        seed: Seed of the search, >= 0.
        number: Number of the trial, or its slot in a batch, >= 0.
        name: Name of the parameter.
        distribution: Optuna's distribution of the parameter.

    Returns:
        A coordinate as in x: a number in (0, 1), or the index of a category.

    Example:
        >>> from optuna.distributions import CategoricalDistribution
        >>> from optuna_s2e.distributions import keyed_coordinate
        >>> keyed_coordinate(0, 7, "c", CategoricalDistribution(["a", "b"])) in (0.0, 1.0)
        True
    """
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    u = keyed_rng(seed, 0, number, int.from_bytes(digest[:8], "big")).random()
    if isinstance(distribution, CategoricalDistribution):
        return float(int(u * len(distribution.choices)))
    return min(max(u, EPSILON), 1.0 - EPSILON)


def draw_independent(key: Key, name: str, distribution: BaseDistribution) -> Any:
    """Draw the value of one parameter from theta = 1, independently of all others.

    Args:
        key: Key of the trial.
        name: Name of the parameter.
        distribution: Optuna's distribution of the parameter.

    Returns:
        A value of the distribution: a float, an int or a choice.

    Raises:
        ValueError: If the distribution is of a type that cannot be searched.

    Example:
        >>> from optuna.distributions import IntDistribution
        >>> from optuna_s2e.distributions import Key, draw_independent
        >>> draw_independent(Key(seed=0, number=7), "n", IntDistribution(1, 3)) in (1, 2, 3)
        True
    """
    return decode(keyed_coordinate(key.seed, key.number, name, distribution), distribution)


class KeyedSampler(BaseSampler):
    """Draw every parameter of one trial independently with `draw_independent`.

    The sampler does not read the study, so it works while the storage is out of reach.

    Args:
        key: Key of the trial.

    Example:
        >>> import optuna
        >>> from optuna_s2e.distributions import Key, KeyedSampler
        >>> study = optuna.create_study(sampler=KeyedSampler(Key(seed=0, number=7)))
        >>> first, again = (study.ask().suggest_float("x", 0, 1) for _ in range(2))
        >>> first == again
        True
    """

    def __init__(self, key: Key) -> None:
        self._key = key

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return no parameters: all are drawn independently."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return no values: all are drawn independently."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter."""
        return draw_independent(self._key, param_name, param_distribution)
