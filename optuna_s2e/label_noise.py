r"""Label noise for experiments: transition matrices, and the noisy labels drawn from them.

Notation
    C                  number of classes
    noise_rate         epsilon, the probability that a label is wrong, in [0, 1)
    transition_matrix  P, P[i, j] = P(noisy = j | clean = i), rows sum to 1   (C, C)

References:
    Han et al., "Co-teaching: Robust training of deep neural networks with extremely noisy
    labels", NeurIPS 2018: symmetric and pair noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from optuna_s2e._checks import check_axes, check_choice, check_int, check_number, check_shape
from optuna_s2e._typing import FloatArray, IntArray

NOISES = ("none", "symmetric", "pair")


def transition_matrix(noise: str, noise_rate: float, n_classes: int) -> FloatArray:
    r"""Return the transition matrix of a kind of label noise.

    Symmetric: $P_{ii} = 1 - \epsilon$, $P_{ij} = \epsilon / (C - 1)$. Pair:
    $P_{ii} = 1 - \epsilon$, $P_{i, i + 1} = \epsilon$, and the last class turns into class 0.

    Args:
        noise: "symmetric", "pair" or "none". "none" gives the identity for every rate.
        noise_rate: Probability of a wrong label, in [0, 1).
        n_classes: C, at least 2.

    Returns:
        float64 of shape (C, C).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> transition_matrix("pair", 0.25, 3)
        array([[0.75, 0.25, 0.  ],
               [0.  , 0.75, 0.25],
               [0.25, 0.  , 0.75]])
    """
    check_choice("noise", noise, NOISES)
    noise_rate = check_number("noise_rate", noise_rate, 0, 1, open_high=True)
    n_classes = check_int("n_classes", n_classes, 2)
    if noise == "none":
        return np.eye(n_classes)
    if noise == "pair":
        eye = np.eye(n_classes)
        return (1.0 - noise_rate) * eye + noise_rate * np.roll(eye, 1, axis=1)
    matrix = np.full((n_classes, n_classes), noise_rate / (n_classes - 1))
    np.fill_diagonal(matrix, 1.0 - noise_rate)
    return matrix


def flip_labels(
    labels: npt.ArrayLike, transition_matrix: npt.ArrayLike, rng: np.random.Generator
) -> IntArray:
    """Draw a noisy label for every label, independently.

    Args:
        labels: Clean labels, integers in [0, C), shape (N,).
        transition_matrix: P of shape (C, C). Rows are non-negative and sum to 1.
        rng: Generator that the noisy labels are drawn from.

    Returns:
        Noisy labels, int64 of shape (N,).

    Raises:
        ValueError: If the labels or the matrix have another shape, type or range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> flip_labels([0, 1, 2], [[0, 1, 0], [0, 0, 1], [1, 0, 0]], rng)
        array([1, 2, 0])
    """
    matrix = _checked_matrix(transition_matrix)
    clean = _checked_labels(labels, len(matrix))
    cumulative = matrix.cumsum(axis=1)
    cumulative /= cumulative[:, -1:]  # ends at exactly 1: no draw is beyond the last class
    draws = rng.random(len(clean))
    noisy: IntArray = (draws[:, None] >= cumulative[clean]).sum(axis=1, dtype=np.int64)
    return noisy


def published_noise(
    labels: npt.ArrayLike, noise: str, noise_rate: float, n_classes: int | None = None
) -> IntArray:
    """Return the noisy labels of the published experiments, bit for bit.

    The code of Co-teaching, Co-teaching+ and S2E draws one multinomial per sample, in the order
    of the data set, from a single `RandomState(0)`. The seed of the experiment has no influence,
    so all repeats of the published tables share one set of wrong labels.

    Args:
        labels: Clean labels of the whole training set in its original order, shape (N,).
        noise: "symmetric", "pair" or "none".
        noise_rate: Probability of a wrong label, in [0, 1).
        n_classes: C, at least 2. By default it is the largest label + 1, and every class must
            occur.

    Returns:
        Noisy labels, int64 of shape (N,).

    Raises:
        ValueError: If an argument is out of range or, without `n_classes`, a class is empty.

    Example:
        >>> published_noise([0, 1, 2, 0, 1, 2], "symmetric", 0.5)
        array([0, 1, 2, 0, 2, 0])

    References:
        bhanML/Co-teaching, `data/utils.py`, `noisify` (its `random_state` argument is unused).
    """
    n_classes = n_classes if n_classes is None else check_int("n_classes", n_classes, 2)
    clean = _checked_labels(labels, n_classes)
    if n_classes is None:
        counts = np.bincount(clean)
        if len(counts) == 0 or counts.min() == 0:
            empty = int(np.argmin(counts)) if len(counts) else 0
            raise ValueError(f"labels must cover every class, but class {empty} is empty.")
        n_classes = len(counts)
    matrix = transition_matrix(noise, noise_rate, n_classes)
    legacy = np.random.RandomState(0)  # the published stream
    noisy = [legacy.multinomial(1, matrix[label]).argmax() for label in clean]
    return np.asarray(noisy, dtype=np.int64)


def _checked_matrix(matrix: npt.ArrayLike) -> FloatArray:
    checked = np.asarray(matrix, dtype=np.float64)
    check_axes("transition_matrix", checked, "(C, C)")
    check_shape("transition_matrix", checked, "(C, C)", (max(2, len(checked)),) * 2)
    is_distribution = (checked >= 0).all(axis=1) & np.isclose(checked.sum(axis=1), 1.0)
    if not is_distribution.all():
        row = int(is_distribution.argmin())
        raise ValueError(
            "transition_matrix must have non-negative rows that sum to 1, "
            f"but got row {row}: {checked[row].tolist()}."
        )
    return checked


def _checked_labels(labels: npt.ArrayLike, n_classes: int | None) -> IntArray:
    checked = np.asarray(labels)
    check_axes("labels", checked, "(N,)", may_be_empty=True)
    if checked.size and not np.issubdtype(checked.dtype, np.integer):
        raise ValueError(f"labels must be integers, but got {checked.dtype}.")
    if checked.size and (checked.min() < 0 or checked.max() >= (n_classes or np.inf)):
        wrong = checked.min() if checked.min() < 0 else checked.max()
        upper = "n_classes" if n_classes is None else n_classes
        raise ValueError(f"labels must be in [0, {upper}), but got {wrong}.")
    return checked.astype(np.int64)
