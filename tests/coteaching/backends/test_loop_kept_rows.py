"""The backward pass over the kept samples against the loop's autograd."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching.backends._loop_kept_rows import has_rules

RATES = np.array([[1.0, 0.9, 0.5, 0.05], [1.0, 1.0, 0.3, 1.0]])
CONFIG = TrainingConfig(batch_size=16, learning_rate=0.01, dtype="float64")


def _convolutions(channels, n_classes, n_features):
    return nn.Sequential(
        *(nn.Conv2d(channels, 4, 3, padding=1, stride=(1, 2)), nn.ReLU(True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, (3, 2), groups=2, dilation=(1, 2), bias=False), nn.MaxPool2d(2)),
        *(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(n_features, 5, bias=False), nn.ReLU()),
        nn.Linear(5, n_classes),
    )


NETWORKS = {
    "convolutions": lambda shape, c: _convolutions(shape[0], c, 18),
    "first layer in groups": lambda shape, c: nn.Sequential(
        nn.Conv2d(2, 4, 5, groups=2, bias=False), nn.Flatten(), nn.Linear(4 * 13 * 14, c)
    ),
    "mlp": lambda shape, c: nn.Sequential(
        nn.Flatten(), nn.Linear(17 * 18 * 2, 6), nn.ReLU(), nn.Linear(6, c)
    ),
    "linear": lambda shape, c: nn.Sequential(nn.Flatten(), nn.Linear(17 * 18 * 2, c)),
    "cnn2": "cnn2",
}


@pytest.fixture(scope="module")
def data():
    """Make images of 17 x 18 pixels that are partly black, so that pixels of a square tie."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (70, 2, 17, 18), dtype=np.uint8)
    x[:, :, 4:12, 3:13] = 0
    clean = np.arange(70) % 3
    x[np.arange(70), 0, clean] = 255
    noisy = np.where(rng.random(70) < 0.4, rng.integers(0, 3, 70), clean)
    return NoisyData.from_arrays(x, noisy, x[::4], clean[::4], clean_labels=clean)


def _train(data, backend, network, config=CONFIG, **options):
    return train_batch(
        RATES, [0, 5], data=data, network=network, config=config, device="cpu",
        backend=backend, **options,
    )  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_networks_train_as_under_autograd(data, network):
    loop, rows = (_train(data, backend, network) for backend in ("loop", "rows"))
    for a, b in zip(rows, loop, strict=True):
        assert (a.seed, a.n_epochs, a.failure) == (b.seed, b.n_epochs, None)
        for name in a.curves._fields:
            np.testing.assert_allclose(
                getattr(a.curves, name), getattr(b.curves, name), rtol=0, atol=1e-10, err_msg=name
            )


def _normalised(channels):
    def network(input_shape, n_classes):
        return nn.Sequential(
            *(nn.Conv2d(2, channels, 5), nn.BatchNorm2d(channels)),
            *(nn.Flatten(), nn.Linear(182 * channels, n_classes)),
        )

    return network


@pytest.mark.parametrize(
    ("network", "backend"),
    [
        ("cnn2", {"backend": "rows"}),
        (_normalised(1), {"backend": "fused", "fused_width": 1}),
        (_normalised(2), {"backend": "loop"}),
    ],
)
def test_auto_takes_what_is_fast_on_a_cpu_and_gives_each_trial_its_bits(data, network, backend):
    config = TrainingConfig(16, 0.01)
    auto, same = (
        _train(data, options.pop("backend"), network, config, **options)
        for options in ({"backend": "auto"}, backend)
    )
    for a, b in zip(auto, same, strict=True):
        np.testing.assert_array_equal(a.curves.loss, b.curves.loss)
    (alone,) = train_batch(RATES[1:], [5], data=data, network=network, config=config, device="cpu")
    np.testing.assert_array_equal(alone.curves.loss, auto[1].curves.loss)


def test_a_network_unlike_the_first_goes_through_the_loop(data):
    made = []

    def network(input_shape, n_classes):
        made.append(None)
        is_unlike = len(made) in (4, 5)  # trial 1, after the probe and trial 0
        middle = nn.Tanh() if is_unlike else nn.ReLU()
        return nn.Sequential(nn.Conv2d(2, 3, 5), middle, nn.Flatten(), nn.Linear(546, n_classes))

    results = _train(data, "auto", network)
    assert [result.failure for result in results] == [None, None]


def test_wrong_logits_are_named(data):
    def network(input_shape, n_classes):
        return nn.Sequential(nn.Conv2d(2, 3, 5), nn.Flatten(), nn.Linear(546, n_classes + 1))

    for result in _train(data, "auto", network):
        assert "must return logits of shape (B, C) = (16, 3), but got (16, 4)" in str(
            result.failure
        )


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(2),
        nn.Dropout(),
        nn.MaxPool2d(3),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Linear(3, 3),
        nn.Sequential(nn.ReLU()),
    ],
)
def test_other_layers_have_no_rule(layer):
    assert has_rules(nn.Sequential(nn.ReLU(), nn.Flatten()))
    assert not has_rules(nn.Sequential(layer, nn.Flatten()))


def test_linear_layers_on_images_have_no_rule():
    assert not has_rules(nn.Sequential(nn.Linear(3, 3), nn.Flatten(), nn.Linear(9, 2)))
    assert not has_rules(nn.Sequential(nn.Linear(3, 3)))


def test_rows_refuse_other_networks_by_name(data):
    message = "backend 'rows' needs a network that is an nn.Sequential of Conv2d, ReLU"
    with pytest.raises(ValueError, match=re.escape(message)):
        _train(data, "rows", lambda shape, c: nn.Sequential(nn.Flatten(), nn.Dropout()))


def test_global_generators_are_left_alone(data):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    _train(data, "rows", "cnn2")
    assert torch.equal(torch.get_rng_state(), state)
