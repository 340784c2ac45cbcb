r"""The training methods of the comparison: what two networks learn from one mini-batch.

The notation is that of `_steps`. z are logits, R(t) is the schedule, B a mini-batch.

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

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optuna_s2e._checks import check_choice, check_int, check_number
from optuna_s2e.coteaching._selection import exchange
from optuna_s2e.coteaching._steps import Method, Step, cross_entropies, mean_over, smallest

_LEAST_PROBABILITY = 1e-8  # BARE's and the corrected losses' bound, as in their programs


@dataclass(frozen=True)
class MentorNet(Method):
    r"""Each network is trained on its own small losses, R(t) B of them.

    MentorNet in its self-paced form, w = 1 where the loss is among the smallest, which is the form
    that Co-teaching and its successors compare with. It is also "one network with the schedule".
    """

    name = "mentornet"
    title = "MentorNet"

    @property
    def is_small_loss(self) -> bool:
        """Whether a step is the mean CE of the samples with the smallest CE."""
        return True

    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Return losses and weights of a mini-batch (see `Method`)."""
        losses = cross_entropies(logits, labels)
        selected = smallest(losses, counts[:, -1:, None])
        return mean_over(losses, exchange(selected) if self.exchanges else selected)


@dataclass(frozen=True)
class Standard(MentorNet):
    """Both networks are trained on all samples alike: the mean CE."""

    name = "standard"
    title = "Standard"
    uses_schedule = False


