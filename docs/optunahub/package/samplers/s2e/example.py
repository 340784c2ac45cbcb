"""Search two numbers and three weights that sum to 1."""

import optuna
import optunahub

module = optunahub.load_module(package="samplers/s2e")


def objective(trial: optuna.Trial) -> float:
    """Return the distance to a point and to a mixture."""
    weights = module.suggest_simplex(trial, "weights", 3)
    x, y = (trial.suggest_float(name, -1, 1) for name in "xy")
    return float((x - 0.3) ** 2 + (y + 0.5) ** 2 + abs(weights[0] - 0.6))


study = optuna.create_study(sampler=module.S2ESampler(seed=0))
study.optimize(objective, n_trials=60)
print(study.best_value, study.best_params)
for generation in module.generations(study):
    print(generation.index, generation.losses.mean())
