"""Which point of a search to use: the best trial is often just the luckiest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e._checks import check_choice
from optuna_s2e.distributions import SearchSpace, union
from optuna_s2e.history import Chain, Rules, read_tags
from optuna_s2e.schedules import Schedule
from optuna_s2e.surrogate import MAX_POINTS, Model

RULES = ("smoothed", "theta", "best")


@dataclass(frozen=True)
class Recommendation:
    """What to use, and how good it probably is.

    Attributes:
        params: Parameters by name, as in `trial.params`.
        schedule: The schedule that they decode to. None if they hold none.
        expected_loss: Estimate of f without the luck of one training, in units of `trial.value`.
        interval: 95 % interval of that estimate.
        rule: "smoothed", "theta" or "best".
        trial: Number of the trial with these parameters. None for "theta".
    """

    params: dict[str, Any]
    schedule: Schedule | None = field(repr=False)
    expected_loss: float
    interval: tuple[float, float]
    rule: str
    trial: int | None


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
    comparable, space = _comparable(complete)
    losses = np.array([rules.loss(t) for t in comparable])
    if not np.isfinite(losses).any():
        raise ValueError(f"Study {study_name!r} has no trial with a finite value.")
    order = np.argsort(losses, kind="stable")
    used = order[:MAX_POINTS]  # if there are too many trials, only the best ones are used
    found = [comparable[i].params for i in used]
    x = np.array([space.encode(params) for params in found])
    active = np.array([space.active(params) for params in found])
    model = Model.fit(space, x, active=active, losses=losses[used])

    chosen: FrozenTrial | None
    if rule == "theta":
        if chain is None or chain.head is None:
            raise ValueError(
                f"Study {study_name!r} has no theta: it was not searched by S2ESampler, or its "
                'first generation is not complete. Use rule="smoothed".'
            )
        chosen, params = None, _theta_mean(chain, comparable[int(order[0])], model)
    else:
        means = model.gp.mean(model.gp.features)
        at = int(np.argmin(means)) if rule == "smoothed" else 0
        chosen = comparable[int(used[at])]
        params = dict(chosen.params)
    return _with_interval(params, chosen, rule, rules, model)


def _comparable(complete: list[FrozenTrial]) -> tuple[list[FrozenTrial], SearchSpace]:
    """Return the trials of the newest trial's schedule space; all of them without schedules."""
    tags = read_tags(complete[-1])
    trials = [t for t in complete if read_tags(t) == tags]
    space = SearchSpace.of(union([t.distributions for t in trials]), tags)
    if not space.names:
        raise ValueError("The trials must share a parameter with one range, but they do not.")
    return trials, space


def _theta_mean(chain: Chain, best: FrozenTrial, model: Model) -> dict[str, Any]:
    """Return the mean of p_theta; what theta does not describe is taken from the best trial."""
    mean = chain.space.distribution.mean(chain.theta)
    params = best.params | chain.space.decode(chain.space.coordinates(mean[None])[0])
    active = model.conditions.active(model.space.encode(params)[None])[0]
    inactive = {name for name, a in zip(model.space.names, active, strict=True) if not a}
    return {name: value for name, value in params.items() if name not in inactive}


def _with_interval(
    params: dict[str, Any],
    trial: FrozenTrial | None,
    rule: str,
    rules: Rules,
    model: Model,
) -> Recommendation:
    space = model.space
    z = model.featurize(space.encode(params)[None], space.active(params)[None])
    mean, deviation = (float(v[0]) for v in model.gp.predict(z))
    bounds = sorted(
        (-1.0 if rules.maximize else 1.0) * (mean + z * deviation) for z in (-1.96, 1.96)
    )
    return Recommendation(
        params=params,
        schedule=Schedule.from_params(params) if space.tags else None,
        expected_loss=-mean if rules.maximize else mean,
        interval=(bounds[0], bounds[1]),
        rule=rule,
        trial=trial.number if trial is not None else None,
    )
