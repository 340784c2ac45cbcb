r"""The generations of a search, as recorded and as recomputed from the draws.

Every opener records which trials its update used, in which order and under which settings.
Therefore theta_m follows from theta = 1 alone, bit for bit, whatever races and deaths happened.
All functions here are pure: they take a ledger that has read the trials, and its chain.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history import Chain, Draw, Ledger, Record, split_settings
from optuna_s2e.sampler import next_theta, recomputes

DEFAULT_SIZE = 6  # completed trials between two updates of the pages of another sampler's study


@dataclass(frozen=True, eq=False)
class Generation:
    """One generation of a study.

    Attributes:
        index: m. Generation 0 is theta = 1.
        theta: Parameters of p_theta, (n_theta,).
        opener: Number of the trial that recorded theta. None for generation 0.
        members: Numbers of the trials whose losses the update to this theta used: the draws, then
            the other trials that the model of the loss knows from then on.
        trials: Numbers of the trials drawn in this generation, in any state. If two workers opened
            it at once, they include the draws from the other theta.
        losses: f(x) of those trials, minimised, (len(trials),). A pruned trial has its last
            report. NaN where there is no loss (yet).
    """

    index: int
    theta: FloatArray
    opener: int | None
    members: tuple[int, ...]
    trials: tuple[int, ...]
    losses: FloatArray


@dataclass(frozen=True)
class GenerationRow:
    """One row of the table of generations, as the command line and the dashboard show it.

    Attributes:
        index: m.
        opener: Number of the trial that recorded theta. None for generation 0.
        n_trials: How many trials were drawn in this generation.
        n_complete: How many of them have completed with a finite value.
        best: Their best value, in units of `trial.value`. None if there is none.
        mean: Their mean value. None if there is none.
    """

    index: int
    opener: int | None
    n_trials: int
    n_complete: int
    best: float | None
    mean: float | None


def recorded_generations(chain: Chain | None, ledger: Ledger) -> list[Generation]:
    """Return the generations with the thetas that the openers recorded, generation 0 first."""
    if chain is None:
        return [_generation(0, np.ones(0), None, ledger, _draws_by_generation(None, ledger))]
    thetas = {r.trial: np.array(r.theta, dtype=np.float64) for r in chain.openers}
    return _with_thetas(chain, ledger, thetas)


def replayed_generations(chain: Chain | None, ledger: Ledger) -> list[Generation]:
    """Return the same generations with every theta recomputed, as far as `recomputes` says so.

    Raises:
        ValueError: If a member is missing or was changed, so that no theta follows.
    """
    if chain is None:
        return recorded_generations(chain, ledger)
    return _with_thetas(chain, ledger, replay_thetas(chain, ledger))


def replay_thetas(chain: Chain, ledger: Ledger) -> dict[int, FloatArray]:
    """Recompute theta of every opener of the chain's space, forks included.

    A theta that an earlier release's model of the loss moved is taken as recorded, and those that
    follow it start there.

    Returns:
        theta by the opener's trial number, (n_theta,) each.

    Raises:
        ValueError: If a member is missing or was changed, so that no theta follows.
    """
    thetas: dict[int, FloatArray] = {}
    openers = [r for r in ledger.openers.values() if r.space == chain.space.fingerprint]
    for record in sorted(openers, key=lambda r: (r.generation, r.trial)):  # parents come first
        members = [ledger.draws[n] for n in record.members if n in ledger.draws]
        readable = [d for d in members if ledger.coordinates(chain.space, d) is not None]
        if len(readable) < len(record.members):
            missing = sorted(set(record.members) - {d.record.trial for d in readable})
            raise ValueError(
                f"theta of generation {record.generation} (trial {record.trial}) does not follow: "
                f"its members {missing} are no draws from the study's space (any more)."
            )
        if len(ledger.others.readable(chain.space, record.also)) < len(record.also):
            raise ValueError(
                f"theta of generation {record.generation} (trial {record.trial}) does not follow: "
                f"trials {sorted(record.also)}, which its model knows, were changed."
            )
        if not recomputes(record):
            thetas[record.trial] = np.array(record.theta, dtype=np.float64)
            continue
        parent = ledger.openers[record.parent] if record.parent is not None else None
        settings, _ = split_settings(record.settings or {})
        update = next_theta(
            chain.space, parent, members, ledger, thetas.__getitem__, settings, also=record.also
        )
        thetas[record.trial] = update.theta
    return thetas


def count_forks(chain: Chain | None, ledger: Ledger) -> int:
    """Return how many openers are not on the chain.

    A fork arises where two workers open the same generation at once.
    """
    if chain is None:
        return 0
    of_space = [r for r in ledger.openers.values() if r.space == chain.space.fingerprint]
    return len(of_space) - len(chain.openers)


def member_lags(chain: Chain | None, ledger: Ledger) -> tuple[int, ...]:
    """Return how many updates old each member of the chain was when it was used."""
    if chain is None:
        return ()
    return tuple(
        max(0, opener.generation - 1 - ledger.draws[n].record.generation)
        for opener in chain.openers
        for n in opener.members
        if n in ledger.draws
    )


def population_size(chain: Chain | None, ledger: Ledger) -> int | None:
    """Return K by the settings in force. None if S2ESampler drew no trial."""
    settings = ledger.settings_in_force(chain)
    return settings["population_size"] if settings is not None else None


def generation_rows(
    generations: Sequence[Generation], complete: Container[int], *, maximize: bool = False
) -> list[GenerationRow]:
    """Return the table of generations.

    Args:
        generations: The generations of a study.
        complete: Numbers of the completed trials with a finite value.
        maximize: Whether the study maximises, so that its values are the negative losses.
    """
    rows = []
    for g in generations:
        losses = g.losses[[n in complete for n in g.trials]]
        best, mean = None, None
        if losses.size:
            sign = -1.0 if maximize else 1.0
            best = sign * float(losses.min())
            mean = sign * statistics.mean(losses.tolist())  # no sum overflows
        rows.append(GenerationRow(g.index, g.opener, len(g.trials), losses.size, best, mean))
    return rows


def closes_generation(trial: FrozenTrial, trials: Sequence[FrozenTrial], ledger: Ledger) -> bool:
    """Return whether a finished trial is the K-th, 2K-th, ... that completed.

    K is the population size, or 6 in studies of other samplers. If several workers ask, at most
    one of them gets yes for the same K trials.

    Args:
        trial: A trial that has just finished.
        trials: All trials of the study, by number.
        ledger: A ledger that has read these trials.
    """
    size = population_size(ledger.state(1).chain, ledger)
    if size is not None:
        numbers = [d.trial.number for d in ledger.completed]  # in the order of membership
    else:
        size = DEFAULT_SIZE
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        complete.sort(key=lambda t: (_optuna.completed_at(t) or datetime.max, t.number))
        numbers = [t.number for t in complete]
    return trial.number in numbers and (numbers.index(trial.number) + 1) % size == 0


def _with_thetas(
    chain: Chain, ledger: Ledger, thetas: Mapping[int, FloatArray]
) -> list[Generation]:
    uniform = chain.space.distribution.uniform_theta()
    drawn = _draws_by_generation(chain, ledger)
    return [
        _generation(0, uniform, None, ledger, drawn),
        *(_generation(r.generation, thetas[r.trial], r, ledger, drawn) for r in chain.openers),
    ]


def _draws_by_generation(chain: Chain | None, ledger: Ledger) -> dict[int, list[Draw]]:
    """Group the draws by generation, forks included; leave out those of other spaces."""
    drawn: dict[int, list[Draw]] = {}
    for draw in ledger.draws.values():
        if chain is None or _is_from(chain.space, draw, ledger):
            drawn.setdefault(draw.record.generation, []).append(draw)
    return drawn


def _is_from(space: SearchSpace, draw: Draw, ledger: Ledger) -> bool:
    if draw.trial.state.is_finished():
        return ledger.coordinates(space, draw) is not None
    opener = draw.record.opener
    if opener is None:
        return True
    return opener in ledger.openers and ledger.openers[opener].space == space.fingerprint


def _generation(
    index: int,
    theta: FloatArray,
    opener: Record | None,
    ledger: Ledger,
    drawn: Mapping[int, list[Draw]],
) -> Generation:
    number = opener.trial if opener is not None else None
    own = drawn.get(index, [])
    losses = [ledger.rules.loss(d.trial) if _has_loss(d.trial) else math.nan for d in own]
    members = (*opener.members, *opener.also) if opener is not None else ()
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
