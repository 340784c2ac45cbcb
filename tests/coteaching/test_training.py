"""The training core against Co-teaching written sample by sample."""

import copy
import gc
import math
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import (
    NoisyData,
    TrainingConfig,
    last_epochs_mean,
    load_data,
    make_network,
    train_batch,
)
from optuna_s2e.schedules import coteaching_schedule, standard_schedule

RATES = np.array([1.0, 0.9, 0.62, 0.5, 0.5, 0.4])
CONFIG = TrainingConfig(batch_size=5, learning_rate=0.02, dtype="float64")


def _small_net(input_shape, n_classes):
    return nn.Sequential(nn.Linear(input_shape[0], 6), nn.Tanh(), nn.Linear(6, n_classes))


def _train(data, rates=RATES, seeds=(0,), config=CONFIG, network=_small_net, **options):
    rates = np.broadcast_to(rates, (len(seeds), np.shape(rates)[-1]))
    return train_batch(
        rates, seeds, data=data, network=network, config=config, device="cpu", **options
    )


def _assert_same(a, b):
    assert (a.seed, a.n_epochs, type(a.failure)) == (b.seed, b.n_epochs, type(b.failure))
    for name in a.curves._fields:
        np.testing.assert_array_equal(getattr(a.curves, name), getattr(b.curves, name), name)


def _cross_entropy(logits, label):
    return torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[label]


def _sgd(parameters, foreach):
    return torch.optim.SGD(parameters, momentum=0.8, foreach=foreach)


def _rmsprop(parameters, foreach):
    return torch.optim.RMSprop(parameters, momentum=0.8, foreach=foreach)


class _Reference:
    """Co-teaching as its Algorithm 1 states it: one sample and one network at a time."""

    def __init__(self, data, seed, config):
        self.data, self.config = data, config
        *inits, order = map(int, np.random.SeedSequence(seed).generate_state(3, np.uint64))
        self.nets = [make_network(_small_net, (5,), 3, seed=init).double() for init in inits]
        make = {"adam": torch.optim.Adam, "sgd": _sgd, "rmsprop": _rmsprop}[config.optimizer]
        self.optimizers = [make(net.parameters(), foreach=False) for net in self.nets]
        self.order = torch.Generator().manual_seed(order)

    def epoch(self, t, n_epochs, keep_rate):
        start = round(0.4 * n_epochs)
        falling = t >= start
        lr = self.config.learning_rate * ((n_epochs - t) / (n_epochs - start) if falling else 1)
        for optimizer in self.optimizers:
            optimizer.param_groups[0].update(lr=lr, weight_decay=self.config.weight_decay)
            if self.config.optimizer == "adam":
                optimizer.param_groups[0].update(betas=(0.1 if falling else 0.9, 0.999))
        order = torch.randperm(23, generator=self.order).tolist()
        clean, right, means = [[], []], [[], []], [[], []]
        for first in range(0, 20, 5):  # 23 samples, batches of 5: three samples are left out
            self._step(order[first : first + 5], keep_rate, clean, right, means)
        return [*self._evaluate(), *(np.mean(part, axis=1) for part in (clean, right, means))]

    def _step(self, batch, keep_rate, clean, right, means):
        y = self.data.noisy_labels
        losses = [{}, {}]
        for i, net in enumerate(self.nets):
            for sample in batch:
                logits = net(self.data.x[sample].double())
                losses[i][sample] = _cross_entropy(logits, y[sample])
                right[i].append(bool(logits.argmax() == y[sample]))
        n_kept = max(1, math.floor(keep_rate * len(batch) + 1e-9))
        kept = [sorted(batch, key=lambda s, own=own: own[s].item())[:n_kept] for own in losses]
        updates = []
        for i in (0, 1):
            clean[i] += [bool(y[s] == self.data.clean_labels[s]) for s in kept[i]]
            updates.append(sum(losses[i][s] for s in kept[1 - i]) / n_kept)
        for i, (loss, optimizer) in enumerate(zip(updates, self.optimizers, strict=True)):
            means[i].append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _evaluate(self):
        loss, error = [[], []], [[], []]
        with torch.no_grad():
            for i, net in enumerate(self.nets):
                for x, y in zip(self.data.x_val, self.data.y_val, strict=True):
                    logits = net(x.double())
                    loss[i].append(_cross_entropy(logits, y).item())
                    error[i].append(bool(logits.argmax() != y))
        return np.mean(loss, axis=1), np.mean(error, axis=1)


