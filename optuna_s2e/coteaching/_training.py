r"""Co-teaching, or another method, under any schedule: the training core.

Two networks see the same mini-batch. Each selects the share R(t) of samples with the smallest
loss, and its peer takes a step on their mean cross-entropy (Co-teaching, Algorithm 1). Other
methods select, exchange and weigh otherwise (`_methods`).

Notation
    keep_rates  R(t) of K trials over T epochs                      (K, T)
    seeds       one seed per trial                                  (K,)
    B           samples in a mini-batch
    curve       one number per epoch and network                    (T, 2)

A trial's seed gives the seeds of its first network, its second network, the order of its data and
that of clean data, if the method uses them: `SeedSequence(seed).generate_state(4, uint64)`.

References:
    Han et al., "Co-teaching: Robust training of deep neural networks with extremely noisy
    labels", NeurIPS 2018.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from optuna_s2e._chain import chain
from optuna_s2e._checks import check_axes, check_choice, check_int, check_shape
from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._correction import (
    estimated_correction,
    given_correction,
    true_correction,
)
from optuna_s2e.coteaching._methods import METHODS, ForwardCorrection, find_method
from optuna_s2e.coteaching._networks import Network, seeded_generators
from optuna_s2e.coteaching._samples import SampleStatistics
from optuna_s2e.coteaching._steps import Method
from optuna_s2e.coteaching._threads import suitable_threads
from optuna_s2e.coteaching.backends import Backend, Trainer, TrainingSetup, find_backend
from optuna_s2e.coteaching.data import NoisyData


class Metrics(NamedTuple):
    """Hold the measurements of an epoch, float64 (2,), or of a training, (T, 2).

    The last axis is the network.

    Attributes:
        loss: Mean cross-entropy on the validation (or test) data after the epoch.
        error: Share of wrong predictions on these data, in [0, 1].
        label_precision: Share of right labels among the samples that the network selected, in
            [0, 1]; NaN if the clean labels are unknown, or none was selected. Samples count by
            the weight that the method gives them.
        train_accuracy: Accuracy against the noisy labels in the training steps of the epoch.
        train_loss: Mean over the steps of what the network descended on: in Co-teaching the mean
            loss of the samples that it was trained on. A step without samples counts as 0.
    """

    loss: FloatArray
    error: FloatArray
    label_precision: FloatArray
    train_accuracy: FloatArray
    train_loss: FloatArray


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """Hold the result of one trial.

    Attributes:
        seed: The trial's seed.
        curves: Metrics of each epoch, (T, 2) each. Epochs that were not trained are NaN.
        n_epochs: Number of epochs that were trained to their end.
        seconds: Wall time. Trials that were trained side by side get equal shares.
        failure: Why the training failed, or None. It is a FloatingPointError if a loss became NaN
            or infinite, else the exception that the training raised, with its traceback as a
            note.
        networks: The two trained networks, on the CPU and in evaluation mode, if `train_batch`
            was asked to keep them and the training did not fail; else None.
        samples: What the two networks saw of each training sample, if `train_batch` was asked to
            watch them and the training did not fail; else None.
    """

    seed: int
    curves: Metrics
    n_epochs: int
    seconds: float
    failure: Exception | None
    networks: tuple[nn.Module, nn.Module] | None = field(default=None, repr=False)
    samples: SampleStatistics | None = field(default=None, repr=False)


def last_epochs_mean(curve: FloatArray) -> float:
    """Return the mean of a curve over both networks and the last 10 % of the epochs.

    Args:
        curve: One value per epoch and network, (T, 2). T / 10 is rounded down, but at least one
            epoch is taken.

    Example:
        >>> last_epochs_mean(np.array([[0.75, 0.5], [0.5, 0.25]]))
        0.375
    """
    return float(np.mean(curve[-max(1, len(curve) // 10) :]))


# (position in the batch of trials, epoch, metrics) -> whether that trial stops after this epoch
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
    keep_networks: bool = False,
    watch_samples: bool = False,
    method: str | Method = "coteaching",
) -> list[TrainingResult]:
    """Train K trials, each of them two networks under its own schedule.

    A trial's numbers depend on its own schedule, seed and labels, never on the other trials.

    Small networks are trained on one CPU thread, which is faster, and so is every network in a
    process of a pool (`multiprocessing`), unless OMP_NUM_THREADS is set there. The process has
    its threads back after each epoch. Large networks are trained on as many threads as the
    process has (`torch.set_num_threads`); their last digits may depend on that number.

    Args:
        keep_rates: R(t) of each trial, (K, T), in (0, 1].
        seeds: Seed of each trial, non-negative ints, (K,).
        data: Data to train on.
        network: Name or function, as in `make_network`.
        config: Optimiser and mini-batches. The default is `TrainingConfig()`.
        device: "auto" (CUDA if there is any, else the CPU), "cpu", "cuda", "cuda:1", or another
            that torch computes on, such as "mps" or "xpu" (never tried).
        evaluate_on: "validation", or "test" when nothing is left to choose.
        labels: Noisy labels of each trial as class numbers, integers (K, N), which replace those
            of `data`. With them, trials under different noise train in one call. A label of -1
            leaves its sample out, as for folds; each trial must leave out equally many. None
            takes those of `data`.
        on_epoch: Function that is called with (k, epoch, metrics) after each epoch of trial k.
            If it returns True, that trial stops. Its exceptions are not caught. Fused trials
            take turns epoch by epoch. Otherwise trial 0 is trained to its end, then trial 1, ...
        backend: How to train. The numbers of all backends agree up to rounding.
            "loop": one trial after the other, by PyTorch's autograd. It trains any network.
            "rows": as "loop", with a backward pass over the kept samples alone. It needs an
            `nn.Sequential` of Conv2d, ReLU, MaxPool2d(2), Flatten and Linear, such as "cnn2".
            "fused": trials side by side. Networks like "mlp" become stacked matrices, networks
            like "cnn2", "cnn7" and "cnn9" one network of grouped convolutions. All others are
            mapped by `torch.vmap` (experimental), if that gives the same numbers (no dropout).
            "unfolded": such convolutional networks as matrix products, for few channels on CUDA.
            "graphs" (experimental): as "auto", but a step is recorded once as a CUDA graph and
            replayed. It needs CUDA and has never run on a GPU.
            "auto": never "graphs" and never `torch.vmap`. "fused" for networks like "mlp". For
            networks like "cnn2", "cnn7" and "cnn9": on CUDA "fused" or "unfolded" (for few
            channels as measured once, docs/speed.md); on a CPU "fused" with one trial per group
            for small ones, else "rows" if it can train them, else "loop". "loop" for all other
            networks, and for networks like "mlp" in "bfloat16".
        fused_width: Largest number of fused trials side by side, at least 1. The default depends
            on the networks. If a group runs out of memory, it is trained again in halves. On a
            GPU a width that is given is the size of every group, some lanes of which are empty,
            so that the bits of a trial do not follow from how many are beside it, or leave.
        keep_networks: Whether the results hold the trained networks.
        watch_samples: Whether the results hold statistics of each training sample, such as how
            often it was selected. They take about 44 bytes per trial, network and sample on the
            device, and no forward pass. The training itself is the same bit for bit.
        method: What the two networks learn from a mini-batch: a name in `METHODS`, or a method
            with options, such as `Jocor(agreement=0.9)`. Methods that make no use of R(t) are
            trained as with R(t) = 1. "reweight" is trained by the loop alone, and uses the
            validation data as clean data. "f-correction" first trains Standard with the same
            seeds, to estimate its matrix: it takes twice the time.

    Returns:
        K results, in the order of `seeds`. If the loss of a trial becomes non-finite or its
        training raises, its result carries that as `failure`, and the other trials go on.

    Raises:
        ValueError: If an argument is out of range, there are no test data to evaluate on, the
            device is missing, or the backend cannot train the network or the method.

    Example:
        >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
        >>> data = NoisyData.from_arrays(x, y, x, y)
        >>> (result,) = train_batch([[1.0, 0.5]], [0], data=data, device="cpu")
        >>> result.curves.error.shape, result.failure
        ((2, 2), None)
    """
    rates, checked_seeds = _checked_trials(keep_rates, seeds)
    data, found = data.to(find_device(device)), find_method(method)
    if not found.uses_schedule:
        rates = np.ones_like(rates)
    evaluation = _evaluation_data(data, evaluate_on)
    own_labels = data.noisy_labels if labels is None else _checked_labels(labels, rates, data)
    setup = TrainingSetup(
        data, network, config or TrainingConfig(), evaluation, watch_samples, found,
        n_left_out=int((own_labels < 0).sum()) // len(rates),
    )  # fmt: skip
    chosen = find_backend(backend, setup, fused_width)

    def train(
        trials: Sequence[int], own: Method, on_epoch: OnEpoch | None, keeps: bool
    ) -> list[TrainingResult]:
        seeds_of = [checked_seeds[k] for k in trials]
        labels_of = own_labels if own_labels.ndim == 1 else own_labels[list(trials)]
        under = setup._replace(method=own)
        return _Run(rates[trials], seeds_of, labels_of, under, on_epoch, keeps).train(chosen)

    trials = range(len(rates))
    if isinstance(found, ForwardCorrection):
        return _train_corrected(found, train, trials, setup, own_labels, on_epoch, keep_networks)
    return train(trials, found, on_epoch, keep_networks)


def _train_corrected(
    method: ForwardCorrection,
    train: Callable[[Sequence[int], Method, OnEpoch | None, bool], list[TrainingResult]],
    trials: Sequence[int],
    setup: TrainingSetup,
    labels: Tensor,
    on_epoch: OnEpoch | None,
    keep_networks: bool,
) -> list[TrainingResult]:
    """Train by F-correction: its matrix is given, counted, or estimated by a first training."""
    data = setup.data
    if not isinstance(method.matrix, str):
        return train(trials, given_correction(method, data), on_epoch, keep_networks)
    estimates = method.matrix == "estimated"
    firsts = train(trials, METHODS["standard"], None, True) if estimates else []
    results = []
    for k in trials:
        noisy = labels if labels.ndim == 1 else labels[k]
        if not estimates:
            own = true_correction(method, data, noisy)
        elif networks := firsts[k].networks:
            own = estimated_correction(method, data.x[noisy >= 0], networks, setup.dtype)
        else:  # it failed
            curves = Metrics(*(np.full_like(curve, np.nan) for curve in firsts[k].curves))
            results.append(replace(firsts[k], curves=curves, n_epochs=0))
            continue
        (result,) = train([k], own, on_epoch and partial(_of_trial, on_epoch, k), keep_networks)
        seconds = result.seconds + (firsts[k].seconds if estimates else 0.0)
        results.append(replace(result, seconds=seconds))
    return results


def _of_trial(on_epoch: OnEpoch, k: int, _: int, epoch: int, metrics: Metrics) -> bool | None:
    return on_epoch(k, epoch, metrics)


def find_device(device: torch.device | str) -> torch.device:
    """Return the torch device; "auto" is CUDA if there is any, else the CPU.

    Raises:
        ValueError: If torch does not know the device, or cannot compute on it here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be one that torch knows, but got {device!r}. Take 'auto', 'cpu', 'cuda' "
            "or 'cuda:1', for example."
        ) from error
    missing = _why_missing(found)
    if missing is not None:
        raise ValueError(
            f"device must be one that torch finds, but got {str(device)!r}: {missing}. "
            "Take 'auto'."
        )
    return found


