"""Which completed trials of any sampler can be compared, and over which space.

Ranges change during a study, a worker with old code joins it, someone adds a trial by hand. So
trials of one study may describe a parameter differently. There are three cases:

- It was changed: the descriptions follow each other. The newest one counts.
- It differs by design: it depends on another parameter, as in two branches or with dynamic
  ranges. All of them count, on one range that covers all.
- Some trials are odd: fewer than `MIN_TRIALS` have that description. They are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import groupby
from typing import NamedTuple

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history import read_tags
from optuna_s2e.schedules import N_EPOCHS

MIN_TRIALS = 3  # that make a description of a parameter more than an exception


class Comparable(NamedTuple):
    """Trials that can be compared.

    Attributes:
        trials: The trials, in the order that they were given in.
        space: Space of their parameters.
        left_out_params: Names of the parameters that are not in the space, because they are
            described in ways that no range covers.
    """

    trials: list[FrozenTrial]
    space: SearchSpace
    left_out_params: tuple[str, ...] = ()


def find_comparable(trials: Sequence[FrozenTrial]) -> Comparable:
    """Return the trials of the newest space, without odd ones, and that space.

    Args:
        trials: Completed trials by number, at least one.

    Returns:
        At least one trial. The space has no parameters if the trials have none.
    """
    searched = {n for t in trials for n, d in t.distributions.items() if not d.single()}
    kept = _of_one_objective(trials, searched)
    n_before = 0
    while len(kept) != n_before:
        n_before = len(kept)
        kinds = _numbers(frozenset(read_tags(t).keys() - {N_EPOCHS}) for t in kept)
        kept = _without(kept, kept, kinds, searched)
        for name in sorted(searched | {N_EPOCHS}):
            having = [t for t in kept if name in t.distributions]
            described = _descriptions([t.distributions[name] for t in having])
            kept = _without(kept, having, described, searched - {name})
    found = {
        n: _cover([t.distributions[n] for t in kept if n in t.distributions]) for n in searched
    }
    present = {n for t in kept for n in t.distributions}
    named = {item for t in kept for item in read_tags(t).items()}
    n_values = Counter(name for name, _ in named)
    return Comparable(
        kept,
        SearchSpace.of(
            {n: d for n, d in found.items() if d is not None},
            {name: value for name, value in named if n_values[name] == 1},
        ),
        tuple(sorted(n for n, d in found.items() if d is None and n in present)),
    )


def find_of_space(trials: Sequence[FrozenTrial], space: SearchSpace) -> Comparable:
    """Return the trials that have parameters of a space, all as the space describes them."""

    def fits(trial: FrozenTrial) -> bool:
        present = [n for n in space.names if n in trial.distributions]
        return (
            bool(present)
            and all(trial.distributions[n] == space.distributions[n] for n in present)
            and all(space.tags.get(n, v) == v for n, v in read_tags(trial).items())
        )

    return Comparable([t for t in trials if fits(t)], space)


def _of_one_objective(trials: Sequence[FrozenTrial], searched: set[str]) -> list[FrozenTrial]:
    """Return the trials that share parameters with each other, directly or through others."""
    names = [frozenset(searched & t.distributions.keys()) for t in trials]
    groups: list[frozenset[str]] = []
    for own in dict.fromkeys(names):
        groups = [g for g in groups if not g & own] + [own.union(*(g for g in groups if g & own))]
    of_trial = [next((i for i, g in enumerate(groups) if own & g), -1) for own in names]
    counting = _counting(of_trial, trials, set())
    newest = Counter(i for i in reversed(of_trial) if i in counting).most_common(1)[0][0]
    return [t for t, i in zip(trials, of_trial, strict=True) if i == newest]


def _without(
    trials: list[FrozenTrial],
    having: Sequence[FrozenTrial],
    values: Sequence[int],
    causes: AbstractSet[str],
) -> list[FrozenTrial]:
    """Return the trials without those that have a value that does not count."""
    counting = _counting(values, having, causes)
    out = {t.number for t, v in zip(having, values, strict=True) if v not in counting}
    return [t for t in trials if t.number not in out]


def _counting(
    values: Sequence[int], trials: Sequence[FrozenTrial], causes: AbstractSet[str]
) -> set[int]:
    """Return which values count, of those that trials have, ordered by number.

    Args:
        values: One value per trial.
        trials: The trials.
        causes: Names of the parameters that may decide which value a trial has.
    """
    counts = Counter(values)
    most = max(counts.values(), default=0)
    regular = [v for v in values if counts[v] >= min(MIN_TRIALS, most)]
    if len(counts) <= 1 or most == 1 or 2 * len(regular) <= len(values):
        return set(values)
    if any(_decides(name, values, trials) for name in sorted(causes)):
        return set(values)
    blocks = [v for v, _ in groupby(regular)]
    if len(blocks) > len(set(blocks)) + 2:  # a worker with old code makes two blocks more
        return set(regular)
    return {regular[-1]}


def _decides(name: str, values: Sequence[int], trials: Sequence[FrozenTrial]) -> bool:
    """Say whether a category or an int decides which value trials have."""
    described = [d for t in trials if (d := t.distributions.get(name)) is not None]
    if len(described) < len(trials):
        return False
    if not all(isinstance(d, IntDistribution) for d in described):
        first = described[0]
        if not isinstance(first, CategoricalDistribution) or any(d != first for d in described):
            return False
    chosen = [d.to_internal_repr(t.params[name]) for d, t in zip(described, trials, strict=True)]
    n_pairs = len(set(zip(chosen, values, strict=True)))
    return 1 < len(set(chosen)) == n_pairs <= len(values) / 2


def _numbers(values: Iterable[Hashable]) -> list[int]:
    """Return equal numbers for equal values."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(v, len(numbers)) for v in values]


def _descriptions(distributions: Sequence[BaseDistribution]) -> list[int]:
    """Return equal numbers for equal distributions. Choices may be thousands, lists or NaN."""
    keys: list[Hashable] = []
    for i, d in enumerate(distributions):
        if not isinstance(d, CategoricalDistribution):
            keys.append(d)
        elif i and d.choices == getattr(distributions[i - 1], "choices", None):
            keys.append(keys[-1])  # fast, and mostly so
        else:
            keys.append(repr(d))
    return _numbers(keys)


def _cover(distributions: Sequence[BaseDistribution]) -> BaseDistribution | None:
    """Return a distribution that covers all of these; None if there is none."""
    if not distributions:
        return None
    first = distributions[0]
    if not any(_descriptions(distributions)):
        return first
    log = all(getattr(d, "log", False) for d in distributions)
    floats = [d for d in distributions if isinstance(d, FloatDistribution)]
    if len(floats) == len(distributions):
        return FloatDistribution(min(d.low for d in floats), max(d.high for d in floats), log)
    ints = [d for d in distributions if isinstance(d, IntDistribution)]
    if len(ints) == len(distributions):
        return IntDistribution(min(d.low for d in ints), max(d.high for d in ints), log)
    return None
