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
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._networks import Network, seeded_generators
from optuna_s2e.coteaching.backends import Backend, Lanes, Setting, find_backend
from optuna_s2e.coteaching.data import NoisyData


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
        seconds: Wall time; of trials trained side by side, an equal share each.
        failure: None, or why training ended early: a FloatingPointError if a loss became NaN or
            infinite, else the exception that the training raised, its traceback as a note.
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
    labels: npt.ArrayLike | Tensor | None = None,
    on_epoch: OnEpoch | None = None,
    backend: str = "auto",
    fused_width: int | None = None,
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
        labels: Noisy labels of each trial, integers (K, N), in place of those of `data`: so that
            searches under several kinds of noise, or draws of it, train in one batch.
        on_epoch: Called after each epoch of each trial with (k, epoch, metrics); a trial for
            which it returns True stops there. Its exceptions are not caught. Fused trials take
            turns epoch by epoch; else trial 0 is trained to its end first, then trial 1, ...
        backend: How to train; the numbers agree up to rounding.
            "loop": one trial after the other, by PyTorch's autograd; any network.
            "rows": as "loop", with a backward pass over the kept samples alone; an
            `nn.Sequential` of Conv2d, ReLU, MaxPool2d(2), Flatten and Linear, such as "cnn2".
            "fused": trials side by side; an `nn.Sequential` as "mlp" is stacked matrices, with
            a backward pass over the kept samples alone, one as "cnn2", "cnn7" or "cnn9" becomes
            one network of grouped convolutions, any other is mapped by `torch.vmap`, if that
            gives the same numbers (no dropout).
            "graphs": as "fused", with the steps of an epoch replayed from a CUDA graph; not
            chosen by "auto", for it could not be tried yet.
            "auto": "fused" for networks as "mlp", "rows" (on a CPU) or "fused" (on a GPU) for
            those as "cnn2", "fused" on a GPU for those as "cnn7" and "cnn9", "fused" one by one
            on a CPU for small ones of these, "loop" for any other; as measured on CPUs,
            docs/speed.md.
        fused_width: Fused trials side by side, at most; default: by their size. A group that
            runs out of memory is trained again in halves.

    Returns:
        K results. A trial whose loss becomes non-finite, or whose training raises, carries that
        as `failure` and does not touch the others.

    Raises:
        ValueError: If an argument is out of range.
    """
    rates, checked_seeds = _checked_trials(keep_rates, seeds)
    data = data.to(find_device(device))
    evaluation = _evaluation_data(data, evaluate_on)
    setting = Setting(data, network, config or TrainingConfig(), evaluation)
    own_labels = data.noisy_labels if labels is None else _checked_labels(labels, rates, data)
    run = _Run(rates, checked_seeds, own_labels, setting, on_epoch)
    return run.train(find_backend(backend, setting, fused_width))


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
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device is {str(device)!r}, but torch finds {count} CUDA devices.")
    return found


class _Run:
    """A call of `train_batch` under way: what its trials have brought so far."""

    def __init__(
        self,
        keep_rates: FloatArray,
        seeds: list[int],
        labels: Tensor,
        setting: Setting,
        on_epoch: OnEpoch | None,
    ) -> None:
        self._rates, self._seeds, self._labels = keep_rates, seeds, labels
        self._setting, self._on_epoch = setting, on_epoch
        n_trials, n_epochs = keep_rates.shape
        self._plan = list(
            zip(
                setting.config.learning_rates(n_epochs).tolist(),
                setting.config.beta1s(n_epochs).tolist(),
                strict=True,
            )
        )
        self._curves = np.full((n_trials, len(Metrics._fields), n_epochs, 2), np.nan)
        self._done = [0] * n_trials
        self._seconds = [0.0] * n_trials
        self._failures: list[Exception | None] = [None] * n_trials

    def train(self, backend: Backend) -> list[TrainingResult]:
        """Train all trials, at most `backend.width` side by side."""
        trials, width = list(range(len(self._seeds))), backend.width
        groups = [trials[i : i + width] for i in trials[::width]]
        while groups:
            group = groups.pop(0)
            # for networks that draw while they train; those are in groups of one
            with seeded_generators(self._seeds[group[0]], self._setting.data.x.device):
                unfinished = self._train_group(group, backend)
            if unfinished:
                half = len(unfinished) // 2
                groups = [unfinished[:half], unfinished[half:], *groups]
        return [
            TrainingResult(
                seed, Metrics(*self._curves[k]), self._done[k], self._seconds[k], self._failures[k]
            )
            for k, seed in enumerate(self._seeds)
        ]

    def _train_group(self, group: list[int], backend: Backend) -> list[int]:
        """Train trials side by side; return those to train again, in two groups.

        An error in a group, be it for want of memory or in one trial's networks, does not say
        whose it is; in a group of one it does.
        """
        lanes: Lanes | None = None
        for epoch, plan in enumerate(self._plan):
            started = time.perf_counter()
            try:
                if lanes is None:
                    seeds = [self._seeds[k] for k in group]
                    lanes = backend.make_lanes(self._setting, seeds, self._labels_of(group))
                trained = lanes.train_epoch(self._rates[group, epoch], *plan)
                # (5, K, 2): the epoch's one transfer
                measured = torch.cat([lanes.evaluate(), trained]).cpu().numpy()
            except Exception as error:
                if len(group) > 1:
                    return group
                self._failures[group[0]] = _without_frames(error)
                break
            seconds = (time.perf_counter() - started) / len(group)
            going_on = [
                lane
                for lane, k in enumerate(group)
                if self._record(k, epoch, Metrics(*measured[:, lane]), seconds)
            ]
            if not going_on:
                break
            if len(going_on) < len(group):
                lanes.keep(going_on)
                group = [group[lane] for lane in going_on]
        return []

    def _labels_of(self, group: list[int]) -> Tensor:
        return self._labels if self._labels.ndim == 1 else self._labels[group]

    def _record(self, k: int, epoch: int, metrics: Metrics, seconds: float) -> bool:
        """Record an epoch of a trial; return whether the trial goes on."""
        self._seconds[k] += seconds
        if epoch < self._done[k]:
            return True  # trained again, in a smaller group
        self._curves[k, :, epoch] = metrics
        self._done[k] = epoch + 1
        self._failures[k] = _non_finite(metrics, epoch)
        if self._failures[k] is not None:
            return False
        return self._on_epoch is None or not self._on_epoch(k, epoch, metrics)


def _without_frames(error: Exception) -> Exception:
    """Turn an error's traceback into a note: its frames hold the networks of the trial, so that
    a trial that runs out of memory would keep that memory from those that follow."""
    error.add_note("In the training:\n" + "".join(traceback.format_exception(error)))
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:  # a chain may be a ring
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


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


def _checked_labels(
    labels: npt.ArrayLike | Tensor, keep_rates: FloatArray, data: NoisyData
) -> Tensor:
    checked = labels if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels))
    expected = (len(keep_rates), len(data.x))
    if checked.shape != expected or checked.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape (K, N) = {expected}, "
            f"but got {checked.dtype} of shape {tuple(checked.shape)}."
        )
    low, high = int(checked.min()), int(checked.max())
    if low < 0 or high >= data.n_classes:
        wrong = low if low < 0 else high
        raise ValueError(f"labels must be in [0, {data.n_classes - 1}], but got {wrong}.")
    return checked.to(data.x.device, torch.int64)
