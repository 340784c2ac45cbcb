"""CPU threads of a training: PyTorch's default, all cores, makes small networks slower.

Their operations are too short to be shared: the threads spend their time waiting for each other,
and several trainings on one machine wait for each other's threads, too.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
