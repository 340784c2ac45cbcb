"""Search a schedule with Optuna's default sampler, and plot what was tried."""

import optuna
import optunahub

module = optunahub.load_module(package="visualization/plot_s2e_schedules")
space = module.ScheduleSpace(n_epochs=40)


def objective(trial: optuna.Trial) -> float:
    """Return how far R(t) is from keeping half of the samples after ten epochs."""
    keep_rates = space.suggest(trial).keep_rates
    return float(abs(keep_rates[:10].mean() - 0.8) + abs(keep_rates[10:] - 0.5).mean())


study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(objective, n_trials=40)
module.plot_schedules(study).show()
module.plot_basis_functions(study).show()
