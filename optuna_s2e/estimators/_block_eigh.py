"""Eigenvalues of symmetric matrices that may consist of blocks of 2 x 2."""

from __future__ import annotations

import numpy as np

from optuna_s2e._typing import FloatArray


def block_eigh(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the eigenvalues of a symmetric matrix, rising, and its axes.

    Among many categories the Hessian consists of blocks of 2 x 2, because each categorical block
    has two directions. These blocks are solved one by one. The bits are the same as for the whole
    matrix, which would take cubic time. A matrix of another form is solved as a whole.
    """
    first = np.flatnonzero(np.diagonal(matrix, 1))
    n_inside = np.count_nonzero(np.diagonal(matrix)) + 2 * len(first)
    if np.diff(first).min(initial=2) < 2 or np.count_nonzero(matrix) > n_inside:
        found = np.linalg.eigh(matrix)
        return found.eigenvalues, found.eigenvectors
    eigenvalues, axes = np.diagonal(matrix).copy(), np.eye(len(matrix))
    pairs = np.stack([first, first + 1], axis=1)
    blocks = pairs[:, :, None], pairs[:, None]
    eigenvalues[pairs], axes[blocks] = np.linalg.eigh(matrix[blocks])
    order = np.argsort(eigenvalues, kind="stable")
    return eigenvalues[order], np.take(axes, order, axis=1)
