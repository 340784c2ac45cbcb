"""Networks: sizes of the published ones, and weights that depend on the seed alone."""

import os
import random
import re
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import make_network
from optuna_s2e.coteaching._networks import seeded_generators


def _weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize(
    ("network", "input_shape", "n_classes", "n_parameters"),
    [
        ("mlp", (1, 28, 28), 10, 203_530),
        ("cnn2", (3, 32, 32), 10, 62_006),
        ("cnn7", (3, 32, 32), 100, 541_280),
        ("cnn9", (3, 32, 32), 10, 4_434_570),
        ("cnn9", (1, 28, 28), 10, 4_432_266),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet34", (3, 32, 32), 10, 21_282_122),
        ("resnet50", (3, 32, 32), 10, 23_520_842),
        ("densenet121", (3, 32, 32), 10, 6_956_426),
    ],
)
def test_networks_have_the_published_number_of_parameters(
    network, input_shape, n_classes, n_parameters
):
    net = make_network(network, input_shape, n_classes, seed=0)
    assert sum(p.numel() for p in net.parameters()) == n_parameters
    assert net(torch.zeros(2, *input_shape)).shape == (2, n_classes)


def test_dropout_draws_in_training_only():
    net = make_network("cnn9", (1, 28, 28), 3, seed=0).eval()
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(net(x), net(x))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    net.train()
    assert not torch.equal(net(x), net(x))


def test_torchvision_networks_keep_the_size_of_small_images():
    net = make_network("resnet18", (3, 32, 32), 10, seed=0)
    sizes = []
    for name in ("layer1", "layer4"):
        net.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: sizes.append(output.shape[-1])
        )
    net(torch.zeros(1, 3, 32, 32))
    assert sizes == [32, 4]


def test_cnn2_takes_images_of_other_sizes():
    net = make_network("cnn2", (1, 28, 17), 7, seed=0)
    assert net(torch.zeros(2, 1, 28, 17)).shape == (2, 7)


def test_weights_depend_on_the_seed_alone_and_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make_network("mlp", (5,), 2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(_weights(make_network("mlp", (5,), 2, seed=3)), _weights(first))
    assert not torch.equal(_weights(make_network("mlp", (5,), 2, seed=4)), _weights(first))


def test_threads_that_make_networks_at_once_draw_the_same_weights():
    expected = [_weights(make_network("mlp", (40,), 9, seed=seed)) for seed in range(4)]
    same = []

    def work(seed):
        for _ in range(30):
            same.append(
                torch.equal(_weights(make_network("mlp", (40,), 9, seed=seed)), expected[seed])
            )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(same) == 120
    assert all(same)


def test_seeded_generators_seed_inside_and_restore_outside():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded_generators(7, torch.device("cpu")):
            draws.append(torch.rand(3))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("network", "input_shape", "message"),
    [
        ("resnet", (3, 32, 32), "network must be one of ['cnn2', 'cnn7', 'cnn9', 'densenet121', "),
        (nn.Linear(2, 2), (2,), "that makes a new network at each call, but got Linear"),
        (lambda shape, c: None, (2,), "must return a torch.nn.Module, but got None"),
        ("cnn2", (1, 8, 8), "of at least 16 x 16 pixels, but got (1, 8, 8)"),
        ("cnn2", (784,), "needs inputs (channels, height, width)"),
        ("cnn7", (3, 7, 32), "'cnn7' needs inputs (channels, height, width) of at least 8 x 8"),
        ("cnn9", (3, 27, 28), "of at least 28 x 28 pixels, but got (3, 27, 28)"),
        ("resnet18", (12,), "'resnet18' needs inputs (channels, height, width)"),
    ],
)
def test_errors_say_what_a_network_is(network, input_shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_network(network, input_shape, 2, seed=0)


def test_shapes_seeds_and_classes_may_be_numbers_of_numpy():
    net = make_network("mlp", tuple(np.array([1, 4, 4])), np.int64(3), seed=np.uint64(2**64 - 1))
    assert torch.equal(_weights(net), _weights(make_network("mlp", (1, 4, 4), 3, seed=2**64 - 1)))
    for seed in (-1, 2**64, 0.0):
        with pytest.raises(ValueError, match="seed must be an int in"):
            make_network("mlp", (5,), 2, seed=seed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_makes_a_network_leaves_a_child_that_can():
    making, forked = threading.Event(), threading.Event()

    def slow(input_shape, n_classes):
        making.set()
        forked.wait()
        return nn.Linear(2, n_classes)

    thread = threading.Thread(target=make_network, args=(slow, (2,), 2), kwargs={"seed": 0})
    thread.start()
    making.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for ever
        try:
            make_network(lambda shape, c: nn.Linear(2, c), (2,), 2, seed=0)
            os._exit(0)
        finally:
            os._exit(1)
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def _of_other_generators(shape, n_classes):
    """Return a layer whose weights come from NumPy, and whose bias comes from Python."""
    made = nn.Linear(shape[0], n_classes)
    made.weight.data = torch.from_numpy(np.random.normal(size=(n_classes, shape[0])))  # noqa: NPY002
    made.bias.data = torch.tensor([random.random() for _ in range(n_classes)])
    return made


def test_weights_from_numpy_or_python_depend_on_the_seed_alone():
    state, python = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first, again, other, far = (
        _weights(make_network(_of_other_generators, (4,), 3, seed=seed))
        for seed in (5, 5, 6, 5 + 2**32)
    )
    assert torch.equal(first, again)
    assert not (first == other).any()
    assert not (first == far).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert random.getstate() == python


class WithoutArguments(nn.Module):
    def __init__(self):
        super().__init__()


@pytest.mark.parametrize(
    "network", [lambda: nn.Linear(2, 2), lambda shape: nn.Linear(2, 2), WithoutArguments]
)
def test_a_function_of_other_arguments_is_refused_with_the_right_ones(network):
    with pytest.raises(ValueError, match=r"function \(input_shape, n_classes\).* takes other arg"):
        make_network(network, (2,), 2, seed=0)


def test_a_function_may_name_its_arguments_as_it_likes():
    for network in (lambda *a: nn.Linear(2, 2), lambda a, b=3, *, c=1: nn.Linear(2, 2)):
        assert isinstance(make_network(network, (2,), 2, seed=0), nn.Linear)
