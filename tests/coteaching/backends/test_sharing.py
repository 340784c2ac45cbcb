"""Networks that share memory: refused where training changes it, within and among trials."""

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, TrainingResult, train_batch
from optuna_s2e.coteaching.backends import _sharing

CONFIG = TrainingConfig(batch_size=5, learning_rate=0.05)


def _train(data: NoisyData, network: object, n_trials: int = 2, **options) -> list[TrainingResult]:
    rates = np.ones((n_trials, 3))
    return train_batch(
        rates, [7] * n_trials, data=data, network=network, config=CONFIG, device="cpu", **options
    )


def _head(part: nn.Module, width: int = 6) -> Callable[..., nn.Module]:
    return lambda shape, n_classes: nn.Sequential(part, nn.Tanh(), nn.Linear(width, n_classes))


class _Tokens(nn.Module):
    """Looks up each feature in a table of 8 rows."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, x):
        return self.table((x.abs() * 2).long().clamp(0, 7)).flatten(1)


VECTORS = torch.linspace(-1, 1, 16).view(8, 2)
ARRAY = VECTORS.numpy()
SHARED: dict[str, Callable[[], Callable[..., nn.Module]]] = {
    "a layer": lambda: _head(nn.Linear(5, 6)),
    "a deep layer": lambda: _head(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6))),
    "a lazy layer": lambda: _head(nn.LazyLinear(6)),
    "a weight": lambda: _with_weight(nn.Linear(5, 6).weight.detach()),
    "a part of a weight": lambda: _with_weight(torch.rand(9, 5)[2:8]),
    "a table of a tensor": lambda: _with_table(lambda: VECTORS),
    "a table of an array": lambda: _with_table(lambda: torch.from_numpy(ARRAY)),
}


def _with_weight(weight: torch.Tensor) -> Callable[..., nn.Module]:
    def network(shape, n_classes):
        layer = nn.Linear(5, 6)
        layer.weight = nn.Parameter(weight)
        return nn.Sequential(layer, nn.Tanh(), nn.Linear(6, n_classes))

    return network


def _with_table(vectors: Callable[[], torch.Tensor]) -> Callable[..., nn.Module]:
    def network(shape, n_classes):
        table = nn.Embedding.from_pretrained(vectors(), freeze=False)
        return nn.Sequential(_Tokens(table), nn.Linear(10, n_classes))

    return network


@pytest.mark.parametrize("kind", SHARED)
def test_trainable_memory_of_both_networks_is_refused_before_it_changes(tiny, kind):
    before = VECTORS.clone()
    for result in _train(tiny, SHARED[kind]()):
        assert "must make new weights at each call, but '" in str(result.failure)
        assert "copy.deepcopy(part)" in str(result.failure)
        assert result.n_epochs == 0
    assert torch.equal(VECTORS, before)


@pytest.mark.parametrize("backend", ["loop", "auto", "fused"])
def test_shared_layers_never_train_one_another_under_any_backend(tiny, backend):
    shared = nn.Linear(5, 6)
    before = shared.weight.detach().clone()

    def network(shape, n_classes):
        return nn.Sequential(shared, nn.ReLU(), nn.Linear(6, n_classes))

    for result in _train(tiny, network, backend=backend):
        assert isinstance(result.failure, ValueError)
    assert torch.equal(shared.weight, before)


def test_what_an_earlier_trial_trained_is_refused(tiny):
    made = [_head(nn.Linear(5, 6))((5,), 3) for _ in range(3)]
    calls: list[None] = []

    def network(shape, n_classes):  # the first call is the probe; trials share, their peers do not
        calls.append(None)
        return made[len(calls) % 2] if len(calls) > 1 else made[2]

    first, second = _train(tiny, network)
    assert first.failure is None
    assert "that the training of an earlier trial changed" in str(second.failure)
    (third,) = _train(tiny, lambda shape, c: made.pop(), 1)  # and so in a later call
    assert "earlier trial" in str(third.failure)


def test_statistics_that_training_moves_are_refused_and_restored(tiny):
    norm = nn.BatchNorm1d(5).requires_grad_(False)
    before = {name: value.clone() for name, value in norm.state_dict().items()}

    def network(shape, n_classes):
        return nn.Sequential(norm, nn.Linear(5, n_classes))

    for result in _train(tiny, network):
        assert (
            "new weights and buffers at each call, but '0.running_mean' is the same memory in both"
            in str(result.failure)
        )
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


class _Frozen(nn.Module):
    """A frozen part with batch normalisation, which stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)).requires_grad_(False)
        self.register_buffer("scale", torch.tensor(2.0))

    def train(self, mode=True):
        return super().train(False)

    def forward(self, x):
        return self.part(x) * self.scale


