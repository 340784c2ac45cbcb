"""What every fused trainer guarantees to each of its trials."""

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig
from optuna_s2e.coteaching.backends._base import TrainingSetup, trial_seeds
from optuna_s2e.coteaching.backends._fused_cnn import FusedCnnTrainer
from optuna_s2e.coteaching.backends._fused_mlp import FusedMlpTrainer
from optuna_s2e.coteaching.backends._fused_mlp_fixed import FixedMlpTrainer
from optuna_s2e.coteaching.backends._fused_vmap import FusedVmapTrainer

SEEDS = [3, 4, 5]
RATES = np.array([[1.0, 0.6], [0.4, 0.9], [0.7, 0.2]])


def _perceptron(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, n_classes))


def _convolutions(input_shape, n_classes):
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16, n_classes)),
    )


KINDS = {
    "mlp": (FusedMlpTrainer, _perceptron),
    "fixed mlp": (FixedMlpTrainer, _perceptron),
    "cnn": (FusedCnnTrainer, _convolutions),
    "vmap": (FusedVmapTrainer, _convolutions),
}


def _measured(kind, change=lambda seed, weight: None):
    """Train two epochs; return all measurements, (12, K, 2)."""
    trainer_type, network = KINDS[kind]

    def changed(input_shape, n_classes):
        made = network(input_shape, n_classes)
        with torch.no_grad():
            change(torch.initial_seed(), next(made.parameters()))
        return made

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 2, 6, 6), dtype=np.uint8), np.arange(40) % 3
    data = NoisyData.from_arrays(x, y, x[:7], y[:7], clean_labels=y[::-1].copy())
    config = TrainingConfig(10, 0.01, dtype="float64")
    made = trainer_type(
        TrainingSetup(data, changed, config, (data.x_val, data.y_val)), SEEDS, data.noisy_labels
    )
    return torch.cat(
        [
            part
            for rates in RATES.T
            for part in (made.train_epoch(rates, 0.01, 0.9), made.evaluate())
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_trial_that_becomes_non_finite_leaves_the_others_alone(kind, value):
    second = trial_seeds(SEEDS[1]).second

    def break_one(seed, weight):
        if seed == second:
            weight.view(-1)[0] = value

    broken, healthy = _measured(kind, break_one), _measured(kind)
    assert torch.equal(broken[:, [0, 2]], healthy[:, [0, 2]])
    loss = broken[2, 1]  # of the trial's networks, in the first epoch
    assert torch.isfinite(healthy).all()
    assert not torch.isfinite(loss).all()
