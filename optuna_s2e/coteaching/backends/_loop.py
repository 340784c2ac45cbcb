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
from optuna_s2e.coteaching._steps import counts_kept
from optuna_s2e.coteaching.backends._base import (
    DataOrders,
    TrainingSetup,
    checked_logits,
    make_networks,
    warn_of_probabilities,
)
from optuna_s2e.coteaching.backends._sharing import SharingGuard, refuse_unregistered
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
        self._orders = DataOrders(setup, seeds, labels)
        self._watch = setup.make_watch(1)
        self._epoch = 0
        self._is_first_step = True

    def train_epoch(self, keep_rates: FloatArray, learning_rate: float, beta1: float) -> Tensor:
        """Train one epoch (see `Trainer`)."""
        set_learning_rate(self._optimizer, learning_rate, beta1)
        for net in self._networks:
            net.train()
        order = self._orders.draw()[:, 0]
        labels = self._labels[order]
        self._plan_selection(keep_rates)
        # all steps are read once, at the end: the host never waits for the device within an epoch
        steps = [self._train_step(*step) for step in zip(order, labels, strict=True)]
        kept, weights, is_right, losses, *seen = map(torch.stack, zip(*steps, strict=True))
        measured = [
            self._label_precision(order, labels, kept, weights),
            is_right.to(self._setup.sum_dtype).mean(dim=(0, 2)),
            losses.to(self._setup.sum_dtype).mean(dim=0),
        ]
        self._guard.look()
        if self._watch is not None:
            both = labels[:, None].expand(-1, 2, -1)
            self._watch.add_epoch(order[:, None], both, is_right, kept, weights > 0, *seen)
        return torch.stack(measured)[:, None]

    def _plan_selection(self, keep_rates: FloatArray) -> None:
        """Prepare the selection, the same in all steps of an epoch."""
        self._method = self._setup.method.at(self._epoch)
        self._epoch += 1
        size, device = self._setup.batch_size, self._labels.device
        if self._method.is_small_loss:
            self._n_kept = int(n_kept(keep_rates, size).item())
            self._ones = torch.ones((2, self._n_kept), dtype=self._setup.dtype, device=device)
        else:
            self._counts = torch.from_numpy(counts_kept(keep_rates, size)).to(device)
            self._everyone = torch.arange(size, device=device).expand(2, -1)

    def _train_step(self, index: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Step both networks.

        Returns:
            Positions that each network was trained on and their weights, (2, n) each, whether
            predictions are `y`, (2, B), and what was descended on, (2,). What is seen of each
            sample follows, if that is watched.
        """
        logits = self._forward(self._setup.data.x.index_select(0, index))
        kept, weights, objectives = self._choose(logits, y)
        if self._is_first_step:
            refuse_unregistered(objectives, self._networks)
            warn_of_probabilities(logits.detach())
            self._is_first_step = False
        self._optimizer.zero_grad()
        objectives.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        logits = logits.detach()
        is_right = logits.argmax(dim=2) == y
        return kept, weights, is_right, objectives.detach(), *self._seen(logits, y)

    def _choose(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions to train on, their weights, and what to descend on."""
        if not self._method.is_small_loss:
            step = self._method.step(logits[None], y[None], self._counts)
            return self._everyone, step.weights[0], step.objectives[0]
        losses = _cross_entropies(logits, y)
        kept = self._select(losses.detach())
        # The loss is the mean over the kept samples. Unlike the published code, it is not divided
        # by their number a second time.
        return kept, self._ones, selection.selected_means(losses, kept)

    def _select(self, losses: Tensor) -> Tensor:
        """Return the positions of small losses that each network is trained on, (2, n)."""
        selected = selection.small_loss(losses, self._n_kept)
        return selection.exchange(selected) if self._method.exchanges else selected

    def _seen(self, logits: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Return losses, margins and rivals of a step, (2, B) each, if samples are watched."""
        if self._watch is None:
            return ()
        return _cross_entropies(logits, y), *margin_and_rival(logits, y.expand(2, -1), dim=2)

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

    def _label_precision(
        self, order: Tensor, labels: Tensor, kept: Tensor, weights: Tensor
    ) -> Tensor:
        """Return the share of right labels among what each network selected, (2,)."""
        clean = self._setup.data.clean_labels
        if clean is None:
            return torch.full((2,), torch.nan, dtype=self._setup.sum_dtype, device=order.device)
        is_clean = labels == clean[order]
        found = selection.label_precision(is_clean, kept, weights, self._setup.sum_dtype)
        return found.flip(0) if self._method.exchanges else found


def _cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each sample under both networks, (2, B)."""
    flat = F.cross_entropy(logits.flatten(0, 1), torch.cat([y, y]), reduction="none")
    return flat.view(2, -1)
