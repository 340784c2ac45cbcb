"""What trained networks say of inputs."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import NoisyData, make_network, predict_probabilities, train_batch
from optuna_s2e.coteaching._predictions import predicted_logits


class _Notes(nn.Module):
    """Notes the number of threads and the batch sizes; most of its weights are unused."""

    def __init__(self, n_weights: int) -> None:
        super().__init__()
        self.noted: list[tuple[int, int]] = []
        self.unused = nn.Parameter(torch.zeros(n_weights))

    def forward(self, x):
        self.noted.append((torch.get_num_threads(), len(x)))
        return x[:, :2].exp_().log()  # writes to its input


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_probabilities_are_the_mean_of_the_networks() -> None:
    x = torch.randn(1500, 4, generator=torch.Generator().manual_seed(0))
    networks = [make_network("mlp", (4,), 3, seed=k).eval() for k in range(3)]
    with torch.no_grad():
        expected = torch.stack([net(x).double().softmax(dim=1) for net in networks]).mean(dim=0)
    found = predict_probabilities(networks, x)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)


@pytest.mark.parametrize(("n_weights", "threads"), [(10, 1), (3_000_000, 3)])
def test_batches_take_the_threads_that_suit_the_network(three_threads, n_weights, threads) -> None:
    network = _Notes(n_weights)
    x = torch.rand(2500, 4)
    before = x.clone()
    parts = predicted_logits([network], x, torch.float32)
    first = next(parts)
    assert torch.get_num_threads() == 3  # also between two batches
    assert [len(part[0]) for part in (first, *parts)] == [1024, 1024, 452]
    assert network.noted == [(threads, 1024), (threads, 1024), (threads, 452)]
    assert torch.equal(x, before)
    assert not first.requires_grad


def test_the_data_stay_when_a_network_writes_to_its_input() -> None:
    x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    data = NoisyData.from_arrays(x, y, x + 1, y)

    def in_place(input_shape, n_classes):
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))

    before = data.x.sub_(0.5).clone()
    for method in ("f-correction", "coteaching"):
        (result,) = train_batch(
            [[1.0, 0.5]], [0], data=data, network=in_place, method=method, device="cpu",
            backend="loop",
        )  # fmt: skip
        assert result.failure is None
    assert torch.equal(data.x, before)