@dataclass(frozen=True)
class Coteaching(MentorNet):
    """Each network is trained on the R(t) B small losses of its peer (Co-teaching, Algorithm 1).

    Attributes:
        divide_again: Whether the mean is divided by the number of samples once more, as in the
            authors' program and in S2E's. It acts like a larger epsilon of Adam.
    """

    name = "coteaching"
    title = "Co-teaching"
    exchanges = True
    divide_again: bool = False

    @property
    def is_small_loss(self) -> bool:
        """Whether a step is the mean CE of the samples with the smallest CE."""
        return not self.divide_again

    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Return losses and weights of a mini-batch (see `Method`)."""
        step = super().step(logits, labels, counts)
        return _divided(step) if self.divide_again else step


@dataclass(frozen=True)
class CoteachingPlus(Method):
    r"""Co-teaching among the samples on which the networks disagree (Co-teaching+).

    Of the n samples whose predictions differ, each network is trained on the :math:`\lambda(e) n`
    with the smallest CE under its peer, at least one. The paper's :math:`\lambda(e) = 1 - \min(
    e / E_k, 1) \tau` is Co-teaching's R(t). Where all agree, nothing is trained on.

    Attributes:
        warm_up: Epochs of plain Co-teaching before. The authors' program has 0 for MNIST, 20 for
            CIFAR-10 and 5 for CIFAR-100.
        softmax_twice: Whether the CE is that of the softmax's softmax, as in the authors'
            program. It changes which losses are small, and flattens the gradient.
        divide_again: Whether the mean is divided by the number of samples once more, as in the
            authors' program.
    """

    name = "coteaching+"
    title = "Co-teaching+"
    exchanges = True
    warm_up: int = 0
    softmax_twice: bool = False
    divide_again: bool = False

    def __post_init__(self) -> None:
        check_int("warm_up", self.warm_up, 0)

    def at(self, epoch: int) -> Method:
        """Return the method that is in force in an epoch, counted from 0."""
        return Coteaching(self.divide_again) if epoch < self.warm_up else self

    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Return losses and weights of a mini-batch (see `Method`)."""
        losses = cross_entropies(logits.softmax(dim=-1) if self.softmax_twice else logits, labels)
        disagree = _disagree(logits)  # (K, 1, B)
        n = counts.gather(1, disagree.sum(dim=-1))[..., None]
        selected = smallest(losses.masked_fill(~disagree, torch.inf), n) & disagree
        step = mean_over(losses, exchange(selected))
        return _divided(step) if self.divide_again else step


@dataclass(frozen=True)
class Decoupling(Method):
    """Both networks are trained on the samples on which they disagree (Decoupling).

    The step is the mean CE of these samples. If there are none, nothing is trained on.

    Attributes:
        warm_up: Epochs of Standard training before, at least 0.
        least_share: The sum is divided by at least this share of the mini-batch, in [0, 1]. The
            authors' program has .1.
    """

    name = "decoupling"
    title = "Decoupling"
    uses_schedule = False
    warm_up: int = 0
    least_share: float = 0.0

    def __post_init__(self) -> None:
        check_int("warm_up", self.warm_up, 0)
        check_number("least_share", self.least_share, 0, 1)

    def at(self, epoch: int) -> Method:
        """Return the method that is in force in an epoch, counted from 0."""
        return Standard() if epoch < self.warm_up else self

    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Return losses and weights of a mini-batch (see `Method`)."""
        disagree = _disagree(logits).expand(-1, 2, -1)
        least = self.least_share * labels.shape[-1]
        return mean_over(cross_entropies(logits, labels), disagree, least)


@dataclass(frozen=True)
class Jocor(Method):
    r"""Both networks are trained on the R(t) B samples whose joint loss is small (JoCoR).

    .. math:: \ell = (1 - \lambda) (CE_1 + CE_2) + \lambda (KL(p_1 \| p_2) + KL(p_2 \| p_1))

    One step descends on the mean of these. Here each network carries half of it, and both halves
    are differentiated by both networks.

    Attributes:
        agreement: lambda, the weight of the divergence, in [0, 1]. The paper tunes it for each
            data set; its authors say that the best is mostly between .5 and .9, and name .9 for
            CIFAR-10 and .85 for CIFAR-100. Their program's default is .1.
    """

    name = "jocor"
    title = "JoCoR"
    agreement: float = 0.5

    def __post_init__(self) -> None:
        check_number("agreement", self.agreement, 0, 1)

    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Return losses and weights of a mini-batch (see `Method`)."""
        first, second = logits.log_softmax(dim=-1).unbind(dim=1)
        divergence = ((first - second) * (first.exp() - second.exp())).sum(dim=-1)
        supervised = cross_entropies(logits, labels).sum(dim=1)
        joint = (1.0 - self.agreement) * supervised + self.agreement * divergence
        both = joint[:, None].expand(-1, 2, -1)
        return mean_over(both / 2.0, smallest(both, counts[:, -1:, None]))


@dataclass(frozen=True)
class Bare(Method):
    """Samples whose label is more probable for them than it is for others (BARE).

    A sample is used if the probability of its label is at least the mean of the probabilities that
    the mini-batch has for this class, plus one standard deviation. No noise rate is needed. If no
    sample passes, all are used, as in the authors' program.

    Attributes:
        ddof: 1 divides the variance by B - 1, as the authors' program does, 0 by B.
    """

    name = "bare"
    title = "BARE"
    uses_schedule = False
    ddof: int = 1

    def __post_init__(self) -> None:
        check_int("ddof", self.ddof, 0, 1)

    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Return losses and weights of a mini-batch (see `Method`)."""
        p = logits.detach().softmax(dim=-1).clamp(_LEAST_PROBABILITY, 1.0 - _LEAST_PROBABILITY)
        ddof = min(self.ddof, p.shape[2] - 1)  # a single sample has no deviation
        least = p.mean(dim=2) + p.std(dim=2, correction=ddof)  # (K, 2, C)
        both = labels[:, None].expand(-1, 2, -1)
        passed = p.gather(3, both[..., None])[..., 0] >= least.gather(2, both)
        passed |= ~passed.any(dim=-1, keepdim=True)
        return mean_over(cross_entropies(logits, labels), passed)


@dataclass(frozen=True)
class ForwardCorrection(Method):
    r"""Train on all samples with the forward-corrected loss (F-correction).

    .. math:: \ell = -\log (T^\top softmax(z))_{\tilde y}, \quad T_{ij} = P(\tilde y = j | y = i)

    With the estimated T, two networks are first trained as in Standard; row i of T is what they
    predict for the training input that they are surest belongs to class i (Eq 12 and 13):
    :math:`\hat T_{ij} = \hat p(\tilde y = j | \bar x^i)` with
    :math:`\bar x^i = \arg\max_x \hat p(\tilde y = i | x)`. Each network has its own estimate.

    Attributes:
        matrix: "estimated", "true" (counted in the training data, whose clean labels must be
            known), or T itself as rows that sum to 1.
        percentile: The surest input is that at this percentile of the predictions, in [0, 100].
            100 (default) is Eq 12. The authors' program takes 97 to leave out outliers, except on
            CIFAR-100.
        clip_first: Whether softmax(z) is bounded below by 1e-7 before the product, as in the
            authors' program: samples with less get no gradient. Without it the product is.
    """

    name = "f-correction"
    title = "F-correction"
    uses_schedule = False
    matrix: str | tuple[tuple[float, ...], ...] = "estimated"
    percentile: float = 100.0
    clip_first: bool = False

    def __post_init__(self) -> None:
        check_number("percentile", self.percentile, 0, 100)
        if isinstance(self.matrix, str):
            check_choice("matrix", self.matrix, ("estimated", "true"))
            return
        rows = np.asarray(self.matrix, dtype=np.float64)
        is_square = rows.ndim == 2 and rows.shape[0] == rows.shape[1] > 1
        if not is_square or (rows < 0).any() or not np.allclose(rows.sum(axis=1), 1.0, atol=1e-6):
            raise ValueError(
                "matrix must be 'estimated', 'true' or a square matrix of rows that sum to 1, "
                f"but got {self.matrix!r}."
            )
        object.__setattr__(self, "matrix", tuple(map(tuple, rows.tolist())))

    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Return losses and weights of a mini-batch (see `Method`).

        Raises:
            ValueError: If the matrix is not known yet.
        """
        if isinstance(self.matrix, str):
            raise ValueError(f"matrix must be known in a step, but got {self.matrix!r}.")
        return self.corrected(logits, labels, logits.new_tensor(self.matrix))

    def corrected(self, logits: Tensor, labels: Tensor, matrices: Tensor) -> Step:
        """Return losses and weights under the matrices of the networks.

        Args:
            logits: Logits of both networks, (K, 2, B, C).
            labels: Noisy labels, (K, B).
            matrices: T, (C, C), or of each network, (2, C, C).
        """
        p = logits.softmax(dim=-1)
        if self.clip_first:
            p = p.clamp(1e-7, 1.0 - 1e-7)
        noisy = (p @ matrices).clamp_min(_LEAST_PROBABILITY)
        of_label = labels[:, None, :, None].expand(-1, 2, -1, -1)
        losses = -noisy.log().gather(3, of_label)[..., 0]
        return mean_over(losses, torch.ones_like(losses))


@dataclass(frozen=True)
class Reweight(Method):
    r"""Weigh samples by how much their gradients agree with that of clean data (Reweight).

    .. math:: u_i = \langle \nabla \ell_i, \nabla L_{clean} \rangle, \quad
       w_i = \max(u_i, 0) / \sum_j \max(u_j, 0)

    :math:`L_{clean}` is the mean CE of a mini-batch of the validation data. u is, up to a factor
    that cancels, how fast it falls with the weight of sample i in a step of plain SGD. Where no u
    is positive, nothing is trained on. The validation labels should be clean.
    """

    name = "reweight"
    title = "Reweight"
    uses_schedule = False
    is_pointwise = False

    def step(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Step:
        """Raise: the weights follow from gradients (`reweighted`).

        Raises:
            TypeError: Always.
        """
        raise TypeError("the steps of 'reweight' do not follow from logits alone.")


# by the names that users give; "single" is MentorNet's other name
METHODS: dict[str, Method] = {
    "standard": Standard(),
    "coteaching": Coteaching(),
    "mentornet": MentorNet(),
    "single": MentorNet(),
    "decoupling": Decoupling(),
    "f-correction": ForwardCorrection(),
    "f-correction-true": ForwardCorrection("true"),
    "coteaching+": CoteachingPlus(),
    "jocor": Jocor(),
    "bare": Bare(),
    "reweight": Reweight(),
}


def find_method(method: str | Method | Mapping[str, Any]) -> Method:
    """Return a method by its name, itself, or from its settings.

    Args:
        method: A name in `METHODS`, a `Method` with options, or what `method_settings` returned.

    Raises:
        ValueError: If there is no such method or option.

    Example:
        >>> find_method("jocor").agreement, find_method(Jocor(0.9)).agreement
        (0.5, 0.9)
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, Mapping):
        options = dict(method)
        kind = type(METHODS[check_choice("method", options.pop("name", None), METHODS)])
        try:
            return kind(**options)
        except TypeError as error:
            raise ValueError(f"method has unknown options: {error}.") from error
    return METHODS[check_choice("method", method, METHODS)]


def method_settings(method: Method) -> str | dict[str, Any]:
    """Return what `find_method` makes the same method from, in JSON's types.

    Example:
        >>> method_settings(Jocor()), method_settings(Jocor(0.9))
        ('jocor', {'name': 'jocor', 'agreement': 0.9})
    """
    for name, known in METHODS.items():
        if method == known:
            return name
    options = asdict(method)
    for field in fields(method):
        if options[field.name] == field.default:
            del options[field.name]
    return {"name": method.name} | options


def reweighted(losses: Tensor, alignments: Tensor) -> Step:
    """Return the step of Reweight from u (`Reweight`), (K, 2, B)."""
    return mean_over(losses, alignments.detach().clamp_min(0.0))


def _disagree(logits: Tensor) -> Tensor:
    """Return whether the two networks predict different classes, bool, (K, 1, B)."""
    first, second = logits.detach().argmax(dim=-1).unbind(dim=1)
    return torch.ne(first, second)[:, None]


def _divided(step: Step) -> Step:
    """Divide the weights by the number of samples once more."""
    n = (step.weights > 0).sum(dim=-1, keepdim=True).clamp_min(1)
    return step._replace(weights=step.weights / n)
