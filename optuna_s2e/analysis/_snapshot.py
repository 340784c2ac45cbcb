"""A study at one moment: its trials are read once, everything else is computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import Curves, RecordedNoise, read_curves, read_noise
from optuna_s2e._typing import FloatArray
from optuna_s2e.analysis._generations import (
    Generation,
    GenerationRow,
    count_forks,
    generation_rows,
    member_lags,
    population_size,
    recorded_generations,
    replayed_generations,
)
from optuna_s2e.analysis._progress import Progress, measure_progress
from optuna_s2e.analysis._recommend import Recommendation, recommend_from
from optuna_s2e.analysis._theta_summary import (
    Band,
    ThetaSummary,
    keep_rate_band,
    summarize_theta,
)
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history import Chain, Ledger, Rules, Sources, planned_trials, read_sources
from optuna_s2e.sampler import recomputes
from optuna_s2e.schedules import Schedule, ScheduleSpace, find_space


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    The trials are read once, by `Snapshot.of`. All else follows from them, at the first use: what
    two views take from one snapshot agrees, also while workers write to the study.

    Attributes:
        name: Name of the study.
        metric: Name of its value.
        rules: Its direction.
        trials: All its trials, by number.
        attrs: Its user attributes.
        moment: Local time of the reading.
        sources: Trials of earlier studies that its sampler learns from, if any.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler
        >>> from optuna_s2e.analysis import Snapshot, describe
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=9)
        >>> snapshot = Snapshot.of(study)
        >>> len(snapshot.trials), len(snapshot.generations), snapshot.population_size
        (9, 3, 4)
    """

    name: str
    metric: str
    rules: Rules
    trials: Sequence[FrozenTrial]
    attrs: Mapping[str, Any]
    moment: datetime
    sources: Sources | None = None

    @classmethod
    def of(
        cls,
        study: Study,
        *,
        trials: Sequence[FrozenTrial] | None = None,
        moment: datetime | None = None,
    ) -> Snapshot:
        """Read a study.

        Args:
            study: A study with one objective, of any sampler.
            trials: All its trials by number, if they were read just now. None reads them.
            moment: Local time by the clock of the workers. None takes this machine's clock.

        Raises:
            ValueError: If the study has several objectives.
        """
        rules = Rules.of(study)
        names = study.metric_names
        return cls(
            name=study.study_name,
            metric=names[0] if names else "value",
            rules=rules,
            attrs=study.user_attrs,
            sources=read_sources(_optuna.study_system_attrs(study)),
            trials=_optuna.all_trials(study) if trials is None else trials,
            moment=moment or datetime.now(),
        )

    # --- trials ------------------------------------------------------------------------------

    @property
    def maximize(self) -> bool:
        """Whether the study maximises its value."""
        return self.rules.maximize

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
        """The completed trial with the best finite value, of those that keep all constraints."""
        feasible = filter(_optuna.is_feasible, self.complete)
        return min(feasible, key=self.rules.loss, default=None)

    @cached_property
    def n_planned(self) -> int | None:
        """Number of completed trials that the search ends with. None if unknown."""
        return planned_trials(self.attrs)

    @cached_property
    def noise(self) -> RecordedNoise | None:
        """How many labels are wrong, by the estimate that the study records. None without one."""
        return read_noise(self.attrs)

    @cached_property
    def progress(self) -> Progress:
        """Workers, zombies, rate and time left."""
        lags = member_lags(self.chain, self.ledger)
        return measure_progress(self.trials, n_trials=self.n_planned, lags=lags, now=self.moment)

    def recommend(self, rule: str = "auto") -> Recommendation:
        """Recommend what to use, as `optuna_s2e.recommend` does.

        Raises:
            ValueError: As `optuna_s2e.recommend` does.
        """
        chain = self.chain if rule == "theta" else None
        return recommend_from(
            self.trials,
            rule,
            rules=self.rules,
            chain=chain,
            study_name=self.name,
            sources=self.sources,
        )

    @cached_property
    def recommended(self) -> Recommendation | None:
        """What `recommend` returns by its default rule. None if nothing can be recommended."""
        try:
            return self.recommend()
        except ValueError:  # nothing complete or finite, or no common parameter
            return None

    # --- theta and generations ---------------------------------------------------------------

    @cached_property
    def ledger(self) -> Ledger:
        """The draws that the trials record."""
        return Ledger(self.rules, self.sources).read(self.trials)

    @cached_property
    def chain(self) -> Chain | None:
        """The openers from generation 1 to the head. None while no space is known."""
        return self.ledger.state(1).chain

    @cached_property
    def population_size(self) -> int | None:
        """K by the settings in force. None if S2ESampler drew no trial."""
        return population_size(self.chain, self.ledger)

    @property
    def is_s2e(self) -> bool:
        """Whether S2ESampler drew any trial."""
        return self.population_size is not None

    @cached_property
    def generations(self) -> list[Generation]:
        """The generations with the recorded thetas, generation 0 first."""
        return recorded_generations(self.chain, self.ledger)

    @cached_property
    def replayed(self) -> list[Generation]:
        """The generations with every theta recomputed.

        Raises:
            ValueError: If a member is missing or was changed, so that no theta follows.
        """
        return replayed_generations(self.chain, self.ledger)

    @cached_property
    def as_recorded(self) -> list[int]:
        """Generations whose theta another release's model moved, so that it is not recomputed."""
        openers = self.chain.openers if self.chain is not None else ()
        return [r.generation for r in openers if not recomputes(r)]

    @cached_property
    def generation_rows(self) -> list[GenerationRow]:
        """The table of generations."""
        complete = {t.number for t in self.complete}
        return generation_rows(self.generations, complete, maximize=self.maximize)

    @cached_property
    def generation_of(self) -> dict[int, int]:
        """The generation that each trial was drawn from, by trial number."""
        return {n: g.index for g in self.generations for n in g.trials}

    @cached_property
    def n_forks(self) -> int:
        """How many openers are not on the chain."""
        return count_forks(self.chain, self.ledger)

    @cached_property
    def space(self) -> SearchSpace | None:
        """The space that theta describes. None before the first update."""
        return self.chain.space if self.chain is not None and self.chain.openers else None

    @cached_property
    def thetas(self) -> FloatArray:
        """theta by generation, (n_generations, n_theta)."""
        return np.array([g.theta for g in self.generations])

    @cached_property
    def theta_summary(self) -> ThetaSummary:
        """p_theta by generation, parameter by parameter; empty before the first update."""
        if self.space is None:
            return ThetaSummary([], [])
        return summarize_theta(self.space, self.thetas)

    # --- schedules and curves ----------------------------------------------------------------

    @cached_property
    def schedule_space(self) -> ScheduleSpace | None:
        """The newest schedule space among the trials. None if there is none."""
        for trial in reversed(self.trials):
            try:
                return find_space(trial.params)
            except ValueError:
                continue
        return None

    @cached_property
    def schedules(self) -> dict[int, Schedule]:
        """The schedules of the completed trials, in the newest space, by trial number."""
        newest = self.schedule_space
        found = {}
        for trial in self.complete:
            try:
                if newest is not None and find_space(trial.params) == newest:
                    found[trial.number] = newest.from_params(trial.params)
            except ValueError:  # it holds none, or a damaged one
                continue
        return found

    def keep_rate_band(self, n_points: int) -> Band | None:
        """Return R(t) under the newest theta. None if theta does not describe schedules."""
        if self.schedule_space is None or self.space is None:
            return None
        return keep_rate_band(self.schedule_space, self.space, self.thetas[-1], n_points)

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
