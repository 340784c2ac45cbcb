r"""The generations of a study: as the storage tells them, and recomputed from the draws.

Every opener records which trials its update used, in which order, under which settings; so
theta_m follows from theta = 1 alone, bit for bit, whatever races and deaths happened.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna, assisted, newton
from optuna_s2e.assisted import Model
from optuna_s2e.history import Chain, Ledger
from optuna_s2e.one_thread import one_blas_thread
from optuna_s2e.records import Draw, Record, Rules, split_settings
from optuna_s2e.search_space import SearchSpace, keyed_rng
from optuna_s2e.settings import UpdateSettings

FloatArray = npt.NDArray[np.float64]

MAX_MODEL_DRAWS = 200  # the cubic cost of a fit: about 30 ms


@one_blas_thread()
def next_theta(
    space: SearchSpace,
    parent: Record | None,
    members: Sequence[Draw],
    ledger: Ledger,
    thetas: Callable[[int], FloatArray],
    settings: UpdateSettings,
    model: Model | None = None,
) -> newton.Update:
    r"""Return the update of a theta by K new members, in their order.

    The draws of the last `settings.reuse` updates join the new ones. For the surrogate-assisted
    estimator they are what the model is fitted to. For the others, all draws together count as
    drawn from the mixture of the thetas that they came from (deterministic mixture, Owen and
    Zhou 2000): q(x) = \sum_j n_j p_{\theta_j}(x) / N. If all came from one theta, that is q.
    Equal thetas are one, whoever recorded them: the update does not depend on trial numbers.

    Args:
        space: What theta describes.
        parent: The opener that recorded the theta to move; None is theta = 1.
        members: K draws from the space.
        ledger: Knows the draws, the openers and the direction.
        thetas: theta by opener number.
        settings: The settings of the update.
        model: What `fit_model` returns for the same arguments, if that is known already. If no
            model can be fitted, the update is the paper's Newton step instead.

    Raises:
        ValueError: If there is no member from this space.
    """
    distribution = space.distribution
    uniform = distribution.uniform_theta()
    theta = thetas(parent.trial) if parent is not None else uniform
    if settings.estimator == "surrogate":
        model = model or fit_model(space, parent, members, ledger, settings)
        if model is not None:
            rng = keyed_rng(2, 0 if parent is None else parent.generation)
            return assisted.update(theta, model, settings, rng)
        settings = replace(settings, estimator="newton", reuse=0)
    draws, x = _evidence(space, parent, members, ledger, settings.reuse)
    own = [i for i, d in enumerate(draws) if not _is_assisted(d, ledger)]
    if own and settings.reuse:  # the density of assisted draws is not known
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
        np.array([ledger.rules.loss(d.trial) for d in draws]),
        _log_sum_exp(np.array(log_densities)),
        settings,
    )


@one_blas_thread()
def fit_model(
    space: SearchSpace,
    parent: Record | None,
    members: Sequence[Draw],
    ledger: Ledger,
    settings: UpdateSettings,
) -> Model | None:
    """Fit the model of an update; None if the draws allow none.

    Of more than `MAX_MODEL_DRAWS` draws, the newer half are the newest and the rest are evenly
    spread over all older ones, so that the model does not forget where the bad regions are.
    """
    draws, x = _evidence(space, parent, members, ledger, settings.reuse)
    older = max(0, len(draws) - MAX_MODEL_DRAWS // 2)
    if len(draws) > MAX_MODEL_DRAWS:
        spread = np.linspace(0, older - 1, MAX_MODEL_DRAWS - MAX_MODEL_DRAWS // 2).round()
        kept = [*spread.astype(int).tolist(), *range(older, len(draws))]
        draws, x = [draws[i] for i in kept], x[kept]
    losses = np.array([ledger.rules.loss(d.trial) for d in draws])
    asked = np.array([space.asked(d.trial.params) for d in draws])
    try:
        model = Model.fit(space, x, asked, losses)
    except (ValueError, ArithmeticError):  # LinAlgError is a ValueError
        return None
    return model if np.isfinite(model.surrogate.mean(model.surrogate.features)).all() else None


def _evidence(
    space: SearchSpace,
    parent: Record | None,
    members: Sequence[Draw],
    ledger: Ledger,
    reuse: int,
) -> tuple[list[Draw], FloatArray]:
    """Return the draws of an update, those of earlier updates first, and their x (N, d)."""
    reused = [n for r in ledger.last_openers(parent, reuse) for n in r.members]
    draws, x = [], []
    for draw in [*(ledger.draws[n] for n in reused if n in ledger.draws), *members]:
        coordinates = ledger.coordinates(space, draw) if draw.trial.state.is_finished() else None
        if coordinates is not None:  # a record that was damaged since is left out
            draws.append(draw)
            x.append(coordinates)
    if not draws:
        raise ValueError("No member is a draw from the study's space.")
    return draws, np.array(x)


def _is_assisted(draw: Draw, ledger: Ledger) -> bool:
    opener = ledger.openers.get(draw.record.opener) if draw.record.opener is not None else None
    settings = opener.settings if opener is not None else None
    return settings is not None and settings["estimator"] == "surrogate"


def recorded_theta(ledger: Ledger, opener: int) -> FloatArray:
    """Return the theta that an opener recorded."""
    return np.array(ledger.openers[opener].theta, dtype=np.float64)


def _log_sum_exp(values: FloatArray) -> FloatArray:
    """Sum over the first axis; exact for one summand, so that its weights are exactly 1."""
    largest = values.max(axis=0)
    return np.asarray(largest + np.log(np.exp(values - largest).sum(axis=0)))


@dataclass(frozen=True, eq=False)
class Generation:
    """One generation of a study, as the storage tells it.

    Attributes:
        index: m; 0 is theta = 1.
        theta: Parameters of p_theta, (n_theta,).
        opener: Number of the trial that recorded theta; None for index 0.
        members: Numbers of the trials whose losses the update to this theta used.
        trials: Numbers of the trials drawn from this theta, in any state.
        losses: f(x) of those trials, minimised, of a pruned one its last report; NaN where there
            is none (yet), (len(trials),).
    """

    index: int
    theta: FloatArray
    opener: int | None
    members: tuple[int, ...]
    trials: tuple[int, ...]
    losses: FloatArray


def generations(study: Study) -> list[Generation]:
    """Return the generations of a study: what the storage says.

    Works on any study, also while workers write to it, and reads only.

    Args:
        study: A study, with or without trials drawn by `S2ESampler`.

    Returns:
        One record per generation, index 0 (theta = 1) first. A study without such trials has
        index 0 only, with an empty theta.

    Raises:
        ValueError: If the study has several objectives.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler, generations
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=9)
        >>> [g.index for g in generations(study)], generations(study)[1].members
        ([0, 1, 2], (0, 1, 2, 3))
    """
    ledger = Ledger(Rules.of(study)).read(_optuna.all_trials(study))
    return _generations(ledger, replayed=False)


def replay(study: Study) -> list[Generation]:
    """Return the generations of a study with every theta recomputed.

    Each theta is computed anew from theta = 1, the recorded draws, the values of the members and
    the recorded settings. On the platform and library versions that wrote the study the result
    equals `generations(study)` bit for bit, whatever races and deaths happened.

    Args:
        study: A study.

    Returns:
        The same list as `generations(study)`.

    Raises:
        ValueError: If a member is missing or was changed since, so that no theta follows.
    """
    return compare(study).computed


def count_forks(study: Study) -> int:
    """Return how many openers lie off the chain: two workers opened a generation at once."""
    ledger = Ledger(Rules.of(study)).read(_optuna.all_trials(study))
    chain = ledger.state(1).chain
    if chain is None:
        return 0
    of_space = [r for r in ledger.openers.values() if r.space == chain.space.fingerprint]
    return len(of_space) - len(chain.openers)


def recorded_settings(study: Study) -> Mapping[str, Any] | None:
    """Return the settings of the last update, or of the draws before the first; None if none."""
    ledger = Ledger(Rules.of(study)).read(_optuna.all_trials(study))
    chain = ledger.state(1).chain
    if chain is not None and chain.head is not None:
        return chain.head.settings
    first = (d.record for d in ledger.draws.values() if d.record.generation == 0)
    return next((record.settings for record in first), None)


class Comparison(NamedTuple):
    """One reading of a study: generations as told, as recomputed, and what cannot be followed."""

    told: list[Generation]
    computed: list[Generation]
    damage: list[str]


def compare(study: Study) -> Comparison:
    """Return `generations(study)` and `replay(study)` of the same moment.

    Raises:
        ValueError: As `replay`.
    """
    ledger = Ledger(Rules.of(study)).read(_optuna.all_trials(study))
    return Comparison(
        _generations(ledger, replayed=False), _generations(ledger, replayed=True), ledger.damage()
    )


def _generations(ledger: Ledger, *, replayed: bool) -> list[Generation]:
    chain = ledger.state(1).chain
    if chain is None:
        return [_generation(0, np.ones(0), None, ledger, _drawn(ledger, None))]
    uniform = chain.space.distribution.uniform_theta()
    thetas = (
        _replayed_thetas(chain, ledger)
        if replayed
        else {r.trial: recorded_theta(ledger, r.trial) for r in chain.openers}
    )
    drawn = _drawn(ledger, chain)
    return [
        _generation(0, uniform, None, ledger, drawn),
        *(_generation(r.generation, thetas[r.trial], r, ledger, drawn) for r in chain.openers),
    ]


def _drawn(ledger: Ledger, chain: Chain | None) -> dict[tuple[int, int | None], list[Draw]]:
    """Return the draws of a chain's space (finished ones) by generation and opener."""
    drawn: dict[tuple[int, int | None], list[Draw]] = {}
    for draw in ledger.draws.values():
        if (
            chain is None
            or not draw.trial.state.is_finished()
            or ledger.coordinates(chain.space, draw) is not None
        ):
            drawn.setdefault((draw.record.generation, draw.record.opener), []).append(draw)
    return drawn


