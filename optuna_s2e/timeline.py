r"""The generations of a study: as the storage tells them, and recomputed from the draws.

Every opener records which trials its update used, in which order, under which settings; so
theta_m follows from theta = 1 alone, bit for bit, whatever races and deaths happened.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import TrialState

from optuna_s2e import _optuna, newton
from optuna_s2e.history import Chain, Ledger
from optuna_s2e.newton import UpdateSettings
from optuna_s2e.records import Draw, Record, Rules

FloatArray = npt.NDArray[np.float64]


def next_theta(
    chain: Chain,
    members: Sequence[Draw],
    ledger: Ledger,
    thetas: Mapping[int, FloatArray],
    settings: UpdateSettings,
) -> newton.Update:
    r"""Return the update of a chain's theta by K new members, in their order.

    The draws of the last `settings.reuse` updates join the new ones. All draws together count as
    drawn from the mixture of the thetas that they came from (deterministic mixture, Owen and
    Zhou 2000): q(x) = \sum_j n_j p_{\theta_j}(x) / N. If all came from one theta, that is q.

    Args:
        chain: The chain up to the theta that moves.
        members: K draws from its space.
        ledger: Knows the draws, the openers and the direction.
        thetas: theta by opener number.
        settings: The settings of the update.

    Raises:
        ValueError: If a member is no draw from this space.
    """
    distribution = chain.space.distribution
    uniform = distribution.uniform_theta()
    reused = chain.openers[-settings.reuse :] if settings.reuse else ()
    draws = [*(ledger.draws[n] for record in reused for n in record.members), *members]
    points = chain.space.points(np.array([ledger.coordinates(chain.space, d) for d in draws]))
    counts = Counter(d.record.opener for d in draws)  # in the order of first appearance
    log_densities = [
        np.log(n / len(draws))
        + distribution.log_density(uniform if opener is None else thetas[opener], points)
        for opener, n in counts.items()
    ]
    return newton.update(
        distribution,
        thetas[chain.openers[-1].trial] if chain.openers else uniform,
        points,
        np.array([ledger.rules.loss(d.trial) for d in draws]),
        _log_sum_exp(np.array(log_densities)),
        settings,
    )


def _log_sum_exp(values: FloatArray) -> FloatArray:
    """Sum over the first axis; exact for one summand, so that its weights are exactly 1."""
    largest = values.max(axis=0)
    return np.asarray(largest + np.log(np.exp(values - largest).sum(axis=0)))


@dataclass(frozen=True)
class Generation:
    """One generation of a study, as the storage tells it.

    Attributes:
        index: m; 0 is theta = 1.
        theta: Parameters of p_theta, (n_theta,).
        opener: Number of the trial that recorded theta; None for index 0.
        members: Numbers of the trials whose losses the update to this theta used.
        trials: Numbers of the trials drawn from this theta, in any state.
        losses: f(x) of those trials, minimised; NaN where there is none (yet), (len(trials),).
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
    return _generations(study, replayed=False)


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
    return _generations(study, replayed=True)


def count_forks(study: Study) -> int:
    """Return how many openers lie off the chain: two workers opened a generation at once."""
    ledger = Ledger(Rules.of(study)).read(_optuna.all_trials(study))
    chain = ledger.state(1).chain
    return len(ledger.openers) - (len(chain.openers) if chain is not None else 0)


def _generations(study: Study, *, replayed: bool) -> list[Generation]:
    rules = Rules.of(study)
    ledger = Ledger(rules).read(_optuna.all_trials(study))
    draws, chain = ledger.draws, ledger.state(1).chain
    if chain is None:
        return [_generation(0, np.ones(0), None, draws, rules)]
    thetas = _replayed_thetas(chain, ledger) if replayed else ledger.thetas(chain.space)
    first = _generation(0, chain.space.distribution.uniform_theta(), None, draws, rules, chain)
    return [
        first,
        *(_generation(r.generation, thetas[r.trial], r, draws, rules) for r in chain.openers),
    ]


def _replayed_thetas(chain: Chain, ledger: Ledger) -> dict[int, FloatArray]:
    """Recompute theta of every opener of the chain's space, generation by generation."""
    thetas: dict[int, FloatArray] = {}
    for record in ledger.openers.values():  # by generation: parents and ancestors come first
        if record.space != chain.space.fingerprint:
            continue
        before = ledger.chain_to(record.parent, chain.space)
        settings, _ = split_settings(record.settings or {})
        members = [ledger.draws[n] for n in record.members]
        update = next_theta(before, members, ledger, thetas, settings)
        thetas[record.trial] = update.theta
    return thetas


def join_settings(settings: UpdateSettings, consider_pruned: bool) -> dict[str, Any]:
    """Return all that theta depends on besides the space, as a record keeps it."""
    return settings.to_dict() | {"consider_pruned_trials": consider_pruned}


def split_settings(recorded: Mapping[str, Any]) -> tuple[UpdateSettings, bool]:
    """Invert `join_settings`.

    Raises:
        ValueError: If the record holds settings that this release does not know.
    """
    values = dict(recorded)
    consider_pruned = values.pop("consider_pruned_trials", False)
    return UpdateSettings.from_dict(values), bool(consider_pruned)


def _generation(
    index: int,
    theta: FloatArray,
    opener: Record | None,
    draws: Mapping[int, Draw],
    rules: Rules,
    chain: Chain | None = None,
) -> Generation:
    number = opener.trial if opener is not None else None
    own = [
        d
        for d in draws.values()
        if d.record.generation == index
        and d.record.opener == number
        and (chain is None or d.tags == chain.space.tags)
    ]
    losses = [
        rules.loss(d.trial) if d.trial.state == TrialState.COMPLETE else math.nan for d in own
    ]
    return Generation(
        index=index,
        theta=theta,
        opener=number,
        members=tuple(draws[n].trial.number for n in opener.members) if opener else (),
        trials=tuple(d.trial.number for d in own),
        losses=np.array(losses, dtype=np.float64),
    )
