"""What all backends share: seeds, networks and the order of the data of each trial."""

import copy
import gc
import threading

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, make_network
from optuna_s2e.coteaching.backends._base import (
    DataOrders,
    TrainingSetup,
    gather_labels,
    make_networks,
    trial_seeds,
    warn_of_probabilities,
)

SEEDS = [3, 8, 5]
LABELS = torch.arange(23) % 3


def _make_setup(network="mlp", **config):
    x, y = np.arange(46, dtype=np.float32).reshape(23, 2), np.arange(23) % 3
    data = NoisyData.from_arrays(x, y, x, y)
    return TrainingSetup(data, network, TrainingConfig(**config), (data.x_val, data.y_val))


def _states(seed):
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(3, np.uint64)]


def _draw(seed, n_epochs):
    """Draw the permutations of a trial: one generator, one permutation per epoch."""
    generator = torch.Generator().manual_seed(_states(seed)[2])
    return [torch.randperm(23, generator=generator) for _ in range(n_epochs)]


@pytest.mark.parametrize("ahead", [None, True])
def test_each_epoch_is_a_permutation_from_the_seed_of_the_trial(ahead):
    orders = DataOrders(_make_setup(batch_size=5), SEEDS, LABELS, ahead=ahead)
    expected = [_draw(seed, 3) for seed in SEEDS]
    drawn = [orders.draw() for _ in range(3)]
    for epoch, order in enumerate(drawn):
        assert order.shape == (4, 3, 5)  # 23 samples: four mini-batches of 5, three left out
        for k in range(3):
            assert torch.equal(order[:, k].flatten(), expected[k][epoch][:20])
    assert sorted(expected[0][0].tolist()) == list(range(23))


@pytest.mark.parametrize("ahead", [None, True])
def test_orders_leave_out_what_has_no_label(ahead):
    labels = LABELS.repeat(3, 1)
    labels[0, :4], labels[1, 19:], labels[2, 3:7] = -1, -1, -1
    setup = _make_setup(batch_size=5)._replace(n_left_out=4)
    orders = DataOrders(setup, SEEDS, labels, ahead=ahead)
    kept = [(of_trial >= 0).nonzero()[:, 0] for of_trial in labels]
    generators = [torch.Generator().manual_seed(_states(seed)[2]) for seed in SEEDS]
    for trials in ([0, 1, 2], [0, 1, 2], [2, 0]):
        if len(trials) < 3:
            orders.keep_trials(trials)
        order = orders.draw()
        assert order.shape == (3, len(trials), 5)  # 19 samples: three mini-batches of 5
        for position, k in enumerate(trials):
            expected = kept[k][torch.randperm(19, generator=generators[k])[:15]]
            assert torch.equal(order[:, position].flatten(), expected)


@pytest.mark.parametrize("ahead", [None, True])
def test_trials_that_stay_go_on_with_their_own_orders(ahead):
    orders = DataOrders(_make_setup(batch_size=5), SEEDS, LABELS, ahead=ahead)
    orders.draw()
    orders.keep_trials([2, 0])
    drawn = [orders.draw(), orders.draw()]
    orders.keep_trials([1])
    for k, seed in enumerate((5, 3)):
        for epoch in (0, 1):
            assert torch.equal(drawn[epoch][:, k].flatten(), _draw(seed, 3)[epoch + 1][:20])
    assert torch.equal(orders.draw().flatten(), _draw(3, 4)[3][:20])


def test_what_was_drawn_ahead_stays_in_its_memory_when_trials_leave():
    """On CUDA that memory is pinned, and no other is as fast to read."""
    orders = DataOrders(_make_setup(batch_size=5), SEEDS, LABELS, ahead=True)
    orders.draw()
    place = orders._next.result().data_ptr()
    orders.keep_trials([2, 1])
    for _ in range(3):
        assert orders._next.result().data_ptr() == place
        orders.draw()


def test_only_orders_for_a_device_are_drawn_in_a_thread_and_it_ends_with_them():
    before = set(threading.enumerate())
    orders = DataOrders(_make_setup(batch_size=5), SEEDS, LABELS)
    orders.draw()
    assert not set(threading.enumerate()) - before
    orders = DataOrders(_make_setup(batch_size=5), SEEDS, LABELS, ahead=True)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(orders)
    (thread,) = set(threading.enumerate()) - before
    del orders
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def _interrupted(orders):
    orders.draw()
    raise KeyboardInterrupt


