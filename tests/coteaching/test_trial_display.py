"""What shows a trial never hurts it."""

import optuna
import pytest
from optuna.trial import TrialState

from optuna_s2e import optimize_batch
from optuna_s2e.coteaching import CoteachingObjective, TrainingConfig


def _objective(data, **options):
    config = TrainingConfig(8, 0.01)
    return CoteachingObjective(data, n_epochs=2, device="cpu", config=config, **options)


def _study():
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


class _BadReporter:
    """Raises when it is shown a trial for the n-th time."""

    def __init__(self, n):
        self.n, self.shown = n, 0

    def show(self, trial, schedule, curves, *, final=False):
        self.shown += 1
        if self.shown == self.n:
            raise OSError("no space left on device")


@pytest.mark.parametrize("n", [1, 2, 5, 8])  # before the first epoch, between two, at the end
def test_an_error_of_the_reporter_costs_no_training(tiny, n, caplog):
    alone, shown = _study(), _study()
    optimize_batch(alone, _objective(tiny), 2, batch_size=2)
    reporter = _BadReporter(n)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with caplog.at_level("WARNING"):
        optuna.logging.enable_propagation()
        try:
            objective = _objective(tiny, reporter=reporter)
            optimize_batch(shown, objective, 2, batch_size=2)
        finally:
            optuna.logging.disable_propagation()
    assert [t.value for t in shown.trials] == [t.value for t in alone.trials]
    assert all(t.state == TrialState.COMPLETE for t in shown.trials)
    assert "is not shown any more: OSError('no space left on device')" in caplog.text
    assert n <= reporter.shown < 8 or n == 8  # it is not called for that trial again
