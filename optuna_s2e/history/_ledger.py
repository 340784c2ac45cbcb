r"""Where a search stands: the chain of openers and the pool, read from a study's trials.

Notation
    chain       the openers from generation 1 to the head
    pool        completed draws that are not yet members on the chain, oldest first

Nothing here is state: a ledger can be made anew from the trials at any time. These are the rules
(docs/architecture.md). The head is the opener with the largest generation; the lowest number wins
a tie. K completed draws in the pool open the next generation, whatever theta they were drawn from.
Members are taken in the order (time of completion, number).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e._optuna import Trials
from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history._origin import is_in_cube, locate, other_schedule, space_of
from optuna_s2e.history._others import Others
from optuna_s2e.history._record import Draw, Record, Rules, Tags, is_of_later_release, read_draw
from optuna_s2e.history._sources import Sources
from optuna_s2e.schedules import N_EPOCHS

_NO_TAGS: Tags = {}
MAX_PENDING = 256  # looked at per draw


@dataclass(frozen=True)
class Chain:
    """The openers from generation 1 to a head, with the space that their thetas describe.

    Attributes:
        space: The searched parameters.
        openers: Records of the openers, generation 1 first; empty in generation 0.
        members: Numbers of all members on the chain.
        n_counted: Number of members that count by the rules of the reader, normally all.
    """

    space: SearchSpace
    openers: tuple[Record, ...] = ()
    members: frozenset[int] = frozenset()
    n_counted: int = 0

    @property
    def head(self) -> Record | None:
        """The opener of the largest generation; None in generation 0."""
        return self.openers[-1] if self.openers else None

    @property
    def theta(self) -> FloatArray:
        """The head's theta, or theta = 1."""
        if self.head is None:
            return self.space.distribution.uniform_theta()
        return np.array(self.head.theta, dtype=np.float64)


class State(NamedTuple):
    """What a worker knows when it draws.

    Attributes:
        chain: The chain to go on with; None while no space is known (generation 0).
        pool: Completed draws that the next update may use, in the order of membership.
        left_behind: Why the last completed draw is not from the chain's space, if none of the
            last K is. None otherwise.
    """

    chain: Chain | None
    pool: list[Draw]
    left_behind: str | None = None

    def members(self, population_size: int) -> Sequence[Draw]:
        """Return the draws that open the next generation; none while too few losses are known.

        Args:
            population_size: K, as the state was found with.
        """
        if self.chain is None:
            return ()
        enough = self.chain.head is None or len(self.pool) >= population_size
        return self.pool[:population_size] if enough else ()


