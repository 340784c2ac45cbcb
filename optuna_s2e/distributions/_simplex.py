r"""Weights on the probability simplex as independent Optuna parameters in [0, 1].

Notation
    k          number of weights                                    int >= 2
    u          stick-breaking parameters, what Optuna stores        (..., k - 1), each in [0, 1]
    weights    w, non-negative, summing to 1                        (..., k)

Stick-breaking with the inverse CDF of the flat Dirichlet: the share that weight i takes of what
is left of the stick is v_i ~ Beta(1, k - i) when w ~ Dirichlet(1, ..., 1), hence

    v_i = 1 - (1 - u_i)^(1 / (k - i)),    w_i = v_i * prod_{j<i} (1 - v_j),    w_k = the rest.

Independent uniform u therefore give exactly the flat Dirichlet, under any sampler, and the
Jacobian is constant: scores of a Dirichlet are the same in u and in w. Every point of the cube
is valid, its corners included.

References:
    Connor and Mosimann, "Concepts of independence for proportions", JASA 1969 (stick-breaking).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import BaseTrial

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
    """
    if not name:
        raise ValueError("name must not be empty: it is the prefix of the parameters' names.")
    if isinstance(k, bool) or not isinstance(k, int) or not 2 <= k <= MAX_WEIGHTS:
        raise ValueError(f"k must be an int in [2, {MAX_WEIGHTS}], but got {k!r}.")
    return [f"{name}.simplex{k}.{i:0{len(str(k))}d}" for i in range(1, k)]


def suggest_simplex(trial: BaseTrial, name: str, k: int) -> FloatArray:
    """Suggest k non-negative weights that sum to 1.

    The weights are stored as k - 1 float parameters in [0, 1]. `S2ESampler` recognises them by
    name and searches them with a Dirichlet distribution; under every other sampler they are
    ordinary floats whose uniform distribution is the flat Dirichlet.

    Args:
        trial: An Optuna trial (also `FixedTrial`).
        name: Name of the simplex; the parameters are called `{name}.simplex{k}.{i}`.
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

    For `study.enqueue_trial`.

    Args:
        name: Name of the simplex.
        weights: Shape (k,), non-negative, summing to 1 within 1e-6.

    Returns:
        k - 1 parameters in [0, 1] by name.

    Raises:
        ValueError: If the weights are negative, do not sum to 1 or have another shape.
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 1:
        raise ValueError(f"weights must have shape (k,), but got {w.shape}.")
    if not (np.all(w >= 0) and abs(w.sum() - 1) <= 1e-6):
        raise ValueError(f"weights must be non-negative and sum to 1, but got {weights!r}.")
    names = parameter_names(name, len(w))
    return dict(zip(names, unit_from_weights(w).tolist(), strict=True))


def weights_from_unit(u: FloatArray) -> FloatArray:
    """Break the stick: parameters u of shape (..., k - 1) to weights of shape (..., k)."""
    k = u.shape[-1] + 1
    kept = (1.0 - u) ** (1.0 / np.arange(k - 1, 0, -1))  # 1 - v_i
    left = np.cumprod(kept, axis=-1)
    before = np.concatenate([np.ones_like(left[..., :1]), left[..., :-1]], axis=-1)
    return np.concatenate([before * (1.0 - kept), left[..., -1:]], axis=-1)


def unit_from_weights(weights: FloatArray) -> FloatArray:
    """Invert `weights_from_unit`: weights of shape (..., k) to parameters of shape (..., k - 1).

    Where the stick is used up before its end the encoding is not unique; 0 is taken.
    """
    k = weights.shape[-1]
    # what is left before and after weight i, summed from the end: exact where little is left
    left = np.cumsum(weights[..., ::-1], axis=-1)[..., ::-1]
    before, after = left[..., :-1], left[..., 1:]
    kept = np.divide(after, before, out=np.ones_like(after), where=before > 0)
    return np.clip(1.0 - kept ** np.arange(k - 1, 0, -1), 0.0, 1.0)


def find_simplexes(distributions: Mapping[str, BaseDistribution]) -> list[list[str]]:
    """Recognise the simplexes among stored parameters by their names.

    A simplex is recognised if all of its k - 1 parameters are present as plain floats in [0, 1];
    otherwise its parameters are ordinary ones.

    Args:
        distributions: Optuna's distributions by parameter name.

    Returns:
        The names of each simplex, in the order of its weights; simplexes ordered by name.
    """
    found = {(m["name"], int(m["k"])) for m in _matches(distributions) if int(m["k"]) >= 2}
    groups = [parameter_names(n, k) for n, k in sorted(found) if k <= MAX_WEIGHTS]
    return [g for g in groups if all(distributions.get(n) == _UNIT_INTERVAL for n in g)]


def _matches(names: Iterable[str]) -> Iterable[re.Match[str]]:
    return (m for m in map(_PARAMETER.fullmatch, names) if m)
