r"""The generations of a study: as the storage tells them, and recomputed from the draws.

Every opener records which trials its update used, in which order, under which settings; so
theta_m follows from theta = 1 alone, bit for bit, whatever races and deaths happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._typing import FloatArray
from optuna_s2e.history import Chain, Draw, Ledger, Record, Rules, split_settings
from optuna_s2e.sampler import next_theta, recorded_theta


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
