"""Small-loss selection of two networks for each other (Co-teaching, NeurIPS 2018, Algorithm 1).

Notation
    losses      cross-entropy of every sample of a mini-batch under each network   (2, B)
    selected    positions in the mini-batch, the smallest loss first               (2, n_kept)
    peer        the other network
"""

from __future__ import annotations

import torch
from torch import Tensor


def small_loss(losses: Tensor, n_kept: int) -> Tensor:
    """Return the positions of the `n_kept` smallest losses in each row.

    Ties keep the order of the mini-batch; NaN counts as the largest loss.

    Args:
        losses: Losses of the samples, (..., B).
        n_kept: Number of positions, in [1, B].

    Returns:
        int64 positions, (..., n_kept).

    Example:
        >>> small_loss(Tensor([[0.3, 0.1, 0.2]]), 2)
        tensor([[1, 2]])
    """
    return losses.argsort(dim=-1, stable=True)[..., :n_kept]


def exchange(selected: Tensor) -> Tensor:
    """Return what each network trains on: the samples its peer selected, (..., 2, n_kept)."""
    return selected.flip(-2)


def selected_means(losses: Tensor, selected: Tensor) -> Tensor:
    """Return each network's mean loss over the samples of one row of `selected`, shape (2,)."""
    return losses.gather(1, selected).mean(dim=1)


def label_precision(
    is_clean: Tensor, kept: Tensor, weights: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return the share of the weight that is on samples whose label is right, for each network.

    Args:
        is_clean: Whether each label is right, bool, (S, B) for S mini-batches.
        kept: Positions in the mini-batch, (S, 2, n).
        weights: Their weights, at least 0, (S, 2, n).
        dtype: Dtype of the sums.

    Returns:
        Label precision of each network, (2,); NaN if there is no weight.
    """
    chosen = is_clean[:, None].expand(-1, 2, -1).gather(2, kept)
    weights = weights.to(dtype)
    return (chosen * weights).sum(dim=(0, 2)) / weights.sum(dim=(0, 2))
