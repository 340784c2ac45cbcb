"""Which trainer each backend takes for a network on a device, and how many trials at once.

Tensors without memory (device "meta") stand for a GPU: the choice asks only whether the data are
on a CPU.
"""

from functools import partial
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching.backends import BACKENDS, TrainingSetup, find_backend
from optuna_s2e.coteaching.backends._base import UnsuitableNetwork
from optuna_s2e.coteaching.backends._choice import Backend
from optuna_s2e.coteaching.backends._fused_cnn import FusedCnnTrainer
from optuna_s2e.coteaching.backends._fused_mlp import FusedMlpTrainer
from optuna_s2e.coteaching.backends._fused_mlp_fixed import FixedMlpTrainer
from optuna_s2e.coteaching.backends._fused_vmap import FusedVmapTrainer
from optuna_s2e.coteaching.backends._loop import LoopTrainer
from optuna_s2e.coteaching.backends._loop_kept_rows import KeptRowsTrainer

MNIST, DIGITS = (1, 28, 28), (1, 8, 8)


def _mlp(n_hidden, input_shape, n_classes):
    n_inputs = prod(input_shape)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(n_inputs, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_classes)
    )


def _small_cnn(input_shape, n_classes):
    """9 * 4 weights at 64 pixels, and 144 * C: below 20,000 products."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, n_classes))


def _tanh(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), n_classes), nn.Tanh())


def _dropout(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(prod(input_shape), n_classes))


def _raising(input_shape, n_classes):
    raise KeyError("boom")


def _make_setup(network, shape, *, dtype="float32", device="cpu"):
    x, y = np.zeros((10, *shape), np.float32), np.arange(10)
    data = NoisyData.from_arrays(x, y, x, y).to(device)
    return TrainingSetup(data, network, TrainingConfig(dtype=dtype), (data.x_val, data.y_val))


@pytest.mark.parametrize(
    ("network", "shape", "dtype", "trainer", "width"),
    [
        # widths of MLPs: weights, gradients and moments within 16 MiB, as docs/speed.md says
        ("mlp", MNIST, "float32", FusedMlpTrainer, 2),
        (partial(_mlp, 64), MNIST, "float32", FusedMlpTrainer, 10),
        ("mlp", DIGITS, "float32", FusedMlpTrainer, 27),
        ("mlp", DIGITS, "float64", FusedMlpTrainer, 13),
        (partial(_mlp, 2), DIGITS, "float32", FusedMlpTrainer, 32),
        ("mlp", (3, 200, 200), "float32", FusedMlpTrainer, 1),
        ("mlp", DIGITS, "bfloat16", LoopTrainer, 1),
        ("cnn2", MNIST, "float32", KeptRowsTrainer, 1),
        ("cnn2", MNIST, "bfloat16", LoopTrainer, 1),
        ("cnn7", DIGITS, "float32", LoopTrainer, 1),
        (_small_cnn, DIGITS, "float32", FusedCnnTrainer, 1),
        (_small_cnn, DIGITS, "bfloat16", FusedCnnTrainer, 1),
        (_tanh, DIGITS, "float32", LoopTrainer, 1),
        (_dropout, DIGITS, "float32", LoopTrainer, 1),
        (_raising, DIGITS, "float32", LoopTrainer, 1),
    ],
)
def test_auto_on_a_cpu(network, shape, dtype, trainer, width):
    found = find_backend("auto", _make_setup(network, shape, dtype=dtype), None)
    assert found == (trainer, width, False)


@pytest.mark.parametrize(
    ("network", "shape", "dtype", "trainer", "width"),
    [
        ("mlp", MNIST, "float32", FixedMlpTrainer, 64),
        ("mlp", MNIST, "tf32", FixedMlpTrainer, 64),
        ("mlp", MNIST, "bfloat16", LoopTrainer, 1),
        ("cnn2", MNIST, "float32", FusedCnnTrainer, 16),
        ("cnn7", DIGITS, "bfloat16", FusedCnnTrainer, 16),
        (_small_cnn, DIGITS, "float32", FusedCnnTrainer, 16),
        (_tanh, DIGITS, "float32", LoopTrainer, 1),
    ],
)
def test_auto_on_another_device(network, shape, dtype, trainer, width):
    setup = _make_setup(network, shape, dtype=dtype, device="meta")
    assert find_backend("auto", setup, None) == (trainer, width, False)


@pytest.mark.parametrize(
    ("name", "network", "shape", "dtype", "trainer", "width"),
    [
        ("loop", "mlp", DIGITS, "float32", LoopTrainer, 1),
        ("rows", "cnn2", MNIST, "float32", KeptRowsTrainer, 1),
        ("rows", "mlp", DIGITS, "float32", KeptRowsTrainer, 1),
        ("fused", "mlp", DIGITS, "float32", FusedMlpTrainer, 27),
        ("fused", "mlp", DIGITS, "bfloat16", FusedVmapTrainer, 16),
        ("fused", "cnn2", MNIST, "float32", FusedCnnTrainer, 16),
        ("fused", _tanh, DIGITS, "float32", FusedVmapTrainer, 16),
    ],
)
def test_backends_by_name_on_a_cpu(name, network, shape, dtype, trainer, width):
    found = find_backend(name, _make_setup(network, shape, dtype=dtype), None)
    assert (found, found.name) == ((trainer, width, False), name)


@pytest.mark.parametrize(
    ("name", "network", "dtype"),
    [
        ("rows", "cnn7", "float32"),
        ("rows", "mlp", "bfloat16"),
        ("rows", _raising, "float32"),
        ("fused", _dropout, "float32"),
    ],
)
def test_a_backend_that_cannot_train_the_network_says_what_it_needs(name, network, dtype):
    with pytest.raises(ValueError, match=f"backend '{name}' needs a network that "):
        find_backend(name, _make_setup(network, DIGITS, dtype=dtype), None)


@pytest.mark.parametrize("width", [1, 5, np.int64(100)])
def test_the_width_is_the_given_one(width):
    for network, name in (("mlp", "auto"), ("cnn7", "fused"), (_small_cnn, "auto")):
        found = find_backend(name, _make_setup(network, DIGITS), width)
        assert (found.width, type(found.width)) == (width, int)
    assert find_backend("loop", _make_setup("mlp", DIGITS), width).width == 1


@pytest.mark.parametrize("network", ["mlp", "cnn7", _tanh])
def test_a_width_that_is_given_is_the_size_of_every_group_where_bits_may_follow_from_it(network):
    for device, width, is_padded in (
        *(("meta", 6, True), ("meta", 1, False), ("meta", None, False)),
        ("cpu", 6, False),
    ):
        setup = _make_setup(network, MNIST, device=device)
        found = find_backend("auto", setup, width)
        assert found.is_padded == (is_padded and network is not _tanh)  # the loop has one lane
        assert found.n_lanes(1) == (6 if found.is_padded else 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_graphs_take_the_trainers_of_fused():
    for network, trainer in (("mlp", FixedMlpTrainer), ("cnn7", FusedCnnTrainer)):
        setup = _make_setup(network, DIGITS, device="cuda")
        graphs, fused = (find_backend(name, setup, None) for name in ("graphs", "fused"))
        assert (graphs.trainer.func, graphs.width) == (trainer, fused.width)
        assert (graphs.name, fused.name) == ("graphs", "fused")


def test_unknown_backends_and_widths_are_named():
    setup = _make_setup("mlp", DIGITS)
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', .* but got 'gpu'"):
        find_backend("gpu", setup, None)
    for name in set(BACKENDS) - {"graphs"}:
        for width in (0, 2.0, True):
            with pytest.raises(ValueError, match="fused_width must be an int of at least 1"):
                find_backend(name, setup, width)


def test_one_trial_that_a_trainer_cannot_train_goes_to_the_loop_and_a_group_does_not():
    setup = _make_setup(_tanh, DIGITS)
    backend = Backend(FusedMlpTrainer, 2)
    labels = setup.data.noisy_labels
    assert type(backend.make_trainer(setup, [0], labels)) is LoopTrainer
    with pytest.raises(UnsuitableNetwork):
        backend.make_trainer(setup, [0, 1], labels)


class _Standardised(nn.Conv2d):
    """Computes with other weights than those that it holds."""

    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


class _Swish(nn.ReLU):
    def forward(self, x):
        return x * torch.sigmoid(x)


def _with_subclass(net):
    net[0] = _Standardised(1, net[0].out_channels, 3)


def _with_swish(net):
    net[1] = _Swish()


def _with_parametrization(net):
    nn.utils.parametrizations.weight_norm(net[0])


def _with_tied_weights(net):
    net[4].weight = net[2].weight


def _with_hook_of_a_weight(net):
    net[0].weight.register_hook(lambda gradient: gradient * 0)


def _with_hook_after_a_weight(net):
    def forget(parameter):
        parameter.grad = None

    net[0].weight.register_post_accumulate_grad_hook(forget)


def _with_lazy_layer(net):
    net[0] = nn.LazyConv2d(net[0].out_channels, 3)


def _with_frozen_statistics(net):
    norm = nn.BatchNorm2d(net[0].out_channels)
    norm.train = lambda mode=True: nn.BatchNorm2d.train(norm, False)
    net.insert(1, norm)


@pytest.mark.parametrize("n_channels", [2, 30])  # those of "auto": grouped channels, kept rows
@pytest.mark.parametrize(
    "change",
    [
        _with_subclass,
        _with_swish,
        _with_parametrization,
        _with_tied_weights,
        _with_hook_of_a_weight,
        _with_hook_after_a_weight,
        _with_lazy_layer,
        _with_frozen_statistics,
    ],
)
def test_layers_that_are_not_what_they_seem_are_trained_by_autograd(change, n_channels):
    def network(shape, n_classes):
        c = n_channels
        net = nn.Sequential(
            *(nn.Conv2d(1, c, 3), nn.ReLU(), nn.Conv2d(c, c, 3), nn.ReLU()),
            *(nn.Conv2d(c, c, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * c, n_classes)),
        )
        change(net)
        return net

    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(size=(60, 1, 8, 8)).astype(np.float32)
    data = NoisyData.from_arrays(x, y, x, y)
    loop, auto = (
        train_batch(
            [[1.0, 0.6]], [3], data=data, network=network, config=TrainingConfig(20, 0.01),
            device="cpu", backend=backend,
        )[0]
        for backend in ("loop", "auto")
    )  # fmt: skip
    assert (loop.failure, auto.failure) == (None, None)
    np.testing.assert_array_equal(auto.curves.loss, loop.curves.loss)
