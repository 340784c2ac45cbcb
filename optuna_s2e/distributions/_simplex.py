r"""Weights on the probability simplex as independent Optuna parameters in [0, 1].

Notation
    k          number of weights                                    int >= 2
    u          stick-breaking parameters, what Optuna stores        (..., k - 1), each in [0, 1]
    weights    w, non-negative, summing to 1                        (..., k)

This is stick-breaking with the inverse CDF of the flat Dirichlet. Weight i takes the share v_i of
the rest of the stick. If w ~ Dirichlet(1, ..., 1), then v_i ~ Beta(1, k - i), hence

    v_i = 1 - (1 - u_i)^(1 / (k - i)),    w_i = v_i * prod_{j<i} (1 - v_j),    w_k = the rest.

Independent uniform u therefore give exactly the flat Dirichlet under any sampler. The Jacobian is
constant, so scores of a Dirichlet are the same in u and in w. Every point of the cube is valid,
its corners included.

References:
    Connor and Mosimann, "Concepts of independence for proportions", JASA 1969 (stick-breaking).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import BaseTrial

from optuna_s2e._checks import check_axes, check_int
from optuna_s2e._typing import FloatArray

MAX_WEIGHTS = 1000
_PARAMETER = re.compile(r"(?P<name>.+)\.simplex(?P<k>[1-9]\d{0,3})\.(?P<i>\d+)", re.DOTALL)
_UNIT_INTERVAL = FloatDistribution(0.0, 1.0)


def parameter_names(name: str, k: int) -> list[str]:
    """Return the names under which the simplex `name` of k weights is stored in a trial.

    Args:
        name: Name of the simplex, not empty.
        k: Number of weights, in [2, 1000].

    Returns:
        k - 1 names `{name}.simplex{k}.{i}`, i from 1, zero-padded so that they sort.

    Raises:
        ValueError: If the name is empty or k is out of range.

    Example:
        >>> from optuna_s2e.distributions import parameter_names
        >>> parameter_names("w", 3)
        ['w.simplex3.1', 'w.simplex3.2']
    """
    if not name:
        raise ValueError("name must not be empty: it is the prefix of the parameters' names.")
    k = check_int("k", k, 2, MAX_WEIGHTS)
    return [f"{name}.simplex{k}.{i:0{len(str(k))}d}" for i in range(1, k)]


def weight_names(parameters: Sequence[str]) -> list[str]:
    """Return the names of the weights of a simplex that people read.

    Args:
        parameters: The names under which it is stored, as `parameter_names` returns them.

    Returns:
        k names `{name} {i}`, i from 1, zero-padded so that they sort.

    Example:
        >>> from optuna_s2e.distributions import parameter_names, weight_names
        >>> weight_names(parameter_names("w", 3))
        ['w 1', 'w 2', 'w 3']
    """
    k = len(parameters) + 1
    name = parameters[0].rpartition(".simplex")[0]
    return [f"{name} {i:0{len(str(k))}d}" for i in range(1, k + 1)]


def suggest_simplex(trial: BaseTrial, name: str, k: int) -> FloatArray:
    """Suggest k non-negative weights that sum to 1.

    The weights are stored as k - 1 float parameters in [0, 1]. `S2ESampler` recognises them by
    name and searches them with a Dirichlet distribution. Other samplers see ordinary floats,
    whose uniform distribution gives the flat Dirichlet.

    Args:
        trial: An Optuna trial (also `FixedTrial`).
        name: Name of the simplex. The parameters are called `{name}.simplex{k}.{i}`.
        k: Number of weights, in [2, 1000].

    Returns:
        Weights of shape (k,), each in [0, 1].

    Raises:
        ValueError: If the name is empty or k is out of range.

    Example:
        >>> import optuna
        >>> from optuna_s2e import suggest_simplex
        >>> trial = optuna.trial.FixedTrial({"w.simplex3.1": 0.0, "w.simplex3.2": 0.25})
        >>> suggest_simplex(trial, "w", 3)
        array([0.  , 0.25, 0.75])
    """
    return weights_from_unit(
        np.array([trial.suggest_float(n, 0.0, 1.0) for n in parameter_names(name, k)])
    )


def simplex_params(name: str, weights: npt.ArrayLike) -> dict[str, float]:
    """Return the parameters that `suggest_simplex` decodes to these weights.

    Pass them to `study.enqueue_trial` to have the weights tried.

    Args:
        name: Name of the simplex.
        weights: Non-negative weights that sum to 1 within 1e-6, (k,), k in [2, 1000].

    Returns:
        k - 1 parameters in [0, 1] by name.

    Raises:
        ValueError: If the weights are negative, do not sum to 1 or have another shape, or if the
            name is empty.

    Example:
        >>> from optuna_s2e import simplex_params
        >>> simplex_params("w", [0.0, 0.25, 0.75])
        {'w.simplex3.1': 0.0, 'w.simplex3.2': 0.25}
    """
    w = np.asarray(weights, dtype=np.float64)
    check_axes("weights", w, "(k,)")
    if not (np.all(w >= 0) and abs(w.sum() - 1) <= 1e-6):
        raise ValueError(f"weights must be non-negative and sum to 1, but got {weights!r}.")
    names = parameter_names(name, len(w))
    return dict(zip(names, unit_from_weights(w).tolist(), strict=True))


def weights_from_unit(u: FloatArray) -> FloatArray:
    """Return the weights of stick-breaking parameters.

    Args:
        u: Parameters in [0, 1], (..., k - 1).

    Returns:
        Weights in [0, 1] that sum to 1, (..., k).

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import weights_from_unit
        >>> weights_from_unit(np.array([0.0, 0.25])).tolist()
        [0.0, 0.25, 0.75]
    """
    k = u.shape[-1] + 1
    kept = (1.0 - u) ** (1.0 / np.arange(k - 1, 0, -1))  # 1 - v_i
    left = np.cumprod(kept, axis=-1)
    before = np.concatenate([np.ones_like(left[..., :1]), left[..., :-1]], axis=-1)
    return np.concatenate([before * (1.0 - kept), left[..., -1:]], axis=-1)


def unit_from_weights(weights: FloatArray) -> FloatArray:
    """Return the stick-breaking parameters of weights: invert `weights_from_unit`.

    If the first weights already sum to 1, any parameters of the other weights, which are 0, would
    do. They become 0.

    Args:
        weights: Non-negative weights that sum to 1, (..., k).

    Returns:
        Parameters in [0, 1], (..., k - 1).

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import unit_from_weights
        >>> unit_from_weights(np.array([0.0, 0.25, 0.75])).tolist()
        [0.0, 0.25]
    """
    k = weights.shape[-1]
    # The rest of the stick before and after weight i; sums from its end keep short rests exact.
    left = np.cumsum(weights[..., ::-1], axis=-1)[..., ::-1]
    before, after = left[..., :-1], left[..., 1:]
    kept = np.divide(after, before, out=np.ones_like(after), where=before > 0)
    return np.clip(1.0 - kept ** np.arange(k - 1, 0, -1), 0.0, 1.0)


def find_simplexes(distributions: Mapping[str, BaseDistribution]) -> list[list[str]]:
    """Recognise the simplexes among stored parameters by their names.

    A simplex is recognised if all of its k - 1 parameters are present as plain floats in [0, 1].
    Otherwise its parameters are ordinary ones.

    Args:
        distributions: Optuna's distributions by parameter name.

    Returns:
        The parameter names of each simplex, in the order of its weights. Simplexes are ordered by
        name.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> from optuna_s2e.distributions import find_simplexes
        >>> names = ["lr", "w.simplex3.1", "w.simplex3.2"]
        >>> find_simplexes(dict.fromkeys(names, FloatDistribution(0, 1)))
        [['w.simplex3.1', 'w.simplex3.2']]
    """
    found = {(m["name"], int(m["k"])) for m in _matches(distributions) if int(m["k"]) >= 2}
    groups = [parameter_names(n, k) for n, k in sorted(found) if k <= MAX_WEIGHTS]
    return [g for g in groups if all(distributions.get(n) == _UNIT_INTERVAL for n in g)]


def _matches(names: Iterable[str]) -> Iterable[re.Match[str]]:
    return (m for m in map(_PARAMETER.fullmatch, names) if m)
