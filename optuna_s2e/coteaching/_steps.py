r"""Losses and weights of a mini-batch: what a training method is, and what all methods share.

A method is a choice of two things: the loss of each sample under each network, and the weight that
the sample has in the step of that network. A step of network k descends on

.. math:: \sum_i w_{ki} \ell_{ki}

where the weights are constants. So one training core trains them all: who selects, what is
exchanged and what counts is in the weights, and all else is in the losses. All methods have two
networks. Where a paper has one, the two are trained side by side and never meet.

Notation
    K, B, C     trials, samples of a mini-batch, classes
    logits      z, what the two networks of each trial return           (K, 2, B, C)
    labels      noisy labels                                            (K, B)
    counts      counts[k, m]: how many of m samples R(t) keeps          (K, B + 1)
    losses      :math:`\ell`, to be differentiated                      (K, 2, B)
    weights     w >= 0, constants; a sample that is not used has 0      (K, 2, B)
    CE          cross-entropy, -log softmax(z)[label]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from optuna_s2e._typing import FloatArray, IntArray
from optuna_s2e.schedules import n_kept


class Step(NamedTuple):
    """Hold the losses of a mini-batch and their weights in the steps of the networks.

    Attributes:
        losses: Losses of the samples under each network, (K, 2, B).
        weights: Their weights, constants, (K, 2, B).
    """

    losses: Tensor
    weights: Tensor

    @property
    def objectives(self) -> Tensor:
        """What each network descends on, (K, 2). 0 if no sample is used."""
        # the loss of a sample that is not used may be infinite
        return (self.weights * self.losses.where(self.weights > 0, 0.0)).sum(dim=-1)


@dataclass(frozen=True)
class Method(ABC):
    """How two networks are trained on mini-batches with wrong labels. The options are fields.

    Attributes:
        name: Name of the method.
        title: The name that people read.
        uses_schedule: Whether R(t) matters. If not, the method is trained with R(t) = 1.
        is_small_loss: Whether a step is the mean CE of the samples with the smallest CE.
        exchanges: Whether each network is trained on what its peer selected.
        is_pointwise: Whether a step follows from logits and labels alone.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    uses_schedule: ClassVar[bool] = True
    exchanges: ClassVar[bool] = False
    is_pointwise: ClassVar[bool] = True

    @property
    def is_small_loss(self) -> bool:
        """Whether a step is the mean CE of the samples with the smallest CE."""
        return False

    def at(self, epoch: int) -> Method:
        """Return the method that is in force in an epoch, counted from 0."""
        return self

    @abstractmethod
    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Return losses and weights of a mini-batch.

        Args:
            logits: Logits of both networks, (K, 2, B, C).
            labels: Noisy labels, (K, B).
            counts: How many of m = 0 .. B samples R(t) keeps, int64, (K, B + 1).
        """


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return CE of every sample under each network, (K, 2, B)."""
    both = labels[:, None].expand(-1, 2, -1)
    return -logits.log_softmax(dim=-1).gather(3, both[..., None])[..., 0]


def counts_kept(keep_rates: FloatArray, batch_size: int) -> IntArray:
    """Return how many of m = 0 .. B samples R(t) of each trial keeps, (K, B + 1).

    Example:
        >>> counts_kept(np.array([0.5]), 4).tolist()
        [[0, 1, 1, 1, 2]]
    """
    of_some = [n_kept(keep_rates, m) for m in range(1, batch_size + 1)]
    return np.stack([np.zeros_like(of_some[0]), *of_some], axis=-1)


def smallest(losses: Tensor, n: Tensor) -> Tensor:
    """Return whether each loss is among the n smallest of its row, bool, (K, 2, B).

    Ties keep the order of the mini-batch; NaN counts as the largest loss.

    Args:
        losses: Losses, (K, 2, B).
        n: Numbers that broadcast to (K, 2, 1).
    """
    order = losses.detach().argsort(dim=-1, stable=True)
    first = (torch.arange(losses.shape[-1], device=losses.device) < n).expand_as(order)
    return torch.zeros_like(first).scatter(-1, order, first)


def mean_over(losses: Tensor, shares: Tensor, least: float = 0.0) -> Step:
    """Return the step on a mean of losses; all weights are 0 if no sample counts.

    Args:
        losses: Losses, (K, 2, B).
        shares: Whether each sample counts, or how much, (K, 2, B).
        least: The sum is divided by at least this.
    """
    weights = shares.to(losses.dtype)
    total = weights.sum(dim=-1, keepdim=True).clamp_min(least)
    return Step(losses, weights / torch.where(total > 0, total, 1.0))
