"""The configuration: the plan of learning rates, the optimiser, errors."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import TrainingConfig, _config, train_batch
from optuna_s2e.coteaching._adam import Adam


def test_learning_rate_and_beta1_reach_adam_as_planned(tiny, monkeypatch):
    used = []

    class Recorded(Adam):
        def step(self):
            used.append((self.param_groups[0]["lr"], self.param_groups[0]["betas"]))
            super().step()

    monkeypatch.setattr(_config, "Adam", Recorded)
    config = TrainingConfig(batch_size=23, learning_rate=0.6)
    train_batch(np.ones((1, 10)), [0], data=tiny, config=config, network=_linear, device="cpu")
    # one step per epoch; constant for 4 of 10 epochs, then 6/6, 5/6, .. 1/6
    rates = [0.6] * 4 + [0.6 * i / 6 for i in (6, 5, 4, 3, 2, 1)]
    np.testing.assert_allclose([lr for lr, _ in used], rates, rtol=1e-12)
    assert [betas for _, betas in used] == [(0.9, 0.999)] * 4 + [(0.1, 0.999)] * 6


def _linear(input_shape, n_classes):
    return nn.Linear(input_shape[0], n_classes)


def test_plans_of_the_paper_start_to_fall_at_epoch_80_of_200():
    config = TrainingConfig()
    rates, betas = config.learning_rates(200), config.beta1s(200)
    np.testing.assert_array_equal(rates[:81], 1e-3)  # (200 - 80) / 120 = 1 at epoch 80 itself
    np.testing.assert_allclose(rates[[81, 140, 199]], np.array([119, 60, 1]) / 120 * 1e-3)
    np.testing.assert_array_equal(np.flatnonzero(betas == 0.1), np.arange(80, 200))


@pytest.mark.parametrize("n_epochs", [1, 2, 7])
def test_no_decay_is_possible(n_epochs):
    config = TrainingConfig(decay_start=1.0)
    np.testing.assert_array_equal(config.learning_rates(n_epochs), config.learning_rate)
    np.testing.assert_array_equal(config.beta1s(n_epochs), config.beta1)


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("adam", Adam, {"lr": 0.5, "weight_decay": 0.25, "betas": (0.9, 0.999)}),
        ("sgd", torch.optim.SGD, {"lr": 0.5, "weight_decay": 0.25, "momentum": 0.75}),
        ("rmsprop", torch.optim.RMSprop, {"lr": 0.5, "weight_decay": 0.25, "momentum": 0.75}),
    ],
)
def test_the_optimizer_has_the_values_of_the_config(name, kind, values):
    config = TrainingConfig(
        optimizer=name, learning_rate=0.5, momentum=0.75, weight_decay=0.25, beta1=0.9
    )
    optimizer = config.make_optimizer([nn.Parameter(torch.zeros(2))])
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in values} == values


def test_numbers_of_numpy_become_numbers_of_python():
    config = TrainingConfig(np.int64(16), np.float32(0.5), momentum=np.float64(0), weight_decay=1)
    assert config == TrainingConfig(16, 0.5, momentum=0.0, weight_decay=1.0)
    assert json.loads(json.dumps(asdict(config))) == asdict(config)
    assert (type(config.batch_size), type(config.learning_rate)) == (int, float)


@pytest.mark.parametrize(
    ("field", "value", "condition"),
    [
        ("batch_size", 0, "an int of at least 1"),
        ("batch_size", 2.5, "an int of at least 1"),
        ("batch_size", True, "an int of at least 1"),
        ("learning_rate", 0.0, "a finite number > 0"),
        ("learning_rate", float("nan"), "a finite number > 0"),
        ("learning_rate", "fast", "a finite number > 0"),
        ("decay_start", 1.1, "a number in [0, 1]"),
        ("beta1", 1.0, "a number in [0, 1)"),
        ("late_beta1", -0.1, "a number in [0, 1)"),
        ("optimizer", "lion", "one of 'adam', 'sgd', 'rmsprop'"),
        ("momentum", 1.0, "a number in [0, 1)"),
        ("weight_decay", -1.0, "a finite number >= 0"),
        ("dtype", "float16", "one of 'float32', 'float64', 'tf32', 'bfloat16'"),
    ],
)
def test_config_errors_name_the_field_and_the_value(field, value, condition):
    message = f"{field} must be {condition}, but got {value!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainingConfig(**{field: value})
