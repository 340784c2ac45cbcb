r"""Co-teaching under any schedule: the one training core.

Two networks see the same mini-batch; each selects the R(t) share of smallest loss and its peer
takes a step on the selection's mean cross-entropy (Co-teaching, Algorithm 1).

Notation
    keep_rates  R(t) of K trials over T epochs                      (K, T)
    seeds       one per trial; all that its numbers depend on       (K,)
    B           samples in a mini-batch
    curve       one number per epoch and network                    (T, 2)

`SeedSequence(seed).generate_state(3, uint64)` of a trial's seed seeds the weights of its first
and second network and the order of its data.

References:
    Han et al., "Co-teaching: Robust training of deep neural networks with extremely noisy
    labels", NeurIPS 2018.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from optuna_s2e.coteaching import selection
from optuna_s2e.coteaching.data import NoisyData, to_input
from optuna_s2e.coteaching.networks import Network, make_network, seeded_generators
from optuna_s2e.schedules import n_kept

FloatArray = npt.NDArray[np.float64]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class TrainingConfig:
    r"""Everything about a training but data, network, schedule and seed.

    The learning rate is constant up to epoch $s$ = `decay_start` * T and then falls linearly,
    $\eta_t = \eta (T - t) / (T - s)$; from the same epoch on, Adam's beta1 is `late_beta1`.

    Attributes:
        batch_size: B. A last incomplete mini-batch is dropped, as in the published protocol; a
            data set smaller than B is one mini-batch.
        learning_rate: Adam's, > 0.
        decay_start: Share of the epochs before the decay, in [0, 1]; 80 of 200 in the paper.
        beta1: Adam's beta1 before the decay.
        late_beta1: Adam's beta1 from then on.
        dtype: "float32", or "float64" for comparisons.

    Raises:
        ValueError: If a value is out of range.
    """

    batch_size: int = 128
    learning_rate: float = 1e-3
    decay_start: float = 0.4
    beta1: float = 0.9
    late_beta1: float = 0.1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise ValueError(f"batch_size must be an int, but got {self.batch_size!r}.")
        conditions = {
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < np.inf, "positive"),
            "decay_start": (0 <= self.decay_start <= 1, "in [0, 1]"),
            "beta1": (0 <= self.beta1 < 1, "in [0, 1)"),
            "late_beta1": (0 <= self.late_beta1 < 1, "in [0, 1)"),
            "dtype": (self.dtype in _DTYPES, f"one of {list(_DTYPES)}"),
        }
        for name, (holds, condition) in conditions.items():
            if not holds:
                raise ValueError(f"{name} must be {condition}, but got {getattr(self, name)!r}.")

    def learning_rates(self, n_epochs: int) -> FloatArray:
        """Return the learning rate of each epoch, shape (T,)."""
        start = round(self.decay_start * n_epochs)
        left = (n_epochs - np.arange(n_epochs)) / max(1, n_epochs - start)
        return self.learning_rate * np.minimum(1.0, left)

    def beta1s(self, n_epochs: int) -> FloatArray:
        """Return Adam's beta1 of each epoch, shape (T,)."""
        start = round(self.decay_start * n_epochs)
        return np.where(np.arange(n_epochs) < start, self.beta1, self.late_beta1)


class Metrics(NamedTuple):
    """What is measured, float64: (2,), one number per network, or (T, 2) for a whole training.

    Attributes:
        loss: Mean cross-entropy on the validation (or test) data after the epoch.
        error: Share of wrong predictions there.
        label_precision: Share of right labels in the network's selections; NaN if unknown.
        train_accuracy: Accuracy against the noisy labels, over the epoch's training steps.
        train_loss: Mean loss of the samples that the network was trained on.
    """

    loss: FloatArray
    error: FloatArray
    label_precision: FloatArray
    train_accuracy: FloatArray
    train_loss: FloatArray


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """One trained trial.

    Attributes:
        seed: The trial's seed.
        curves: Metrics of each epoch, arrays of shape (T, 2); NaN where it was not trained.
        n_epochs: Epochs trained to their end.
        seconds: Wall time.
        failure: None, or why training ended early: a FloatingPointError if a loss became NaN or
            infinite, else the exception that the training raised.
    """

    seed: int
    curves: Metrics
    n_epochs: int
    seconds: float
    failure: Exception | None


