"""Networks: sizes of the published ones, and weights that depend on the seed alone."""

import re
import threading

import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import make_network
from optuna_s2e.coteaching.networks import seeded_generators


def _weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize(
    ("network", "input_shape", "n_classes", "n_parameters"),
    [("mlp", (1, 28, 28), 10, 203_530), ("cnn2", (3, 32, 32), 10, 62_006)],
)
def test_networks_have_the_published_number_of_parameters(
    network, input_shape, n_classes, n_parameters
):
    net = make_network(network, input_shape, n_classes, seed=0)
    assert sum(p.numel() for p in net.parameters()) == n_parameters
    assert net(torch.zeros(4, *input_shape)).shape == (4, n_classes)


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
        ("resnet", (3, 32, 32), "network must be one of ['cnn2', 'mlp'] or a function"),
        (nn.Linear(2, 2), (2,), "that makes a new network at each call, but got Linear"),
        (lambda shape, c: None, (2,), "must return a torch.nn.Module, but returned None"),
        ("cnn2", (1, 8, 8), "of at least 16 x 16 pixels, but got (1, 8, 8)"),
        ("cnn2", (784,), "needs inputs (channels, height, width)"),
    ],
)
def test_errors_say_what_a_network_is(network, input_shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_network(network, input_shape, 2, seed=0)