@pytest.mark.parametrize(
    ("seed", "changes"),
    [
        (0, {}),
        (1, {"weight_decay": 0.1}),
        (0, {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.1}),
        (0, {"optimizer": "rmsprop", "momentum": 0.8}),
    ],
)
def test_training_equals_coteaching_written_sample_by_sample(tiny, seed, changes):
    config = replace(CONFIG, **changes)
    (result,) = _train(tiny, seeds=[seed], config=config)
    reference = _Reference(tiny, seed, config)
    expected = np.stack([reference.epoch(t, len(RATES), rate) for t, rate in enumerate(RATES)])
    for i, name in enumerate(result.curves._fields):
        np.testing.assert_allclose(
            getattr(result.curves, name), expected[:, i], rtol=0, atol=1e-10, err_msg=name
        )


def test_a_trial_does_not_depend_on_its_neighbours(tiny):
    rates = np.stack([RATES, np.ones(6), RATES**2])
    seeds = [3, 3, 4]
    together = train_batch(rates, seeds, data=tiny, network=_small_net, device="cpu")
    for k in range(3):
        (alone,) = train_batch(rates[[k]], [seeds[k]], data=tiny, network=_small_net, device="cpu")
        _assert_same(together[k], alone)


def test_the_same_seed_repeats_and_another_one_differs(tiny):
    first, again, other = _train(tiny, seeds=[0, 0, 1])
    _assert_same(first, again)
    for name in ("loss", "train_loss"):
        assert (getattr(first.curves, name) != getattr(other.curves, name)).all()


def test_global_generators_are_neither_read_nor_moved(tiny):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    (first,) = _train(tiny)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    torch.manual_seed(2)
    _assert_same(_train(tiny)[0], first)


def test_dropout_repeats_with_the_seed(tiny):
    def with_dropout(input_shape, n_classes):
        return nn.Sequential(nn.Dropout(0.5), _small_net(input_shape, n_classes))

    torch.manual_seed(1)
    (first,) = _train(tiny, network=with_dropout)
    torch.manual_seed(2)
    _assert_same(_train(tiny, network=with_dropout)[0], first)


def test_data_smaller_than_a_mini_batch_are_one_mini_batch(tiny):
    wide = TrainingConfig(batch_size=1000, dtype="float64")
    exact = TrainingConfig(batch_size=23, dtype="float64")
    _assert_same(_train(tiny, config=wide)[0], _train(tiny, config=exact)[0])


@pytest.mark.parametrize(
    ("backend", "network", "batch_size"),
    [("loop", "mlp", 5), ("fused", "mlp", 5), ("fused", "mlp", 64)],
)
def test_samples_labelled_minus_one_are_left_out(tiny, backend, network, batch_size):
    kept = np.ones((2, 23), bool)
    kept[0, 3:11], kept[1, ::3] = False, False  # 15 samples of each trial
    rates, config = [[1.0, 0.6]] * 2, TrainingConfig(batch_size, 0.02, dtype="float64")
    options = {"network": network, "config": config, "device": "cpu", "watch_samples": True}
    folds = train_batch(
        rates, [4, 5], data=tiny, labels=np.where(kept, tiny.noisy_labels, -1), backend=backend,
        **options,
    )  # fmt: skip
    for k, fold in enumerate(folds):
        index = torch.from_numpy(np.flatnonzero(kept[k]))
        part = replace(
            tiny, x=tiny.x[index], noisy_labels=tiny.noisy_labels[index],
            clean_labels=tiny.clean_labels[index],
        )  # fmt: skip
        (alone,) = train_batch(rates[:1], [4 + k], data=part, backend="loop", **options)
        for name in alone.curves._fields:
            ours, expected = getattr(fold.curves, name), getattr(alone.curves, name)
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(fold.samples.n_seen[kept[k]], alone.samples.n_seen)
        assert not fold.samples.n_seen[~kept[k]].any()