def last_epochs_mean(curve: FloatArray) -> float:
    """Return the mean over both networks and the last 10 % of the epochs (at least one)."""
    return float(np.mean(curve[-max(1, len(curve) // 10) :]))


# (position in the batch of trials, epoch, metrics) -> whether that trial stops here
OnEpoch = Callable[[int, int, Metrics], bool | None]


def train_batch(
    keep_rates: npt.ArrayLike,
    seeds: Sequence[int],
    *,
    data: NoisyData,
    network: Network = "mlp",
    config: TrainingConfig | None = None,
    device: torch.device | str = "auto",
    evaluate_on: str = "validation",
    on_epoch: OnEpoch | None = None,
) -> list[TrainingResult]:
    """Train K trials, each two networks under a schedule of its own.

    A trial's numbers depend on its own schedule and seed only, never on the other trials.

    Args:
        keep_rates: R(t) of each trial, (K, T), in (0, 1].
        seeds: Seed of each trial, non-negative ints, (K,).
        data: What to train on.
        network: As in `make_network`.
        config: Optimiser and mini-batches; default `TrainingConfig()`.
        device: "auto" (CUDA, where there is any), "cpu", "cuda", "cuda:1", ...
        evaluate_on: "validation", or "test" once nothing is left to choose.
        on_epoch: Called after each epoch of each trial with (k, epoch, metrics); a trial for
            which it returns True stops there. Its exceptions are not caught.

    Returns:
        K results. A trial whose loss becomes non-finite, or whose training raises, carries that
        as `failure` and does not touch the others.

    Raises:
        ValueError: If an argument is out of range.
    """
    rates, checked_seeds = _checked_trials(keep_rates, seeds)
    data = data.to(find_device(device))
    evaluation = _evaluation_data(data, evaluate_on)
    settings = _Settings(data, network, config or TrainingConfig(), evaluation)
    return [
        _train_trial(k, rates[k], seed, settings, on_epoch) for k, seed in enumerate(checked_seeds)
    ]


def find_device(device: torch.device | str) -> torch.device:
    """Return the torch device; "auto" is CUDA where there is any, else the CPU.

    Raises:
        ValueError: If torch does not know it, or it is CUDA and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be one that torch knows, but got {device!r}.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but torch finds no CUDA. Take 'auto'.")
    return found


class _Settings(NamedTuple):
    """What the trials of a batch share."""

    data: NoisyData
    network: Network
    config: TrainingConfig
    evaluation: tuple[Tensor, Tensor]


class _Peers:
    """Two networks in training, their optimiser and the order of their data."""

    def __init__(self, seed: int, settings: _Settings) -> None:
        self._data, network, config, self._evaluation = settings
        self._dtype = _DTYPES[config.dtype]
        device = self._data.x.device
        states = np.random.SeedSequence(seed).generate_state(3, np.uint64)
        *init_seeds, order_seed = (int(state) for state in states)
        shape, n_classes = self._data.input_shape, self._data.n_classes
        self._networks = [
            make_network(network, shape, n_classes, seed=init).to(device, self._dtype)
            for init in init_seeds
        ]
        if self._networks[0] is self._networks[1]:
            raise ValueError(
                "network must make a new module at each call, but returned one twice."
            )
        # one optimiser for both: Adam works on each weight alone, and one call is cheaper
        parameters = [p for net in self._networks for p in net.parameters()]
        self._optimizer = torch.optim.Adam(parameters, config.learning_rate, fused=True)
        self._batch_size = min(config.batch_size, len(self._data.x))
        self._order = torch.Generator().manual_seed(order_seed)

    def train_epoch(self, keep_rate: float, learning_rate: float, beta1: float) -> list[Tensor]:
        """Train one epoch; return label precision, training accuracy and loss, (2,) each."""
        for group in self._optimizer.param_groups:
            group["lr"], group["betas"] = learning_rate, (beta1, group["betas"][1])
        for net in self._networks:
            net.train()
        order = self._draw_order()
        labels = self._data.noisy_labels[order]
        kept = int(n_kept(keep_rate, order.shape[1]))
        # read once at the end: the host never waits for the device within an epoch
        steps = [self._train_step(*step, kept) for step in zip(order, labels, strict=True)]
        selected, is_right, losses = map(torch.stack, zip(*steps, strict=True))
        return [
            self._label_precision(order, labels, selected),
            is_right.double().mean(dim=(0, 2)),
            losses.double().mean(dim=0),
        ]

    def _train_step(self, index: Tensor, y: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
        """Step both networks; return selections, whether predictions are `y`, and losses."""
        logits = self._forward(self._data.x.index_select(0, index))
        losses = F.cross_entropy(logits.flatten(0, 1), torch.cat([y, y]), reduction="none")
        losses = losses.view(2, -1)
        selected = selection.small_loss(losses.detach(), kept)
        # the mean over the kept samples; unlike the published code, not divided by their number
        # a second time
        means = selection.selected_means(losses, selection.exchange(selected))
        self._optimizer.zero_grad()
        means.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return selected, logits.detach().argmax(dim=2) == y, means.detach()

    @torch.no_grad()
    def evaluate(self) -> list[Tensor]:
        """Return cross-entropy and error on the evaluation data, (2,) each."""
        for net in self._networks:
            net.eval()
        x, y = self._evaluation
        totals = torch.zeros((2, 2), dtype=torch.float64, device=x.device)
        for inputs, labels in zip(
            torch.split(x, _EVALUATION_BATCH), torch.split(y, _EVALUATION_BATCH), strict=True
        ):
            logits = self._forward(inputs)
            for i in (0, 1):
                totals[0, i] += F.cross_entropy(logits[i], labels, reduction="sum")
                totals[1, i] += (logits[i].argmax(dim=1) != labels).sum()
        return list(totals / len(x))

    def _draw_order(self) -> Tensor:
        """Return the mini-batches of an epoch as sample numbers, (steps, B)."""
        order = torch.randperm(len(self._data.x), generator=self._order)
        whole = len(order) // self._batch_size * self._batch_size
        return order[:whole].view(-1, self._batch_size).to(self._data.x.device)

    def _forward(self, x: Tensor) -> Tensor:
        inputs = to_input(x, self._dtype)
        logits = torch.stack([net(inputs) for net in self._networks])
        expected = (2, len(x), self._data.n_classes)
        if logits.shape != expected:
            raise ValueError(
                f"network must return logits of shape (B, C) = {expected[1:]}, "
                f"but got {tuple(logits.shape[1:])}."
            )
        return logits

    def _label_precision(self, order: Tensor, labels: Tensor, selections: Tensor) -> Tensor:
        if self._data.clean_labels is None:
            return torch.full((2,), torch.nan, dtype=torch.float64, device=order.device)
        return selection.label_precision(labels == self._data.clean_labels[order], selections)


def _train_trial(
    k: int, keep_rates: FloatArray, seed: int, settings: _Settings, on_epoch: OnEpoch | None
) -> TrainingResult:
    started = time.perf_counter()
    curves = np.full((len(Metrics._fields), len(keep_rates), 2), np.nan)
    failure: Exception | None = None
    done = 0
    epochs = _epochs(keep_rates, seed, settings)
    with seeded_generators(seed, settings.data.x.device):
        for epoch in range(len(keep_rates)):
            try:
                metrics = next(epochs)
            except Exception as error:  # the trial's own: the others go on
                failure = error
                break
            curves[:, epoch] = metrics
            done = epoch + 1
            failure = _non_finite(metrics, epoch)
            if failure is not None or (on_epoch is not None and on_epoch(k, epoch, metrics)):
                break
    seconds = time.perf_counter() - started
    return TrainingResult(seed, Metrics(*curves), done, seconds, failure)


def _epochs(keep_rates: FloatArray, seed: int, settings: _Settings) -> Iterator[Metrics]:
    peers = _Peers(seed, settings)
    learning_rates = settings.config.learning_rates(len(keep_rates))
    beta1s = settings.config.beta1s(len(keep_rates))
    for plan in zip(keep_rates, learning_rates, beta1s, strict=True):
        trained = peers.train_epoch(*(float(value) for value in plan))
        measured = torch.stack([*peers.evaluate(), *trained])  # (5, 2): the epoch's one transfer
        yield Metrics(*measured.cpu().numpy())


def _non_finite(metrics: Metrics, epoch: int) -> FloatingPointError | None:
    for name in ("train_loss", "loss"):
        finite = np.isfinite(getattr(metrics, name))
        if not finite.all():
            where = "training" if name == "train_loss" else "evaluation"
            return FloatingPointError(
                f"the {where} loss of network {int(finite.argmin())} became non-finite "
                f"in epoch {epoch}"
            )
    return None


def _evaluation_data(data: NoisyData, evaluate_on: str) -> tuple[Tensor, Tensor]:
    if evaluate_on == "validation":
        return data.x_val, data.y_val
    if evaluate_on != "test":
        raise ValueError(f"evaluate_on must be 'validation' or 'test', but got {evaluate_on!r}.")
    if data.x_test is None or data.y_test is None:
        raise ValueError(f"evaluate_on='test' needs test data, but {data.name!r} holds none.")
    return data.x_test, data.y_test


def _checked_trials(
    keep_rates: npt.ArrayLike, seeds: Sequence[int]
) -> tuple[FloatArray, list[int]]:
    rates = np.asarray(keep_rates, dtype=np.float64)
    if rates.ndim != 2 or rates.size == 0:
        raise ValueError(f"keep_rates must have shape (K, T), but got {rates.shape}.")
    if not ((rates > 0) & (rates <= 1)).all():  # also refuses NaN
        wrong = rates[~((rates > 0) & (rates <= 1))][0]
        raise ValueError(f"keep_rates must be in (0, 1], but got {wrong!r}.")
    if len(seeds) != len(rates):
        raise ValueError(f"seeds must have shape (K,) = ({len(rates)},), but got ({len(seeds)},).")
    if any(seed != int(seed) or seed < 0 for seed in seeds):
        raise ValueError(f"seeds must be non-negative ints, but got {list(seeds)!r}.")
    return rates, [int(seed) for seed in seeds]
