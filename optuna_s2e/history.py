r"""Where a search stands: the chain of openers and the pool, read from a study's trials.

Notation
    chain       the openers from generation 1 to the head
    pool        completed draws that are not yet members on the chain, oldest first

Nothing here is state: a ledger can be made anew from the trials at any time. The rules
(docs/architecture.md): the head is the opener with the largest generation, ties to the lowest
number; K completed draws in the pool, whatever theta they were drawn from, open the next
generation; members are taken in the order (time of completion, number).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from optuna_s2e.records import RECORD_KEY, Draw, Record, Rules, Tags, read_draw
from optuna_s2e.search_space import SearchSpace, decode, intersection, same_value

FloatArray = npt.NDArray[np.float64]
_NO_TAGS: Tags = {}


@dataclass(frozen=True)
class Chain:
    """The openers from generation 1 to a head, with the space that their thetas describe.

    Attributes:
        space: The searched parameters.
        openers: Records of the openers, generation 1 first; empty in generation 0.
        members: Numbers of all members on the chain.
        n_counted: How many of them count by the rules of the reader, normally all.
    """

    space: SearchSpace
    openers: tuple[Record, ...] = ()
    members: frozenset[int] = frozenset()
    n_counted: int = 0

    @property
    def theta(self) -> FloatArray:
        """The head's theta, or theta = 1."""
        if not self.openers:
            return self.space.distribution.uniform_theta()
        return np.array(self.openers[-1].theta, dtype=np.float64)

    def coordinates(self, draw: Draw, openers: Mapping[int, Record]) -> FloatArray | None:
        """Return x (d,) if the trial is a draw from this space, as it was recorded."""
        trial, record = draw.trial, draw.record
        if draw.tags != self.space.tags:
            return None
        for name, d in self.space.distributions.items():
            if trial.distributions.get(name) != d:
                return None
        if record.generation == 0:
            if not all(name in draw.uniform for name in self.space.names):
                return None
            return np.array([draw.uniform[name] for name in self.space.names])
        opener = openers.get(record.opener) if record.opener is not None else None
        if opener is None or opener.space != self.space.fingerprint:
            return None
        return self._recorded(record, trial)

    def _recorded(self, record: Record, trial: FrozenTrial) -> FloatArray | None:
        if record.x is None or len(record.x) != len(self.space.names):
            return None
        for c, (name, d) in zip(record.x, self.space.distributions.items(), strict=True):
            if isinstance(d, CategoricalDistribution):
                if not (float(c).is_integer() and 0 <= c < len(d.choices)):
                    return None
            elif not 0 < c < 1:
                return None
            if not same_value(decode(c, d), trial.params[name]):
                return None  # set by someone else: PartialFixedSampler, an edited database
        return np.array(record.x, dtype=np.float64)


class State(NamedTuple):
    """What a worker knows when it draws.

    Attributes:
        chain: The chain to go on with; None while no space is known (generation 0).
        pool: Completed draws that the next update may use, in the order of membership.
    """

    chain: Chain | None
    pool: list[Draw]


def space_of(members: Sequence[Draw]) -> SearchSpace:
    """Return the space of a first generation: the parameters that its members share.

    Only parameters that were drawn count; one that is fixed by `PartialFixedSampler` is none.
    """
    drawn: list[Mapping[str, BaseDistribution]] = [
        {name: d.trial.distributions[name] for name in d.uniform} for d in members
    ]
    tags = members[0].tags
    shared = intersection(drawn) if all(d.tags == tags for d in members) else {}
    return SearchSpace.of(shared, tags)