def test_a_fold_goes_on_alone_when_its_neighbour_stops(tiny):
    labels = np.stack([tiny.noisy_labels, tiny.noisy_labels])
    labels[0, :8], labels[1, 15:] = -1, -1
    stopped, goes_on = train_batch(
        np.ones((2, 3)), [1, 2], data=tiny, labels=labels, config=CONFIG, device="cpu",
        on_epoch=lambda k, epoch, metrics: k == 0,
    )  # fmt: skip
    (alone,) = train_batch(
        np.ones((1, 3)), [2], data=tiny, labels=labels[1:], config=CONFIG, device="cpu"
    )
    assert stopped.n_epochs == 1
    _assert_same(goes_on, alone)


def test_uint8_images_are_scaled_as_totensor_does():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
    y = np.arange(20) % 2
    scaled = images.astype(np.float32) / np.float32(255)
    results = [
        train_batch(
            [[1.0, 0.5]], [0], data=NoisyData.from_arrays(x, y, x, y), config=TrainingConfig(5)
        )[0]
        for x in (images, scaled)
    ]
    _assert_same(*results)


def test_test_data_are_evaluated_only_on_request(tiny):
    (validation,) = _train(tiny)
    (test,) = _train(tiny, evaluate_on="test")
    np.testing.assert_array_equal(test.curves.train_loss, validation.curves.train_loss)
    assert (test.curves.loss != validation.curves.loss).all()
    swapped = NoisyData.from_arrays(
        tiny.x, tiny.noisy_labels, tiny.x_test, tiny.y_test, clean_labels=tiny.clean_labels
    )
    _assert_same(_train(swapped)[0], test)


def test_label_precision_is_nan_where_clean_labels_are_unknown(tiny):
    unknown = NoisyData.from_arrays(tiny.x, tiny.noisy_labels, tiny.x_val, tiny.y_val)
    (result,), (with_labels,) = _train(unknown), _train(tiny)
    assert np.isnan(result.curves.label_precision).all()
    np.testing.assert_array_equal(result.curves.loss, with_labels.curves.loss)


def test_batch_norm_sees_the_whole_mini_batch_and_is_frozen_in_evaluation(tiny):
    modes = set()

    class Spy(nn.BatchNorm1d):
        def forward(self, x):
            modes.add((self.training, len(x)))
            return super().forward(x)

    _train(tiny, network=lambda shape, c: nn.Sequential(Spy(5), nn.Linear(5, c)).float())
    assert modes == {(True, 5), (False, 9)}


class _BreaksAfter(nn.Module):
    """Returns NaN, or raises, from its n-th forward call on."""

    def __init__(self, net, n, error=None):
        super().__init__()
        self.net, self.left, self.error = net, n, error

    def forward(self, x):
        self.left -= 1
        if self.left >= 0:
            return self.net(x)
        if self.error is not None:
            raise self.error
        return self.net(x) * torch.nan


@pytest.mark.parametrize("error", [None, KeyError("boom")])
def test_a_trial_that_breaks_carries_its_failure_and_spares_the_others(tiny, error):
    made = []

    def network(input_shape, n_classes):
        made.append(_small_net(input_shape, n_classes))
        # The first network is the probe of `find_backend`, the next two belong to trial 0. The
        # fourth is a network of trial 1. An epoch has 5 forward calls: four steps, one evaluation.
        return _BreaksAfter(made[-1], 12, error) if len(made) == 4 else made[-1]

    results = _train(tiny, seeds=[0, 1, 2], network=network)
    healthy = _train(tiny, seeds=[0, 1, 2])
    _assert_same(results[0], healthy[0])
    _assert_same(results[2], healthy[2])
    broken = results[1]
    assert (np.isfinite(broken.curves.loss).all(axis=1) == [True] * 2 + [False] * 4).all()
    np.testing.assert_array_equal(broken.curves.loss[:2], healthy[1].curves.loss[:2])
    if error is None:
        assert isinstance(broken.failure, FloatingPointError)
        assert "training loss of network 0 became non-finite in epoch 2" in str(broken.failure)
    else:
        assert (broken.failure, broken.n_epochs) == (error, 2)


