"""CPU threads of networks: PyTorch's default, all cores, makes small ones slower.

Their operations are too short to be shared: the threads spend their time waiting for each other,
and several trainings on one machine wait for each other's threads, too.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# Products of a step of one network with its weights: the MLP of MNIST has 3e7, "cnn2" at most 4e8
# (both are faster on one thread: docs/speed.md), "cnn7" has 7e10.
_SMALL_STEP = 10**9


def is_small(network: nn.Module, x: Tensor, batch_size: int) -> bool:
    """Whether a step on a mini-batch of such inputs (N, ...) gains nothing from a second thread.

    It counts products with weights, as if convolutions were applied at every pixel of the input,
    and layers of networks on tokens at every token.
    """
    shape = x.shape[1:]
    tokens = 1 if x.is_floating_point() or x.dtype == torch.uint8 else math.prod(shape)
    pixels = math.prod(shape[1:])
    weights = [w for w in network.parameters() if not is_lazy(w)]
    products = sum(w.numel() * max(tokens, pixels if w.ndim > 2 else 1) for w in weights)
    return products * batch_size < _SMALL_STEP


@contextmanager
def suitable_threads(*, is_small: bool) -> Iterator[None]:
    """Let PyTorch use one thread inside, for a small network or in a process of a pool.

    Large networks keep what the process has, all cores unless it was told otherwise. In a pool
    the other processes have their share of the cores, as with PyTorch's own data loaders. There,
    the environment variable OMP_NUM_THREADS says how many threads each process has.
    """
    before = torch.get_num_threads()
    in_pool = multiprocessing.parent_process() is not None and "OMP_NUM_THREADS" not in os.environ
    if before == 1 or not (is_small or in_pool):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
