"""Parameters drawn from theta = 1 by a key alone: no state, no study, the same draw anywhere."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
)
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_s2e.distributions._search_distribution import (
    EPSILON,
)
from optuna_s2e.distributions._search_space import decode


class Key(NamedTuple):
    """What keys the independent draws of a trial: a seed, and its number or slot."""

    seed: int
    number: int


def draw_independent(key: Key, name: str, distribution: BaseDistribution) -> Any:
    """Draw one parameter uniformly."""
    return decode(keyed_coordinate(key.seed, key.number, name, distribution), distribution)


class KeyedSampler(BaseSampler):
    """Draw each parameter uniformly, keyed by (seed, number, name): it needs no study."""

    def __init__(self, key: Key) -> None:
        self._key = key

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return nothing."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing."""
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


def keyed_rng(*key: int) -> np.random.Generator:
    """Return the generator of a key of non-negative integers; equal keys, equal draws."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def keyed_coordinate(seed: int, number: int, name: str, distribution: BaseDistribution) -> float:
    """Draw one parameter's coordinate from theta = 1, keyed by (seed, trial number, name).

    Returns:
        A coordinate as in x: uniform on (0, 1), or a category's index.
    """
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    u = keyed_rng(seed, 0, number, int.from_bytes(digest[:8], "big")).random()
    if isinstance(distribution, CategoricalDistribution):
        return float(int(u * len(distribution.choices)))
    return min(max(u, EPSILON), 1.0 - EPSILON)
