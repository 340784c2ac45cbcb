"""Which trial of a search gets the schedule that is suggested for the noise rate."""

from __future__ import annotations

from optuna.samplers import GridSampler
from optuna.trial import Trial, TrialState

from optuna_s2e._attributes import DRAW_KEY, FIXED_PARAMS_KEY
from optuna_s2e._optuna import all_trials, attrs_when_asked

MAX_FIRST_TRIALS = 3  # of which all but the last one failed


def is_first_trial(trial: Trial) -> bool:
    """Say whether a trial is the first one of its study, or all trials before it failed.

    No two trials that did not fail are first: the storage numbers them. An enqueued trial is not
    first, and neither is a trial after several failures: the objective may be why they failed.
    A trial of `GridSampler` is not first either, because every point of a grid counts.

    In a search by batches whose estimator learns from such a trial, it is that of slot 0, so that
    it does not matter which trials a machine lost.
    """
    attrs = attrs_when_asked(trial)
    if attrs.get(FIXED_PARAMS_KEY) or isinstance(trial.study.sampler, GridSampler):
        return False
    draw = attrs.get(DRAW_KEY) or {}  # only batches record it before they ask
    settings = draw["settings"] if draw.get("generation") == 0 and "slot" in draw else {}
    if settings.get("estimator") == "surrogate" and settings["population_size"] > 1:
        return bool(draw["slot"] == 0 and draw["attempt"] < MAX_FIRST_TRIALS)
    if trial.number >= MAX_FIRST_TRIALS:
        return False
    before = [t for t in all_trials(trial.study) if t.number < trial.number]
    return [t.state for t in before] == [TrialState.FAIL] * trial.number