@pytest.mark.filterwarnings("ignore:Both networks of a trial begin with the same weights")
@pytest.mark.parametrize("network", [_small_net, "mlp"])
def test_a_failure_does_not_keep_the_memory_of_its_trial(tiny, network):
    """Otherwise a trial that runs out of memory would take it from the trials that follow."""
    made = []

    def breaking(input_shape, n_classes):
        net = make_network(network, input_shape, n_classes, seed=0)
        made.append(weakref.ref(next(net.parameters())))
        return _BreaksAfter(net, 3, torch.OutOfMemoryError("no memory left"))

    results = _train(tiny, seeds=[0, 1], network=breaking)
    assert all(isinstance(result.failure, torch.OutOfMemoryError) for result in results)
    assert all("in forward" in result.failure.__notes__[0] for result in results)
    gc.collect()
    assert [weight() for weight in made] == [None] * 5


def test_on_epoch_sees_every_epoch_and_can_stop_a_trial(tiny):
    seen = []

    def on_epoch(k, epoch, metrics):
        seen.append((k, epoch, copy.deepcopy(metrics)))
        return k == 0 and epoch == 1

    stopped, full = _train(tiny, seeds=[0, 1], on_epoch=on_epoch)
    assert (stopped.n_epochs, full.n_epochs) == (2, 6)
    assert stopped.failure is None
    assert np.isnan(stopped.curves.loss[2:]).all()
    assert [(k, epoch) for k, epoch, _ in seen] == [(0, 0), (0, 1)] + [(1, t) for t in range(6)]
    for k, epoch, metrics in seen:
        np.testing.assert_array_equal(metrics.error, (stopped, full)[k].curves.error[epoch])


def test_errors_of_on_epoch_are_not_swallowed(tiny):
    def on_epoch(k, epoch, metrics):
        raise OSError("storage is gone")

    with pytest.raises(OSError, match="storage is gone"):
        _train(tiny, on_epoch=on_epoch)


def test_last_epochs_mean_averages_a_tenth_and_at_least_one_epoch():
    curve = np.stack([np.arange(40.0), np.arange(40.0) + 1], axis=1)
    assert last_epochs_mean(curve) == 38.0  # epochs 36 .. 39, both networks
    assert last_epochs_mean(curve[:9]) == 8.5


def test_standard_memorises_half_wrong_digits_and_a_schedule_resists():
    config = TrainingConfig(batch_size=64, learning_rate=1e-2)
    schedules = [standard_schedule(30).keep_rates, coteaching_schedule(30, 0.6, 6).keep_rates]
    data = load_data("digits", noise="symmetric", noise_rate=0.5, seed=0)
    standard, resisting = train_batch(
        schedules, [0, 0], data=data, config=config, device="cpu", evaluate_on="test"
    )
    errors = [last_epochs_mean(result.curves.error) for result in (standard, resisting)]
    assert errors[0] - errors[1] > 0.10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"keep_rates": [1.0, 0.5]},
            "keep_rates must have shape (K, T) and not be empty, but got (2,)",
        ),
        ({"keep_rates": [[1.0, 0.0]]}, "keep_rates must be in (0, 1], but got"),
        ({"keep_rates": [[1.0, np.nan]]}, "keep_rates must be in (0, 1], but got"),
        ({"seeds": [1, 2]}, "seeds must have shape (K,) = (1,), but got (2,)"),
        ({"seeds": [-1]}, "seeds[0] must be an int of at least 0, but got -1"),
        ({"seeds": [0.0]}, "seeds[0] must be an int of at least 0, but got 0.0"),
        (
            {"labels": [["a"] * 23]},
            "labels must be integers of shape (K, N) = (1, 23), but got <U1",
        ),
        ({"labels": [[-2] * 23]}, "labels must be in [-1, 2], but got -2"),
        ({"labels": [[-1] * 23]}, "labels must keep equally many samples, not [0]"),
        (
            {
                "keep_rates": [[1.0]] * 2,
                "seeds": [0, 1],
                "labels": [[0] * 23, [-1, *[0] * 22]],
            },
            "labels must keep equally many samples, not [23, 22]",
        ),
        ({"evaluate_on": "train"}, "evaluate_on must be one of 'validation', 'test', but got"),
        ({"device": "abacus"}, "device must be one that torch knows, but got 'abacus'"),
    ],
)
def test_errors_name_the_argument_and_the_value(tiny, change, message):
    arguments = {"keep_rates": [[1.0, 0.5]], "seeds": [0], "data": tiny, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        train_batch(arguments.pop("keep_rates"), arguments.pop("seeds"), **arguments)


@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
def test_compiled_networks_train_as_they_are(tiny):
    config = TrainingConfig(8, 0.01, dtype="float64")

    def compiled(input_shape, n_classes):
        return torch.compile(_small_net(input_shape, n_classes), backend="eager")

    results = [
        train_batch([[1.0, 0.5]], [0], data=tiny, network=network, config=config)
        for network in (_small_net, compiled)
    ]
    for plain, fast in zip(*results, strict=True):
        assert fast.failure is None
        np.testing.assert_allclose(fast.curves.loss, plain.curves.loss, rtol=0, atol=1e-12)


def test_test_evaluation_needs_test_data(tiny):
    without = NoisyData.from_arrays(tiny.x, tiny.noisy_labels, tiny.x_val, tiny.y_val)
    with pytest.raises(ValueError, match="needs test data, but 'arrays' holds none"):
        _train(without, evaluate_on="test")


def test_wrong_logits_and_shared_modules_are_named(tiny):
    (wrong,) = _train(tiny, network=lambda shape, c: nn.Linear(shape[0], c + 1))
    assert "must return logits of shape (B, C) = (5, 3), but got (5, 4)" in str(wrong.failure)
    module = nn.Linear(5, 3)
    (shared,) = _train(tiny, network=lambda shape, c: module)
    assert "must make a new module at each call" in str(shared.failure)


def _cnn(input_shape, n_classes):
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, n_classes),
    )  # fmt: skip


