"""What trained networks say of inputs, batch by batch, on the CPU threads that suit them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._threads import is_small, suitable_threads
from optuna_s2e.coteaching.data import to_input

_BATCH = 1024


def predict_probabilities(
    networks: Sequence[nn.Module], x: Tensor, *, dtype: torch.dtype = torch.float32
) -> FloatArray:
    """Return the mean probabilities of trained networks, (N, C).

    Args:
        networks: Networks that return logits, in evaluation mode, such as
            `TrainingResult.networks`. They and the inputs are on one device.
        x: Inputs as in `NoisyData`, (N, ...), N >= 1. They stay as they are, also if a network
            writes to its input.
        dtype: Dtype of the networks.

    Example:
        >>> import torch
        >>> from optuna_s2e.coteaching import make_network, predict_probabilities
        >>> networks = [make_network("mlp", (4,), 3, seed=k).eval() for k in range(2)]
        >>> predict_probabilities(networks, torch.zeros(5, 4)).shape
        (5, 3)
    """
    parts = predicted_logits(networks, x, dtype)
    p = torch.cat([logits.double().softmax(dim=2).mean(dim=0) for logits in parts])
    return np.asarray(p.cpu().numpy())


def predicted_logits(
    networks: Sequence[nn.Module], x: Tensor, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Yield the logits of networks for one batch of the inputs after the other, (M, B, C).

    Args:
        networks: Networks in evaluation mode, on the device of the inputs, (M,).
        x: Inputs, (N, ...).
        dtype: Dtype of the networks.
    """
    for inputs in torch.split(x, _BATCH):
        with torch.no_grad(), suitable_threads(is_small=is_small(networks[0], x, len(inputs))):
            outputs = [network(to_input(inputs, dtype).clone()) for network in networks]
        yield torch.stack(outputs)