def test_errors_of_the_thread_reach_who_asks_for_the_orders():
    orders = DataOrders(_make_setup(batch_size=5), SEEDS, LABELS, ahead=True)
    orders._generators[1] = "no generator"
    with pytest.raises(TypeError, match="randperm"):
        orders.draw()  # in this thread
    orders = DataOrders(_make_setup(batch_size=5), SEEDS, LABELS, ahead=True)
    orders.draw()
    orders.draw()
    orders._next.result()
    orders._generators[1] = "no generator"
    orders.draw()  # which was drawn before
    with pytest.raises(TypeError, match="randperm"):
        orders.draw()


@pytest.mark.parametrize(("batch_size", "expected"), [(5, 5), (23, 23), (128, 23)])
def test_small_data_are_one_mini_batch(batch_size, expected):
    setup = _make_setup(batch_size=batch_size)
    assert setup.batch_size == expected
    assert DataOrders(setup, [0], LABELS).draw().shape == (23 // expected, 1, expected)


@pytest.mark.parametrize("are_shared", [True, False])
def test_labels_follow_the_order(are_shared):
    order = DataOrders(_make_setup(batch_size=5), SEEDS, LABELS).draw()
    labels = torch.arange(23) if are_shared else torch.arange(69).view(3, 23)
    gathered = gather_labels(labels, order)
    for s in range(4):
        for k in range(3):
            own = labels if are_shared else labels[k]
            assert gathered[s, k].tolist() == [int(own[i]) for i in order[s, k]]


def test_networks_have_the_first_two_seeds_of_the_trial_and_the_dtype_of_the_config():
    networks = make_networks(_make_setup(dtype="float64"), 7)
    for net, seed in zip(networks, _states(7)[:2], strict=True):
        alone = make_network("mlp", (2,), 3, seed=seed).double()
        assert all(map(torch.equal, net.parameters(), alone.parameters()))
    assert list(trial_seeds(7))[:3] == _states(7)
    assert len({*trial_seeds(7), *trial_seeds(8)}) == 8


def test_one_module_for_both_networks_is_refused():
    module = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="must make a new module at each call"):
        make_networks(_make_setup(lambda shape, n_classes: module), 0)


_TEMPLATE = nn.Linear(2, 3)


def _seeded(shape, n_classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, n_classes))


def _zero(shape, n_classes):
    made = nn.Linear(2, n_classes)
    nn.init.zeros_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def _fine_tuned(shape, n_classes):
    return nn.Sequential(copy.deepcopy(_TEMPLATE), nn.Linear(3, n_classes))


@pytest.mark.parametrize("network", [_seeded, _zero, lambda *_: copy.deepcopy(_TEMPLATE)])
def test_peers_that_begin_with_the_same_weights_are_named(network):
    with pytest.warns(UserWarning, match="Both networks of a trial begin with the same weights"):
        first, second = make_networks(_make_setup(network), 3)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def _partly_lazy(*_):
    return nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4), nn.LazyLinear(3))


@pytest.mark.parametrize(
    "network", [_fine_tuned, lambda *_: nn.LazyLinear(3), _partly_lazy, "mlp"]
)
def test_peers_with_a_part_of_their_own_are_fine(network, recwarn):
    make_networks(_make_setup(network), 3)
    assert not [w for w in recwarn.list if "same weights" in str(w.message)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_in_place_of_logits_are_named(dtype):
    logits = torch.linspace(-3, 4, 60).view(2, 10, 3).to(dtype)
    with pytest.warns(UserWarning, match="returns probabilities.* Leave out the network's own"):
        warn_of_probabilities(logits.softmax(dim=-1))


def test_logits_are_no_probabilities(recwarn):
    logits = torch.linspace(-3, 4, 60).view(2, 10, 3)
    for fine in (logits, logits.log_softmax(dim=-1), logits.sigmoid(), logits.softmax(dim=1)):
        warn_of_probabilities(fine)
    assert not recwarn.list
