r"""What two networks saw of each training sample during their whole training.

Every training step computes the losses and logits of its mini-batch. `SampleWatch` adds up what
they say of each sample, on the device, once an epoch. It needs no forward pass of its own: the
value of a sample in an epoch is that of the step in which it was seen, before that step changed
the networks.

Notation
    K, M        trials; networks, M = 2K, network 2k + i is network i of trial k
    S, B        mini-batches of an epoch, samples of a mini-batch
    margin      logit of the given label less the largest other logit
    rival       the class of that largest other logit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optuna_s2e._typing import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class SampleStatistics:
    """What one training of two networks saw of its N samples.

    A sample that falls into the incomplete last mini-batch of an epoch is not seen in that epoch.
    All means and shares are over the epochs in which the sample was seen; they are NaN if there
    were none. The last axis of (N, 2) is the network.

    Attributes:
        n_seen: Number of epochs in which the sample was seen, (N,).
        trained_share: Share of the epochs in which the network was trained on the sample, that
            is, in which its peer selected it, in [0, 1], (N, 2).
        mean_loss: Mean loss of the given label, (N, 2).
        last_loss: Loss of the given label when the sample was seen last, (N, 2).
        mean_margin: Mean of the logit of the given label less the largest other logit, (N, 2).
        agreement: Share of the epochs in which both networks predicted the same class, in [0, 1],
            (N,).
        predicted: Class that the network predicted when the sample was seen last, -1 if it was
            never seen, (N, 2).
        predicted_since: First epoch, counted from 0, from which on it always predicted that
            class, (N, 2).
        rival: Class other than the given label that the network thought most likely then, -1 if
            the sample was never seen, (N, 2).
    """

    n_seen: IntArray
    trained_share: FloatArray
    mean_loss: FloatArray
    last_loss: FloatArray
    mean_margin: FloatArray
    agreement: FloatArray
    predicted: IntArray
    predicted_since: FloatArray
    rival: IntArray

    @property
    def learned_at(self) -> FloatArray:
        """First epoch from which on each network always predicted the given label, (N, 2).

        It is infinite if the network did not when the sample was seen last.
        """
        return np.where(self.predicted != self.rival, self.predicted_since, np.inf)


def margin_and_rival(logits: Tensor, y: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the margin of the given labels, and the strongest other class.

    Args:
        logits: Logits, with the classes in dimension `dim`.
        y: Given labels, of the shape of the logits without `dim`.
        dim: Dimension of the classes.

    Example:
        >>> margin_and_rival(Tensor([[3.0, 1.0, 2.5]]), torch.tensor([0]), dim=1)
        (tensor([0.5000]), tensor([2]))
    """
    given = y.unsqueeze(dim)
    rivals = logits.scatter(dim, given, -torch.inf).max(dim=dim)
    return logits.gather(dim, given).squeeze(dim) - rivals.values, rivals.indices


class SampleWatch:
    """Adds up what the steps of K trials compute of each sample.

    It takes about 44 bytes per sample and network, whatever the number of epochs and classes.
    """

    def __init__(
        self, n_trials: int, n_samples: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Make the watch of trials that have seen nothing yet.

        Args:
            n_trials: K.
            n_samples: N.
            device: Where the trials are trained.
            dtype: Dtype of the sums.
        """

        self._epoch = 0

        def fill(n_rows: int, value: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.full((n_rows, n_samples), value, dtype=dtype, device=device)

        self._of_trials = {name: fill(n_trials, 0) for name in ("seen", "agreed")}
        m = 2 * n_trials
        self._of_networks = {
            "trained": fill(m, 0), "predicted": fill(m, -1), "predicted_since": fill(m, 0),
            "rival": fill(m, -1),
        }  # fmt: skip
        for name in ("loss", "last_loss", "margin"):
            self._of_networks[name] = fill(m, 0, dtype)

    def add_epoch(
        self,
        order: Tensor,
        y: Tensor,
        is_right: Tensor,
        kept: Tensor,
        counts: Tensor | None,
        losses: Tensor,
        margins: Tensor,
        rivals: Tensor,
    ) -> None:
        """Add the steps of one epoch.

        Args:
            order: Sample numbers, each at most once per trial, (S, K, B).
            y: Their given labels, (S, M, B).
            is_right: Whether the predictions are `y`, (S, M, B).
            kept: Positions in the mini-batch that each network is trained on, (S, M, n).
            counts: Whether these positions count, (M, n); None if all do.
            losses: Losses of the given labels, (S, M, B).
            margins: Margins, (S, M, B).
            rivals: The strongest other classes, (S, M, B).
        """
        trained = torch.zeros(y.shape, dtype=torch.int32, device=y.device)
        ones = trained.new_ones(kept.shape) if counts is None else counts.to(trained.dtype)
        trained.scatter_add_(2, kept, ones.expand_as(kept))
        samples = _by_row(order)
        of_both = samples.repeat_interleave(2, dim=0)
        y, is_right, trained, losses, margins, rivals = map(
            _by_row, (y, is_right, trained, losses, margins, rivals)
        )
        predicted = torch.where(is_right, y, rivals)
        changed = predicted != self._of_networks["predicted"].gather(1, of_both)
        since = self._of_networks["predicted_since"].gather(1, of_both)
        since = since.masked_fill(changed, self._epoch)
        self._epoch += 1
        sums_of_trials = {
            "seen": torch.ones_like(samples),
            "agreed": predicted[::2] == predicted[1::2],
        }
        sums_of_networks = {"trained": trained, "loss": losses, "margin": margins}
        last = {
            "last_loss": losses, "predicted": predicted, "predicted_since": since,
            "rival": rivals,
        }  # fmt: skip
        for name, values in sums_of_trials.items():
            sums = self._of_trials[name]
            sums.scatter_add_(1, samples, values.to(sums.dtype))
        for name, values in sums_of_networks.items():
            sums = self._of_networks[name]
            sums.scatter_add_(1, of_both, values.to(sums.dtype))
        for name, values in last.items():
            state = self._of_networks[name]
            state.scatter_(1, of_both, values.to(state.dtype))

    def statistics(self, position: int) -> SampleStatistics:
        """Return what the trial at this position saw of its samples."""
        trial = {name: v[position].cpu().double() for name, v in self._of_trials.items()}
        both = slice(2 * position, 2 * position + 2)
        nets = {name: v[both].t().cpu().double() for name, v in self._of_networks.items()}
        seen = trial["seen"][:, None]
        unseen = seen == 0
        return SampleStatistics(
            n_seen=trial["seen"].long().numpy(),
            trained_share=(nets["trained"] / seen).numpy(),
            mean_loss=(nets["loss"] / seen).numpy(),
            last_loss=nets["last_loss"].masked_fill(unseen, torch.nan).numpy(),
            mean_margin=(nets["margin"] / seen).numpy(),
            agreement=(trial["agreed"] / trial["seen"]).numpy(),
            predicted=nets["predicted"].long().numpy(),
            predicted_since=nets["predicted_since"].masked_fill(unseen, torch.nan).numpy(),
            rival=nets["rival"].long().numpy(),
        )

    def keep_trials(self, positions: Sequence[int]) -> None:
        """Drop all trials but those at these positions, which are then numbered in this order."""
        networks = [2 * position + i for position in positions for i in (0, 1)]
        self._of_trials = {name: v[list(positions)] for name, v in self._of_trials.items()}
        self._of_networks = {name: v[networks] for name, v in self._of_networks.items()}


def _by_row(values: Tensor) -> Tensor:
    """Return values of an epoch (S, rows, B) as (rows, S * B)."""
    return values.transpose(0, 1).flatten(1)
