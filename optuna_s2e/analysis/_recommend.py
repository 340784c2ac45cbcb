"""What to use of a search: the best trial is often just the luckiest one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e._blas import one_blas_thread
from optuna_s2e._checks import check_choice
from optuna_s2e._optuna import is_feasible
from optuna_s2e._typing import FloatArray
from optuna_s2e.analysis._comparable import Comparable, find_comparable, find_of_space
from optuna_s2e.analysis._mean_schedule import mean_schedule, mean_weights, nearest_params
from optuna_s2e.history import Chain, Rules, Sources
from optuna_s2e.sampler import fit_with_sources
from optuna_s2e.schedules import TAGS, Schedule, ScheduleSpace, find_spaces
from optuna_s2e.surrogate import MAX_POINTS, N_POINTS, Model, clip_and_standardize

RULES = ("auto", "mean", "smoothed", "theta", "best")
MIN_SHARE = 0.01  # of the largest weight, from which on a trial counts in a mean
MAX_NAMED = 6  # parameters that a line of text can hold


@dataclass(frozen=True)
class Recommendation:
    """What to use, and how good it probably is.

    Attributes:
        params: Parameters by name, as in `trial.params`. For the rule "mean", those of the
            schedule of the space that is nearest, in root mean square of R(t).
        schedule: The schedule that they decode to; for the rule "mean", the mean itself, which
            has no parameters. None if the parameters hold no schedule, or several.
        expected_loss: Estimate of f without the luck of one training, in units of `trial.value`.
        interval: 95 % interval of that estimate. Infinite if there are no trials to compare with.
        rule: "mean", "smoothed", "theta" or "best".
        trial: Number of the trial that is recommended. None for "mean" and "theta".
        left_out_trials: Numbers of the completed trials that the estimate does not use, because
            they describe a parameter as the newest trials do not, share none with them, or violate
            a constraint.
        left_out_params: Names of the parameters that the estimate does not use, because trials
            describe them in ways that cannot be compared.
        mean_of: For the rule "mean", numbers of the trials that count in it, the largest weight
            first: those with at least 1 % of the largest weight.
    """

    params: dict[str, Any]
    schedule: Schedule | None = field(repr=False)
    expected_loss: float
    interval: tuple[float, float]
    rule: str
    trial: int | None
    left_out_trials: tuple[int, ...] = ()
    left_out_params: tuple[str, ...] = ()
    mean_of: tuple[int, ...] = ()

    @property
    def source(self) -> str:
        """What is recommended, in words: a trial, the mean of p_theta, or a mean of schedules."""
        if self.trial is not None:
            return f"trial {self.trial}"
        if self.rule == "theta":
            return "the mean of p_theta"
        free = {n.removeprefix("R."): v for n, v in self.params.items() if n not in TAGS}
        values = (f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in free.items())
        nearest = f" (nearest: {', '.join(values)})" if len(free) <= MAX_NAMED else ""
        return f"the mean of the {len(self.mean_of)} best trained schedules{nearest}"


@one_blas_thread()
def recommend_from(
    trials: Sequence[FrozenTrial],
    rule: str,
    *,
    rules: Rules,
    chain: Chain | None = None,
    study_name: str,
    sources: Sources | None = None,
) -> Recommendation:
    """Recommend what to use, as `optuna_s2e.recommend` describes it.

    Args:
        trials: All trials of the study, by number.
        rule: One of `RULES`.
        rules: Direction of the study.
        chain: The chain whose theta the rule "theta" takes.
        study_name: Name of the study, for messages.
        sources: Trials of earlier studies that the model learns from, too.

    Raises:
        ValueError: As `recommend` does.
    """
    check_choice("rule", rule, RULES)
    every = [t for t in trials if t.state == TrialState.COMPLETE]
    if not every:
        raise ValueError(f"Study {study_name!r} has no completed trial yet.")
    complete = [t for t in every if is_feasible(t)]
    if not complete:
        raise ValueError(f"No completed trial of study {study_name!r} keeps its constraints.")
    best = min(complete, key=rules.loss)
    if rule == "theta":
        if chain is None or chain.head is None:
            raise ValueError(
                f"Study {study_name!r} has no theta: it was not searched by S2ESampler, or its "
                'first generation is not complete. Use rule="smoothed".'
            )
        found = find_of_space(complete, chain.space)
        fitted = _fit(found, rules, study_name, sources)
        picked = fitted.params("theta", _theta_mean(chain, fitted))
    else:
        found = find_comparable(complete)
        try:
            fitted = _fit(found, rules, study_name, sources)
        except ValueError:
            if rule != "best":
                raise
            found = Comparable([], found.space)
        if rule != "best":
            picked = _by_model(rule, fitted, study_name)
        elif any(t is best for t in found.trials):
            picked = fitted.params("best", best.params, best.number)
        else:  # nothing can be compared with the best trial
            whole = (-math.inf, math.inf)
            picked = _Picked("best", best.params, rules.loss(best), whole, best.number)
    sign = -1.0 if rules.maximize else 1.0
    low, high = sorted(sign * bound for bound in picked.interval)
    compared = {t.number for t in found.trials}
    return Recommendation(
        params=dict(picked.params),
        schedule=picked.schedule or _schedule(picked.params),
        expected_loss=sign * picked.expected,
        interval=(low, high),
        rule=picked.rule,
        trial=picked.trial,
        left_out_trials=tuple(t.number for t in every if t.number not in compared),
        left_out_params=found.left_out_params,
        mean_of=picked.mean_of,
    )


def _by_model(rule: str, fitted: _Fitted, study_name: str) -> _Picked:
    """Pick what the model expects to be best: a mean of schedules, or a trained point."""
    space = fitted.schedule_space
    if rule == "mean" and space is None:
        raise ValueError(
            f"Study {study_name!r} has no mean schedule: its trials must hold one schedule of one "
            'space each. Use rule="smoothed".'
        )
    if rule == "smoothed" or space is None or (rule == "auto" and not fitted.varies_all_of(space)):
        trial = fitted.trials[fitted.least]
        return fitted.params("smoothed", trial.params, trial.number)
    return fitted.mean(space)


class _Picked(NamedTuple):
    """What a rule picks; the loss is minimised."""

    rule: str
    params: Mapping[str, Any]
    expected: float
    interval: tuple[float, float]
    trial: int | None = None
    schedule: Schedule | None = None  # if the parameters decode to another one
    mean_of: tuple[int, ...] = ()


class _Fitted(NamedTuple):
    """A model of the loss, and the trials that it was fitted to, the best one first."""

    model: Model
    trials: list[FrozenTrial]
    deviation: float  # of their losses, clipped

    @property
    def n(self) -> int:
        """Number of the trials."""
        return len(self.trials)

    @property
    def least(self) -> int:
        """Position of the trial of the lowest posterior mean."""
        return int(np.argmin(self.model.mean_at_draws[: self.n]))

    @property
    def schedule_space(self) -> ScheduleSpace | None:
        """The one space of which every trial holds a schedule. None if there is none."""
        spaces = find_spaces(self.model.space.tags)
        names = set(spaces[0].searched) if len(spaces) == 1 else set()
        known = names <= self.model.space.distributions.keys()
        held = all(names <= t.params.keys() for t in self.trials)
        return spaces[0] if names and known and held else None

    def varies_all_of(self, space: ScheduleSpace) -> bool:
        """Say whether the parameters of a space are all that is searched, and none is fixed."""
        others = set(space.searched) != set(self.model.space.names)
        values = ({t.params[name] for t in self.trials} for name in space.searched)
        return not others and all(len(found) > 1 for found in values)

    def params(self, rule: str, params: Mapping[str, Any], trial: int | None = None) -> _Picked:
        """Return the pick of a point."""
        space = self.model.space
        z = self.model.featurize(space.encode(params)[None], space.active(params)[None])
        return _Picked(rule, params, *self._expectation(z), trial)

    def mean(self, space: ScheduleSpace) -> _Picked:
        """Return the mean of the schedules; other parameters are those of the lowest mean.

        The features of the mean are the mean of the features, because these are R on a grid.
        """
        gp, best = self.model.gp, self.trials[self.least]
        z = gp.features[: self.n].copy()
        z[:, N_POINTS:] = z[self.least, N_POINTS:]  # the schedules first, the others after them
        weights = mean_weights(gp.mean(z), self.deviation)
        of_mean = z[[self.least]]
        of_mean[0, :N_POINTS] = weights @ z[:, :N_POINTS]
        trained = [t.params for t in self.trials]
        schedule = mean_schedule(space, trained, weights)
        nearest = nearest_params(space, self.model.space.distributions, trained, schedule)
        order = np.argsort(-weights, kind="stable")
        return _Picked(
            "mean",
            {**best.params, **nearest},
            *self._expectation(of_mean),
            schedule=schedule,
            mean_of=tuple(
                self.trials[i].number for i in order if weights[i] >= MIN_SHARE * weights.max()
            ),
        )

    def _expectation(self, z: FloatArray) -> tuple[float, tuple[float, float]]:
        """Return the expected loss and its 95 % interval."""
        mean, deviation = (float(v[0]) for v in self.model.gp.predict(z))
        return mean, (mean - 1.96 * deviation, mean + 1.96 * deviation)


def _fit(found: Comparable, rules: Rules, study_name: str, sources: Sources | None) -> _Fitted:
    """Fit the model of the loss. If there are too many trials, only the best ones are used."""
    space = found.space
    if not space.names:
        why = (
            f"the ranges of {', '.join(map(repr, found.left_out_params))} have nothing in common"
            if found.left_out_params
            else "no trial has a parameter with more than one value"
        )
        raise ValueError(
            f'The trials of study {study_name!r} cannot be compared: {why}. Use rule="best", or '
            "search a parameter with one range."
        )
    losses = np.array([rules.loss(t) for t in found.trials])
    if not np.isfinite(losses).any():
        raise ValueError(f"Study {study_name!r} has no trial with a finite value.")
    used = np.argsort(losses, kind="stable")[:MAX_POINTS]
    trials = [found.trials[i] for i in used]
    x = np.array([space.encode(t.params) for t in trials])
    active = np.array([space.active(t.params) for t in trials])
    model = fit_with_sources(space, x, active, losses[used], sources)
    return _Fitted(model, trials, clip_and_standardize(losses[used]).deviation)


def _theta_mean(chain: Chain, fitted: _Fitted) -> dict[str, Any]:
    """Return the mean of p_theta; what theta does not describe is that of the best trial there.

    That is the best trial of the same branch, with the same categories as far as there is one.
    """
    space = chain.space
    mean = space.decode(space.coordinates(space.distribution.mean(chain.theta)[None])[0])
    active = fitted.model.conditions.active(space.encode(mean)[None])[0]
    asked = {n: mean[n] for n, a in zip(space.names, active, strict=True) if a}
    categories = {n for n in asked if isinstance(space.distributions[n], CategoricalDistribution)}

    def agreement(trial: FrozenTrial) -> tuple[bool, int]:
        same = sum(trial.params.get(n) == asked[n] for n in categories)
        return asked.keys() == trial.params.keys() & set(space.names), same

    nearest = max(fitted.trials, key=agreement)  # the first, so the best one, of several
    others = {n: v for n, v in nearest.params.items() if n not in space.distributions}
    return others | asked


def _schedule(params: Mapping[str, Any]) -> Schedule | None:
    try:
        return Schedule.from_params(params)
    except ValueError:  # they hold none, several, or a damaged one
        return None
