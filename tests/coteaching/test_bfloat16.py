"""Training with products and convolutions in bfloat16."""

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching.backends import TrainingSetup
from optuna_s2e.coteaching.backends._fused_cnn import FusedCnnTrainer


def _convolutions(input_shape, n_classes):
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Flatten(), nn.Linear(36, n_classes)),
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 2, 16, 16), dtype=np.uint8), np.arange(40) % 3
    return NoisyData.from_arrays(x, y, x[:7], y[:7], clean_labels=y[::-1].copy())


@pytest.mark.parametrize("network", ["mlp", "cnn2", _convolutions])
def test_bfloat16_products_change_little(data, network):
    def train(dtype, backend):
        return train_batch(
            np.ones((2, 1)), [0, 1], data=data, network=network,
            config=TrainingConfig(10, dtype=dtype), device="cpu", backend=backend,
        )  # fmt: skip

    whole = train("float32", "loop")
    for backend in ("loop", "auto", "fused" if network == "mlp" else "unfolded", "fused"):
        for a, b in zip(train("bfloat16", backend), whole, strict=True):
            assert a.failure is None
            # numbers rounded to eight bits differ, but not by much
            assert not np.array_equal(a.curves.loss, b.curves.loss)
            np.testing.assert_allclose(a.curves.loss, b.curves.loss, rtol=0.05)


def test_bfloat16_losses_and_weights_are_float32(data):
    config = TrainingConfig(10, dtype="bfloat16")
    setup = TrainingSetup(data, _convolutions, config, (data.x_val, data.y_val))
    trainer = FusedCnnTrainer(setup, [0], data.noisy_labels)
    seen, select = [], trainer._select
    trainer._select = lambda losses: seen.append(losses.dtype) or select(losses)
    trainer.train_epoch(np.array([0.6]), 0.01, 0.9)
    dtypes = {p.dtype for p in trainer._parameters} | {p.grad.dtype for p in trainer._parameters}
    assert len(seen) == 4
    assert {*seen, *dtypes} == {torch.float32}
