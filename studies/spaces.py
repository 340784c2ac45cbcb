"""Spaces of schedules as functions of uniform numbers: those of the package, and their rivals.

Notation
    u     uniform numbers, the draw                                            (N, n) in [0, 1]
    s     t / T, time as a share of the training                               (T,)
    R     schedules                                                            (N, T) in (0, 1]

R(0) = 1 in every space (Assumption 1); values are clipped as the package clips its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.distributions import FloatDistribution
from scipy.optimize import least_squares

from optuna_s2e import ScheduleSpace, surrogate
from optuna_s2e.distributions import weights_from_unit
from optuna_s2e.schedules import MIN_KEEP_RATE, basis_function
from optuna_s2e.surrogate import N_POINTS

Array = npt.NDArray[np.float64]


class Space(NamedTuple):
    """One space: how many numbers, and (u, T) -> R."""

    n: int
    keep_rates: Callable[[Array, int], Array]


def _own(n: int, function: Callable[[Array, Array, int], Array]) -> Space:
    """Make a space of (columns of u (n, N, 1), t (T,), T) -> R before clipping."""

    def keep_rates(u: Array, n_epochs: int) -> Array:
        t = np.arange(n_epochs, dtype=np.float64)
        rates = np.clip(function(u.T[..., None], t, n_epochs), MIN_KEEP_RATE, 1.0)
        rates[:, 0] = 1.0
        return rates

    return Space(n, keep_rates)


def _of_package(kind: str, **fixed: float) -> Space:
    """Return a space of the package, with some of its parameters fixed."""
    names = [
        name for name, d in ScheduleSpace(2, kind).distributions.items()
        if not d.single() and name not in fixed
    ]  # fmt: skip

    def keep_rates(u: Array, n_epochs: int) -> Array:
        space = ScheduleSpace(n_epochs, kind)
        params = {name: np.full(len(u), value) for name, value in fixed.items()}
        for name, column in zip(names, u.T, strict=True):
            d = space.distributions[name]
            assert isinstance(d, FloatDistribution)
            params[name] = (
                d.low * (d.high / d.low) ** column if d.log
                else d.low + (d.high - d.low) * column
            )  # fmt: skip
            params[name] = np.clip(params[name], d.low, d.high)
        return space.curves(params, n_epochs)

    return Space(len(names), keep_rates)


def _bases(u: Array, t: Array, n_epochs: int, *, used: Sequence[int]) -> Array:
    """Eq 4 with some of the bases of Table 1: weights, then a_1 .. a_4 of each."""
    k = len(used)
    weights = weights_from_unit(u[: k - 1, :, 0].T) if k > 1 else np.ones((u.shape[1], 1))
    a = u[k - 1 :].reshape(k, 4, -1, 1)
    parts = [basis_function(i, t, n_epochs, a[j]) for j, i in enumerate(used)]
    return np.einsum("nk,knt->nt", weights, np.stack(parts))


def _alone_or_not(used: Sequence[int]) -> Space:
    return _own(len(used) - 1 + 4 * len(used), partial(_bases, used=used))


def _durations(u: Array, t: Array, n_epochs: int) -> Array:
    """Hold, two equal falls, hold: how long each is (simplex of 4), and the drop in all."""
    knots = np.cumsum(weights_from_unit(u[:3, :, 0].T), axis=1)[:, :3, None]  # (N, 3, 1)
    lengths = np.maximum(np.diff(knots, axis=1), 1e-12)
    falls = np.clip((t / n_epochs - knots[:, :2]) / lengths, 0.0, 1.0)
    return 1.0 - 0.95 * u[3] * falls.mean(axis=1)


def _kumaraswamy(u: Array, t: Array, n_epochs: int) -> Array:
    """R = 1 - D (1 - (1 - s^a)^b), D in [0, 0.95], a and b in [1/2, 8] (log)."""
    a, b = 0.5 * 16.0 ** u[1], 0.5 * 16.0 ** u[2]
    return 1.0 - 0.95 * u[0] * (1.0 - (1.0 - (t / n_epochs) ** a) ** b)


N_GAUSSIANS, N_HIDDEN, WEIGHT = 4, 4, 4.0


def _rbf(u: Array, t: Array, n_epochs: int) -> Array:
    """Normalised radial basis functions of s: heights and centres in [0, 1], widths to 1/2."""
    heights, centres, widths = u.reshape(3, N_GAUSSIANS, -1, 1)
    z = (t / n_epochs - centres) / (0.05 * 10.0**widths)
    log_phi = -0.5 * z**2
    phi = np.exp(log_phi - log_phi.max(axis=0))  # far from all centres: the nearest one
    return np.asarray((heights * phi).sum(axis=0) / phi.sum(axis=0))


def _mlp(u: Array, t: Array, n_epochs: int) -> Array:
    """One hidden layer of 4 tanh, logistic output, weights and biases in [-4, 4]."""
    w = WEIGHT * (2.0 * u - 1.0)
    first, bias, second = w[1:].reshape(3, N_HIDDEN, -1, 1)
    hidden = np.tanh(first * (t / n_epochs) + bias)
    return np.asarray(1.0 / (1.0 + np.exp(-w[0] - (second * hidden).sum(axis=0))))


ALL = (1, 2, 3, 4)
SPACES: dict[str, Space] = {
    "Eq 1 (default)": _of_package("eq1"),
    "Eq 1, c = 1": _of_package("eq1", **{"R.c": 1.0}),
    "dur4": _own(4, _durations),
    "Kumaraswamy": _own(3, _kumaraswamy),
    "Table 1": _of_package("table1"),
    **{f"f{i} alone": _alone_or_not([i]) for i in ALL},
    **{f"without f{i}": _alone_or_not([j for j in ALL if j != i]) for i in ALL},
    "RBF": _own(3 * N_GAUSSIANS, _rbf),
    "MLP": _own(1 + 3 * N_HIDDEN, _mlp),
}


def features(rates: Array) -> Array:
    """Return schedules (N, T) on the grid on which the package compares them, (N, 32)."""
    t, grid = np.arange(rates.shape[1]), np.linspace(0.0, rates.shape[1] - 1.0, N_POINTS)
    return np.array([np.interp(grid, t, row) for row in rates]) / np.sqrt(N_POINTS)


def smoothed_pick(rates: Array, losses: Array) -> int:
    """Return which schedule has the lowest smoothed loss, as the rule "smoothed" does it."""
    z = features(rates)
    return int(np.argmin(surrogate.fit(z, losses).mean(z)))


class Fit(NamedTuple):
    """The best approximation found: root mean square and largest distance, and its u."""

    rms: float
    largest: float
    u: Array


def fit(space: Space, target: Array, *, n_starts: int = 4, n_drawn: int = 2000) -> Fit:
    """Fit a schedule (T,) by least squares in the unit cube, from the best of uniform draws.

    Local optima remain: the distances are upper bounds of those of the best fit.
    """
    n_epochs = len(target)

    def residuals(u: Array) -> Array:
        return space.keep_rates(u[None], n_epochs)[0] - target

    def slopes(u: Array) -> Array:
        steps = np.where(u < 0.5, 1e-7, -1e-7)  # inwards
        rows = space.keep_rates(np.vstack([u, u + np.diag(steps)]), n_epochs)
        return np.asarray(((rows[1:] - rows[0]) / steps[:, None]).T)

    drawn = np.random.default_rng(0).uniform(size=(n_drawn, space.n))
    distances = ((space.keep_rates(drawn, n_epochs) - target) ** 2).mean(axis=1)
    found = [
        least_squares(residuals, np.clip(u, 1e-3, 1 - 1e-3), slopes, bounds=(0, 1), max_nfev=100)
        for u in drawn[np.argsort(distances)[:n_starts]]
    ]
    u = min(found, key=lambda result: result.cost).x
    off = np.abs(residuals(u))
    return Fit(float(np.sqrt(np.mean(off**2))), float(off.max()), u)
