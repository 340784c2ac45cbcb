r"""Trials side by side in joint tensors: what all fused trainers share.

Notation
    K, M            trials; networks, M = 2K, network 2k + i is network i of trial k
    B, C            samples of a mini-batch; classes
    S               mini-batches of an epoch
    n_k             samples that trial k keeps of each mini-batch
    n               samples that the losses are computed from: B, or fewer where that is faster,
                    but at least the largest n_k of the group
    kept            positions in the mini-batch that each network is trained on         (M, n)
    weights         weights of the kept samples in the mean loss: 1 / n_k, 0 beyond n_k (M, n)

All trials of a group have the same shapes, although their n_k differ. The host never waits for
the device within an epoch. A method that is no mean of small losses gives a weight to each of the
B samples (`_steps`); then all are kept.

What a step reads beside its inputs keeps its place in memory from epoch to epoch, so that a step
may be recorded and replayed: `_keep_in_place` writes it. What is a number in the program instead
is named by `_constants`: if it changes, a recorded step is not valid any more.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching import _selection as selection
from optuna_s2e.coteaching._config import constants_of, set_learning_rate
from optuna_s2e.coteaching._samples import SampleStatistics, margin_and_rival
from optuna_s2e.coteaching._steps import counts_kept
from optuna_s2e.coteaching.backends._base import (
    DataOrders,
    TrainingSetup,
    UnsuitableNetwork,
    gather_labels,
    make_networks,
)
from optuna_s2e.coteaching.data import to_input
from optuna_s2e.schedules import n_kept

EVALUATION_BATCH = 512

Tensors = tuple[Tensor, ...]
Step = Callable[..., Tensors]


class RunSteps(Protocol):
    """Runs the steps of one trainer, epoch by epoch."""

    def __call__(
        self, step: Step, inputs: Iterable[Tensors], n_steps: int, constants: Hashable
    ) -> list[Tensor]:
        """Run a step on each of its inputs.

        Args:
            step: The step.
            inputs: Inputs of each step; the first of them are sample numbers, (K, B).
            n_steps: S.
            constants: What else the step depends on, apart from tensors that keep their place.

        Returns:
            The outputs of all steps, (S, ...) each.
        """


def run_eagerly(
    step: Step, inputs: Iterable[Tensors], n_steps: int, constants: Hashable
) -> list[Tensor]:
    """Run a step on each of its inputs (see `RunSteps`)."""
    outputs = [step(*values) for values in inputs]
    return [torch.stack(of_steps) for of_steps in zip(*outputs, strict=True)]


def _eagerly() -> RunSteps:
    return run_eagerly


class FusedTrainer(ABC):
    """Trains K trials, whose 2K networks have one shape, in joint tensors (see `Trainer`).

    Raises:
        UnsuitableNetwork: If the networks cannot be joined.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        seeds: Sequence[int],
        labels: Tensor,
        *,
        make_steps: Callable[[], RunSteps] = _eagerly,
    ) -> None:
        """Make the networks of the trials.

        Args:
            setup: What all trials share.
            seeds: Seeds of the trials, (K,).
            labels: Noisy labels that all trials share, (N,), or those of each trial, (K, N).
            make_steps: Makes what runs the steps of this trainer.
        """
        self._setup, self._labels, self._run_steps = setup, labels, make_steps()
        self._n_trials = len(seeds)
        self._orders = DataOrders(setup, seeds, labels)
        self._watch = setup.make_watch(self._n_trials)
        self._epoch = 0
        networks = [net for seed in seeds for net in make_networks(setup, seed)]
        self.is_small = setup.is_small(networks[0])
        parameters = [id(p) for net in networks for p in net.parameters()]
        if len(set(parameters)) < len(parameters):
            raise UnsuitableNetwork("networks must not share parameters.")
        self._parameters, self._buffers = self._join(networks)
        self._template = networks[0]
        is_recorded = self._run_steps is not run_eagerly
        self._optimizer = setup.config.make_optimizer(
            self._parameters,
            on_device=is_recorded or self._x.is_cuda,
            capturable=is_recorded and self._x.is_cuda,
        )

    @abstractmethod
    def _join(self, networks: list[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
        """Join the networks; return parameters and buffers, network by network, (M * ..., ...).

        Raises:
            UnsuitableNetwork: If they cannot be joined.
        """

    @abstractmethod
    def _copy_to(self, network: nn.Module, m: int) -> None:
        """Give a network, which has the shape of all, the weights and buffers of network m."""

    @abstractmethod
    def _logits(self, x: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
        """Return logits, (M, C, B).

        Args:
            x: Inputs of each trial, (K, B, ...), or inputs that all share, (1, B, ...).
            masks: In training, what `_draw_masks` returned; None in evaluation.
        """

    def _draw_masks(self) -> Tensors:
        """Draw the random numbers of a training step: the masks of dropout, if there are any."""
        return ()

    def _n_rows(self, keep_rates: FloatArray) -> int:
        """Return n for R(t) of each trial, (K,)."""
        return self._setup.batch_size

    # what a step reads, kept in place
    _everyone: Tensor
    _counts: Tensor
    _ranks: Tensor
    _weights: Tensor

    @property
    def _x(self) -> Tensor:
        return self._setup.data.x

    @property
    def _sum_dtype(self) -> torch.dtype:
        return self._setup.sum_dtype

    def train_epoch(self, keep_rates: FloatArray, learning_rate: float, beta1: float) -> Tensor:
        """Train one epoch (see `Trainer`)."""
        set_learning_rate(self._optimizer, learning_rate, beta1)
        self._plan_selection(keep_rates)
        order = self._orders.draw()
        y = gather_labels(self._labels, order)
        # (S, M, B): both networks of a trial see the same labels
        targets = y.repeat_interleave(2, dim=1)
        losses, predicted, kept, weights, *seen = self._run_steps(
            self._train_step,
            ((*step, *self._draw_masks()) for step in zip(order, targets, strict=True)),
            len(order),
            self._constants(),
        )
        is_right = predicted == targets
        if self._watch is not None:
            self._watch.add_epoch(order, targets, is_right, kept, weights > 0, *seen)
        # the loss of a sample that is not used may be infinite
        used = losses.gather(2, kept).where(weights > 0, 0.0).to(self._sum_dtype)
        weights = weights.to(self._sum_dtype)
        used = (used * weights).sum(dim=2).mean(dim=0)
        right = is_right.to(self._sum_dtype).mean(dim=(0, 2))
        precision = self._label_precision(order, y, kept, weights)
        return torch.stack([precision, right, used]).view(3, -1, 2)

    def _train_step(self, index: Tensor, y: Tensor, *masks: Tensor) -> Tensors:
        """Step all networks.

        Returns:
            Losses and predictions, (M, B) each, kept positions and their weights, (M, n) each.
            What is seen of each sample follows, if that is watched.
        """
        logits = self._forward(self._inputs(index), masks)
        losses, kept, weights = self._choose(logits, y)
        means = (losses.gather(1, kept) * weights).sum(dim=1)
        self._optimizer.zero_grad()
        means.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        logits = logits.detach()
        predicted = logits.max(dim=1).indices
        return losses.detach(), predicted, kept, weights, *self._seen(logits, y)

    def _choose(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, (M, B), kept positions and their weights, (M, n) each.

        Args:
            logits: Logits, (M, C, B).
            y: Noisy labels, (M, B).
        """
        if self._method.is_small_loss:
            losses = _cross_entropy(logits, y)
            return losses, self._select(losses.detach()), self._weights
        by_trial = logits.view(-1, 2, *logits.shape[1:]).transpose(2, 3)
        step = self._method.step(by_trial, y[::2], self._counts)
        # the loss of a sample that is not used may be infinite
        losses = step.losses.where(step.weights > 0, 0.0).flatten(0, 1)
        return losses, self._everyone, step.weights.flatten(0, 1)

    def _seen(self, logits: Tensor, y: Tensor) -> Tensors:
        """Return losses, margins and rivals of a step, (M, B) each, if samples are watched."""
        if self._watch is None:
            return ()
        return _cross_entropy(logits, y), *margin_and_rival(logits, y, dim=1)

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Return cross-entropy and error on the evaluation data (see `Trainer`)."""
        x, y = self._setup.evaluation
        n_networks = 2 * self._n_trials
        totals = torch.zeros((2, n_networks), dtype=self._sum_dtype, device=x.device)
        for part, labels in zip(
            torch.split(x, EVALUATION_BATCH), torch.split(y, EVALUATION_BATCH), strict=True
        ):
            logits = self._forward(to_input(part, self._setup.dtype)[None], None)
            losses = _cross_entropy(logits, labels.expand(n_networks, -1))
            totals[0] += losses.to(self._sum_dtype).sum(dim=1)
            totals[1] += (logits.max(dim=1).indices != labels).sum(dim=1)
        return (totals / len(x)).view(2, -1, 2)

    @torch.no_grad()
    def networks(self, position: int) -> tuple[nn.Module, nn.Module]:
        """Return the networks of a trial as modules of their own (see `Trainer`)."""
        first, second = copy.deepcopy(self._template), copy.deepcopy(self._template)
        for i, network in enumerate((first, second)):
            self._copy_to(network, 2 * position + i)
        return first, second

    def samples(self, position: int) -> SampleStatistics | None:
        """Return what a trial saw of each sample (see `Trainer`)."""
        return None if self._watch is None else self._watch.statistics(position)

    def keep_trials(self, positions: Sequence[int]) -> None:
        """Drop all trials but those at these positions (see `Trainer`)."""
        n_networks = 2 * self._n_trials
        rows = torch.tensor(
            [2 * position + i for position in positions for i in (0, 1)], device=self._x.device
        )

        def kept(values: Tensor) -> Tensor:
            return values.view(n_networks, -1, *values.shape[1:])[rows].flatten(0, 1)

        for parameter in self._parameters:
            state = self._optimizer.state[parameter]
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = kept(value)
            parameter.grad = None
        for values in (*self._parameters, *self._buffers):
            values.data = kept(values.data)
        self._orders.keep_trials(positions)
        if self._watch is not None:
            self._watch.keep_trials(positions)
        if self._labels.ndim == 2:
            self._labels = self._labels[list(positions)]
        self._n_trials = len(positions)

    def _inputs(self, index: Tensor) -> Tensor:
        """Return the inputs (K, B, ...) of the samples with these numbers, (K, B)."""
        x = to_input(self._x.index_select(0, index.view(-1)), self._setup.dtype)
        return x.view(*index.shape, *x.shape[1:])

    def _forward(self, x: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
        with self._setup.precision():
            logits = self._logits(x, masks)
        return logits.to(self._setup.dtype)

    def _plan_selection(self, keep_rates: FloatArray) -> None:
        """Prepare the selection, the same in all steps of an epoch."""
        self._method = self._setup.method.at(self._epoch)
        self._epoch += 1
        device = self._x.device
        everyone = torch.arange(self._setup.batch_size, device=device)
        self._keep_in_place("_everyone", everyone.repeat(2 * self._n_trials, 1))
        if not self._method.is_small_loss:
            counts = torch.from_numpy(counts_kept(keep_rates, self._setup.batch_size))
            self._keep_in_place("_counts", counts.to(device))
            return
        n_k = torch.from_numpy(n_kept(keep_rates, self._setup.batch_size)).to(device)
        n_k = n_k.repeat_interleave(2)[:, None]
        ranks = torch.arange(self._n_rows(keep_rates), device=device).expand(len(n_k), -1)
        # Beyond n_k the first kept sample is repeated with weight 0: a dropped sample whose loss
        # is not finite then stays out of the sums.
        self._keep_in_place("_ranks", torch.where(ranks < n_k, ranks, 0))
        weights = ((ranks < n_k).to(self._sum_dtype) / n_k).to(self._setup.dtype)
        self._keep_in_place("_weights", weights)

    def _keep_in_place(self, name: str, values: Tensor) -> None:
        """Write values to the tensor of that name; make it where it is missing or has no room."""
        place = getattr(self, name, None)
        if place is None or place.shape != values.shape:
            setattr(self, name, values)
        else:
            place.copy_(values)

    def _constants(self) -> Hashable:
        """Return what a recorded step holds as constants (`RunSteps`)."""
        shape = self._ranks.shape if self._method.is_small_loss else self._counts.shape
        return self._method, shape, constants_of(self._optimizer)

    def _select(self, losses: Tensor) -> Tensor:
        """Return the positions of small losses that each network is trained on, (M, n)."""
        selected = losses.argsort(dim=1, stable=True)
        if self._method.exchanges:
            by_trial = selected.view(self._n_trials, 2, -1)
            selected = selection.exchange(by_trial).flatten(0, 1)
        return selected.gather(1, self._ranks)

    def _label_precision(self, order: Tensor, y: Tensor, kept: Tensor, weights: Tensor) -> Tensor:
        """Return the share of right labels among what each network selected, (M,)."""
        clean = self._setup.data.clean_labels
        if clean is None:
            return torch.full((kept.shape[1],), torch.nan, dtype=self._sum_dtype, device=y.device)
        is_clean = (y == clean[order]).repeat_interleave(2, dim=1)  # (S, M, B)
        found = (is_clean.gather(2, kept) * weights).sum(dim=2).mean(dim=0)
        if not self._method.is_small_loss:  # else each step has weight 1
            found = found / weights.sum(dim=2).mean(dim=0)
        return found.view(-1, 2).flip(1).flatten() if self._method.exchanges else found


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each sample, (M, B), from logits (M, C, B) and labels (M, B)."""
    # classes before samples: softmax over the last dimension is ten times slower on a CPU
    return -F.log_softmax(logits, dim=1).gather(1, y[:, None]).squeeze(1)
