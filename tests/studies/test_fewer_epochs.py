"""Stopping lost trainings: what the study's own rule expects, and what a trial costs."""

import fewer_epochs
import numpy as np
import optuna
import pytest
from fewer_epochs import GainPruner
from optuna.trial import TrialState, create_trial

T = 10


def trial_of(curve: list[float], state: TrialState) -> optuna.trial.FrozenTrial:
    complete = state == TrialState.COMPLETE
    return create_trial(
        state=state,
        value=curve[-1] if complete else None,
        intermediate_values=dict(enumerate(curve)),
    )


@pytest.fixture
def study() -> optuna.Study:
    """Four complete trials that lose .1, .1, .2 and .2 from epoch 4 to the end."""
    made = optuna.create_study()
    for last, gain in ((0.1, 0.1), (0.2, 0.1), (0.3, 0.2), (0.4, 0.2)):
        made.add_trial(trial_of([last + gain] * 5 + [last] * 5, TrialState.COMPLETE))
    return made


def test_the_gain_of_others_is_added_to_the_error_so_far(study):
    running = trial_of([0.5] * 5, TrialState.RUNNING)
    expected, deviation = GainPruner(T).expect(study, running)
    assert expected == pytest.approx(0.5 - 0.15)
    assert deviation == pytest.approx(np.std([0.1, 0.1, 0.2, 0.2], ddof=1) * np.sqrt(1.25))


def test_only_a_lost_training_is_stopped(study):
    spread = np.std([0.1, 0.2, 0.3, 0.4], ddof=1)
    deviation = np.std([0.1, 0.1, 0.2, 0.2], ddof=1) * np.sqrt(1.25)
    threshold = 0.1 + 0.5 * spread + 0.15 + deviation  # of the error so far
    pruner = GainPruner(T)
    for error, lost in ((threshold + 0.01, True), (threshold - 0.01, False)):
        assert pruner.prune(study, trial_of([error] * 5, TrialState.RUNNING)) is lost
    assert not pruner.prune(study, trial_of([9.0] * 2, TrialState.RUNNING))  # too early
    few = optuna.create_study()
    few.add_trials(study.trials[:3])
    assert not pruner.prune(few, trial_of([9.0] * 5, TrialState.RUNNING))


def test_a_stopped_trial_costs_its_epochs_and_counts_with_the_expected_loss(study):
    class Table:
        def observe(self, keep_rates: np.ndarray, rng: object) -> np.ndarray:
            return np.full(T, 9.0)

    study.pruner = GainPruner(T)
    space = fewer_epochs.ScheduleSpace(T)
    epochs = fewer_epochs._trial(study, space, Table(), np.random.default_rng(0), study.pruner)
    stopped = study.trials[-1]
    assert stopped.state == TrialState.PRUNED
    assert epochs == 3  # the first that may be stopped, a fifth of T
    assert stopped.value == pytest.approx(9.0 - np.mean([0.1, 0.1, 0.2, 0.2]))
