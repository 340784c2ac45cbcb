"""The loop for Reweight: the weights follow from gradients of single samples.

The weight of a sample needs u_i, the product of its gradient with that of clean data. All u of a
mini-batch are one derivative of second order: with g(v) = grad sum v_i loss_i, which is linear in
v, u is the gradient of <g(v), grad L_clean> by v.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_s2e.coteaching._methods import reweighted
from optuna_s2e.coteaching._steps import cross_entropies
from optuna_s2e.coteaching.backends._base import TrainingSetup, trial_seeds
from optuna_s2e.coteaching.backends._loop import LoopTrainer


class ReweightTrainer(LoopTrainer):
    """Trains one trial by Reweight (see `LoopTrainer`).

    The clean mini-batches are drawn from the validation data, B samples each, or all if there are
    fewer. Batch normalisation sees them as it sees training data.
    """

    def __init__(self, setup: TrainingSetup, seeds: Sequence[int], labels: Tensor) -> None:
        """Make the networks of the trial (see `LoopTrainer`)."""
        super().__init__(setup, seeds, labels)
        (seed,) = seeds
        self._clean_order = torch.Generator().manual_seed(trial_seeds(seed).clean)

    def _choose(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        losses = cross_entropies(logits[None], y[None])
        step = reweighted(losses, self._alignments(losses))
        return self._everyone, step.weights[0], step.objectives[0]

    def _alignments(self, losses: Tensor) -> Tensor:
        """Return u, the products of the samples' gradients with the clean gradient, (1, 2, B)."""
        data, size = self._setup.data, self._setup.batch_size
        order = torch.randperm(len(data.x_val), generator=self._clean_order)[:size]
        index = order.to(data.x.device)
        clean = cross_entropies(
            self._forward(data.x_val.index_select(0, index))[None], data.y_val[index][None]
        )
        parameters = [p for net in self._networks for p in net.parameters() if p.requires_grad]
        parameters = list(dict.fromkeys(parameters))
        towards = torch.autograd.grad(clean.mean(dim=2).sum(), parameters, allow_unused=True)
        v = torch.zeros_like(losses, requires_grad=True)
        gradients = torch.autograd.grad(
            (v * losses).sum(), parameters, create_graph=True, allow_unused=True
        )
        products = [
            (own * other).sum()
            for own, other in zip(gradients, towards, strict=True)
            if own is not None and other is not None
        ]
        (found,) = torch.autograd.grad(torch.stack(products).sum(), v, retain_graph=True)
        return found
