"""What moves theta: the update of one generation, computed from the draws of a study.

An update depends on its members, their order, its settings and nothing else, so that every theta
follows from theta = 1 again (`optuna_s2e.replay`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from optuna_s2e._blas import one_blas_thread
from optuna_s2e._typing import BoolArray, FloatArray
from optuna_s2e.distributions import SearchSpace, keyed_rng
from optuna_s2e.estimators import UpdateSettings, newton, surrogate_newton
from optuna_s2e.history import Draw, Ledger, Record, Sources, split_settings
from optuna_s2e.surrogate import Model

MAX_MODEL_DRAWS = 200  # the cubic cost of a fit: about 30 ms
MODEL_VERSION, WITH_OTHERS = 2, 3
"""Versions of the model of the loss: of draws alone, and of other trials, too.

They rise when the same trials give another model. A theta that a model of another version moved is
taken as recorded (`recomputes`).
"""


@one_blas_thread()
def next_theta(
    space: SearchSpace,
    parent: Record | None,
    members: Sequence[Draw],
    ledger: Ledger,
    thetas: Callable[[int], FloatArray],
    settings: UpdateSettings,
    model: Model | None = None,
    also: Sequence[int] = (),
) -> newton.Update:
    r"""Return the update of a theta by K new members, in their order.

    The draws of the last `settings.reuse` updates join the new ones. The surrogate estimator fits
    its model to all of them. For the other estimators, all draws together count as drawn from the
    mixture of the thetas that they came from (deterministic mixture, Owen and Zhou 2000):
    q(x) = \sum_j n_j p_{\theta_j}(x) / N. If all came from one theta, that is q. Equal thetas are
    one theta, whichever trials recorded them: the update does not depend on trial numbers.

    Args:
        space: What theta describes.
        parent: The opener that recorded the theta to move; None is theta = 1.
        members: K draws from the space.
        ledger: Knows the draws, the openers and the direction.
        thetas: theta by opener number.
        settings: The settings of the update.
        model: The result of `fit_model` for the same arguments, if it is known already. If no
            model can be fitted, the update is a Newton step on the new losses instead.
        also: Numbers of trials that are no draws and that the model knows from now on.

    Raises:
        ValueError: If no member is from this space.
    """
    distribution = space.distribution
    uniform = distribution.uniform_theta()
    theta = thetas(parent.trial) if parent is not None else uniform
    low, high = settings.theta_bounds
    if theta.min() < low or theta.max() > high:  # settings with a narrower box were adopted
        theta = distribution.project(theta, settings.theta_bounds)
    if settings.estimator == "surrogate":
        model = model or fit_model(space, parent, members, ledger, settings, also)
        if model is not None:
            rng = keyed_rng(2, 0 if parent is None else parent.generation)
            return surrogate_newton.update(theta, model, settings=settings, rng=rng)
        settings = replace(settings, estimator="newton", reuse=0)
    draws, x = _evidence(space, parent, members, ledger, settings.reuse)
    own = [i for i, d in enumerate(draws) if not _is_chosen_by_model(d, ledger)]
    if own and settings.reuse:  # the density of draws that a model chose is not known
        draws, x = [draws[i] for i in own], x[own]
    points = space.points(x)
    openers = Counter(d.record.opener for d in draws)  # in the order of first appearance
    drawn_from: dict[bytes, FloatArray] = {}
    counts: Counter[bytes] = Counter()
    for opener, n in openers.items():
        source = uniform if opener is None else thetas(opener)
        drawn_from[source.tobytes()] = source
        counts[source.tobytes()] += n
    log_densities = [
        np.log(n / len(draws)) + distribution.log_density(drawn_from[key], points)
        for key, n in counts.items()
    ]
    return newton.update(
        distribution,
        theta,
        points,
        losses=np.array([ledger.rules.loss(d.trial) for d in draws]),
        log_density_drawn=_log_sum_exp(np.array(log_densities)),
        settings=settings,
    )


@one_blas_thread()
def fit_model(
    space: SearchSpace,
    parent: Record | None,
    members: Sequence[Draw],
    ledger: Ledger,
    settings: UpdateSettings,
    also: Sequence[int] = (),
) -> Model | None:
    """Fit the model of an update. Return None if no model can be fitted.

    It knows the draws of the update, and the trials that are no draws and that an opener names;
    these count as older than all draws. If there are more than `MAX_MODEL_DRAWS`, half of those
    used are the newest ones, and the others are spread evenly over all older ones, so that the
    model does not forget where the bad regions are.
    """
    draws, x = _evidence(space, parent, members, ledger, settings.reuse)
    openers = ledger.last_openers(parent, settings.reuse)
    others = ledger.others.readable(space, [*(n for r in openers for n in r.also), *also])
    trials = [*others, *(d.trial for d in draws)]
    x = np.array([*(space.encode(t.params) for t in others), *x])
    older = max(0, len(trials) - MAX_MODEL_DRAWS // 2)
    if len(trials) > MAX_MODEL_DRAWS:
        spread = np.linspace(0, older - 1, MAX_MODEL_DRAWS - MAX_MODEL_DRAWS // 2).round()
        kept = [*spread.astype(int).tolist(), *range(older, len(trials))]
        trials, x = [trials[i] for i in kept], x[kept]
    losses = np.array([ledger.rules.loss(t) for t in trials])
    active = np.array([space.active(t.params) for t in trials])
    try:
        model = fit_with_sources(space, x, active, losses, ledger.sources)
    except (ValueError, ArithmeticError):  # LinAlgError is a ValueError
        return None
    return model if np.isfinite(model.gp.mean_at_draws).all() else None


def model_version(settings: UpdateSettings, with_others: bool) -> int:
    """Return what an opener records as the version of its model; 1 if it needs none."""
    if settings.estimator != "surrogate":
        return 1
    return WITH_OTHERS if with_others else MODEL_VERSION


def recomputes(opener: Record) -> bool:
    """Say whether this release has the model that moved the theta of an opener."""
    settings = split_settings(opener.settings or {})[0]
    return opener.model in {model_version(settings, with_others) for with_others in (False, True)}


def fit_with_sources(
    space: SearchSpace,
    x: FloatArray,
    active: BoolArray,
    losses: FloatArray,
    sources: Sources | None,
) -> Model:
    """Fit a model to draws (N, d) and to those trials of earlier studies that lie in the space.

    The draws come first in what the model was fitted to.

    Raises:
        ValueError: As `Model.fit` does.
    """
    found = sources.draws(space) if sources is not None else None
    if found is None or not len(found.losses):
        return Model.fit(space, x, active=active, losses=losses)
    return Model.fit(
        space,
        np.concatenate([x, found.x]),
        active=np.concatenate([active, found.active]),
        losses=np.concatenate([losses, found.losses]),
        tasks=np.concatenate([np.zeros(len(x), dtype=np.int64), found.studies]),
    )


def _evidence(
    space: SearchSpace,
    parent: Record | None,
    members: Sequence[Draw],
    ledger: Ledger,
    reuse: int,
) -> tuple[list[Draw], FloatArray]:
    """Return the draws of an update, oldest updates first, and their coordinates x (N, d)."""
    found = [ledger.evidence(space, r) for r in ledger.last_openers(parent, reuse)]
    found.append(ledger.located(space, members))  # a record that was damaged since is left out
    draws = [d for own, _ in found for d in own]
    if not draws:
        raise ValueError("No member is a draw from the study's space.")
    return draws, np.concatenate([x for _, x in found])


def _is_chosen_by_model(draw: Draw, ledger: Ledger) -> bool:
    opener = ledger.openers.get(draw.record.opener) if draw.record.opener is not None else None
    settings = opener.settings if opener is not None else None
    return settings is not None and settings["estimator"] == "surrogate"


def recorded_theta(ledger: Ledger, opener: int) -> FloatArray:
    """Return the theta that an opener recorded."""
    return np.array(ledger.openers[opener].theta, dtype=np.float64)


def _log_sum_exp(values: FloatArray) -> FloatArray:
    """Sum over the first axis. One summand stays exact, so that its weights are exactly 1."""
    largest = values.max(axis=0)
    return np.asarray(largest + np.log(np.exp(values - largest).sum(axis=0)))
