"""What a training saw of each sample, against a slow count, on every backend."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching._samples import margin_and_rival

RATES = np.array([1.0, 0.9, 0.62, 0.5, 0.5, 0.4])
CONFIG = TrainingConfig(batch_size=5, learning_rate=0.02, dtype="float64")


def _perceptron(input_shape, n_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), 7), nn.ReLU(), nn.Linear(7, n_classes)
    )


def _smooth(input_shape, n_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), 5), nn.Tanh(), nn.Linear(5, n_classes)
    )


def _convolutions(input_shape, n_classes):
    return nn.Sequential(
        *(nn.Conv2d(input_shape[0], 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16, n_classes)),
    )


@pytest.fixture
def images() -> NoisyData:
    """Make 33 images of three classes; some labels are wrong."""
    rng = np.random.default_rng(3)
    clean = np.arange(33) % 3
    x = (rng.normal(size=(3, 1, 4, 4))[clean] + rng.normal(size=(33, 1, 4, 4))).astype(np.float32)
    y = np.where(np.arange(33) % 4 == 1, (clean + 1) % 3, clean)
    return NoisyData.from_arrays(x, y, x[:9], clean[:9], clean_labels=clean)


def _watch(data, network=_perceptron, rates=RATES, seeds=(0,), config=CONFIG, **options):
    rates = np.broadcast_to(rates, (len(seeds), np.shape(rates)[-1]))
    return train_batch(
        rates, seeds, data=data, network=network, config=config, device="cpu",
        **{"watch_samples": True, **options},
    )  # fmt: skip


def _assert_equal(a, b, tolerance=0.0):
    for name in vars(a):
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), rtol=0, atol=tolerance, err_msg=name
        )


class _Spy(nn.Module):
    """Writes down the inputs and logits of its training steps."""

    def __init__(self, net):
        super().__init__()
        self.net, self.steps = net, []

    def forward(self, x):
        logits = self.net(x)
        if self.training:
            self.steps.append((x.detach().clone(), logits.detach().clone()))
        return logits


def _count_slowly(data, first, second, n_epochs):
    """Return the statistics as dicts by their name, from the logits of all training steps."""
    keys = {tuple(x.double().flatten().tolist()): i for i, x in enumerate(data.x)}
    y = data.noisy_labels.tolist()
    seen = [[] for _ in y]  # of each sample (epoch, of each network (loss, margin, right, ...))
    n_steps = len(first.steps) // n_epochs
    for step, both in enumerate(zip(first.steps, second.steps, strict=True)):
        batch = [keys[tuple(x.flatten().tolist())] for x in both[0][0]]
        losses = [
            [torch.nn.functional.cross_entropy(z, torch.tensor(y[s])).item()
             for s, z in zip(batch, logits, strict=True)] for _, logits in both
        ]  # fmt: skip
        n_kept = max(1, math.floor(RATES[step // n_steps] * len(batch) + 1e-9))
        chosen = [sorted(range(len(batch)), key=own.__getitem__)[:n_kept] for own in losses]
        for b, s in enumerate(batch):
            row = []
            for i in (0, 1):
                z = both[i][1][b].tolist()
                others = {c: value for c, value in enumerate(z) if c != y[s]}
                rival = max(others, key=others.__getitem__)
                predicted = max(range(len(z)), key=z.__getitem__)
                trained = b in chosen[1 - i]
                row.append((losses[i][b], z[y[s]] - others[rival], predicted, rival, trained))
            seen[s].append((step // n_steps, row))
    return [_of_sample(rows, y[s]) for s, rows in enumerate(seen)]


def _of_sample(rows, given):
    loss, margin, predicted, rival, trained = np.array([row for _, row in rows]).transpose(2, 0, 1)
    since = []
    for i in (0, 1):
        for (epoch, _), p in zip(reversed(rows), reversed(predicted[:, i]), strict=True):
            if p != predicted[-1, i]:
                break
            first = epoch
        since.append(first)
    return {
        "n_seen": len(rows), "trained_share": trained.mean(axis=0),
        "mean_loss": loss.mean(axis=0), "last_loss": loss[-1], "mean_margin": margin.mean(axis=0),
        "agreement": np.mean(predicted[:, 0] == predicted[:, 1]), "predicted": predicted[-1],
        "predicted_since": since, "rival": rival[-1],
        "learned_at": np.where(predicted[-1] == given, since, np.inf),
    }  # fmt: skip


def test_statistics_equal_a_slow_count(images):
    spies = []

    def spied(input_shape, n_classes):
        spies.append(_Spy(_smooth(input_shape, n_classes)))
        return spies[-1]

    (result,) = _watch(images, spied, backend="loop")
    expected = _count_slowly(images, *spies, len(RATES))
    for name in expected[0]:
        np.testing.assert_allclose(
            getattr(result.samples, name), np.array([of[name] for of in expected]),
            rtol=0, atol=1e-12, err_msg=name,
        )  # fmt: skip
    assert {*vars(result.samples)} == {*expected[0]} - {"learned_at"}
    assert len({*result.samples.n_seen}) > 1  # the incomplete mini-batch was somebody's
    assert np.isinf(result.samples.learned_at).any()
    assert (np.isfinite(result.samples.learned_at) & (result.samples.learned_at > 0)).any()


@pytest.mark.parametrize(
    ("backend", "network"),
    [("fused", _perceptron), ("fused", _smooth), ("fused", _convolutions),
     ("rows", _convolutions)],
    ids=["mlp", "vmap", "cnn", "rows"],
)  # fmt: skip
def test_backends_agree(images, backend, network):
    options = {"seeds": [4, 5], "rates": RATES}
    results = _watch(images, network, backend=backend, **options)
    for loop, other in zip(
        _watch(images, network, backend="loop", **options), results, strict=True
    ):
        _assert_equal(loop.samples, other.samples, 1e-9)


@pytest.mark.parametrize("network", [_perceptron, _smooth, _convolutions])
@pytest.mark.parametrize("backend", ["loop", "fused"])
def test_statistics_do_not_depend_on_neighbours(images, network, backend):
    labels = np.stack([images.noisy_labels, images.clean_labels, (images.noisy_labels + 1) % 3])
    rates, seeds = np.stack([RATES, np.ones(6), RATES**2]), [3, 3, 4]

    def train(trials, **options):
        return _watch(
            images, network, rates[trials], [seeds[k] for k in trials], labels=labels[trials],
            backend=backend, **options,
        )  # fmt: skip

    # trial 0 leaves after its third epoch, and the others move up
    together = train([0, 1, 2], on_epoch=lambda k, epoch, metrics: (k, epoch) == (0, 2))
    for k in (1, 2):
        (alone,) = train([k])
        _assert_equal(together[k].samples, alone.samples, 1e-9)
    stopped = together[0].samples
    (alone,) = train([0], on_epoch=lambda k, epoch, metrics: epoch == 2)
    _assert_equal(stopped, alone.samples, 1e-9)
    assert stopped.n_seen.max() == 3


@pytest.mark.parametrize("backend", ["loop", "fused"])
def test_watching_does_not_change_the_training(images, backend):
    config = TrainingConfig(batch_size=5, learning_rate=0.02)
    options = {"seeds": [0, 1], "config": config, "backend": backend}
    for plain, watched in zip(
        _watch(images, watch_samples=False, **options), _watch(images, **options), strict=True
    ):
        assert plain.samples is None
        for name in plain.curves._fields:
            np.testing.assert_array_equal(
                getattr(plain.curves, name), getattr(watched.curves, name), name
            )


@pytest.mark.parametrize("backend", ["loop", "fused"])
def test_samples_that_were_never_seen_have_no_numbers(images, backend):
    config = TrainingConfig(batch_size=20, dtype="float64")
    (result,) = _watch(images, rates=[1.0], config=config, backend=backend)
    samples = result.samples
    unseen = samples.n_seen == 0
    assert unseen.sum() == 13
    for name in ("trained_share", "mean_loss", "last_loss", "mean_margin", "predicted_since"):
        assert (np.isnan(getattr(samples, name)).all(axis=1) == unseen).all(), name
    assert (np.isnan(samples.agreement) == unseen).all()
    assert np.isinf(samples.learned_at[unseen]).all()
    assert (samples.predicted[unseen] == -1).all()
    assert (samples.rival[unseen] == -1).all()


def test_a_training_that_fails_has_no_statistics(images):
    (result,) = _watch(images, config=TrainingConfig(5, 1e30, optimizer="sgd"))
    assert isinstance(result.failure, FloatingPointError)
    assert result.samples is None


def test_groups_that_are_halved_count_every_epoch_once(images, monkeypatch):
    """A group without memory is trained again in halves, from its first epoch on."""
    from optuna_s2e.coteaching.backends import _fused_mlp

    class Cramped(_fused_mlp.FusedMlpTrainer):
        def evaluate(self):
            if self._n_trials > 1:
                raise torch.OutOfMemoryError("no memory left")
            return super().evaluate()

    expected = _watch(images, seeds=[0, 1], fused_width=1)
    monkeypatch.setattr("optuna_s2e.coteaching.backends._choice.FusedMlpTrainer", Cramped)
    for halved, alone in zip(_watch(images, seeds=[0, 1]), expected, strict=True):
        _assert_equal(halved.samples, alone.samples)


def test_the_rival_is_never_the_given_label():
    logits = torch.tensor([[2.0, -1.0, 2.0], [0.0, 0.0, 0.0], [-3.0, -5.0, -4.0]])
    margins, rivals = margin_and_rival(logits, torch.tensor([0, 1, 1]), dim=1)
    assert margins.tolist() == [0.0, 0.0, -2.0]
    assert rivals.tolist() == [2, 0, 0]
