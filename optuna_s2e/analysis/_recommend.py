"""Which point of a finished search to use: the best trial is often just the luckiest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e.distributions import SearchSpace, union
from optuna_s2e.history import Ledger, Rules, read_tags
from optuna_s2e.schedules import Schedule
from optuna_s2e.surrogate import MAX_POINTS, Model

RULES = ("smoothed", "theta", "best")


@dataclass(frozen=True)
class Recommendation:
    """What to use, and how good it probably is.

    Attributes:
        params: Parameters by name, as in `trial.params`.
        schedule: The schedule that they decode to; None if they hold none.
        expected_loss: Estimate of f without the luck of one training, in units of `trial.value`.
        interval: 95 % interval of it.
        rule: "smoothed", "theta" or "best".
        trial: Number of the trial with these parameters; None for "theta".
    """

    params: dict[str, Any]
    schedule: Schedule | None = field(repr=False)
    expected_loss: float
    interval: tuple[float, float]
    rule: str
    trial: int | None


def recommend(study: Study, rule: str = "smoothed") -> Recommendation:
    """Recommend parameters to use, from the trials of any sampler.

    One training is noisy, and the best of many trials is the one that was good and lucky. The
    default smooths the losses with a Gaussian process (over R(t) for schedules, over the
    parameters in the unit cube else) and takes the completed trial of lowest posterior mean.

    Args:
        study: A study with completed trials of one objective.
        rule: `"smoothed"`; `"theta"`: the mean of p_theta, for studies of `S2ESampler`; `"best"`:
            `study.best_trial`, with a smoothed estimate of what it is worth.

    Raises:
        ValueError: If no trial has completed, the trials share no parameters, the rule is
            unknown, or the study has no theta for `"theta"`.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler, recommend
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(seed=0))
        >>> study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=30)
        >>> abs(recommend(study).params["x"] - 0.3) < 0.1
        True
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, but got {rule!r}.")
    rules = Rules.of(study)
    complete = [t for t in _optuna.all_trials(study) if t.state == TrialState.COMPLETE]
    if not complete:
        raise ValueError(f"Study {study.study_name!r} has no completed trial yet.")
    trials, space = _comparable(complete)
    losses = np.array([rules.loss(t) for t in trials])
    if not np.isfinite(losses).any():
        raise ValueError(f"Study {study.study_name!r} has no trial with a finite value.")
    order = np.argsort(losses, kind="stable")
    used = order[:MAX_POINTS]  # of very many, the best
    found = [trials[i].params for i in used]
    x = np.array([space.encode(params) for params in found])
    active = np.array([space.active(params) for params in found])
    model = Model.fit(space, x, active=active, losses=losses[used])

    chosen: FrozenTrial | None
    if rule == "theta":
        chosen, params = None, _theta_mean(study, rules, trials[int(order[0])], model)
    else:
        means = model.gp.mean(model.gp.features)
        at = int(np.argmin(means)) if rule == "smoothed" else 0
        chosen = trials[int(used[at])]
        params = dict(chosen.params)
    return _recommendation(params, chosen, rule, rules, model)


def _comparable(complete: list[FrozenTrial]) -> tuple[list[FrozenTrial], SearchSpace]:
    """Return the trials of the newest trial's schedule space (all, for other objectives)."""
    tags = read_tags(complete[-1])
    trials = [t for t in complete if read_tags(t) == tags]
    space = SearchSpace.of(union([t.distributions for t in trials]), tags)
    if not space.names:
        raise ValueError("The trials must share a parameter with one range, but they do not.")
    return trials, space


def _theta_mean(study: Study, rules: Rules, like: FrozenTrial, model: Model) -> dict[str, Any]:
    """Return the mean of p_theta; constants, and what theta does not describe, of a trial."""
    ledger = Ledger(rules).read(_optuna.all_trials(study))
    chain = ledger.state(1).chain
    if chain is None or chain.head is None:
        raise ValueError(
            f"Study {study.study_name!r} has no theta: it was not searched by S2ESampler, or its "
            'first generation is not complete. Use rule="smoothed".'
        )
    mean = chain.space.distribution.mean(chain.theta)
    params = like.params | chain.space.decode(chain.space.coordinates(mean[None])[0])
    active = model.conditions.active(model.space.encode(params)[None])[0]
    inert = {name for name, a in zip(model.space.names, active, strict=True) if not a}
    return {name: value for name, value in params.items() if name not in inert}


def _recommendation(
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
