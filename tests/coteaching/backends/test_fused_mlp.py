"""Stacked networks against the loop, which test_training compares with Co-teaching's algorithm."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching.backends import _fused_mlp as stacked
from optuna_s2e.coteaching.backends._fused_mlp import mlp_sizes

RATES = np.array(
    [
        [1.0, 0.9, 0.62, 0.5, 0.5, 0.4],
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 0.4, 0.2, 0.01, 0.2, 0.9],
        [1.0, 0.7, 0.7, 0.7, 0.2, 0.2],
        [0.3, 0.3, 0.3, 0.3, 0.3, 0.3],
    ]
)
SEEDS = [3, 0, 0, 11, 2]
CONFIG = TrainingConfig(batch_size=20, learning_rate=0.02, dtype="float64")
N = 90  # training samples


def _mlp(*hidden):
    def network(input_shape, n_classes):
        sizes = [int(np.prod(input_shape)), *hidden, n_classes]
        layers = [nn.Flatten()]
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return network


@pytest.fixture(scope="module")
def data():
    """Make images of which a third occurs twice, so that losses tie. Half the labels are wrong."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (N, 1, 3, 3), dtype=np.uint8)
    x[: N // 3] = x[N // 3 : 2 * (N // 3)]
    clean = x.reshape(N, -1).argmax(axis=1) % 4
    clean[-4:] = range(4)  # these occur once
    noisy = np.where(rng.random(N) < 0.5, rng.integers(0, 4, N), clean)
    noisy[: N // 3] = noisy[N // 3 : 2 * (N // 3)]
    return NoisyData.from_arrays(
        x, noisy, x[::3], clean[::3], x_test=x, y_test=clean, clean_labels=clean, n_classes=4
    )


@pytest.fixture(scope="module")
def fused(data):
    """Train the trials as "fused", for all tests that compare with them."""
    return _train(data, "fused")


@pytest.fixture(scope="module")
def loop(data):
    return _train(data, "loop")


def _train(data, backend, *, rates=RATES, seeds=SEEDS, network=None, config=CONFIG, **options):
    return train_batch(
        rates, seeds, data=data, network=network or _mlp(7), config=config, device="cpu",
        backend=backend, **options,
    )  # fmt: skip


def _assert_close(results, expected, atol=1e-10):
    assert [r.seed for r in results] == [r.seed for r in expected]
    assert [r.n_epochs for r in results] == [r.n_epochs for r in expected]
    assert [str(r.failure) for r in results] == [str(r.failure) for r in expected]
    for k, (a, b) in enumerate(zip(results, expected, strict=True)):
        for name in a.curves._fields:
            np.testing.assert_allclose(
                getattr(a.curves, name), getattr(b.curves, name), 0, atol, err_msg=f"{k} {name}"
            )


def _same_bits(a, b):
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(a.curves, b.curves, strict=True)
    )


@pytest.mark.parametrize("width", [1, 2, 5])
def test_stacked_networks_train_as_the_loop_does(data, loop, width):
    _assert_close(_train(data, "fused", fused_width=width), loop)


@pytest.mark.parametrize("hidden", [(6, 5), (33, 16, 4)])
def test_deeper_networks_train_as_the_loop_does(data, hidden):
    options = {"network": _mlp(*hidden), "rates": RATES[:3], "seeds": SEEDS[:3]}
    _assert_close(_train(data, "fused", fused_width=2, **options), _train(data, "loop", **options))


def test_the_shipped_mlp_is_stacked_and_tested_on_test_data(data):
    options = {"network": "mlp", "evaluate_on": "test", "rates": RATES[:2], "seeds": SEEDS[:2]}
    _assert_close(_train(data, "fused", **options), _train(data, "loop", **options))


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_other_optimizers_train_and_go_on_as_the_loop_does(data, optimizer):
    config = TrainingConfig(20, 0.005, dtype="float64", optimizer=optimizer, weight_decay=0.01)

    def on_epoch(k, epoch, metrics):
        return k == 1 and epoch == 2

    loop, fused = (
        _train(data, backend, rates=RATES[:3], seeds=SEEDS[:3], config=config, on_epoch=on_epoch)
        for backend in ("loop", "fused")
    )
    _assert_close(fused, loop)


def test_saturated_losses_tie_and_keep_the_order_of_the_mini_batch(data):
    x = np.eye(4, dtype=np.float32)[np.arange(80) % 4] * (1000 + np.arange(80.0)[:, None])
    easy = NoisyData.from_arrays(
        x, np.arange(80) % 4,
        np.eye(4, dtype=np.float32), np.arange(4), clean_labels=(np.arange(80) // 2) % 4,
    )  # fmt: skip
    options = {"config": TrainingConfig(20, 0.05, dtype="float64"), "network": _mlp(16)}
    loop, fused = (_train(easy, backend, **options) for backend in ("loop", "fused"))
    # all losses are exactly 0: the order alone decides which samples are kept
    assert all((result.curves.train_loss[3:] == 0).all() for result in loop)
    _assert_close(fused, loop)


def test_a_trial_has_the_same_bits_in_any_group(data):
    config = TrainingConfig(20, 0.02)
    together = _train(data, "fused", config=config, fused_width=5)
    for width in (1, 2, 3):
        again = _train(data, "fused", config=config, fused_width=width)
        assert all(_same_bits(a, b) for a, b in zip(again, together, strict=True))


def test_trials_may_have_labels_of_their_own(data):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (5, N))
    labels[1] = data.noisy_labels
    fused, loop = (_train(data, backend, labels=labels) for backend in ("fused", "loop"))
    _assert_close(fused, loop)
    for k in (1, 4):
        own = NoisyData.from_arrays(
            data.x, labels[k], data.x_val, data.y_val, clean_labels=data.clean_labels, n_classes=4
        )
        (alone,) = _train(own, "loop", rates=RATES[[k]], seeds=SEEDS[k : k + 1])
        _assert_close([fused[k]], [alone])


def test_unknown_clean_labels_leave_precision_nan(data):
    unknown = NoisyData.from_arrays(data.x, data.noisy_labels, data.x_val, data.y_val)
    options = {"rates": RATES[:2], "seeds": SEEDS[:2]}
    _assert_close(_train(unknown, "fused", **options), _train(unknown, "loop", **options))


def test_trials_stop_one_by_one_and_the_others_go_on_as_if_alone(data, fused):
    stops = {0: 2, 3: 0, 4: 5}
    seen = []

    def on_epoch(k, epoch, metrics):
        seen.append((epoch, k))
        return epoch == stops.get(k)

    stopped = _train(data, "fused", on_epoch=on_epoch)
    assert [r.n_epochs for r in stopped] == [3, 6, 6, 1, 6]
    assert seen == sorted(seen)  # epoch by epoch
    for a, b in zip(stopped, fused, strict=True):
        assert a.failure is None
        for name in a.curves._fields:
            curve = getattr(a.curves, name)
            np.testing.assert_array_equal(
                curve[: a.n_epochs], getattr(b.curves, name)[: a.n_epochs]
            )
            assert np.isnan(curve[a.n_epochs :]).all()


def _with_broken_weight(value, made):
    """Give one bad weight to the fourth network that is made: after the probe, one of trial 1."""

    def network(input_shape, n_classes):
        net = _mlp(7)(input_shape, n_classes)
        made.append(net)
        if len(made) == 4:
            net[1].weight.data[0, 0] = value
        return net

    return network


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_trial_that_becomes_non_finite_fails_alone(data, fused, value):
    results = _train(data, "fused", network=_with_broken_weight(value, []))
    broken = results.pop(1)
    assert isinstance(broken.failure, FloatingPointError)
    assert "training loss of network 0 became non-finite in epoch 0" in str(broken.failure)
    _assert_close(results, [fused[0], *fused[2:]], atol=0)


def test_out_of_memory_halves_the_group_and_tells_no_epoch_twice(data, fused, monkeypatch):
    widths = []
    whole = stacked.FusedMlpTrainer.train_epoch

    def train_epoch(self, keep_rates, *plan):
        widths.append(len(keep_rates))
        if len(keep_rates) > 2 and len(widths) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, keep_rates, *plan)

    monkeypatch.setattr(stacked.FusedMlpTrainer, "train_epoch", train_epoch)
    seen = []
    results = _train(data, "fused", on_epoch=lambda k, epoch, _: seen.append((k, epoch)))
    assert widths == [5] * 3 + [2] * 6 + [3] + [1] * 6 + [2] * 6
    assert sorted(seen) == [(k, epoch) for k in range(5) for epoch in range(6)]
    assert all(_same_bits(a, b) for a, b in zip(results, fused, strict=True))


