"""How many CPU threads a training takes, and that the process has its own back."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from processes import CONTEXT
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, make_network, train_batch
from optuna_s2e.coteaching.backends import TrainingSetup


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


SMALL, LARGE = 10, 2_000_000  # weights; a mini-batch has 600 samples


class _Counts(nn.Module):
    """Notes the number of threads in each forward pass. Most of its weights are unused."""

    def __init__(self, noted: list[int], n_weights: int, n_classes: int) -> None:
        super().__init__()
        self.noted, self.last = noted, nn.Linear(4, n_classes)
        self.unused = nn.Parameter(torch.zeros(n_weights))

    def forward(self, x):
        self.noted.append(torch.get_num_threads())
        return self.last(x)


def _threads_of(n_weights: int, error: type[Exception] | None = None) -> set[int]:
    """Return the numbers of threads in the steps, and, negative, between the epochs."""
    y = np.arange(600) % 2
    x = np.eye(4, dtype=np.float32)[y]
    noted: list[int] = []

    def on_epoch(k, epoch, metrics):
        noted.append(-torch.get_num_threads())
        if error is not None:
            raise error

    train_batch(
        [[1.0, 0.5]], [0], data=NoisyData.from_arrays(x, y, x + 1, y),
        network=lambda shape, c: _Counts(noted, n_weights, c), config=TrainingConfig(600),
        device="cpu", on_epoch=on_epoch,
    )  # fmt: skip
    return set(noted)


def test_small_networks_take_one_thread_and_large_ones_those_of_the_process():
    assert _threads_of(SMALL) == {1, -3}
    assert _threads_of(LARGE) == {3, -3}
    assert torch.get_num_threads() == 3


def test_the_process_has_its_threads_back_after_an_error():
    with pytest.raises(OSError):
        _threads_of(SMALL, OSError)
    assert torch.get_num_threads() == 3


def _in_worker(n_weights: int, omp: str | None) -> tuple[set[int], int]:
    os.environ.pop("OMP_NUM_THREADS", None)
    if omp is not None:
        os.environ["OMP_NUM_THREADS"] = omp
    torch.set_num_threads(3)
    return _threads_of(n_weights), torch.get_num_threads()


@pytest.mark.parametrize(("omp", "threads"), [(None, 1), ("3", 3)])
def test_in_a_pool_large_networks_take_one_thread_unless_told_otherwise(omp, threads):
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        assert pool.submit(_in_worker, LARGE, omp).result() == ({threads, -3}, 3)
        assert pool.submit(_in_worker, SMALL, omp).result() == ({1, -3}, 3)


@pytest.mark.parametrize(
    ("network", "shape", "is_small"),
    [
        ("mlp", (1, 8, 8), True),
        ("mlp", (3, 32, 32), True),
        ("cnn2", (3, 32, 32), True),
        ("cnn7", (3, 32, 32), False),
        ("cnn9", (3, 32, 32), False),
        ("resnet18", (3, 32, 32), False),
    ],
)
def test_which_networks_are_small(network, shape, is_small):
    x, y = np.zeros((128, *shape), np.float32), np.arange(128) % 10
    data = NoisyData.from_arrays(x, y, x + 1, y)
    setup = TrainingSetup(data, network, TrainingConfig(), (data.x_val, data.y_val))
    assert setup.is_small(make_network(network, shape, 10, seed=0)) == is_small


def _curves(n_threads: int) -> list[bytes]:
    torch.set_num_threads(n_threads)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 1, 28, 28)).astype(np.float32), np.arange(300) % 10
    data = NoisyData.from_arrays(x, y, x + 1, y)
    return [
        result.curves.loss.tobytes()
        for network in ("mlp", "cnn2")
        for result in train_batch(
            [[1, 0.5]] * 3, [1, 2, 3], data=data, network=network, device="cpu"
        )
    ]


def test_the_bits_of_small_networks_do_not_depend_on_the_threads_of_the_process():
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        one, four = pool.map(_curves, (1, 4))
    assert len(one) == 6
    assert one == four
