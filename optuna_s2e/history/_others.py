"""Trials that are no draws, whose losses the model of the default estimator knows all the same."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice

from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import FIXED_PARAMS_KEY
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history._record import (
    MAX_ALSO,
    Draw,
    Record,
    Rules,
    failed_by_objective,
    own_record,
    read_tags,
)


class Others:
    """The finished trials of a study that are no draws.

    They were enqueued, added, drawn by another sampler, or are the schedule that is suggested for
    a noise rate.

    Attributes:
        given: Slots of a search by batches whose trial got fixed parameters. They are those of
            that trial or, if a machine lost it, of one that was enqueued in its place.
        failed: How often the objective failed such a trial of a slot.
    """

    def __init__(self) -> None:
        self.given: set[int] = set()
        self.failed: Counter[int] = Counter()
        self._completed: list[FrozenTrial] = []
        self._by_number: dict[int, FrozenTrial] = {}

    def __len__(self) -> int:
        return len(self._completed)

    def take(self, trial: FrozenTrial, rules: Rules) -> None:
        """Read a finished trial that is no draw."""
        if trial.state != TrialState.FAIL:  # who only looks at a search counts no pruned ones
            self._by_number[trial.number] = trial
        if rules.counts(trial):
            insort(self._completed, trial, key=_order)
        record = own_record(trial.system_attrs, trial)
        if record is None or record.slot is None or record.generation > 0:
            return
        if failed_by_objective(trial):
            self.failed[record.slot] += 1
        elif FIXED_PARAMS_KEY in trial.system_attrs:
            self.given.add(record.slot)

    def unknown(
        self, space: SearchSpace, openers: Iterable[Record], draws: Iterable[Draw]
    ) -> list[FrozenTrial]:
        """Return the trials of a space that no opener names, in the order of completion.

        Args:
            space: Space of the search.
            openers: The openers of the search.
            draws: Completed draws. A trial must have the parameters of one of them, for the model
                learns from all trials where parameters are active.

        Returns:
            At most `MAX_ALSO` trials, the newest ones.
        """
        if not self._completed:
            return []
        known, names = {n for opener in openers for n in opener.also}, set(space.names)
        branches = {frozenset(names & d.trial.params.keys()) for d in draws}
        fresh = (
            t
            for t in reversed(self._completed)
            if t.number not in known and names & t.params.keys() in branches and _is_of(t, space)
        )
        return list(islice(fresh, MAX_ALSO))[::-1]

    def readable(self, space: SearchSpace, numbers: Sequence[int]) -> list[FrozenTrial]:
        """Return those of the numbered trials that are of a space, in the order of the numbers."""
        found = [self._by_number[n] for n in numbers if n in self._by_number]
        return [t for t in found if _is_of(t, space)]


def _is_of(trial: FrozenTrial, space: SearchSpace) -> bool:
    """Say whether a trial describes its parameters and its schedule as a space does.

    Optuna lets an enqueued value be out of its range. No point of the space stands for it.
    """
    present = [n for n in space.names if n in trial.distributions]
    return (
        bool(present)
        and all(trial.distributions[n] == space.distributions[n] for n in present)
        and all(_optuna.contains(space.distributions[n], trial.params[n]) for n in present)
        and all(space.tags.get(n, v) == v for n, v in read_tags(trial).items())
    )


def _order(trial: FrozenTrial) -> tuple[datetime, int]:
    return (_optuna.completed_at(trial) or datetime.max, trial.number)