def test_an_error_is_carried_by_the_trial_it_belongs_to(data, fused):
    error = KeyError("boom")
    made = []

    def network(input_shape, n_classes):
        made.append(_mlp(7)(input_shape, n_classes))
        seeded = torch.initial_seed()
        if seeded == bad_seed:
            raise error
        return made[-1]

    bad_seed = int(np.random.SeedSequence(SEEDS[3]).generate_state(3, np.uint64)[1])
    results = _train(data, "fused", network=network)
    assert [r.failure for r in results] == [None, None, None, error, None]
    _assert_close(results[:3] + results[4:], fused[:3] + fused[4:], atol=0)


def test_global_generators_are_neither_read_nor_moved(data):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = _train(data, "fused")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    _assert_close(_train(data, "fused"), first, atol=0)


def test_plain_multi_layer_perceptrons_are_recognised():
    assert mlp_sizes(_mlp(7, 3)((1, 4, 4), 5), (1, 4, 4), 5) == (16, 7, 3, 5)
    bare = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    assert mlp_sizes(bare, (6,), 2) == (6, 3, 2)


def _hooked():
    net = _mlp(3)((6,), 2)
    net[1].register_forward_hook(lambda *_: None)
    return net


def _frozen():
    net = _mlp(3)((6,), 2)
    net[1].bias.requires_grad_(False)
    return net


def _shared():
    layer = nn.Linear(6, 6)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(6, 2))


class _OwnSequential(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(6, 2),
        nn.Sequential(nn.Linear(6, 2)),
        nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Dropout(), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)),
        nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 4)),
        _OwnSequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)),
        _hooked(),
        _frozen(),
        _shared(),
    ],
)
def test_any_other_network_goes_through_the_loop(network):
    assert mlp_sizes(network, (6,), 2) is None


def test_unflattened_images_are_no_vectors():
    bare = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert mlp_sizes(bare, (1, 4, 4), 2) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "gpu"},
            r"one of 'auto', 'loop', 'rows', 'fused', 'unfolded', 'graphs', but got 'gpu'",
        ),
        ({"backend": "fused", "network": lambda s, c: nn.Linear(9, c)}, "backend 'fused' needs"),
        ({"backend": "auto", "fused_width": 0}, "fused_width must be an int of at least 1, but"),
        ({"backend": "loop", "labels": np.zeros((5, N - 1), int)}, rf"\(K, N\) = \(5, {N}\)"),
        ({"backend": "loop", "labels": np.full((5, N), 4)}, r"in \[-1, 3\], but got 4"),
    ],
)
def test_errors_name_the_argument_and_the_value(data, options, message):
    with pytest.raises(ValueError, match=message):
        _train(data, options.pop("backend"), **options)
