"""Coordinates in which the Fisher information is the identity."""

from __future__ import annotations

import numpy as np

from optuna_s2e._typing import FloatArray

NULL_EIGENVALUE = 1e-12
"""Eigenvalues of the Fisher information below this share of the largest count as zero."""


def whiten(fisher: FloatArray) -> FloatArray:
    """Return W with W W' = F^+ and W' F W = I.

    W has no column for directions in which p_theta does not change, such as the scale of a
    categorical block.

    Args:
        fisher: Fisher information F, symmetric and positive semi-definite, (n_theta, n_theta).

    Returns:
        W, (n_theta, rank of F).

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.distributions import whiten
        >>> whiten(np.diag([4.0, 0.0])).tolist()
        [[0.5], [0.0]]
    """
    eigenvalues, axes = np.linalg.eigh(fisher)
    kept = eigenvalues > NULL_EIGENVALUE * np.max(eigenvalues, initial=0.0)
    return np.asarray(axes[:, kept] / np.sqrt(eigenvalues[kept]))
