"""Eigenvalues of matrices of small blocks, against those of the whole matrix."""

import numpy as np
import pytest

from optuna_s2e.estimators._block_eigh import block_eigh


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([3.0, 1.0, 2.0]),
        [[2, 1, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
        [[2, 1, 0], [1, 3, 1], [0, 1, 1]],
        [[2, 1, 5], [1, 3, 0], [5, 0, 1]],
        [[2, 0, 5], [0, 3, 0], [5, 0, 1]],
        [[7]],
        np.zeros((0, 0)),
    ],
)
def test_axes_are_those_of_the_whole_matrix(matrix):
    matrix = np.array(matrix, dtype=float)
    eigenvalues, axes = block_eigh(matrix)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigh(matrix).eigenvalues, atol=1e-15)
    np.testing.assert_allclose(axes * eigenvalues @ axes.T, matrix, atol=1e-14)
    np.testing.assert_allclose(axes.T @ axes, np.eye(len(matrix)), atol=1e-14)
