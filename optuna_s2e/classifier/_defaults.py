"""What a classifier takes where its user says nothing: network, mini-batches, noise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from torch import nn

from optuna_s2e.coteaching import TrainingConfig

HIDDEN = (128, 128)  # units of the network for tables (studies/classifier_tables.py)
N_EPOCHS = {"table": 20, "images": 40, "signals": 40, "tokens": 40}
LEARNING_RATES = {"table": 2e-3}  # by network; 1e-3 for all others
LARGEST_BATCH, SMALLEST_BATCH, STEPS = 128, 8, 50
LARGEST_QUICK_BATCH = 256  # of the network for tables, if no pair is trained
QUICK_STEPS = 130  # at least, of each training then
ESTIMATE_EPOCHS = 5  # of each of the three trainings of the noise's estimate
IMAGE_SIZE = 16  # pixels; smaller images are taken as vectors


def table_network(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Make a multi-layer perceptron of two hidden layers, the network "auto" for tables."""
    sizes = (math.prod(input_shape), *HIDDEN)
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))


def auto_network(kind: str, shape: tuple[int, ...]) -> str:
    """Return the name of the network for inputs of a kind, of this shape as tensors.

    Raises:
        ValueError: If only the user can know it.
    """
    if kind == "tokens":
        raise ValueError(
            "network must be a function (input_shape, n_classes) -> torch.nn.Module that begins "
            "with an embedding if X holds integers as a tensor, but got 'auto'. If they are "
            "features, give them as an array or as floats."
        )
    if len(shape) == 3 and min(shape[1:]) >= IMAGE_SIZE:
        return "cnn2"
    return "table"


def find_network(network: Any) -> Any:
    """Return what `make_network` takes for the name of a network; a function stays as it is."""
    return table_network if network == "table" else network


def training_config(
    network: object,
    n_samples: int,
    batch_size: int | None,
    learning_rate: float | None,
    *,
    is_quick: bool = False,
) -> TrainingConfig:
    """Return optimiser and mini-batches; None takes the defaults.

    A mini-batch is about a fiftieth of the data, a power of two in [8, 128]. If no pair is trained
    (`is_quick`), those of tables may be twice as large; the learning rate grows with their root.
    """
    largest = LARGEST_QUICK_BATCH if is_quick and network == "table" else LARGEST_BATCH
    if batch_size is None:
        power = 2 ** round(math.log2(max(1, n_samples / STEPS)))
        batch_size = min(largest, max(SMALLEST_BATCH, power))
    if learning_rate is None:
        learning_rate = LEARNING_RATES.get(network, 1e-3) if isinstance(network, str) else 1e-3
        learning_rate *= math.sqrt(max(1.0, min(batch_size, largest) / LARGEST_BATCH))
    return TrainingConfig(batch_size=batch_size, learning_rate=learning_rate)


def quick_epochs(kind: str, n_samples: int, batch_size: int) -> int:
    """Return the epochs of each training of the estimate whose networks are the model.

    They are as many as without (`ESTIMATE_EPOCHS`), and more of few samples, up to `N_EPOCHS`.
    """
    steps = max(1, 2 * n_samples // (3 * batch_size))
    return min(N_EPOCHS[kind], max(ESTIMATE_EPOCHS, math.ceil(QUICK_STEPS / steps)))


def describe_network(network: object) -> str:
    """Return the name of a network; of a function, where it is defined."""
    if isinstance(network, str):
        return network
    module, name = getattr(network, "__module__", ""), getattr(network, "__qualname__", "")
    return f"{module}.{name or type(network).__qualname__}"