def _replayed_thetas(chain: Chain, ledger: Ledger) -> dict[int, FloatArray]:
    """Recompute theta of every opener of the chain's space, generation by generation."""
    thetas: dict[int, FloatArray] = {}
    own = [r for r in ledger.openers.values() if r.space == chain.space.fingerprint]
    for record in sorted(own, key=lambda r: (r.generation, r.trial)):  # parents come first
        members = [ledger.draws[n] for n in record.members if n in ledger.draws]
        readable = [d for d in members if ledger.coordinates(chain.space, d) is not None]
        if len(readable) < len(record.members):
            missing = sorted(set(record.members) - {d.record.trial for d in readable})
            raise ValueError(
                f"theta of generation {record.generation} (trial {record.trial}) does not follow: "
                f"its members {missing} are no draws from the study's space (any more)."
            )
        parent = ledger.openers[record.parent] if record.parent is not None else None
        settings, _ = split_settings(record.settings or {})
        update = next_theta(chain.space, parent, members, ledger, thetas.__getitem__, settings)
        thetas[record.trial] = update.theta
    return thetas


def _generation(
    index: int,
    theta: FloatArray,
    opener: Record | None,
    ledger: Ledger,
    drawn: Mapping[tuple[int, int | None], list[Draw]],
) -> Generation:
    number = opener.trial if opener is not None else None
    own = drawn.get((index, number), [])
    losses = [ledger.rules.loss(d.trial) if _has_loss(d.trial) else math.nan for d in own]
    members = opener.members if opener is not None else ()
    return Generation(
        index=index,
        theta=theta,
        opener=number,
        members=tuple(ledger.draws[n].trial.number if n in ledger.draws else n for n in members),
        trials=tuple(d.trial.number for d in own),
        losses=np.array(losses, dtype=np.float64),
    )


def _has_loss(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None