@pytest.mark.parametrize("part", [_Frozen, lambda: nn.Linear(5, 6).requires_grad_(False)])
def test_frozen_weights_and_constant_buffers_may_be_shared(tiny, part, recwarn):
    results = _train(tiny, _head(part()))
    assert [result.failure for result in results] == [None, None]
    np.testing.assert_array_equal(results[0].curves.loss, results[1].curves.loss)
    assert not recwarn.list


def test_views_and_tied_weights_within_one_network_are_fine(tiny):
    def network(shape, n_classes):
        net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, n_classes))
        net[2].weight = net[0].weight
        both = torch.rand(2, n_classes)
        net[3].bias = nn.Parameter(both[0])
        net.append(nn.Linear(n_classes, n_classes))
        net[4].bias = nn.Parameter(both[1])
        return net

    first, second = _train(tiny, network)
    assert (first.failure, second.failure) == (None, None)
    np.testing.assert_array_equal(first.curves.loss, second.curves.loss)


def test_old_networks_are_not_kept_and_their_addresses_may_be_used_again(tiny):
    """The same array holds the weights of one trial after the other."""
    memory = np.zeros((2, 6, 5), np.float32)
    calls: list[None] = []

    def network(shape, n_classes):
        layer = nn.Linear(5, 6)
        calls.append(None)
        place = torch.from_numpy(memory[len(calls) % 2])
        layer.weight = nn.Parameter(place.copy_(layer.weight.detach()))
        return nn.Sequential(layer, nn.Tanh(), nn.Linear(6, n_classes))

    for _ in range(3):
        (result,) = _train(tiny, network, 1)
        assert result.failure is None
        gc.collect()
    _sharing.SharingGuard([nn.Linear(1, 1), nn.Linear(1, 1)])
    places = {trained.place[1] for trained in _sharing._trained.values()}
    assert not places & {memory[0].ctypes.data, memory[1].ctypes.data}


class _Centred(nn.Module):
    """Keeps a running mean in a plain tensor, which is no buffer."""

    of_class = torch.zeros(6)

    def __init__(self, mean: torch.Tensor | None, n_classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, n_classes)
        if mean is not None:
            self.mean = mean

    def forward(self, x):
        mean = getattr(self, "mean", self.of_class)
        hidden = self.first(x)
        if self.training:
            mean.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        return self.last(torch.tanh(hidden - mean))


@pytest.mark.parametrize("name", ["mean", "of_class"])
def test_plain_tensors_that_training_changes_are_refused_and_restored(tiny, name):
    mean = torch.zeros(6)
    given = mean if name == "mean" else None
    for result in _train(tiny, lambda shape, c: _Centred(given, c)):
        assert f"'network.{name}' is the same memory in both networks" in str(result.failure)
    assert not mean.any()
    assert not _Centred.of_class.any()


def test_plain_tensors_of_each_network_may_change(tiny):
    first, second = _train(tiny, lambda shape, c: _Centred(torch.zeros(6), c))
    assert (first.failure, second.failure) == (None, None)
    np.testing.assert_array_equal(first.curves.loss, second.curves.loss)


class _Hidden(nn.Module):
    """Uses a layer that PyTorch does not see, because a list holds it."""

    def __init__(self, layer: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.layers, self.last = [layer], nn.Linear(6, n_classes)

    def forward(self, x):
        return self.last(torch.tanh(self.layers[0](x)))


@pytest.mark.parametrize("shares", [True, False])
def test_weights_that_no_parameter_holds_are_refused(tiny, shares):
    layer = nn.Linear(5, 6)

    def network(shape, n_classes):
        return _Hidden(layer if shares else nn.Linear(5, 6), n_classes)

    for result in _train(tiny, network):
        assert isinstance(result.failure, ValueError)
        assert "in an nn.ModuleList, but uses a weight of shape (6" in str(result.failure)


def test_a_frozen_layer_need_not_be_held(tiny):
    layer = nn.Linear(5, 6).requires_grad_(False)
    for result in _train(tiny, lambda shape, c: _Hidden(layer, c)):
        assert result.failure is None
