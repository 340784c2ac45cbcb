"""What a study says, read once: all that the figures and the status page need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import Curves, read_curves
from optuna_s2e._typing import FloatArray
from optuna_s2e.analysis._generations import Generation, generations
from optuna_s2e.analysis._recommend import Recommendation, recommend
from optuna_s2e.distributions import Beta, Dirichlet, Family, SearchSpace
from optuna_s2e.history import Ledger, Rules
from optuna_s2e.schedules import Schedule, ScheduleSpace, find_space

N_DRAWS = 256  # of p_theta, behind its mean schedule and band
DEFAULT_GENERATION = 6  # completed trials between two paintings of another sampler's study


class Shares(NamedTuple):
    """A simplex or a categorical parameter under p_theta.

    Attributes:
        name: Of the simplex or the parameter.
        labels: One per weight or choice, (k,).
        means: Expected weights or probabilities by generation, (n_generations, k).
    """

    name: str
    labels: tuple[str, ...]
    means: FloatArray


class Marginal(NamedTuple):
    """A number under p_theta, as a share of its range.

    Attributes:
        name: Of the parameter.
        mean: By generation, in (0, 1), (n_generations,).
        deviation: Standard deviation, (n_generations,).
    """

    name: str
    mean: FloatArray
    deviation: FloatArray


class Band(NamedTuple):
    """R(t) under p_theta: mean and quantiles at the epochs t, (m,) each."""

    t: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Story:
    """The trials, generations and theta of a study at one moment.

    Attributes:
        name: Of the study.
        metric: Name of its value.
        maximize: Its direction.
        trials: All of them, by number.
        generations: As `optuna_s2e.generations`.
        space: The parameters that theta describes; None before the first update, and for studies
            of other samplers.
        population_size: K, as recorded; None for studies of other samplers.
        recommended: As `optuna_s2e.recommend`; None if there is nothing to recommend.
        attrs: User attributes of the study.
    """

    name: str
    metric: str
    maximize: bool
    trials: list[FrozenTrial]
    generations: list[Generation]
    space: SearchSpace | None
    population_size: int | None
    recommended: Recommendation | None
    attrs: Mapping[str, Any]

    @classmethod
    def of(cls, study: Study) -> Story:
        """Read a study.

        Raises:
            ValueError: If it has several objectives.
        """
        rules = Rules.of(study)
        trials = _optuna.all_trials(study)
        ledger = Ledger(rules).read(trials)
        chain = ledger.state(1).chain
        names = study.metric_names
        try:
            recommended = recommend(study)
        except ValueError:  # nothing complete or finite, or no common parameter
            recommended = None
        return cls(
            name=study.study_name,
            metric=names[0] if names else "value",
            maximize=rules.maximize,
            trials=trials,
            generations=generations(study),
            space=chain.space if chain is not None and chain.openers else None,
            population_size=_population_size(ledger),
            recommended=recommended,
            attrs=study.user_attrs,
        )

    @property
    def is_s2e(self) -> bool:
        """Whether S2ESampler drew any trial."""
        return self.population_size is not None

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        """The completed trials with a finite value, by number."""
        return [
            t
            for t in self.trials
            if t.state == TrialState.COMPLETE and t.value is not None and math.isfinite(t.value)
        ]

    @cached_property
    def best(self) -> FrozenTrial | None:
        """The completed trial of the best finite value."""
        sign = -1.0 if self.maximize else 1.0
        return min(self.complete, key=lambda t: sign * (t.value or 0.0), default=None)

    @cached_property
    def generation_of(self) -> dict[int, int]:
        """The generation that each trial was drawn from, by trial number."""
        return {n: g.index for g in self.generations for n in g.trials}

    @cached_property
    def schedules(self) -> dict[int, Schedule]:
        """The schedules of the completed trials, in the newest space, by trial number."""
        own = self.schedule_space
        found = {}
        for trial in self.complete:
            try:
                if own is not None and find_space(trial.params) == own:
                    found[trial.number] = own.from_params(trial.params)
            except ValueError:  # holds none, or a damaged one
                continue
        return found

    @cached_property
    def schedule_space(self) -> ScheduleSpace | None:
        """The newest schedule space among the trials; None if there is none."""
        for trial in reversed(self.trials):
            try:
                return find_space(trial.params)
            except ValueError:
                continue
        return None

    @cached_property
    def curves(self) -> dict[int, Curves]:
        """The learning curves of the completed trials, by trial number."""
        read = {t.number: read_curves(t) for t in self.complete}
        return {number: c for number, c in read.items() if c is not None}

    @cached_property
    def reports(self) -> dict[int, Curves]:
        """What the completed trials reported to Optuna, by trial number."""
        found = {}
        for trial in self.complete:
            steps = sorted(s for s, v in trial.intermediate_values.items() if math.isfinite(v))
            if steps:
                values = np.array([trial.intermediate_values[s] for s in steps])
                found[trial.number] = Curves(np.array(steps), {self.metric: values})
        return found

    @cached_property
    def thetas(self) -> FloatArray:
        """theta by generation, (n_generations, n_theta)."""
        return np.array([g.theta for g in self.generations])

    @cached_property
    def blocks(self) -> tuple[list[Shares], list[Marginal]]:
        """p_theta by generation, taken apart: simplexes and categories, numbers."""
        shares: list[Shares] = []
        marginals: list[Marginal] = []
        if self.space is None:
            return shares, marginals
        names = iter(self.space.names)
        start = 0
        for family in self.space.distribution.families:
            theta = self.thetas[:, start : start + family.n_theta]
            start += family.n_theta
            total = theta.sum(axis=1)
            if isinstance(family, Beta):
                mean = theta[:, 0] / total
                deviation = np.sqrt(mean * (1.0 - mean) / (total + 1.0))
                marginals.append(Marginal(next(names), mean, deviation))
                continue
            name, labels = _labels(family, names, self.space)
            shares.append(Shares(name, labels, theta / total[:, None]))
        return shares, marginals

    def band(self, n_points: int) -> Band | None:
        """Return R(t) under the newest theta; None where there is no theta of schedules."""
        schedules, space = self.schedule_space, self.space
        if schedules is None or space is None or space.tags != schedules.tags:
            return None
        theta, rng = self.thetas[-1], np.random.default_rng(0)
        x = space.coordinates(space.distribution.sample(theta, rng, N_DRAWS))
        decoded = [space.decode(row) for row in x]
        own = [n for n, d in schedules.distributions.items() if not d.single()]
        if any(name not in decoded[0] for name in own):  # one was fixed from the start
            return None
        rates = schedules.curves({n: [p[n] for p in decoded] for n in own}, n_points)
        low, high = np.quantile(rates, [0.05, 0.95], axis=0)
        return Band(
            np.linspace(0.0, schedules.n_epochs - 1.0, n_points), rates.mean(axis=0), low, high
        )


def _labels(
    family: Family, names: Iterator[str], space: SearchSpace
) -> tuple[str, tuple[str, ...]]:
    """Return the name of a simplex or category and one label per weight or choice."""
    first = next(names)
    if isinstance(family, Dirichlet):
        for _ in range(family.k - 2):
            next(names)
        name = first.partition(".simplex")[0]
        return name, tuple(f"{name} {i}" for i in range(1, family.k + 1))
    distribution = space.distributions[first]
    assert isinstance(distribution, CategoricalDistribution)
    return first, tuple(f"{first} = {choice}" for choice in distribution.choices)


def _population_size(ledger: Ledger) -> int | None:
    recorded = [r.settings for r in ledger.openers.values()]
    recorded += [d.record.settings for d in ledger.draws.values()][:1]
    sizes = [s["population_size"] for s in recorded if s is not None]
    return sizes[0] if sizes else None


def closes_generation(study: Study, trial: FrozenTrial, known: Ledger | None = None) -> bool:
    """Say whether a finished trial is the K-th, 2K-th, ... that completed.

    K is the study's population size, or 6 for other samplers. Of several workers at most one
    answers yes for the same K trials.

    Args:
        study: The study.
        trial: A trial that has just finished.
        known: What was read of the study before; only what is new since is read.
    """
    rules = Rules.of(study)
    ledger = known if known is not None and known.rules == rules else Ledger(rules)
    ledger.read(_optuna.all_trials(study))
    size = _population_size(ledger)
    if size is None:
        size = DEFAULT_GENERATION
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        done.sort(key=lambda t: (_optuna.completed_at(t) or datetime.max, t.number))
        numbers = [t.number for t in done]
    else:
        numbers = [d.trial.number for d in ledger.completed]  # in the order of membership
    return trial.number in numbers and (numbers.index(trial.number) + 1) % size == 0
