"""Multi-layer perceptrons in steps of one size: what GPUs train, here on the CPU."""

import numpy as np
import pytest
import torch
from benchmarks.bench_steps import StepSpy
from torch import nn

from optuna_s2e.coteaching import METHODS, NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching import _training as training
from optuna_s2e.coteaching.backends._base import TrainingSetup
from optuna_s2e.coteaching.backends._choice import Backend
from optuna_s2e.coteaching.backends._fused_mlp import FusedMlpTrainer
from optuna_s2e.coteaching.backends._fused_mlp_fixed import FixedMlpTrainer

RATES = np.array(
    [
        [1.0, 0.9, 0.62, 0.5, 0.4],
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 0.4, 0.01, 0.2, 0.9],
        [0.3, 0.3, 0.3, 0.3, 0.3],
    ]
)
SEEDS = [3, 0, 0, 11]


def _mlp(*hidden):
    def network(input_shape, n_classes):
        sizes = [int(np.prod(input_shape)), *hidden]
        layers = [nn.Flatten()]
        for n_in, n_out in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))

    return network


@pytest.fixture(scope="module")
def data():
    """Make images of which a third occurs twice, so that losses tie. Half the labels are wrong."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (150, 1, 4, 4), dtype=np.uint8)
    x[:50] = x[50:100]
    clean = x.reshape(150, -1).argmax(axis=1) % 4
    clean[:4] = range(4)
    noisy = np.where(rng.random(150) < 0.5, rng.integers(0, 4, 150), clean)
    noisy[:50] = noisy[50:100]
    return NoisyData.from_arrays(x, noisy, x[::3], clean[::3], clean_labels=clean, n_classes=4)


@pytest.fixture
def train(data, monkeypatch):
    """Return a function that trains trials, all side by side, in steps of one size."""

    def train(rates=RATES, seeds=SEEDS, *, dtype="float64", network=None, **options):
        config = TrainingConfig(20, 0.02, dtype=dtype)
        options = {"data": data, "config": config, "device": "cpu", **options}
        return train_batch(rates, seeds, network=network or _mlp(16), **options)

    found = lambda name, *_: Backend(FixedMlpTrainer, 4)  # noqa: E731
    monkeypatch.setattr(training, "find_backend", found)
    return train


@pytest.fixture
def loop(data):
    """Return a function that trains the same trials by the loop."""

    def loop(rates=RATES, seeds=SEEDS, *, network=None, **options):
        config = TrainingConfig(20, 0.02, dtype="float64")
        options = {"data": data, "config": config, "device": "cpu", **options}
        return train_batch(rates, seeds, network=network or _mlp(16), backend="loop", **options)

    return loop


def _assert_close(results, expected, atol=1e-10):
    assert [(r.seed, r.n_epochs) for r in results] == [(r.seed, r.n_epochs) for r in expected]
    assert [str(r.failure) for r in results] == [str(r.failure) for r in expected]
    for k, (a, b) in enumerate(zip(results, expected, strict=True)):
        for name in a.curves._fields:
            np.testing.assert_allclose(
                getattr(a.curves, name), getattr(b.curves, name), 0, atol, err_msg=f"{k} {name}"
            )


@pytest.mark.parametrize("hidden", [(7,), (6, 5), (33, 16, 4)])
def test_networks_train_as_in_the_loop(loop, train, hidden):
    expected = loop(network=_mlp(*hidden))
    _assert_close(train(network=_mlp(*hidden)), expected)


@pytest.mark.parametrize("name", ["standard", "bare", "jocor", "decoupling", "coteaching+"])
def test_other_methods_train_as_in_the_loop(loop, train, name):
    expected = loop(method=METHODS[name])
    _assert_close(train(method=METHODS[name]), expected)


def test_networks_and_samples_are_those_of_the_loop(loop, train):
    options = {"keep_networks": True, "watch_samples": True}
    for a, b in zip(train(**options), loop(**options), strict=True):
        for mine, other in zip(a.networks, b.networks, strict=True):
            for p, q in zip(mine.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(a.samples.trained_share, b.samples.trained_share)
        np.testing.assert_array_equal(a.samples.predicted, b.samples.predicted)


def test_trials_may_have_labels_of_their_own(loop, train):
    labels = np.random.default_rng(1).integers(0, 4, (4, 150))
    _assert_close(train(labels=labels), loop(labels=labels))


def _same_bits(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.curves, b.curves, strict=True))


def test_a_trial_has_the_same_bits_alone_in_a_group_and_after_others_left(train):
    together = train(dtype="float32")
    for k in range(4):
        (alone,) = train(RATES[[k]], SEEDS[k : k + 1], dtype="float32")
        assert _same_bits(alone, together[k])
        pair = train(RATES[[k, 3]], [SEEDS[k], 11], dtype="float32")
        assert _same_bits(pair[0], together[k])
        left = train(dtype="float32", on_epoch=lambda i, epoch, _, k=k: i != k and epoch == i % 3)
        assert _same_bits(left[k], together[k])


def _operations(data, trainer_type, seeds, network):
    counts = []

    def run_steps(step, inputs, n_steps, constants):
        outputs = []
        for values in inputs:
            with StepSpy() as spy:
                outputs.append(step(*values))
            counts.append(spy.calls)
        return [torch.stack(of_steps) for of_steps in zip(*outputs, strict=True)]

    setup = TrainingSetup(data, network, TrainingConfig(20), (data.x_val, data.y_val))
    trainer = trainer_type(setup, seeds, data.noisy_labels, make_steps=lambda: run_steps)
    trainer.train_epoch(np.linspace(1.0, 0.4, len(seeds)), 0.01, 0.9)
    return counts[-1]


def test_a_step_has_at_most_twenty_operations_for_any_number_of_trials(data):
    one, six = (_operations(data, FixedMlpTrainer, list(range(k)), "mlp") for k in (1, 6))
    assert one == six
    assert len(one) <= 20, one
    assert sum("baddbmm" in name for name in one) == 2  # both networks' first layer is one product


def test_a_further_layer_costs_five_operations(data):
    shallow, deep = (
        _operations(data, FixedMlpTrainer, [0, 1], _mlp(*hidden)) for hidden in ((16,), (16, 16))
    )
    assert len(deep) - len(shallow) == 5  # product and ReLU; two products and ReLU's gradient


def test_a_step_over_kept_samples_takes_no_more_operations_than_it_did(data):
    assert len(_operations(data, FusedMlpTrainer, [0, 1], "mlp")) <= 32
