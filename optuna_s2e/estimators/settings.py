"""The estimators by name, and all that an update of theta depends on besides the draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from optuna_s2e._checks import check_choice, check_int, check_number
from optuna_s2e.estimators._directions import (
    Direction,
    cubic_direction,
    gradient_direction,
    inverse_direction,
    natural_gradient_direction,
    newton_direction,
)

MAX_THETA = 1e9
"""Largest component of theta: beyond it, digamma differences lose their digits."""


class Estimator(NamedTuple):
    """One way to move theta, and its defaults.

    Attributes:
        summary: What it does, in a few words for help texts.
        step_size: Default of rho, the length of a step before the trust region.
        reuse: Default number of earlier updates whose draws join the new ones.
        direction: Function that turns gradient, Hessian and Fisher information into a step.
            `"surrogate"` has None, because its step is `surrogate_newton.update`.
        needs_hessian: Whether the step needs an estimate of the Hessian.
        as_printed: Whether the update is the paper's Algorithm 2 and nothing else: the losses as
            they are, all components of theta, no trust region.
        theta_bounds: Default of the box of theta.
    """

    summary: str
    step_size: float
    reuse: int
    direction: Direction | None
    needs_hessian: bool
    as_printed: bool = False
    theta_bounds: tuple[float, float] = (1.0, 100.0)


DEFAULT_ESTIMATOR = "surrogate"

ESTIMATORS: dict[str, Estimator] = {
    "surrogate": Estimator(
        "Newton's method on a model of the loss, which also chooses the trials",
        step_size=1.0, reuse=1000, direction=None, needs_hessian=True,
    ),
    "natural": Estimator(
        "natural gradient from the losses alone",
        step_size=3.0, reuse=10,
        direction=natural_gradient_direction, needs_hessian=False,
    ),
    "newton": Estimator(
        "Newton step with bounded curvature from the losses alone",
        step_size=1.0, reuse=10, direction=newton_direction, needs_hessian=True,
    ),
    "cubic": Estimator(
        "cubic-regularised Newton step from the losses alone",
        step_size=1.0, reuse=10, direction=cubic_direction, needs_hessian=True,
    ),
    "gradient": Estimator(
        "plain gradient (Eq 7) from the losses alone",
        step_size=1.0, reuse=10, direction=gradient_direction, needs_hessian=False,
    ),
    "paper": Estimator(
        "Algorithm 2 of the S2E paper as printed: raw losses, the Hessian's inverse",
        step_size=1.0, reuse=0, direction=inverse_direction, needs_hessian=True,
        as_printed=True, theta_bounds=(0.1, 1000.0),
    ),
}  # fmt: skip
"""All estimators by name. Newton's method has the paper's step size; the others were measured."""

SIGNS = ("-", "+")
"""Signs of the step rho H^-1 g: "-" in Eq 9, "+" in Eq 8."""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """Settings of one update of theta; equal settings give equal steps.

    `resolve` fills in the defaults of an estimator.

    Args:
        population_size: K, the number of completed draws between two updates, in [1, 100000].
        estimator: A name in `ESTIMATORS`.
        step_size: rho of Eq 8, the length of the step before the trust region, > 0.
        max_kl: Trust region: the largest KL(p_new || p_old) of one update in nats, > 0. It keeps
            one noisy batch from collapsing p_theta.
        curvature_bounds: (eta, L) of Assumption 3, 0 < eta <= L. The eigenvalues of the
            Fisher-whitened Hessian are brought between them. 1 / eta is the longest step per
            unit of gradient.
        theta_bounds: (low, high) of every component of theta, 0 < low <= 1 <= high <= 1e9: the
            search starts at theta = 1. low = 1 keeps Beta and Dirichlet log-concave, high keeps
            them spread.
        max_weight: Upper bound of an importance weight, >= 1.
        reuse: Number of earlier updates whose draws join the K new ones, in [0, 1000].
        sign: Sign of the step of `"paper"`: "-" for Eq 9, "+" for Eq 8 as printed.

    Raises:
        ValueError: If a value is of another type or outside its range.

    Example:
        >>> from optuna_s2e.estimators import UpdateSettings, resolve
        >>> settings = UpdateSettings(estimator="newton", step_size=1.0, reuse=0)
        >>> settings.max_kl
        1.0
        >>> resolve(settings.to_dict()) == settings
        True
    """

    population_size: int = 6
    estimator: str
    step_size: float
    max_kl: float = 1.0
    curvature_bounds: tuple[float, float] = (0.1, 10.0)
    theta_bounds: tuple[float, float] = (1.0, 100.0)
    max_weight: float = 10.0
    reuse: int
    sign: str = "-"

    def __post_init__(self) -> None:
        # One type per field: 1 and 1.0 are the same settings, also in JSON.
        checked = {
            "estimator": check_choice("estimator", self.estimator, ESTIMATORS),
            "population_size": check_int("population_size", self.population_size, 1, 100_000),
            "reuse": check_int("reuse", self.reuse, 0, 1000),
            "step_size": check_number("step_size", self.step_size, 0.0, open_low=True),
            "max_kl": check_number("max_kl", self.max_kl, 0.0, open_low=True),
            "max_weight": check_number("max_weight", self.max_weight, 1.0),
            "curvature_bounds": _bounds("curvature_bounds", self.curvature_bounds),
            "theta_bounds": _bounds("theta_bounds", self.theta_bounds),
            "sign": check_choice("sign", self.sign, SIGNS),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        low, high = self.theta_bounds
        if not low <= 1.0 <= high or low == high:
            raise ValueError(
                "theta_bounds must be (low, high) with low <= 1 <= high and low < high, "
                f"but got {self.theta_bounds!r}. The search starts at theta = 1."
            )
        if high > MAX_THETA:
            raise ValueError(f"theta_bounds[1] must be at most {MAX_THETA:g}, but got {high!r}.")

    @property
    def direction(self) -> Direction | None:
        """The estimator's direction, or None for `"surrogate"`."""
        return ESTIMATORS[self.estimator].direction

    @property
    def needs_hessian(self) -> bool:
        """Whether the estimator needs an estimate of the Hessian."""
        return ESTIMATORS[self.estimator].needs_hessian

    @property
    def as_printed(self) -> bool:
        """Whether the update is the paper's Algorithm 2 and nothing else."""
        return ESTIMATORS[self.estimator].as_printed

    @property
    def without_effect(self) -> list[str]:
        """Names of settings that differ from their defaults and that no update reads."""
        unread = {"max_kl", "curvature_bounds"} if self.as_printed else {"sign"}
        if not self.needs_hessian:
            unread.add("curvature_bounds")
        if self.direction is None or self.reuse == 0:  # no draw has an importance weight
            unread.add("max_weight")
        return [
            f.name for f in fields(self) if f.name in unread and getattr(self, f.name) != f.default
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values: tuples as lists, and the sign only if it is read."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        if not self.as_printed:  # records of other estimators never had one
            del values["sign"]
        return values


def resolve(options: Mapping[str, Any]) -> UpdateSettings:
    """Fill in what is missing: the default estimator, and the defaults of the estimator.

    Args:
        options: Some fields of `UpdateSettings`, or all.

    Returns:
        Full settings.

    Raises:
        ValueError: If a value is out of range, or theta could never move.
        TypeError: If a name is unknown.

    Example:
        >>> from optuna_s2e.estimators import resolve
        >>> resolve({"max_kl": 0.5}).estimator
        'surrogate'
        >>> resolve({"estimator": "natural"}).step_size
        3.0
    """
    name = check_choice("estimator", options.get("estimator", DEFAULT_ESTIMATOR), ESTIMATORS)
    estimator = ESTIMATORS[name]
    defaults = {
        "estimator": name,
        "step_size": estimator.step_size,
        "reuse": estimator.reuse,
        "theta_bounds": estimator.theta_bounds,
    }
    settings = UpdateSettings(**{**defaults, **options})
    if settings.population_size == 1 and settings.reuse == 0 and not settings.as_printed:
        raise ValueError(
            "population_size=1 and reuse=0 must not come together: an update would see a single "
            "loss, with no other to compare it with, and theta would never move. Use "
            f"population_size of at least 2, or the default reuse of {estimator.reuse}."
        )
    return settings


def _bounds(name: str, value: object) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers (low, high), but got {value!r}.")
    low, high = (check_number(f"{name}[{i}]", v, 0.0, open_low=True) for i, v in enumerate(value))
    if low > high:
        raise ValueError(f"{name} must be (low, high) with low <= high, but got {value!r}.")
    return low, high
