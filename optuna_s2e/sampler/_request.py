"""What is asked of the engine, how a draw is planned, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.trial import FrozenTrial

from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import Key
from optuna_s2e.history import Chain, Draw, Ledger, Slot, State


class Plan(NamedTuple):
    """How a trial is drawn.

    Attributes:
        chain: The chain whose theta the trial is drawn from. None draws from theta = 1
            (generation 0).
        members: The draws that move theta first: the trial opens a generation. Without members
            the trial joins the generation of the chain's head.
        pending: Coordinates of the draws whose losses are not known yet, (P, d).
        failed: Coordinates of the draws that failed, (F, d).
    """

    chain: Chain | None
    members: Sequence[Draw] = ()
    pending: FloatArray = np.empty((0, 0))
    failed: FloatArray = np.empty((0, 0))


def plan_next(ledger: Ledger, state: State, population_size: int) -> Plan:
    """Plan the draw of a trial that is asked for alone (docs/architecture.md, rule 3).

    Args:
        ledger: What the study's trials say.
        state: Where the search stands.
        population_size: K.
    """
    chain = state.chain
    members = state.members(population_size)
    if chain is None:
        return Plan(None)
    return Plan(chain, members, ledger.pending(chain, members), ledger.failed(chain))


class Request(NamedTuple):
    """A running trial that is to be drawn.

    Attributes:
        trial: The trial.
        state: Where the search stands, if `Engine.state` was called for this trial before.
        slot: The place of the trial in a search by batches. None in any other search.
        plan: Returns the plan for (ledger, state, population size), or None if the trial must
            not be drawn any more.
    """

    trial: FrozenTrial
    state: State | None = None
    slot: Slot | None = None
    plan: Callable[[Ledger, State, int], Plan | None] = plan_next


class Drawn(NamedTuple):
    """What was drawn for a trial.

    Attributes:
        key: Keys the parameters that theta does not describe.
        chain: The chain whose theta the trial was drawn from. None in generation 0.
        params: The parameters that theta describes, by name.
    """

    key: Key
    chain: Chain | None
    params: Mapping[str, Any]