class Ledger:
    """The draws of one study, read incrementally: finished trials never change.

    A new ledger that reads all trials at once knows the same as one that followed them. Not
    thread-safe.

    Attributes:
        rules: Direction, and what counts.
        draws: Draws by the trial number in their record. If two trials carry the same record (a
            retry, a copied database), the one that completed counts, then the lowest number.
        completed: The draws whose values count, in the order of membership.
        openers: Records of the valid openers by trial number, by generation.
        newest_tags: The schedule space that the newest draw names; empty for other objectives.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._reset()

    def _reset(self) -> None:
        self.draws: dict[int, Draw] = {}
        self.completed: list[Draw] = []
        self.openers: dict[int, Record] = {}
        self.newest_tags: Tags = {}
        self._newest_tagged = -1
        self._claimed: dict[int, Record] = {}  # openers before validation
        self._chains: dict[int, Chain] = {}  # by number of the head
        self._coordinates: dict[tuple[str, int], FloatArray] = {}
        self._n_seen = 0
        self._unfinished: set[int] = set()
        self._last_finished: FrozenTrial | None = None

    def read(self, trials: Sequence[FrozenTrial]) -> Ledger:
        """Take in all trials of the study, by number; returns itself."""
        last = self._last_finished
        if last is not None and not (
            len(trials) >= self._n_seen
            and (trials[last.number] is last or trials[last.number] == last)
        ):
            self._reset()  # another study under the same identifier
        fresh = sorted(self._unfinished) + list(range(self._n_seen, len(trials)))
        self._n_seen = len(trials)
        n_claimed = len(self._claimed)
        for number in fresh:
            trial = trials[number]
            if trial.state.is_finished():
                self._unfinished.discard(number)
                self._last_finished = trial
            else:
                self._unfinished.add(number)
            draw = read_draw(trial) if RECORD_KEY in trial.system_attrs else None
            if draw is not None:
                self._take(draw)
        if len(self._claimed) > n_claimed or len(self.openers) < len(self._claimed):
            self._validate_openers()
        return self

    def _take(self, draw: Draw) -> None:
        number = draw.record.trial
        other = self.draws.get(number)
        if other is not None and self.rules.counts(other.trial):
            return
        self.draws[number] = draw
        if draw.record.is_opener:
            self._claimed[number] = draw.record
        if draw.tags and number >= self._newest_tagged:
            self._newest_tagged, self.newest_tags = number, draw.tags
        if self.rules.counts(draw.trial):
            insort(self.completed, draw, key=lambda d: d.membership_order)

    def _validate_openers(self) -> None:
        """Keep the openers whose parents lead down to generation 1 in the same space."""
        valid: dict[int, Record] = {}
        for record in sorted(self._claimed.values(), key=lambda r: (r.generation, r.trial)):
            if record.generation == 1:
                fits = record.parent is None
            else:
                parent = valid.get(record.parent) if record.parent is not None else None
                fits = (
                    parent is not None
                    and parent.generation == record.generation - 1
                    and parent.space == record.space
                    and len(parent.theta or ()) == len(record.theta or ())
                )
            if fits and all(n in self.draws for n in record.members):
                valid[record.trial] = record
        self.openers = valid

    def chains(self, tags: Tags) -> Iterator[Chain]:
        """Yield the chain of each space with these tags, the space opened last first.

        The head is the opener with the largest generation, ties to the lowest number.
        """
        heads: dict[str | None, Record] = {}
        newest = dict.fromkeys((r.space for r in self.openers.values()), -1)
        for record in self.openers.values():
            newest[record.space] = max(newest[record.space], record.trial)
            head = heads.get(record.space)
            if head is None or (record.generation, -record.trial) > (head.generation, -head.trial):
                heads[record.space] = record
        for space in sorted(heads, key=lambda s: -newest[s]):
            chain = self._chain(heads[space])
            if chain is not None and chain.space.tags == tags:
                yield chain

    def _chain(self, head: Record) -> Chain | None:
        """Return the chain that leads to a head; None if its space is not what it says."""
        path = [head]
        while path[-1].trial not in self._chains and path[-1].parent is not None:
            path.append(self.openers[path[-1].parent])
        for record in reversed(path):
            if record.trial not in self._chains:
                chain = self._link(record)
                if chain is None:
                    return None
                self._chains[record.trial] = chain
        return self._chains[head.trial]

    def _link(self, record: Record) -> Chain | None:
        chain: Chain | None
        if record.parent is not None:
            chain = self._chains[record.parent]
        else:
            members = [self.draws[n] for n in record.members]
            space = space_of(members)
            n_theta = space.distribution.n_theta if space.names else 0
            fits = space.fingerprint == record.space and n_theta == len(record.theta or ())
            chain = Chain(space) if fits else None
        if chain is None:
            return None
        return replace(
            chain,
            openers=(*chain.openers, record),
            members=chain.members.union(record.members),
            n_counted=chain.n_counted
            + sum(self.rules.counts(self.draws[n].trial) for n in record.members),
        )

    def state(self, population_size: int, *, tags: Tags = _NO_TAGS, adopt: bool = False) -> State:
        """Find the head, its chain and the pool.

        Args:
            population_size: K, for the first opening (the parameters that K draws share are its
                space) and for `adopt`.
            tags: The schedule space that the asking trial names, if any; else the newest draw's.
            adopt: Leave a chain whose space none of the last K completed draws has.
        """
        tags = tags or self.newest_tags
        for chain in self.chains(tags):
            pool = [
                d
                for d in self._unused(chain)
                if d.record.generation <= chain.openers[-1].generation
                and chain.coordinates(d, self.openers) is not None
            ]
            if not adopt or self._still_in(chain, population_size):
                return State(chain, pool)
        return self._first_generation(population_size, tags)

    def _unused(self, chain: Chain) -> list[Draw]:
        """Return the completed draws that are no members, from the end: members are the oldest."""
        unused: list[Draw] = []
        n_unused = len(self.completed) - chain.n_counted
        for draw in reversed(self.completed):
            if len(unused) == n_unused:
                break
            if draw.record.trial not in chain.members:
                unused.append(draw)
        return unused[::-1]

    def thetas(self, space: SearchSpace) -> dict[int, FloatArray]:
        """Return the recorded thetas of a space by opener number."""
        return {
            n: np.array(r.theta, dtype=np.float64)
            for n, r in self.openers.items()
            if r.space == space.fingerprint
        }

    def chain_to(self, opener: int | None, space: SearchSpace) -> Chain:
        """Return the chain that leads to an opener of a space, None: generation 0."""
        chain = self._chain(self.openers[opener]) if opener is not None else None
        return chain if chain is not None else Chain(space)

    def coordinates(self, space: SearchSpace, draw: Draw) -> FloatArray:
        """Return x (d,) of a finished draw from a space.

        Raises:
            ValueError: If the trial is no draw from this space (any more).
        """
        key = (space.fingerprint, draw.record.trial)
        if key not in self._coordinates:
            x = Chain(space).coordinates(draw, self.openers)
            if x is None:
                raise ValueError(f"Trial {draw.trial.number} is no draw from the study's space.")
            self._coordinates[key] = x
        return self._coordinates[key]

    def _still_in(self, chain: Chain, population_size: int) -> bool:
        last = [d for d in self.completed if d.tags == chain.space.tags][-population_size:]
        return len(last) < population_size or any(
            chain.coordinates(d, self.openers) is not None for d in last
        )

    def _first_generation(self, population_size: int, tags: Tags) -> State:
        """Look for K completed draws of generation 0, in a row, that share parameters."""
        used = {n for record in self.openers.values() for n in record.members}
        pool = [
            d
            for d in self.completed
            if d.record.generation == 0 and d.tags == tags and d.record.trial not in used
        ]
        pool = pool[-10 * population_size :]  # an objective may never repeat a parameter
        for start in range(len(pool) - population_size + 1):
            members = pool[start : start + population_size]
            space = space_of(members)
            if space.names:
                return State(Chain(space), members)
        return State(None, pool)
