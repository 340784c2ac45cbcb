"""The loop: inputs that networks write to, what they may return, devices without float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from optuna_s2e.coteaching import CoteachingObjective, NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching.backends import TrainingSetup, find_backend

CONFIG = TrainingConfig(batch_size=10, learning_rate=0.05)
RATES = np.array([[1.0, 0.6, 0.6], [1.0, 1.0, 0.5]])


def _data(kind: str) -> tuple[NoisyData, list[torch.Tensor]]:
    """Make data of tensors that are not copied, and return these, too."""
    rng = np.random.default_rng(0)
    y = np.arange(70) % 3
    x = np.eye(4)[y] + rng.normal(size=(70, 4)) / 4
    if kind == "images":
        x = (x * 60).clip(0, 255).astype(np.uint8).reshape(70, 1, 2, 2)
    else:
        x = x.astype(kind)
    mine = [torch.from_numpy(part) for part in (x[:40], x[40:60], x[60:])]
    data = NoisyData.from_arrays(mine[0], y[:40], mine[1], y[40:60], x_test=mine[2], y_test=y[60:])
    return data, mine


class _Halved(nn.Module):
    """Halves its inputs: in a new tensor, or in ways that write to the tensor it gets."""

    def __init__(self, how: str, n_classes: int) -> None:
        super().__init__()
        self.how, self.last, self.seen = how, nn.Linear(4, n_classes), []

    def forward(self, x):
        self.seen.append(x)  # and whoever keeps its inputs keeps its own
        if self.how == "out of place":
            x = x * 0.5
        elif self.how == "in place":
            x.mul_(0.5)
        elif self.how == "through a view":
            x.flatten(1)[:, :] *= 0.5
        elif self.how == "through NumPy":
            array = x.numpy()
            array *= array.dtype.type(0.5)
        elif self.how == "as a leaf":
            x = x.requires_grad_() * 0.5
        return self.last(x.flatten(1))


@pytest.mark.parametrize("how", ["in place", "through a view", "through NumPy", "as a leaf"])
@pytest.mark.parametrize("kind", ["float32", "float64", "images"])
@pytest.mark.parametrize("evaluate_on", ["validation", "test"])
def test_a_network_that_writes_to_its_inputs_harms_nobody(how, kind, evaluate_on):
    data, mine = _data(kind)
    before = copy.deepcopy(mine)
    dtype = "float64" if kind == "float64" else "float32"
    expected, found = (
        train_batch(
            RATES, [1, 2], data=data, network=lambda shape, c, each=each: _Halved(each, c),
            config=TrainingConfig(10, 0.05, dtype=dtype), device="cpu", evaluate_on=evaluate_on,
        )
        for each in ("out of place", how)
    )  # fmt: skip
    for a, b in zip(expected, found, strict=True):
        assert (a.failure, b.failure) == (None, None)
        for name in a.curves._fields:
            np.testing.assert_array_equal(getattr(a.curves, name), getattr(b.curves, name), name)
    for tensor, old in zip(mine, before, strict=True):
        assert torch.equal(tensor, old)
        assert not tensor.requires_grad


@pytest.mark.parametrize("backend", ["loop", "auto", "rows", "fused"])
def test_a_layer_that_works_in_place_is_fine_under_every_backend(backend):
    data, mine = _data("float32")
    before = copy.deepcopy(mine)

    def network(inplace):
        return lambda shape, c: nn.Sequential(
            nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, c)
        )

    expected, found = (
        train_batch(
            RATES, [1, 2], data=data, network=network(inplace), config=CONFIG, device="cpu",
            backend=backend,
        )
        for inplace in (False, True)
    )  # fmt: skip
    for a, b in zip(expected, found, strict=True):
        assert (a.failure, b.failure) == (None, None)
        np.testing.assert_array_equal(a.curves.loss, b.curves.loss)
    assert all(map(torch.equal, mine, before))


class _Returns(nn.Module):
    def __init__(self, make, n_classes):
        super().__init__()
        self.make, self.last = make, nn.Linear(4, n_classes)

    def forward(self, x):
        return self.make(self.last(x))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda z: (z, z[:, :2]), "a tuple of (10, 3), (10, 2). Let its forward return the"),
        (lambda z: [z], "a list of (10, 3). Let its forward return the logits alone."),
        (lambda z: {"logits": z, "n": 1}, "a dict of 'logits': (10, 3), 'n': int. Let its"),
        (lambda z: None, "NoneType. Let its forward return the logits alone."),
        (lambda z: z.detach().numpy(), "ndarray. Let its forward return the logits alone."),
        (lambda z: z.argmax(dim=1), "torch.int64 of shape (10,)."),
        (lambda z: z[:, 0], "(10,)."),
        (lambda z: z[:, :, None], "(10, 3, 1)."),
        (lambda z: z.mean(), "()."),
    ],
)
def test_anything_but_logits_is_named(make, found):
    data, _ = _data("float32")
    (result,) = train_batch(
        RATES[:1], [0], data=data, network=lambda shape, c: _Returns(make, c), config=CONFIG,
        device="cpu",
    )  # fmt: skip
    message = f"network must return logits of shape (B, C) = (10, 3), but got {found}"
    assert str(result.failure).startswith(message)


@pytest.mark.parametrize("net", [nn.Identity(), nn.Linear(4, 3).requires_grad_(False)])
def test_a_network_without_weights_to_train_is_named(net):
    data, _ = _data("float32")
    (result,) = train_batch(
        RATES[:1], [0], data=data, network=lambda shape, c: copy.deepcopy(net), config=CONFIG
    )
    assert "network must have weights to train" in str(result.failure)


class _NoFloat64(TorchDispatchMode):
    """A device that refuses tensors of float64, as Apple's do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError(f"{func} made a tensor of float64.")
        return result


class _OnSuchADevice(TrainingSetup):
    sum_dtype = torch.float32


@pytest.mark.parametrize("backend", ["loop", "rows", "fused"])
@pytest.mark.parametrize("network", ["mlp", "cnn2"])
def test_no_float64_is_made_where_a_device_may_lack_it(backend, network):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 1, 16, 16)).astype(np.float32)
    y = np.arange(40) % 3
    data = NoisyData.from_arrays(x, y, x, y, clean_labels=y)
    setup = TrainingSetup(data, network, CONFIG, (data.x_val, data.y_val))

    def train(setup):
        trainer = find_backend(backend, setup, 1).make_trainer(setup, [1], data.noisy_labels)
        trained = [trainer.train_epoch(np.array([rate]), 0.05, 0.9) for rate in (0.6, 0.5)]
        return torch.cat([*trained, trainer.evaluate()])

    with pytest.raises(TypeError, match="made a tensor of float64"), _NoFloat64():
        train(setup)
    with _NoFloat64():
        found = train(_OnSuchADevice(*setup))
    torch.testing.assert_close(found.double(), train(setup), rtol=1e-5, atol=1e-6)


def test_float64_is_summed_on_devices_that_have_it():
    data, _ = _data("float32")
    for device, dtype in (("cpu", torch.float64), ("meta", torch.float32)):
        there = data.to(device)
        setup = TrainingSetup(there, "mlp", CONFIG, (there.x_val, there.y_val))
        assert setup.sum_dtype == dtype


def test_a_network_that_ends_in_a_softmax_is_told_before_a_study_is_made():
    data, _ = _data("float32")

    def network(shape, n_classes):
        return nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, n_classes), nn.Softmax(dim=1)
        )

    objective = CoteachingObjective(data, network=network, n_epochs=2, device="cpu")
    with pytest.warns(UserWarning, match="The network returns probabilities"):
        objective.check()