class Ledger:
    """The draws of one study, read incrementally: finished trials never change.

    A new ledger that reads all trials at once knows the same as one that followed them. Not
    thread-safe.

    Attributes:
        rules: Direction, and what counts.
        sources: Trials of earlier studies that the search learns from, if any.
        trials: All trials of the study, as they were read last.
        draws: Draws by the trial number in their record. If two trials have the same record (a
            retry, a copied database), the first one that completed counts. If none completed,
            the last one counts.
        completed: The draws whose values count, in the order of membership.
        others: The finished trials that are no draws.
        openers: Records of the valid openers by trial number.
        used: Numbers of the members of all valid openers, whichever chain they are on, and the
            fingerprint of the space in which they were last used.
        slots: Draws of a search by batches: by slot, then by trial number.
        newest_tags: The schedule space that the newest draw with a schedule names, or empty.
        later_release: Number of a trial whose record only a later release can read.
    """

    def __init__(self, rules: Rules, sources: Sources | None = None) -> None:
        self.rules = rules
        self.sources = sources
        self._reset()

    def _reset(self) -> None:
        self.draws: dict[int, Draw] = {}
        self.completed: list[Draw] = []
        self.others = Others()
        self.openers: dict[int, Record] = {}
        self.used: dict[int, str | None] = {}
        self.slots: dict[int, dict[int, Draw]] = {}
        self.newest_tags: Tags = {}
        self.later_release: int | None = None
        self._newest_tagged = -1
        self._claimed: dict[int, Record] = {}  # openers that are not valid (yet)
        self._spaces: dict[str | None, SearchSpace] = {}  # by fingerprint
        self._heads: dict[str | None, Record] = {}  # of each space
        self._newest: dict[str | None, int] = {}  # number of the last opener of each space
        self._chains: dict[str | None, Chain] = {}  # the last one of each space
        self._located: dict[tuple[str, int], FloatArray | str] = {}
        self.trials: Trials = ()
        self._n_seen = 0
        self._evidence: dict[tuple[str, int], tuple[list[Draw], FloatArray]] = {}
        self._unfinished: set[int] = set()
        self._failed: list[int] = []
        self._last_finished: FrozenTrial | None = None

    def is_continued_by(self, trials: Trials) -> bool:
        """Say whether trials are of the study that was read, and not of one made anew."""
        last = self._last_finished
        return last is None or (
            len(trials) >= self._n_seen
            and (trials[last.number] is last or trials[last.number] == last)
        )

    def read(self, trials: Trials) -> Ledger:
        """Read all trials of the study, by number, and return the ledger."""
        if not self.is_continued_by(trials):
            self._reset()
        fresh = sorted(self._unfinished) + list(range(self._n_seen, len(trials)))
        self.trials, self._n_seen = trials, len(trials)
        for number in fresh:
            trial = trials[number]
            if trial.state.is_finished():
                self._unfinished.discard(number)
                self._last_finished = trial
            else:
                self._unfinished.add(number)
            draw = read_draw(trial) if DRAW_KEY in trial.system_attrs else None
            if draw is not None:
                self._take(draw)
                if trial.state == TrialState.FAIL:
                    self._failed.append(draw.record.trial)
            elif is_of_later_release(trial):
                self.later_release = number
            else:
                if number in self.draws:  # its parameters were fixed since it was read
                    self._drop(self.draws[number])
                if trial.state.is_finished():
                    self.others.take(trial, self.rules)
        self._validate_openers()
        return self

    def _take(self, draw: Draw) -> None:
        number = draw.record.trial
        other = self.draws.get(number)
        if other is not None and self.rules.counts(other.trial):
            return
        if other is not None and other.trial.state.is_finished():
            self._evidence.clear()
        self.draws[number] = draw
        if draw.record.slot is not None:
            self.slots.setdefault(draw.record.slot, {})[number] = draw
        if draw.record.is_opener and number not in self.openers:
            self._claimed[number] = draw.record
        if draw.tags and number >= self._newest_tagged:
            self._newest_tagged, self.newest_tags = number, draw.tags
        if self.rules.counts(draw.trial):
            insort(self.completed, draw, key=lambda d: d.membership_order)

    def _drop(self, draw: Draw) -> None:
        """Forget a running draw, which is none any more."""
        number, slot = draw.record.trial, draw.record.slot
        if not draw.trial.state.is_finished():
            del self.draws[number]
            if slot is not None:
                del self.slots[slot][number]

    def _validate_openers(self) -> None:
        """Accept the openers whose parents lead to generation 1 in the same space.

        Their members must exist. A member that cannot be read any more does not stop a search,
        because the recorded theta is the authority. Only a replay fails.
        """
        for record in sorted(self._claimed.values(), key=lambda r: (r.generation, r.trial)):
            members = (*record.members, *record.also)
            if max(members) >= self._n_seen or record.trial in members:
                continue
            parent = self.openers.get(record.parent) if record.parent is not None else None
            if record.generation == 1:
                space = self._first_space(record) if record.parent is None else None
            elif parent is not None and parent.generation == record.generation - 1:
                space = self._spaces[parent.space]
            else:
                continue
            if space is None or space.fingerprint != record.space:
                continue
            if space.distribution.n_theta == len(record.theta or ()):
                self._lead(record)
                self._spaces[record.space] = space
                self.openers[record.trial] = record
                self.used.update(dict.fromkeys(record.members, record.space))
                del self._claimed[record.trial]

    def _first_space(self, record: Record) -> SearchSpace | None:
        draws = [self.draws[n] for n in record.members if n in self.draws]
        states = (TrialState.COMPLETE, TrialState.PRUNED)  # a failed one may lack parameters
        draws = [d for d in draws if d.record.generation == 0 and d.trial.state in states]
        for conditional in (True, False):  # as in 0.1 before conditional parameters were searched
            space = space_of(draws, conditional=conditional) if draws else SearchSpace({})
            if space.names and space.fingerprint == record.space:
                return space
        return None

    def chains(self, tags: Tags) -> Iterator[Chain]:
        """Yield the chain of each space that has these tags, the newest space first.

        The head is the opener with the largest generation; the lowest number wins a tie.
        """
        for space in sorted(self._heads, key=lambda s: -self._newest[s]):
            if tags.items() <= self._spaces[space].tags.items():
                yield self._chain(self._heads[space])

    def _lead(self, record: Record) -> None:
        """Make an opener the head of its space, if it is ahead of the others."""
        head = self._heads.get(record.space)
        if head is None or (record.generation, -record.trial) > (head.generation, -head.trial):
            self._heads[record.space] = record
        self._newest[record.space] = max(self._newest.get(record.space, -1), record.trial)

    def _chain(self, head: Record) -> Chain:
        """Return the chain that leads to a head, by extending the last chain of its space."""
        chain = self._chains.get(head.space, Chain(self._spaces[head.space]))
        known = chain.head
        if head is known:
            return chain
        new: list[Record] = []
        record: Record | None = head
        while record is not None and record is not known:
            new.append(record)
            record = self._parent(record)
        if record is None:  # generation 0 was reached: another branch
            chain = Chain(chain.space)
        new.reverse()
        members = [n for r in new for n in r.members]
        counted = (self.rules.counts(self.draws[n].trial) for n in members if n in self.draws)
        chain = Chain(
            chain.space,
            (*chain.openers, *new),
            chain.members.union(members),
            chain.n_counted + sum(counted),
        )
        self._chains[head.space] = chain
        return chain

    def _parent(self, record: Record) -> Record | None:
        return self.openers[record.parent] if record.parent is not None else None

    def last_openers(self, head: Record | None, n: int) -> list[Record]:
        """Return the last n openers that lead to a head, including the head, oldest first."""
        found: list[Record] = []
        while head is not None and len(found) < n:
            found.append(head)
            head = self._parent(head)
        return found[::-1]

    def state(
        self,
        population_size: int,
        *,
        tags: Tags = _NO_TAGS,
        adopt: bool = False,
        with_others: bool = False,
    ) -> State:
        """Find the head, its chain and the pool.

        Args:
            population_size: K. The first generation opens on the parameters of K draws, and a
                chain is left behind if none of the last K draws is from its space.
            tags: The schedule space that the asking trial names before it searches a parameter.
                None by default.
            adopt: Whether to leave a chain that was left behind.
            with_others: Whether the losses of trials that are no draws count for the K of the
                first generation, too. At least half must be draws: the space follows from them.
        """
        for chain in self.chains(tags):
            left_behind = self._left_behind(chain, population_size, tags, adopt)
            if not adopt or left_behind is None:
                head = chain.head
                assert head is not None
                pool = [
                    d
                    for d in self._unused(chain)
                    if d.record.generation <= head.generation
                    and self.used.get(d.record.trial, head.space) == head.space
                    and self.coordinates(chain.space, d) is not None
                ]
                return State(chain, pool, left_behind)
        n_others = min(len(self.others), population_size // 2) if with_others else 0
        return self._first_generation(population_size, tags, population_size - n_others)

    def _unused(self, chain: Chain) -> list[Draw]:
        """Return the completed draws that are not members of a chain, in order.

        The members are the oldest draws, so the search starts at the newest.
        """
        unused: list[Draw] = []
        n_unused = len(self.completed) - chain.n_counted
        for draw in reversed(self.completed):
            if len(unused) == n_unused:
                break
            if draw.record.trial not in chain.members:
                unused.append(draw)
        return unused[::-1]

    def _left_behind(self, chain: Chain, size: int, tags: Tags, adopt: bool) -> str | None:
        """Return why the last completed draw is not from the chain's space.

        Return None if one of the last K is. A draw whose schedule the space does not know is not
        from it if that is to be adopted; otherwise it counts with its other parameters.
        """
        own = (d for d in reversed(self.completed) if tags.items() <= d.tags.items())
        last = list(islice(own, size))
        if len(last) < size:
            return None
        reasons = [
            other_schedule(d, chain.space)
            if adopt and d.tags.keys() - chain.space.tags.keys() - {N_EPOCHS}
            else self._locate(chain.space, d)
            for d in last
        ]
        return reasons[0] if all(isinstance(r, str) for r in reasons) else None  # type: ignore[return-value]

    def settings_in_force(self, chain: Chain | None) -> Mapping[str, Any] | None:
        """Return the settings that the records name last; None if there is no record.

        Failed trials of generation 0 do not count: nothing follows from them, and the settings may
        be why they failed.
        """
        if chain is not None and chain.head is not None:
            return chain.head.settings
        for draw in self.draws.values():
            if draw.record.generation == 0 and draw.trial.state != TrialState.FAIL:
                return draw.record.settings
        return None

    def evidence(self, space: SearchSpace, opener: Record) -> tuple[list[Draw], FloatArray]:
        """Return the readable members of an opener, in order, and their x (K, d)."""
        key = (space.fingerprint, opener.trial)
        if key in self._evidence:
            return self._evidence[key]
        found = self.located(space, [self.draws[n] for n in opener.members if n in self.draws])
        if len(found[0]) == len(opener.members):  # else one may still become readable
            self._evidence[key] = found
        return found

    def unknown(self, chain: Chain) -> list[FrozenTrial]:
        """Return the completed trials that are no draws and that no model of a chain knows."""
        return self.others.unknown(chain.space, chain.openers, self.completed)

    @property
    def has_waiting(self) -> bool:
        """Whether an enqueued trial waits to be run."""
        return any(self.trials[n].state == TrialState.WAITING for n in self._unfinished)

    def coordinates(self, space: SearchSpace, draw: Draw) -> FloatArray | None:
        """Return x (d,) of a finished draw, or None if it is not from this space."""
        x = self._locate(space, draw)
        return None if isinstance(x, str) else x

    def _locate(self, space: SearchSpace, draw: Draw) -> FloatArray | str:
        key = (space.fingerprint, draw.record.trial)
        if key in self._located:
            return self._located[key]
        found = locate(draw, space, self.openers)
        if draw.record.opener is None or draw.record.opener in self.openers:
            self._located[key] = found  # else its opener may still appear
        return found

    def pending(self, chain: Chain, members: Sequence[Draw] = ()) -> FloatArray:
        """Return x (P, d) of the draws whose losses the model of a generation does not know.

        These draws still run, or have completed and wait in the pool. Only the newest
        `MAX_PENDING` are returned.

        Args:
            chain: The chain that the generation belongs to, or continues.
            members: The members of a generation that is being opened.
        """
        numbers = {*self._unfinished, *(d.record.trial for d in self._unused(chain))}
        numbers -= {d.record.trial for d in members}
        x = []
        for number in sorted(numbers)[-MAX_PENDING:]:
            record = self.draws[number].record if number in self.draws else None
            if record is not None and record.x is not None and is_in_cube(record.x, chain.space):
                x.append(record.x)
        return np.array(x, dtype=np.float64).reshape(-1, len(chain.space.names))

    def failures(self, newest: int | None = None) -> list[Draw]:
        """Return the draws that failed: all, or the `newest` ones that were read last."""
        numbers = self._failed if newest is None else self._failed[-newest:]
        draws = [self.draws[n] for n in numbers if n in self.draws]
        return [d for d in draws if d.trial.state == TrialState.FAIL]  # a retry may complete

    def failed(self, chain: Chain) -> FloatArray:
        """Return x (F, d) of the newest `MAX_PENDING` failed draws from a chain's space."""
        return self.located(chain.space, self.failures(MAX_PENDING))[1]

    def located(self, space: SearchSpace, draws: Sequence[Draw]) -> tuple[list[Draw], FloatArray]:
        """Return the finished draws that are from the space, and their x (F, d)."""
        finished = [d for d in draws if d.trial.state.is_finished()]
        found = [(d, x) for d in finished if (x := self.coordinates(space, d)) is not None]
        x = np.array([x for _, x in found], dtype=np.float64).reshape(-1, len(space.names))
        return [d for d, _ in found], x

    def damage(self) -> list[str]:
        """Return one line for each record that cannot be followed."""
        lines = [f"Trial {n} records a theta that does not follow." for n in sorted(self._claimed)]
        lines += [
            f"Trial {d.trial.number} was drawn from a theta that no trial records."
            for d in self.draws.values()
            if d.record.opener is not None
            and d.record.opener not in self.openers
            and d.record.opener not in self._claimed
        ]
        return lines

    def _first_generation(self, population_size: int, tags: Tags, least: int) -> State:
        """Look for K completed draws of generation 0, in a row, that share parameters.

        Trials that are no draws may stand for some of them; at least `least` must be draws.
        """
        pool = [
            d
            for d in self.completed
            if d.record.generation == 0
            and d.record.trial not in self.used
            and tags.items() <= d.tags.items()
        ]
        pool = pool[-10 * population_size :]  # an objective may never repeat a parameter
        for start in range(len(pool) - least + 1):
            members = pool[start : start + population_size]
            chain = Chain(space_of(members))
            missing = population_size - len(members)
            if chain.space.names and (not missing or len(self.unknown(chain)) >= missing):
                return State(chain, members)
        return State(None, pool)
