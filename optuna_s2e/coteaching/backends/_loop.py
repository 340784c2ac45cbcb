"""The loop: one trial after the other, networks of any kind, PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching import _selection as selection
from optuna_s2e.coteaching._config import set_learning_rate
from optuna_s2e.coteaching._samples import SampleStatistics, margin_and_rival
from optuna_s2e.coteaching.backends._base import (
    DataOrders,
    TrainingSetup,
    checked_logits,
    make_networks,
)
from optuna_s2e.coteaching.backends._sharing import SharingGuard
from optuna_s2e.coteaching.data import to_input
from optuna_s2e.schedules import n_kept

_EVALUATION_BATCH = 1024


class LoopTrainer:
    """Trains one trial: a `Trainer` with K = 1."""

    def __init__(self, setup: TrainingSetup, seeds: Sequence[int], labels: Tensor) -> None:
        """Make the networks of the trial.

        Args:
            setup: Data, network, config and evaluation data.
            seeds: Seed of the trial, (1,).
            labels: Noisy labels, (N,) or (1, N).

        Raises:
            ValueError: If the networks share what training changes, or have nothing to train.
        """
        (seed,) = seeds
        self._setup, self._labels = setup, labels.view(-1)
        self._networks = make_networks(setup, seed)
        self._guard = SharingGuard(self._networks)
        self.is_small = setup.is_small(self._networks[0])
        # one optimiser for both: it treats each weight alone, and one call is cheaper than two
        parameters = dict.fromkeys(p for net in self._networks for p in net.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            raise ValueError("network must have weights to train, but it has none, or all frozen.")
        self._optimizer = setup.config.make_optimizer(list(parameters))
        self._orders = DataOrders(setup, seeds)
        self._watch = setup.make_watch(1)

    def train_epoch(self, keep_rates: FloatArray, learning_rate: float, beta1: float) -> Tensor:
        """Train one epoch (see `Trainer`)."""
        set_learning_rate(self._optimizer, learning_rate, beta1)
        for net in self._networks:
            net.train()
        order = self._orders.draw()[:, 0]
        labels = self._labels[order]
        kept = int(n_kept(keep_rates, order.shape[1]).item())
        # all steps are read once, at the end: the host never waits for the device within an epoch
        steps = [self._train_step(*step, kept) for step in zip(order, labels, strict=True)]
        selected, is_right, losses, *seen = map(torch.stack, zip(*steps, strict=True))
        measured = [
            self._label_precision(order, labels, selected),
            is_right.to(self._setup.sum_dtype).mean(dim=(0, 2)),
            losses.to(self._setup.sum_dtype).mean(dim=0),
        ]
        self._guard.look()
        if self._watch is not None:
            both = labels[:, None].expand(-1, 2, -1)
            self._watch.add_epoch(
                order[:, None], both, is_right, selection.exchange(selected), None, *seen
            )
        return torch.stack(measured)[:, None]

    def _train_step(self, index: Tensor, y: Tensor, kept: int) -> tuple[Tensor, ...]:
        """Step both networks; return selections, whether predictions are `y`, and mean losses.

        What is seen of each sample follows, if that is watched.
        """
        logits = self._forward(self._setup.data.x.index_select(0, index))
        losses = F.cross_entropy(logits.flatten(0, 1), torch.cat([y, y]), reduction="none")
        losses = losses.view(2, -1)
        selected = selection.small_loss(losses.detach(), kept)
        # The loss is the mean over the kept samples. Unlike the published code, it is not divided
        # by their number a second time.
        means = selection.selected_means(losses, selection.exchange(selected))
        self._optimizer.zero_grad()
        means.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        is_right = logits.detach().argmax(dim=2) == y
        return selected, is_right, means.detach(), *self._seen(logits.detach(), y, losses.detach())

    def _seen(self, logits: Tensor, y: Tensor, losses: Tensor) -> tuple[Tensor, ...]:
        """Return losses, margins and rivals of a step, (2, B) each, if samples are watched."""
        if self._watch is None:
            return ()
        return losses, *margin_and_rival(logits, y.expand(2, -1), dim=2)

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Return cross-entropy and error on the evaluation data (see `Trainer`)."""
        for net in self._networks:
            net.eval()
        x, y = self._setup.evaluation
        totals = torch.zeros((2, 1, 2), dtype=self._setup.sum_dtype, device=x.device)
        for inputs, labels in zip(
            torch.split(x, _EVALUATION_BATCH), torch.split(y, _EVALUATION_BATCH), strict=True
        ):
            logits = self._forward(inputs)
            for i in (0, 1):
                totals[0, 0, i] += F.cross_entropy(logits[i], labels, reduction="sum")
                totals[1, 0, i] += (logits[i].argmax(dim=1) != labels).sum()
        return totals / len(x)

    def networks(self, position: int) -> tuple[nn.Module, nn.Module]:
        """Return the networks of the only trial (see `Trainer`)."""
        return self._networks

    def samples(self, position: int) -> SampleStatistics | None:
        """Return what the only trial saw of each sample (see `Trainer`)."""
        return None if self._watch is None else self._watch.statistics(position)

    def keep_trials(self, positions: Sequence[int]) -> None:
        """Do nothing: the only trial is kept."""

    def _forward(self, x: Tensor) -> Tensor:
        """Return the logits of both networks, (2, B, C).

        Each network gets a tensor of its own: it may write to it, and `x` may be the user's data.
        """
        inputs = to_input(x, self._setup.dtype)
        with self._setup.precision():
            logits = [
                checked_logits(net(inputs.clone()), (len(x), self._setup.data.n_classes))
                for net in self._networks
            ]
        return torch.stack(logits).to(self._setup.dtype)

    def _label_precision(self, order: Tensor, labels: Tensor, selections: Tensor) -> Tensor:
        clean = self._setup.data.clean_labels
        if clean is None:
            return torch.full((2,), torch.nan, dtype=self._setup.sum_dtype, device=order.device)
        is_clean = labels == clean[order]
        return selection.label_precision(is_clean, selections, self._setup.sum_dtype)
