"""What an update depends on besides the draws, with one set of defaults per estimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

MAX_THETA = 1e9
"""Largest component of theta: beyond it, digamma differences lose their digits."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "surrogate": {"step_size": 1.0, "reuse": 1000},
    "natural": {"step_size": 3.0, "reuse": 10},
    "newton": {"step_size": 1.0, "reuse": 10},
    "cubic": {"step_size": 1.0, "reuse": 10},
    "gradient": {"step_size": 1.0, "reuse": 10},
}
"""Estimator -> its defaults: the paper's step for Newton's, measured ones for the others."""


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of `update`; equal settings give equal steps.

    Args:
        population_size: K, the number of completed draws between two updates.
        estimator: A name in `DEFAULTS`.
        step_size: rho of Eq 8, the length of the step before the trust region, > 0.
        max_kl: Trust region: KL(p_new || p_old) of one update in nats, > 0, so that one noisy
            batch cannot collapse p_theta.
        curvature_bounds: (eta, L) of Assumption 3: the Fisher-whitened Hessian's eigenvalues
            are brought between them. 1 / eta is the longest step per unit of gradient.
        theta_bounds: (low, high) of every component of theta; must contain 1, where the search
            starts. low = 1 keeps Beta and Dirichlet log-concave, high keeps them spread.
        max_weight: Upper bound of an importance weight, at least 1.
        reuse: Number of earlier updates whose draws join the K new ones, in [0, 1000].

    Raises:
        ValueError: If a value is of another type or outside its range.

    Example:
        >>> from optuna_s2e.estimators import UpdateSettings, resolve
        >>> settings = UpdateSettings(max_kl=0.5)
        >>> resolve(settings.to_dict()) == settings
        True
    """

    population_size: int = 6
    estimator: str = "newton"
    step_size: float = 1.0
    max_kl: float = 1.0
    curvature_bounds: tuple[float, float] = (0.1, 10.0)
    theta_bounds: tuple[float, float] = (1.0, 100.0)
    max_weight: float = 10.0
    reuse: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, str) or self.estimator not in DEFAULTS:
            names = ", ".join(map(repr, DEFAULTS))
            raise ValueError(f"estimator must be one of {names}, but got {self.estimator!r}.")
        # One type per field, so that 1 and 1.0 are the same settings in JSON too.
        size = _integer("population_size", self.population_size, 1, 100_000)
        self._set("population_size", size)
        self._set("reuse", _integer("reuse", self.reuse, 0, 1000))
        self._set("step_size", _number("step_size", self.step_size))
        self._set("max_kl", _number("max_kl", self.max_kl))
        self._set("curvature_bounds", _bounds("curvature_bounds", self.curvature_bounds))
        self._set("theta_bounds", _bounds("theta_bounds", self.theta_bounds))
        self._set("max_weight", _number("max_weight", self.max_weight))
        low, high = self.theta_bounds
        if not low <= 1.0 <= high or low == high:
            raise ValueError(
                f"theta_bounds must be (low, high) with low <= 1 <= high, low < high: the search "
                f"starts at theta = 1, but got {self.theta_bounds!r}."
            )
        if high > MAX_THETA:
            raise ValueError(f"theta_bounds[1] must be at most {MAX_THETA:g}, but got {high!r}.")
        if self.max_weight < 1.0:
            raise ValueError(f"max_weight must be at least 1, but got {self.max_weight!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values (tuples as lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def resolve(options: Mapping[str, Any]) -> UpdateSettings:
    """Return full settings from those that were asked for.

    Args:
        options: Some fields of `UpdateSettings`, or all.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a name is unknown.

    Example:
        >>> resolve({"max_kl": 0.5}).estimator
        'surrogate'
    """
    estimator = options.get("estimator", "surrogate")
    defaults = DEFAULTS.get(estimator, {}) if isinstance(estimator, str) else {}
    return UpdateSettings(**{**defaults, **options, "estimator": estimator})


def _number(name: str, value: object) -> float:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else np.nan
    if not 0.0 < number < np.inf:
        raise ValueError(f"{name} must be a finite number > 0, but got {value!r}.")
    return number


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high:
        return int(value)
    raise ValueError(f"{name} must be an int in [{low}, {high}], but got {value!r}.")


def _bounds(name: str, value: object) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers (low, high), but got {value!r}.")
    low, high = _number(f"{name}[0]", value[0]), _number(f"{name}[1]", value[1])
    if low > high:
        raise ValueError(f"{name} must be (low, high) with low <= high, but got {value!r}.")
    return low, high
