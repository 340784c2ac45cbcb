"""Which point of a search to use: the best trial is often just the luckiest one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e._checks import check_choice
from optuna_s2e.analysis._comparable import Comparable, find_comparable, find_of_space
from optuna_s2e.history import Chain, Rules
from optuna_s2e.schedules import Schedule
from optuna_s2e.surrogate import MAX_POINTS, Model

RULES = ("smoothed", "theta", "best")


@dataclass(frozen=True)
class Recommendation:
    """What to use, and how good it probably is.

    Attributes:
        params: Parameters by name, as in `trial.params`.
        schedule: The schedule that they decode to. None if they hold none, or several.
        expected_loss: Estimate of f without the luck of one training, in units of `trial.value`.
        interval: 95 % interval of that estimate. Infinite if there are no trials to compare with.
        rule: "smoothed", "theta" or "best".
        trial: Number of the trial with these parameters. None for "theta".
        left_out_trials: Numbers of the completed trials that the estimate does not use, because
            they describe a parameter as the newest trials do not, or share none with them.
        left_out_params: Names of the parameters that the estimate does not use, because trials
            describe them in ways that cannot be compared.
    """

    params: dict[str, Any]
    schedule: Schedule | None = field(repr=False)
    expected_loss: float
    interval: tuple[float, float]
    rule: str
    trial: int | None
    left_out_trials: tuple[int, ...] = ()
    left_out_params: tuple[str, ...] = ()


def recommend_from(
    trials: Sequence[FrozenTrial],
    rule: str,
    *,
    rules: Rules,
    chain: Chain | None = None,
    study_name: str,
) -> Recommendation:
    """Recommend parameters to use, as `optuna_s2e.recommend` describes it.

    Args:
        trials: All trials of the study, by number.
        rule: "smoothed", "theta" or "best".
        rules: Direction of the study.
        chain: The chain whose theta the rule "theta" takes.
        study_name: Name of the study, for messages.

    Raises:
        ValueError: As `recommend` does.
    """
    check_choice("rule", rule, RULES)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    if not complete:
        raise ValueError(f"Study {study_name!r} has no completed trial yet.")
    best = min(complete, key=rules.loss)
    chosen: FrozenTrial | None
    if rule == "theta":
        if chain is None or chain.head is None:
            raise ValueError(
                f"Study {study_name!r} has no theta: it was not searched by S2ESampler, or its "
                'first generation is not complete. Use rule="smoothed".'
            )
        found = find_of_space(complete, chain.space)
        fitted = _fit(found, rules, study_name)
        chosen, params = None, _theta_mean(chain, fitted)
    else:
        found = find_comparable(complete)
        try:
            fitted = _fit(found, rules, study_name)
        except ValueError:
            if rule != "best":
                raise
            found, fitted = Comparable([], found.space), None
        chosen = best if rule == "best" or fitted is None else fitted.least_expected()
        params = dict(chosen.params)
    compared = {t.number for t in found.trials}
    if fitted is not None and (chosen is None or chosen.number in compared):
        expected, interval = fitted.expectation(params)
    else:  # nothing can be compared with the best trial
        expected, interval = rules.loss(best), (-math.inf, math.inf)
    sign = -1.0 if rules.maximize else 1.0
    low, high = sorted(sign * bound for bound in interval)
    return Recommendation(
        params=params,
        schedule=_schedule(params),
        expected_loss=sign * expected,
        interval=(low, high),
        rule=rule,
        trial=chosen.number if chosen is not None else None,
        left_out_trials=tuple(t.number for t in complete if t.number not in compared),
        left_out_params=found.left_out_params,
    )


class _Fitted(NamedTuple):
    """A model of the loss, and the trials that it was fitted to, the best one first."""

    model: Model
    trials: list[FrozenTrial]

    def least_expected(self) -> FrozenTrial:
        """Return the trial of the lowest posterior mean."""
        return self.trials[int(np.argmin(self.model.gp.mean(self.model.gp.features)))]

    def expectation(self, params: Mapping[str, Any]) -> tuple[float, tuple[float, float]]:
        """Return the expected loss, minimised, and its 95 % interval."""
        space = self.model.space
        z = self.model.featurize(space.encode(params)[None], space.active(params)[None])
        mean, deviation = (float(v[0]) for v in self.model.gp.predict(z))
        return mean, (mean - 1.96 * deviation, mean + 1.96 * deviation)


def _fit(found: Comparable, rules: Rules, study_name: str) -> _Fitted:
    """Fit the model of the loss. If there are too many trials, only the best ones are used."""
    space = found.space
    if not space.names:
        raise ValueError("The trials must share a parameter with one range, but they do not.")
    losses = np.array([rules.loss(t) for t in found.trials])
    if not np.isfinite(losses).any():
        raise ValueError(f"Study {study_name!r} has no trial with a finite value.")
    used = np.argsort(losses, kind="stable")[:MAX_POINTS]
    trials = [found.trials[i] for i in used]
    x = np.array([space.encode(t.params) for t in trials])
    active = np.array([space.active(t.params) for t in trials])
    return _Fitted(Model.fit(space, x, active=active, losses=losses[used]), trials)


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
