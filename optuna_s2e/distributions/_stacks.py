"""The blocks of p_theta, and equal blocks stacked into one array.

A space of 200 categorical parameters is 200 blocks. One call for a stack of equal blocks takes
about as long as one call for a single block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from optuna_s2e._typing import FloatArray, IntArray
from optuna_s2e.distributions._categorical import Categorical
from optuna_s2e.distributions._family import Family


class Block(NamedTuple):
    """One family, with its columns of X and its components of theta."""

    family: Family
    columns: slice
    theta: slice


class Stack(NamedTuple):
    """B equal blocks: numbers (B,), components of theta (B, n_theta), columns (B, n_columns)."""

    family: Family
    blocks: IntArray
    theta: IntArray
    columns: IntArray

    def points(self, X: FloatArray) -> FloatArray:
        """Return the columns of each block, (B, K, n_columns)."""
        return X[:, self.columns].swapaxes(0, 1)


def blocks_of(families: Sequence[Family]) -> tuple[Block, ...]:
    """Return the blocks in the order of the families."""
    columns = list(accumulate((f.n_columns for f in families), initial=0))
    thetas = list(accumulate((f.n_theta for f in families), initial=0))
    return tuple(
        Block(family, slice(*columns[i : i + 2]), slice(*thetas[i : i + 2]))
        for i, family in enumerate(families)
    )


def stacks_of(blocks: Sequence[Block]) -> tuple[Stack, ...]:
    """Return the blocks by family."""
    stacks = []
    for family in dict.fromkeys(block.family for block in blocks):
        own = [i for i, block in enumerate(blocks) if block.family == family]
        columns, theta = (
            np.array([range(at.start, at.stop) for at in slices])
            for slices in zip(*(blocks[i][1:] for i in own), strict=True)
        )
        stacks.append(Stack(family, np.array(own), theta, columns))
    return tuple(stacks)


def moved_by(
    basis: FloatArray, stacks: Sequence[Stack]
) -> Iterator[tuple[Stack, IntArray, FloatArray]]:
    """Yield the blocks with their part of a basis (n_theta, m), as many as possible at a time.

    The part of a categorical block has only the columns that move it, because the cost of all
    columns for every block would be quadratic in the number of blocks. Any other block comes
    alone and has all columns: with fewer, BLAS would round differently.

    Yields:
        B equal blocks, numbers of their columns (B, n), their part of the basis (B, n_theta, n).
    """
    for stack in stacks:
        part = basis[stack.theta]
        if isinstance(stack.family, Categorical):
            moves = np.asarray(part.any(axis=1))
            n_moves = moves.sum(axis=1)
            groups = [np.flatnonzero(n_moves == n) for n in np.unique(n_moves)]
        else:
            moves = np.ones((len(part), basis.shape[1]), dtype=np.bool_)
            groups = list(np.arange(len(part))[:, None])
        for group in groups:
            columns = np.nonzero(moves[group])[1].reshape(len(group), -1)
            blocks = Stack(stack.family, *(numbers[group] for numbers in stack[1:]))
            yield blocks, columns, np.take_along_axis(part[group], columns[:, None], axis=2)
