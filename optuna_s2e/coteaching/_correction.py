"""The transition matrices of F-correction: counted, given, or estimated by trained networks.

Notation
    T           T[i, j] = P(noisy = j | clean = i), rows sum to 1       (C, C)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optuna_s2e.coteaching._methods import ForwardCorrection
from optuna_s2e.coteaching._predictions import predicted_logits
from optuna_s2e.coteaching._steps import Method, Step
from optuna_s2e.coteaching.data import NoisyData


@dataclass(frozen=True, eq=False)
class KnownCorrection(Method):
    """F-correction whose matrices are known.

    Attributes:
        origin: The method with its options.
        matrices: T of both networks, (C, C), or of each, (2, C, C), on the device of the training.
    """

    name = ForwardCorrection.name
    title = ForwardCorrection.title
    uses_schedule = False
    origin: ForwardCorrection
    matrices: Tensor

    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Return losses and weights of a mini-batch (see `Method`)."""
        return self.origin.corrected(logits, labels, self.matrices.to(logits.dtype))


def given_correction(method: ForwardCorrection, data: NoisyData) -> KnownCorrection:
    """Return the method with the matrix that its user gave.

    Raises:
        ValueError: If it is not of shape (C, C).
    """
    matrix = torch.tensor(method.matrix, dtype=torch.float32, device=data.x.device)
    expected = (data.n_classes, data.n_classes)
    if matrix.shape != expected:
        raise ValueError(
            f"matrix must have shape (C, C) = {expected}, but got {tuple(matrix.shape)}."
        )
    return KnownCorrection(method, matrix)


def true_correction(method: ForwardCorrection, data: NoisyData, noisy: Tensor) -> KnownCorrection:
    """Return the method with the matrix that the clean labels show.

    Args:
        method: The method.
        data: Data with clean labels.
        noisy: Noisy labels of the trial, (N,).

    Raises:
        ValueError: If the clean labels are unknown.
    """
    if data.clean_labels is None:
        raise ValueError(
            "method 'f-correction-true' needs the clean labels of the training data, which are "
            "unknown. Take 'f-correction', which estimates the matrix, or give the matrix."
        )
    kept = noisy >= 0  # -1: left out
    counted = true_matrix(data.clean_labels[kept], noisy[kept], data.n_classes)
    return KnownCorrection(method, counted.to(data.x.device))


def estimated_correction(
    method: ForwardCorrection, x: Tensor, networks: Sequence[nn.Module], dtype: torch.dtype
) -> KnownCorrection:
    """Return the method with the matrix that each of two Standard networks shows.

    Args:
        method: The method.
        x: Inputs of the trial's training samples, (N, ...).
        networks: The two networks, in evaluation mode.
        dtype: Dtype of the training.
    """
    matrices = []
    for network in networks:
        network.to(x.device)
        logits = torch.cat(list(predicted_logits([network], x, dtype)), dim=1)
        p = logits[0].to(dtype).softmax(dim=1)
        matrices.append(anchor_matrix(p, method.percentile))
    return KnownCorrection(method, torch.stack(matrices))


def anchor_matrix(probabilities: Tensor, percentile: float = 100.0) -> Tensor:
    """Return F-correction's estimate of T, (C, C): row i is what is predicted at i's anchor.

    Args:
        probabilities: Predictions for the training inputs, (N, C).
        percentile: As in `ForwardCorrection`.
    """
    rank = int(percentile / 100.0 * (len(probabilities) - 1))
    return probabilities[probabilities.argsort(dim=0, stable=True)[rank]]


def true_matrix(clean: Tensor, noisy: Tensor, n_classes: int) -> Tensor:
    """Return the share of each noisy label among the samples of each class, float32, (C, C).

    A class without samples keeps its labels.

    Args:
        clean: Clean labels, (N,).
        noisy: Noisy labels, (N,).
        n_classes: C.

    Example:
        >>> true_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
        [[0.5, 0.5], [0.0, 1.0]]
    """
    pairs = torch.bincount(clean * n_classes + noisy, minlength=n_classes**2)
    counts = pairs.view(n_classes, n_classes).float()
    total = counts.sum(dim=1, keepdim=True)
    own = torch.eye(n_classes, device=counts.device)
    return torch.where(total > 0, counts / total.clamp_min(1), own)
