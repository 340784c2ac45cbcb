r"""The training methods of the comparison as functions of one mini-batch.

Every method is a choice of two things: the loss of each sample under each network, and the weight
that the sample has in the step of that network. A step of network k descends on

.. math:: \sum_i w_{ki} \ell_{ki}

where the weights are constants. So one training core can do them all: who selects, what is
exchanged and what counts is in the weights, and all else is in the losses.

Notation
    logits      of one or two networks                                  (n_networks, B, C)
    labels      noisy labels                                            (B,)
    losses      :math:`\ell`, to be differentiated                      (n_networks, B)
    weights     w >= 0, constants; a sample that is not used has 0      (n_networks, B)
    n_kept      R(t) B of the schedule, at least 1                      int

References:
    Malach, Shalev-Shwartz. Decoupling "when to update" from "how to update". NeurIPS 2017.
    Patrini, Rozza, Menon, Nock, Qu. Making deep neural networks robust to label noise: a loss
    correction approach. CVPR 2017.
    Jiang, Zhou, Leung, Li, Fei-Fei. MentorNet. ICML 2018 (its self-paced form).
    Han et al. Co-teaching. NeurIPS 2018.
    Ren, Zeng, Yang, Urtasun. Learning to reweight examples for robust deep learning. ICML 2018.
    Yu, Han, Yao, Niu, Tsang, Sugiyama. How does disagreement help generalization against label
    corruption? ICML 2019 (Co-teaching+).
    Wei, Feng, Chen, An. Combating noisy labels by agreement. CVPR 2020 (JoCoR).
    Patel, Sastry. Adaptive sample selection for robust learning under label noise. WACV 2023
    (BARE).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from optuna_s2e.coteaching._selection import exchange, small_loss
from optuna_s2e.schedules import n_kept as count_kept

LEAST_PROBABILITY = 1e-8  # BARE's and the corrected losses' bound, as in their programs


class Step(NamedTuple):
    """Hold the losses of a mini-batch and their weights in the steps of the networks.

    Attributes:
        losses: Losses of the samples under each network, (n_networks, B).
        weights: Their weights, (n_networks, B).
    """

    losses: Tensor
    weights: Tensor

    @property
    def objectives(self) -> Tensor:
        """What each network descends on, (n_networks,). 0 if no sample is used."""
        return (self.weights * self.losses).sum(dim=1)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of every sample under each network, (n_networks, B)."""
    flat = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return flat.view(len(logits), -1)


def standard(logits: Tensor, labels: Tensor) -> Step:
    """Train on all samples alike: the mean cross-entropy."""
    return _mean_over(cross_entropies(logits, labels), torch.ones_like(logits[..., 0]))


def decoupling(logits: Tensor, labels: Tensor) -> Step:
    """Train both networks on the samples on which they disagree (Decoupling, Algorithm 1).

    The mean is over these samples. If there are none, nothing is trained on. The authors' program
    divides by at least a tenth of the mini-batch.

    Args:
        logits: Of two networks, (2, B, C).
        labels: Noisy labels, (B,).
    """
    disagree = _disagree(logits).to(logits.dtype)
    return _mean_over(cross_entropies(logits, labels), disagree.expand(2, -1))


def self_paced(logits: Tensor, labels: Tensor, n_kept: int) -> Step:
    """Train each network on its own small losses: MentorNet as Co-teaching compares with it."""
    losses = cross_entropies(logits, labels)
    return _mean_over(losses, _mask(losses, small_loss(losses.detach(), n_kept)))


def coteaching(logits: Tensor, labels: Tensor, n_kept: int) -> Step:
    """Train each network on the small losses of its peer (Co-teaching, Algorithm 1).

    The authors' program divides the mean by `n_kept` once more.

    Args:
        logits: Of two networks, (2, B, C).
        labels: Noisy labels, (B,).
        n_kept: Number of samples that each network selects for the other.
    """
    losses = cross_entropies(logits, labels)
    selected = exchange(small_loss(losses.detach(), n_kept))
    return _mean_over(losses, _mask(losses, selected))


def coteaching_plus(
    logits: Tensor, labels: Tensor, keep_rate: float, *, softmax_twice: bool = False
) -> Step:
    """Do Co-teaching among the samples on which the networks disagree (Co-teaching+, Algorithm 1).

    Args:
        logits: Of two networks, (2, B, C).
        labels: Noisy labels, (B,).
        keep_rate: The share of these samples that each network selects: the paper's lambda(e).
            If there are any, at least one is selected; if not, nothing is trained on.
        softmax_twice: Whether the cross-entropy is that of the softmax's softmax, as in the
            authors' program. It changes which losses are small, and flattens the gradient.
    """
    losses = cross_entropies(logits.softmax(dim=2) if softmax_twice else logits, labels)
    (disagreed,) = torch.nonzero(_disagree(logits), as_tuple=True)
    mask = torch.zeros_like(losses)
    if len(disagreed):
        n = int(count_kept(keep_rate, len(disagreed)).item())
        selected = exchange(small_loss(losses.detach()[:, disagreed], n))
        mask = _mask(losses, disagreed[selected])
    return _mean_over(losses, mask)


