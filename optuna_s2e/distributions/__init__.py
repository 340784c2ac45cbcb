"""p_theta, and Optuna's parameters as its coordinates.

- `SearchDistribution` is p_theta: a product of `Beta`, `Dirichlet` and `Categorical` families with
  one flat parameter vector theta.
- `SearchSpace` maps Optuna's parameters to the coordinates of p_theta and back; `decode` does it
  for one parameter.
- `suggest_simplex` gives an objective weights that sum to 1; `weights_from_unit` computes them.
- `keyed_rng` and the functions beside it draw random numbers that depend on a key alone.
"""

from optuna_s2e.distributions._categorical import Categorical
from optuna_s2e.distributions._dirichlet import Beta, Dirichlet
from optuna_s2e.distributions._family import Family
from optuna_s2e.distributions._keyed_random import (
    Key,
    KeyedSampler,
    draw_independent,
    keyed_coordinate,
    keyed_rng,
)
from optuna_s2e.distributions._search_distribution import SearchDistribution
from optuna_s2e.distributions._search_space import (
    SearchSpace,
    decode,
    decode_column,
    intersection,
    same_distribution,
    same_value,
    union,
)
from optuna_s2e.distributions._simplex import (
    find_simplexes,
    parameter_names,
    simplex_params,
    suggest_simplex,
    unit_from_weights,
    weight_names,
    weights_from_unit,
)
from optuna_s2e.distributions._whitening import whiten

__all__ = [
    "Beta",
    "Categorical",
    "Dirichlet",
    "Family",
    "Key",
    "KeyedSampler",
    "SearchDistribution",
    "SearchSpace",
    "decode",
    "decode_column",
    "draw_independent",
    "find_simplexes",
    "intersection",
    "keyed_coordinate",
    "keyed_rng",
    "parameter_names",
    "same_distribution",
    "same_value",
    "simplex_params",
    "suggest_simplex",
    "union",
    "unit_from_weights",
    "weight_names",
    "weights_from_unit",
    "whiten",
]
