"""How many trials fit into the memory of a device, from sizes alone."""

import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import make_network
from optuna_s2e.coteaching.backends._memory import free_bytes, trial_bytes, width_that_fits

GIB = 2**30
SIZES = {"batch_size": 128, "evaluation_batch": 512, "itemsize": 4}


def test_the_mlp_of_mnist_by_hand():
    network = make_network("mlp", (1, 28, 28), 10, seed=0)
    weights = 784 * 256 + 256 + 256 * 10 + 10
    outputs = 784 + 256 + 256 + 10  # Flatten, Linear, ReLU, Linear
    training = 128 * (2 * outputs + 784)
    evaluation = 512 * (784 + 784)
    expected = 2 * 4 * (4 * weights + max(training, evaluation))
    assert evaluation > training
    assert trial_bytes(network, (1, 28, 28), **SIZES) == expected


def test_convolutions_by_hand_and_the_network_is_left_as_it_was():
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(72, 5)),
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    outputs = [8 * 6 * 6] * 3 + [8 * 3 * 3] * 3 + [5]
    weights = 8 * 27 + 8 + 8 + 8 + 72 * 5 + 5
    sizes = {"batch_size": 100, "evaluation_batch": 100, "itemsize": 8}
    expected = 2 * 8 * (4 * weights + 100 * (2 * sum(outputs) + 3 * 8 * 8))
    assert trial_bytes(network, (3, 8, 8), **sizes) == expected
    assert all(module.training for module in network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_patches_of_unfolded_convolutions_are_as_outputs():
    network = nn.Sequential(
        *(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()),
        *(nn.Conv2d(6, 2, (2, 1), stride=2), nn.Flatten(), nn.Linear(18, 5)),
    )
    plain = [6 * 6 * 6] * 2 + [2 * 3 * 3] * 2 + [5]
    patches = [4 * 9 * 6 * 6, 6 * 2 * 3 * 3]
    weights = 6 * 18 + 6 + 2 * 12 + 2 + 18 * 5 + 5
    sizes = {"batch_size": 100, "evaluation_batch": 10, "itemsize": 4}
    expected = 2 * 4 * (4 * weights + 100 * (2 * sum(plain + patches) + 4 * 8 * 8))
    assert trial_bytes(network, (4, 8, 8), **sizes, unfolds=True) == expected
    evaluation = {**sizes, "batch_size": 1, "evaluation_batch": 1000}
    expected = 2 * 4 * (4 * weights + 1000 * (4 * 8 * 8 + patches[0]))
    assert trial_bytes(network, (4, 8, 8), **evaluation, unfolds=True) == expected


@pytest.mark.parametrize(
    ("network", "shape", "free", "width"),
    [
        ("mlp", (1, 28, 28), 139, 64),
        ("cnn2", (3, 32, 32), 139, 64),
        ("cnn2", (3, 32, 32), 8, 64),
        ("cnn9", (3, 32, 32), 139, (20, 60)),
        ("cnn9", (3, 32, 32), 8, (1, 3)),
        ("cnn9", (3, 32, 32), 0.1, 1),
    ],
)
def test_widths_of_the_networks_of_the_papers(network, shape, free, width):
    needed = trial_bytes(make_network(network, shape, 10, seed=0), shape, **SIZES)
    low, high = width if isinstance(width, tuple) else (width, width)
    assert low <= width_that_fits(needed, int(free * GIB), 64) <= high


def test_the_activations_of_an_evaluation_are_counted():
    network = make_network("cnn9", (3, 32, 32), 10, seed=0)
    few = {**SIZES, "batch_size": 4}
    more = {**few, "evaluation_batch": 1024}
    grown = trial_bytes(network, (3, 32, 32), **more) - trial_bytes(network, (3, 32, 32), **few)
    assert grown == 2 * 4 * 512 * (2 * 128 * 32 * 32)  # input and output of the widest layer


def test_a_recorded_step_keeps_its_memory_during_an_evaluation():
    network = make_network("cnn2", (3, 32, 32), 10, seed=0)
    whole, training, evaluation, weights = (
        trial_bytes(network, (3, 32, 32), **{**SIZES, **sizes}, is_recorded=True)
        for sizes in ({}, {"evaluation_batch": 0}, {"batch_size": 0},
                      {"batch_size": 0, "evaluation_batch": 0})
    )  # fmt: skip
    assert whole == training + evaluation - weights
    assert trial_bytes(network, (3, 32, 32), **SIZES) == max(training, evaluation)


def test_a_cpu_has_no_plan():
    assert free_bytes(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_memory_that_pytorch_keeps_for_itself_is_free():
    device = torch.device("cuda")
    before = free_bytes(device)
    block = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert before - free_bytes(device) >= 2**28
    del block
    assert free_bytes(device) > before - 2**26
