"""Networks of any kind that are mapped by torch.vmap, against the loop."""

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching._torchvision import import_models
from optuna_s2e.coteaching.backends._base import TrainingSetup, UnsuitableNetwork
from optuna_s2e.coteaching.backends._fused_vmap import FusedVmapTrainer, is_mappable
from optuna_s2e.coteaching.backends._loop import LoopTrainer

CONFIG = TrainingConfig(batch_size=10, learning_rate=0.01, dtype="float64")
RATES = np.array([[1.0, 0.7, 0.5], [1.0, 1.0, 1.0], [0.2, 0.9, 0.1]])
SEEDS = [4, 0, 0]


class Residual(nn.Module):
    """Skips, batch and layer normalisation, one frozen and one tied weight, one unused."""

    def __init__(self, input_shape, n_classes):
        super().__init__()
        self.convolution = nn.Conv2d(input_shape[0], 4, 3)
        self.norm = nn.BatchNorm2d(4, momentum=0.3)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.first = nn.Linear(100, 6)
        self.inner = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh())
        self.tied = self.inner[1]
        self.last, self.unused = nn.Linear(6, n_classes), nn.Linear(2, 2)
        self.first.bias.requires_grad_(False)

    def forward(self, x):
        hidden = self.first(torch.relu(self.norm(self.convolution(x))).flatten(1))
        return self.last(hidden + self.scale * self.tied(self.inner(hidden)))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    clean = np.arange(44) % 3
    x = rng.integers(0, 256, (44, 2, 7, 7), dtype=np.uint8)
    x[np.arange(44), 0, clean] = 255
    noisy = np.where(rng.random(44) < 0.3, rng.integers(0, 3, 44), clean)
    return NoisyData.from_arrays(x, noisy, x[:14], clean[:14], clean_labels=clean)


def _train(data, backend, network=Residual, config=CONFIG, **options):
    return train_batch(
        RATES, SEEDS, data=data, network=network, config=config, device="cpu",
        backend=backend, **options,
    )  # fmt: skip


def _assert_close(results, expected):
    for a, b in zip(results, expected, strict=True):
        assert (a.seed, a.n_epochs, a.failure) == (b.seed, b.n_epochs, None)
        for name in a.curves._fields:
            np.testing.assert_allclose(
                getattr(a.curves, name), getattr(b.curves, name), rtol=0, atol=1e-8, err_msg=name
            )


@pytest.mark.parametrize(
    ("optimizer", "widths"), [("adam", (1, 2, 3)), ("sgd", (2,)), ("rmsprop", (2,))]
)
def test_a_users_network_trains_as_in_the_loop(data, optimizer, widths):
    config = TrainingConfig(10, 0.01, dtype="float64", optimizer=optimizer, weight_decay=0.01)
    loop = _train(data, "loop", config=config)
    for width in widths:
        _assert_close(_train(data, "fused", config=config, fused_width=width), loop)


def _shallow(name):
    """Return a function like `torchvision.models.resnet50`: one block in each of its stages.

    ResNets have two stages here: what comes later is the second one again, with more channels.
    """
    models = import_models()

    def make(num_classes):
        if name == "densenet121":
            return models.DenseNet(8, (1, 1, 1, 1), 64, num_classes=num_classes)
        if name == "resnet50":
            block, width = models.resnet.Bottleneck, 16
        else:
            block, width = models.resnet.BasicBlock, 64
        made = models.ResNet(block, [1] * 4, width_per_group=width)
        made.layer3, made.layer4 = nn.Identity(), nn.Identity()
        made.fc = nn.Linear(128 * block.expansion, num_classes)
        return made

    return make


# resnet34 is resnet18 with more blocks
@pytest.mark.parametrize("network", ["resnet18", "resnet50", "densenet121"])
def test_torchvision_networks_train_as_in_the_loop(network, monkeypatch):
    """They have all kinds of layers, but one block per stage: depth adds seconds, no operation."""
    monkeypatch.setattr(import_models(), network, _shallow(network))
    x = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
    data = NoisyData.from_arrays(x, [0, 1, 0, 1], x[:2], [0, 1], clean_labels=[0, 1, 1, 0])
    # not Adam: its first steps are the signs of gradients, even of gradients of 1e-16
    config = TrainingConfig(4, 0.01, dtype="float64", optimizer="sgd")
    measured = []
    for trainer_type in (FusedVmapTrainer, LoopTrainer):
        trainer = trainer_type(_setup(data, network, config), [4], data.noisy_labels)
        measured.append([trainer.train_epoch(np.array([0.5]), 1e-3, 0.9), trainer.evaluate()])
    torch.testing.assert_close(*measured, rtol=0, atol=1e-10)


def test_stopped_trials_leave_and_labels_stay_with_their_trials(data):
    labels = np.random.default_rng(1).integers(0, 3, (3, 44))

    def on_epoch(k, epoch, metrics):
        return k == 1 and epoch == 1

    fused, loop = (
        _train(data, backend, labels=labels, on_epoch=on_epoch) for backend in ("fused", "loop")
    )
    assert [result.n_epochs for result in fused] == [3, 2, 3]
    _assert_close(fused, loop)


class _Hidden(nn.Linear):
    """Keeps random numbers outside of parameters and buffers."""

    def __init__(self, input_shape, n_classes):
        super().__init__(98, n_classes)
        self.secret = [torch.rand(98)]

    def forward(self, x):
        return super().forward(x.flatten(1) * self.secret[0].to(x))


class _Counting(nn.Linear):
    """Replaces a buffer, while batch normalisation changes its buffers in place."""

    def __init__(self, input_shape, n_classes):
        super().__init__(98, n_classes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.count = self.count + 1
        return super().forward(x.flatten(1)) * self.count


class _Branching(nn.Linear):
    def __init__(self, input_shape, n_classes):
        super().__init__(98, n_classes)

    def forward(self, x):
        logits = super().forward(x.flatten(1))
        return logits if logits.sum() > 0 else -logits


def _dropout(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(98, n_classes))


def _average(input_shape, n_classes):
    return nn.Sequential(nn.BatchNorm2d(2, momentum=None), nn.Flatten(), nn.Linear(98, n_classes))


def _wrong_classes(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(98, n_classes + 1))


def _setup(data, network, config=CONFIG):
    return TrainingSetup(data, network, config, (data.x_val, data.y_val))


@pytest.mark.parametrize(
    "network", [_Hidden, _Counting, _Branching, _dropout, _average, _wrong_classes]
)
def test_networks_that_a_map_would_change_are_refused(data, network):
    assert is_mappable(_setup(data, Residual))
    state = torch.get_rng_state()
    assert not is_mappable(_setup(data, network))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="'fused' needs a network that can be mapped"):
        _train(data, "fused", network)


def test_networks_of_different_kinds_are_refused(data):
    made = []

    def network(input_shape, n_classes):
        made.append(None)
        activation = nn.Tanh() if len(made) % 2 else nn.Sigmoid()
        return nn.Sequential(nn.Flatten(), nn.Linear(98, 5), activation, nn.Linear(5, n_classes))

    with pytest.raises(UnsuitableNetwork, match="cannot be mapped"):
        FusedVmapTrainer(_setup(data, network), [0], data.noisy_labels)


def test_networks_that_share_a_layer_are_refused(data):
    shared = nn.Linear(98, 5)

    def network(input_shape, n_classes):
        return nn.Sequential(nn.Flatten(), shared, nn.Tanh(), nn.Linear(5, n_classes))

    with pytest.raises(UnsuitableNetwork, match="must not share parameters"):
        FusedVmapTrainer(_setup(data, network), [0], data.noisy_labels)
