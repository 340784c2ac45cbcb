"""What the package's users ask of a study; each function takes one snapshot of it."""

from __future__ import annotations

from optuna.study import Study

from optuna_s2e.analysis._generations import Generation
from optuna_s2e.analysis._recommend import Recommendation
from optuna_s2e.analysis._snapshot import Snapshot


def generations(study: Study) -> list[Generation]:
    """Return the generations of a study with the thetas that its trials record.

    It only reads, and works on any study, also while workers write to it.

    Args:
        study: A study, with or without trials drawn by `S2ESampler`.

    Returns:
        One record per generation, generation 0 (theta = 1) first. A study without such trials has
        generation 0 only, with an empty theta.

    Raises:
        ValueError: If the study has several objectives.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler, generations
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=9)
        >>> [g.index for g in generations(study)], generations(study)[1].members
        ([0, 1, 2], (0, 1, 2, 3))
    """
    return Snapshot.of(study).generations


def replay(study: Study) -> list[Generation]:
    """Return the generations of a study with every theta recomputed.

    Each theta is computed from theta = 1, the recorded draws, the values of the members and the
    recorded settings. On the platform and library versions that wrote the study the result equals
    `generations(study)` bit for bit, whatever races and deaths happened. If an earlier release of
    this package moved theta by its own model of the loss, the recorded theta is taken instead
    (`s2e status --verify` says so).

    Args:
        study: A study.

    Returns:
        The same list as `generations(study)`.

    Raises:
        ValueError: If a member is missing or was changed, so that no theta follows; or if the
            study has several objectives.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler, generations, replay
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=9)
        >>> bool((replay(study)[2].theta == generations(study)[2].theta).all())
        True
    """
    return Snapshot.of(study).replayed


def recommend(study: Study, rule: str = "auto") -> Recommendation:
    r"""Recommend what to use, from the trials of any sampler.

    One training is noisy, and the best of many trials was good and lucky. So the losses are
    smoothed with a Gaussian process (for schedules over R(t), else over the parameters in the unit
    cube). If parameters were described in several ways, the trials of the newest space count, and
    odd ones do not, nor do trials that violate a constraint; the result names what is left out.

    The rules:

    - `"mean"`: the schedule :math:`\sum_i w_i R_i(t)`, the mean of the trained schedules with
      weights :math:`w_i \propto \exp(-(f_i - \min f) / (h \sigma))`, where f_i is the smoothed
      loss of a trial, :math:`\sigma` the standard deviation of the losses and h = 0.2. The lowest
      f_i is partly luck, too; the middle of the good schedules is not. It need not be a trained
      one, nor one of the space: `schedule` is the mean, `params` are those of the nearest schedule
      of the space, and `trial` is None. If an objective has other parameters, too, these are those
      of "smoothed", and the f_i are those at them.
    - `"smoothed"`: the completed trial with the lowest smoothed loss.
    - `"theta"`: the mean of p_theta, for studies of `S2ESampler`.
    - `"best"`: `study.best_trial`, with a smoothed estimate of its value.

    Args:
        study: A study with completed trials of one objective.
        rule: A rule. `"auto"` (the default) is "mean" if the trials (at least two) hold one
            schedule of one space each, nothing else is searched and no parameter of the schedule
            is fixed; otherwise it is "smoothed".

    Raises:
        ValueError: If no completed trial keeps its constraints, the rule is unknown, the study
            has several objectives, or the rule is `"theta"` and the study has no theta, or
            `"mean"` and the trials do not hold one schedule of one space each. Also if no value is
            finite or the trials share no parameters, unless the rule is `"best"`.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler, ScheduleSpace, recommend
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(seed=0))
        >>> study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=30)
        >>> abs(recommend(study).params["x"] - 0.3) < 0.1
        True
        >>> study = optuna.create_study(sampler=S2ESampler(seed=0))
        >>> space = ScheduleSpace(n_epochs=20)
        >>> study.optimize(lambda t: abs(space.suggest(t).keep_rates.mean() - 0.6), n_trials=30)
        >>> picked = recommend(study)
        >>> picked.rule, picked.trial, bool(abs(picked.schedule.keep_rates.mean() - 0.6) < 0.1)
        ('mean', None, True)
    """
    return Snapshot.of(study).recommend(rule)
