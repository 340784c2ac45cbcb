"""Groups of one size: no bit of a trial follows from who is beside it, or leaves."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching import _training as training
from optuna_s2e.coteaching.backends._base import UnsuitableNetwork
from optuna_s2e.coteaching.backends._choice import Backend
from optuna_s2e.coteaching.backends._fused_cnn import FusedCnnTrainer
from optuna_s2e.coteaching.backends._fused_mlp_fixed import FixedMlpTrainer

RATES = np.array([[1.0, 0.9, 0.6], [1.0, 0.5, 0.4], [0.3, 0.3, 0.3]])
SEEDS = [3, 8, 5]


def _convolutions(input_shape, n_classes):
    # a CPU adds eight numbers at a time: with fewer filters bits follow from the lane, too
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(72, n_classes),
    )  # fmt: skip


KINDS = {"mlp": (FixedMlpTrainer, "mlp"), "cnn": (FusedCnnTrainer, _convolutions)}


@pytest.fixture(params=KINDS)
def train(request, monkeypatch):
    """Return a function that trains trials in groups of `lanes`; 0: of as many as there are."""
    trainer_type, network = KINDS[request.param]
    rng = np.random.default_rng(0)
    x = rng.random((40, 1, 8, 8), dtype=np.float32)
    y = np.arange(40) % 8
    data = NoisyData.from_arrays(x, y, x[:16], y[:16], clean_labels=y[::-1].copy())

    def train(trials, *, lanes=5, dtype="float64", trainer=trainer_type, **options):
        backend = Backend(trainer, lanes or 9, bool(lanes))
        monkeypatch.setattr(training, "find_backend", lambda *_: backend)
        config = TrainingConfig(8, 0.02, dtype=dtype)
        labels = options.pop("labels", None)
        return train_batch(
            RATES[trials], [SEEDS[k] for k in trials], data=data, network=network,
            config=config, device="cpu", labels=None if labels is None else labels[trials],
            **options,
        )  # fmt: skip

    train.of_kind = trainer_type
    return train


def _assert_equal(a, b, exactly=True):
    assert (a.seed, a.n_epochs, str(a.failure)) == (b.seed, b.n_epochs, str(b.failure))
    for x, y in zip(a.curves, b.curves, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=0 if exactly else 1e-8)


def test_a_trial_has_the_same_bits_beside_any_number_of_others(train):
    together = train([0, 1, 2], dtype="float32")
    for k in range(3):
        (alone,) = train([k], dtype="float32")
        _assert_equal(alone, together[k])
        first, _ = train([k, (k + 1) % 3], dtype="float32")
        _assert_equal(first, together[k])


def test_a_trial_has_the_same_bits_when_others_leave(train):
    expected = train([0, 1, 2], dtype="float32")
    found = train([0, 1, 2], dtype="float32", on_epoch=lambda k, epoch, _: k != 1 and epoch == k)
    _assert_equal(found[1], expected[1])
    assert [result.n_epochs for result in found] == [1, 3, 3]  # trial 2 would leave at the end


def test_empty_lanes_change_no_result(train):
    options = {"keep_networks": True, "watch_samples": True}
    options["labels"] = np.random.default_rng(1).integers(0, 8, (3, 40))
    stop = {"on_epoch": lambda k, epoch, _: k == 0 and epoch == 1}
    for trials in ([2], [0, 1, 2]):
        padded, plain = (train(trials, lanes=n, **options, **stop) for n in (5, 0))
        for a, b in zip(padded, plain, strict=True):
            _assert_equal(a, b, exactly=False)
            np.testing.assert_array_equal(a.samples.trained_share, b.samples.trained_share)
            for mine, other in zip(a.networks, b.networks, strict=True):
                for p, q in zip(mine.parameters(), other.parameters(), strict=True):
                    torch.testing.assert_close(p, q, rtol=0, atol=1e-8)


def test_lanes_that_do_not_fit_are_halved_down_to_one(train):
    made = []

    class Small(train.of_kind):
        most = 2

        def __init__(self, setup, seeds, labels):
            made.append(len(seeds))
            super().__init__(setup, seeds, labels)

        def evaluate(self):
            if self._n_trials > self.most:
                raise torch.OutOfMemoryError("out of memory")
            return super().evaluate()

    results = train([0, 1, 2], trainer=Small)
    assert made == [5, 3, 2, 2, 3, 2]  # three lanes for two trials and for one, then two for each
    for a, b in zip(results, train([0, 1, 2], lanes=0), strict=True):
        _assert_equal(a, b, exactly=False)
    Small.most = 0
    made.clear()
    (result,) = train([1], trainer=Small)
    assert made == [5, 3, 2, 1]
    assert isinstance(result.failure, torch.OutOfMemoryError)


def test_a_trial_whose_network_has_no_lanes_goes_to_the_loop(train):
    class Unsuitable(train.of_kind):
        def _join(self, networks):
            raise UnsuitableNetwork("networks must be something else.")

    (result,) = train([1], trainer=Unsuitable)
    (expected,) = train([1])
    assert result.failure is None
    if train.of_kind is FixedMlpTrainer:  # dropout has other generators in the loop
        _assert_equal(result, expected, exactly=False)


def test_a_name_stays_what_it_is():
    assert Backend(partial(FixedMlpTrainer), 4, True).name == "graphs"
    assert Backend(FixedMlpTrainer, 4, True).name == "fused"


def _same_on(device, backend, network, width=6):
    """Train trial 0 twice among six, alone, and while others leave; compare all bits."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (768, 3, 32, 32), dtype=np.uint8)
    y = rng.integers(0, 10, 768)
    rest = slice(256, None)
    data = NoisyData.from_arrays(
        x[rest], y[rest], x[:256], y[:256], clean_labels=y[rest], n_classes=10
    )
    options = {"data": data, "network": network, "device": device, "backend": backend}

    def train(n_trials, leave=None):
        rates = np.linspace(1, 0.2, 18).reshape(6, 3)[:n_trials]
        options["on_epoch"] = leave
        trained = train_batch(rates, range(n_trials), fused_width=width, **options)
        assert [result.failure for result in trained] == [None] * n_trials
        return trained[0].curves

    first, *others = (train(6), train(6), train(1), train(6, lambda k, epoch, _: k > epoch > 0))
    return [all(map(np.array_equal, first, curves)) for curves in others]


def test_what_is_compared_on_cuda_can_be_compared():
    assert _same_on("cpu", "fused", "mlp") == [True, True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize(
    ("backend", "network"),
    [("fused", "mlp"), ("graphs", "mlp"), ("fused", "cnn2"), ("unfolded", "cnn2")],
)
def test_groups_of_one_size_repeat_the_bits_of_a_trial_on_cuda(backend, network):
    assert _same_on("cuda", backend, network) == [True, True, True]
