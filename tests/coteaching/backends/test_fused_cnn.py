"""Networks whose channels lie side by side, in both ways to convolve them, against the loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching.backends._fused_cnn import is_fusible

CONFIG = TrainingConfig(batch_size=6, learning_rate=0.01, dtype="float64")
RATES = np.array([[1.0, 0.7, 0.5], [1.0, 1.0, 1.0], [0.2, 0.2, 0.9]])
SEEDS = [4, 0, 0]


def _narrow(input_shape, n_classes):
    """Make a network that uses all rules: grouped, dilated and bare convolutions, dropout, ..."""
    return nn.Sequential(
        *(nn.Conv2d(input_shape[0], 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Dropout2d(0.3), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.LeakyReLU(0.1)),
        *(nn.BatchNorm2d(6, momentum=0.3), nn.MaxPool2d(2), nn.Dropout2d(0.5)),
        *(nn.Conv2d(6, 5, 2, padding="same", dilation=2), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, n_classes)),
    )


def _data(size):
    rng = np.random.default_rng(0)
    clean = np.arange(14) % 3
    x = rng.integers(0, 256, (14, 2, size, size), dtype=np.uint8)
    x[np.arange(14), 0, clean] = 255
    noisy = np.where(rng.random(14) < 0.3, rng.integers(0, 3, 14), clean)
    noisy[:3] = range(3)
    return NoisyData.from_arrays(x, noisy, x[:5], clean[:5], clean_labels=clean)


def _train(data, backend, network, rates=RATES, seeds=SEEDS, **options):
    return train_batch(
        rates, seeds, data=data, network=network, config=CONFIG, device="cpu",
        backend=backend, **options,
    )  # fmt: skip


def _assert_close(fused, loop):
    for a, b in zip(fused, loop, strict=True):
        assert (a.seed, a.n_epochs, a.failure) == (b.seed, b.n_epochs, None)
        for name in a.curves._fields:
            np.testing.assert_allclose(
                getattr(a.curves, name), getattr(b.curves, name), rtol=0, atol=1e-8, err_msg=name
            )


@pytest.mark.parametrize(
    ("network", "size", "n_samples"), [("cnn2", 16, 14), ("cnn7", 8, 7), ("cnn9", 28, 2)]
)
def test_shipped_networks_train_as_in_the_loop(network, size, n_samples):
    data = _data(size)
    x, clean = data.x[:n_samples], data.clean_labels[:n_samples]
    n_classes = min(3, n_samples)
    data = NoisyData.from_arrays(
        x, data.noisy_labels[:n_samples], x[:n_classes], clean[:n_classes],
        clean_labels=clean, n_classes=n_classes,
    )  # fmt: skip
    rates = RATES[:1, 1:2] if network == "cnn9" else RATES[:2, 1:]
    loop, *ways = (
        _train(data, backend, network, rates=rates, seeds=SEEDS[: len(rates)])
        for backend in ("loop", "fused", "unfolded")
    )
    for way in ways:
        _assert_close(way, loop)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("backend", ["fused", "unfolded"])
def test_batch_norm_and_dropout_are_those_of_the_loop(backend, width):
    data = _data(13)
    fused = _train(data, backend, _narrow, fused_width=width)
    _assert_close(fused, _train(data, "loop", _narrow))


def _grouped_first(input_shape, n_classes):
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(36, n_classes),
    )


@pytest.mark.parametrize("backend", ["fused", "unfolded", "auto"])
def test_a_first_convolution_may_have_groups(backend):
    """Each network reads all channels, each group of a network its own."""
    data = _data(8)
    _assert_close(_train(data, backend, _grouped_first), _train(data, "loop", _grouped_first))


@pytest.mark.parametrize("backend", ["fused", "unfolded"])
def test_stopped_trials_leave_and_labels_stay_with_their_trials(backend):
    data = _data(13)
    labels = np.random.default_rng(1).integers(0, 3, (3, 14))

    def on_epoch(k, epoch, metrics):
        return k == 1 and epoch == 0

    fused, loop = (
        _train(data, name, _narrow, labels=labels, on_epoch=on_epoch) for name in (backend, "loop")
    )
    assert [result.n_epochs for result in fused] == [3, 1, 3]
    _assert_close(fused, loop)


def test_global_generators_are_left_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    _train(_data(13), "fused", _narrow)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.ReLU()),
        nn.Dropout(),
        nn.GroupNorm(1, 2),
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.BatchNorm2d(2, momentum=None),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.MaxPool2d(2, return_indices=True),
        nn.Linear(2, 2),
        nn.Dropout2d(1.0),
    ],
)
def test_other_layers_have_no_rule(layer):
    assert is_fusible(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten()))
    assert not is_fusible(nn.Sequential(nn.Conv2d(2, 2, 1), layer, nn.Flatten()))
    assert not is_fusible(nn.Sequential(layer, nn.Flatten()))


def test_wrong_logits_are_named():
    def network(input_shape, n_classes):
        return nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(98, n_classes + 1))

    for result in _train(_data(9), "fused", network):
        assert "must return logits of shape (B, C) = (6, 3), but got (6, 4)" in str(result.failure)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize(
    ("backend", "network"),
    [("fused", "mlp"), ("fused", "cnn2"), ("fused", "cnn7"), ("unfolded", "cnn2")],
)
def test_trials_on_cuda_train_as_the_loop_on_the_cpu(backend, network):
    # a constant power of 2: learning rates are float32 on the device
    config = replace(CONFIG, learning_rate=2**-7, decay_start=1.0)
    options = {"data": _data(17), "network": network, "config": config}
    on_cuda = train_batch(RATES, SEEDS, **options, device="cuda", backend=backend)
    _assert_close(on_cuda, train_batch(RATES, SEEDS, **options, device="cpu", backend="loop"))