def jocor(logits: Tensor, labels: Tensor, n_kept: int, *, agreement: float = 0.1) -> Step:
    r"""Train both networks on the samples whose joint loss is small (JoCoR, Algorithm 1).

    .. math:: (1 - \lambda) (\ell_1 + \ell_2) + \lambda (KL(p_1 \| p_2) + KL(p_2 \| p_1))

    Both rows are this loss, halved, so that the sum of the two objectives is its mean.

    Args:
        logits: Of two networks, (2, B, C).
        labels: Noisy labels, (B,).
        n_kept: Number of samples that are trained on.
        agreement: lambda, the weight of the divergence, in [0, 1].
    """
    log_p = logits.log_softmax(dim=2)
    divergence = ((log_p[0] - log_p[1]) * (log_p[0].exp() - log_p[1].exp())).sum(dim=1)
    supervised = cross_entropies(logits, labels).sum(dim=0)
    joint = ((1.0 - agreement) * supervised + agreement * divergence).expand(2, -1)
    mask = _mask(joint, small_loss(joint.detach(), n_kept))
    return _mean_over(joint / 2.0, mask)


def bare(logits: Tensor, labels: Tensor, *, n_deviations: float = 1.0, ddof: int = 1) -> Step:
    """Train on the samples whose label is more probable than it is for others (BARE, Algorithm 1).

    A sample is used if the probability of its label is at least the mean of the probabilities that
    the mini-batch has for this class, plus one standard deviation. No noise rate is needed. If no
    sample passes, all are used, as in the authors' program.

    Args:
        logits: Of any number of networks, (n_networks, B, C).
        labels: Noisy labels, (B,).
        n_deviations: Number of standard deviations.
        ddof: 1 divides the variance by B - 1, as the authors' program does, 0 by B.
    """
    p = logits.detach().softmax(dim=2).clamp(LEAST_PROBABILITY, 1.0 - LEAST_PROBABILITY)
    least = p.mean(dim=1) + n_deviations * p.std(dim=1, correction=ddof)  # (n_networks, C)
    of_label = p.gather(2, labels.expand(len(p), -1)[..., None])[..., 0]
    passed = of_label >= least[:, labels]
    passed |= ~passed.any(dim=1, keepdim=True)
    return _mean_over(cross_entropies(logits, labels), passed.to(logits.dtype))


def forward_corrected(logits: Tensor, labels: Tensor, transition_matrix: Tensor) -> Step:
    r"""Train on all samples with the forward-corrected loss, :math:`-\log (T^T p)_{\tilde y}`.

    Args:
        logits: Of any number of networks, (n_networks, B, C).
        labels: Noisy labels, (B,).
        transition_matrix: T[i, j] = P(noisy = j | clean = i), rows sum to 1, (C, C).
    """
    noisy = (logits.softmax(dim=2) @ transition_matrix).clamp_min(LEAST_PROBABILITY)
    losses = -noisy.log().gather(2, labels.expand(len(logits), -1)[..., None])[..., 0]
    return _mean_over(losses, torch.ones_like(losses))


def anchor_matrix(probabilities: Tensor, *, percentile: float = 100.0) -> Tensor:
    r"""Estimate T from a Standard network: row i is what it predicts where it is surest of i.

    Args:
        probabilities: Predictions for the training inputs, (N, C).
        percentile: Which of the N predictions of a class counts as the surest: 100 is the largest
            (F-correction), 97 is its authors' choice for 100 classes.

    Returns:
        T, rows sum to 1, (C, C).
    """
    rank = round(percentile / 100.0 * (len(probabilities) - 1))
    anchors = probabilities.argsort(dim=0, stable=True)[rank]
    return probabilities[anchors]


def reweighted(losses: Tensor, alignments: Tensor) -> Step:
    r"""Weigh samples by how much their gradients agree with that of clean data (Reweight, Eq 9).

    Args:
        losses: Cross-entropies of the samples, (n_networks, B).
        alignments: :math:`\nabla \ell_i \cdot \nabla L_{clean}` of the weights, (n_networks, B):
            how fast the loss on clean validation data falls with the weight of sample i. The
            length of the inner step cancels.

    Returns:
        The step. Weights are max(alignment, 0), divided by their sum; 0 if all are 0.
    """
    return Step(losses, _normalised(alignments.detach().clamp_min(0.0)))


def _disagree(logits: Tensor) -> Tensor:
    first, second = logits.detach().argmax(dim=2)
    return torch.ne(first, second)


def _mask(losses: Tensor, positions: Tensor) -> Tensor:
    return torch.zeros_like(losses).scatter(1, positions, 1.0)


def _mean_over(losses: Tensor, mask: Tensor) -> Step:
    return Step(losses, _normalised(mask))


def _normalised(weights: Tensor) -> Tensor:
    total = weights.sum(dim=1, keepdim=True)
    return weights / torch.where(total > 0.0, total, 1.0)