def _cnn_with_statistics(input_shape, n_classes):
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, n_classes),
    )  # fmt: skip


def _mlp(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, n_classes))


def _with_a_layer_twice(input_shape, n_classes):
    twice = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), twice, twice, nn.Linear(5, n_classes))


@pytest.mark.parametrize(
    ("backend", "network"),
    [("loop", _mlp), ("rows", _cnn), ("fused", _mlp), ("fused", _cnn),
     ("fused", _cnn_with_statistics), ("fused", lambda shape, c: nn.Sequential(
         nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, c))),
     ("fused", _with_a_layer_twice)],
    ids=["loop", "rows", "mlp", "cnn", "batch norm", "vmap", "vmap, a layer twice"],
)  # fmt: skip
def test_kept_networks_are_those_that_were_evaluated_last(backend, network):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 1, 4, 4)).astype(np.float32), np.arange(40) % 3
    data = NoisyData.from_arrays(x[:30], y[:30], x[30:], y[30:])
    results = train_batch(
        np.broadcast_to(RATES[1:4], (3, 3)), [0, 1, 2], data=data, network=network,
        config=CONFIG, device="cpu", backend=backend, keep_networks=True,
        on_epoch=lambda k, epoch, metrics: (k, epoch) == (1, 1),
    )  # fmt: skip
    assert [result.n_epochs for result in results] == [3, 2, 3]
    for result in results:
        for i, net in enumerate(result.networks):
            assert not net.training
            with torch.no_grad():
                logits = net(data.x_val.double())
            loss = nn.functional.cross_entropy(logits, data.y_val).item()
            last = result.n_epochs - 1
            assert loss == pytest.approx(result.curves.loss[last, i], abs=1e-12)
            error = (logits.argmax(dim=1) != data.y_val).double().mean().item()
            assert error == pytest.approx(result.curves.error[last, i], abs=1e-12)
    first, second = results[0].networks
    assert any(
        (a != b).any() for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_networks_are_kept_on_request_and_of_trainings_that_did_not_fail(tiny):
    (result,) = _train(tiny)
    assert result.networks is None
    diverging = replace(CONFIG, learning_rate=1e308)
    (failed,) = _train(tiny, config=diverging, keep_networks=True)
    assert isinstance(failed.failure, FloatingPointError)
    assert failed.networks is None