def _why_missing(device: torch.device) -> str | None:
    """Say why torch cannot compute on a device; return None if it can."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "torch finds no CUDA"
        count = torch.cuda.device_count()
        return f"torch finds {count} CUDA devices" if (device.index or 0) >= count else None
    if device.type == "cpu":
        return "there is one CPU, 'cpu'" if device.index else None
    try:
        torch.ones(1, device=device).tolist()
    except Exception:  # each device has errors of its own
        return f"torch {torch.__version__} cannot compute on it here"
    return None


class _Run:
    """One call of `train_batch`: the results of its trials so far."""

    def __init__(
        self,
        keep_rates: FloatArray,
        seeds: list[int],
        labels: Tensor,
        setup: TrainingSetup,
        on_epoch: OnEpoch | None,
        keep_networks: bool,
    ) -> None:
        self._rates, self._seeds, self._labels = keep_rates, seeds, labels
        self._setup, self._on_epoch, self._keeps = setup, on_epoch, keep_networks
        n_trials, n_epochs = keep_rates.shape
        rates, beta1s = setup.config.learning_rates(n_epochs), setup.config.beta1s(n_epochs)
        self._plan = list(zip(rates.tolist(), beta1s.tolist(), strict=True))
        self._curves = np.full((n_trials, len(Metrics._fields), n_epochs, 2), np.nan)
        self._done = [0] * n_trials
        self._seconds = [0.0] * n_trials
        self._failures: list[Exception | None] = [None] * n_trials
        self._networks: list[tuple[nn.Module, nn.Module] | None] = [None] * n_trials
        self._samples: list[SampleStatistics | None] = [None] * n_trials

    def train(self, backend: Backend) -> list[TrainingResult]:
        """Train all trials, at most `backend.width` side by side."""
        trials, width = list(range(len(self._seeds))), backend.width
        groups = [(trials[i : i + width], backend) for i in trials[::width]]
        while groups:
            group, backend = groups.pop(0)
            # for networks that draw random numbers in training: they are in groups of one trial
            with seeded_generators(self._seeds[group[0]], self._setup.data.x.device):
                unfinished = self._train_group(group, backend)
            if unfinished:
                n_lanes = backend.n_lanes(len(unfinished))
                parts = unfinished[: n_lanes // 2], unfinished[n_lanes // 2 :]
                half = backend._replace(width=n_lanes - n_lanes // 2)
                groups = [*((part, half) for part in parts if part), *groups]
        return [
            TrainingResult(
                seed,
                Metrics(*self._curves[k]),
                self._done[k],
                self._seconds[k],
                self._failures[k],
                self._networks[k],
                self._samples[k],
            )
            for k, seed in enumerate(self._seeds)
        ]

    def _train_group(self, group: list[int], backend: Backend) -> list[int]:
        """Train trials side by side; return those that must be trained again in smaller groups.

        Only in a group of one does an error, such as a lack of memory, say which trial caused it.
        """
        trainer: Trainer | None = None
        for epoch, plan in enumerate(self._plan):
            started = time.perf_counter()
            try:
                with self._setup.repeatable():
                    if trainer is None:
                        seeds = [self._seeds[k] for k in group]
                        trainer = backend.make_trainer(self._setup, seeds, self._labels_of(group))
                    with suitable_threads(is_small=trainer.is_small):
                        trained = trainer.train_epoch(self._rates[group, epoch], *plan)
                        # (5, K, 2): the only transfer from the device in this epoch
                        measured = torch.cat([trainer.evaluate(), trained]).cpu().numpy()
            except Exception as error:
                if backend.n_lanes(len(group)) > 1:
                    return group
                self._failures[group[0]] = _without_frames(error)
                break
            seconds = (time.perf_counter() - started) / len(group)
            going_on = [
                position
                for position, k in enumerate(group)
                if self._record(k, epoch, Metrics(*measured[:, position]), seconds)
            ]
            is_last = epoch + 1 == len(self._plan)
            for position, k in enumerate(group):
                if self._failures[k] is None and (is_last or position not in going_on):
                    self._samples[k] = trainer.samples(position)
                    if self._keeps:
                        first, second = trainer.networks(position)
                        self._networks[k] = first.cpu().eval(), second.cpu().eval()
            if not going_on:
                break
            if len(going_on) < len(group):
                trainer.keep_trials(going_on)
                group = [group[position] for position in going_on]
        return []

    def _labels_of(self, group: list[int]) -> Tensor:
        return self._labels if self._labels.ndim == 1 else self._labels[group]

    def _record(self, k: int, epoch: int, metrics: Metrics, seconds: float) -> bool:
        """Record an epoch of a trial; return whether the trial goes on."""
        self._seconds[k] += seconds
        if epoch < self._done[k]:
            return True  # this epoch was recorded before the group was halved
        self._curves[k, :, epoch] = metrics
        self._done[k] = epoch + 1
        self._failures[k] = _non_finite(metrics, epoch)
        if self._failures[k] is not None:
            return False
        return self._on_epoch is None or not self._on_epoch(k, epoch, metrics)


def _without_frames(error: Exception) -> Exception:
    """Turn the traceback of an error into a note.

    The frames of a traceback hold the networks of the trial. A trial that ran out of memory would
    otherwise keep that memory from the trials that follow.
    """
    error.add_note("In the training:\n" + "".join(traceback.format_exception(error)))
    for link in chain(error):
        link.__traceback__ = None
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
    if check_choice("evaluate_on", evaluate_on, ("validation", "test")) == "validation":
        return data.x_val, data.y_val
    if data.x_test is None or data.y_test is None:
        raise ValueError(f"evaluate_on='test' needs test data, but {data.name!r} holds none.")
    return data.x_test, data.y_test


def _checked_trials(
    keep_rates: npt.ArrayLike, seeds: Sequence[int]
) -> tuple[FloatArray, list[int]]:
    rates = np.asarray(keep_rates, dtype=np.float64)
    check_axes("keep_rates", rates, "(K, T)")
    if not ((rates > 0) & (rates <= 1)).all():  # also refuses NaN
        wrong = rates[~((rates > 0) & (rates <= 1))][0]
        raise ValueError(f"keep_rates must be in (0, 1], but got {wrong!r}.")
    check_shape("seeds", np.array(seeds, dtype=object), "(K,)", (len(rates),))
    return rates, [check_int(f"seeds[{k}]", seed, 0) for k, seed in enumerate(seeds)]


def _checked_labels(
    labels: npt.ArrayLike | Tensor, keep_rates: FloatArray, data: NoisyData
) -> Tensor:
    checked = labels if isinstance(labels, Tensor) else np.array(labels)
    if not isinstance(checked, Tensor) and checked.dtype.kind in "biu":
        checked = torch.from_numpy(checked)
    expected = (len(keep_rates), len(data.x))
    if not isinstance(checked, Tensor) or checked.is_floating_point() or checked.shape != expected:
        raise ValueError(
            f"labels must be integers of shape (K, N) = {expected}, "
            f"but got {checked.dtype} of shape {tuple(checked.shape)}."
        )
    low, high = int(checked.min()), int(checked.max())
    if low < -1 or high >= data.n_classes:
        wrong = low if low < -1 else high
        raise ValueError(f"labels must be in [-1, {data.n_classes - 1}], but got {wrong}.")
    if len(set(kept := (checked >= 0).sum(dim=1).tolist())) > 1 or kept[0] == 0:
        raise ValueError(f"labels must keep equally many samples, not {kept}.")
    return checked.to(data.x.device, torch.int64)
