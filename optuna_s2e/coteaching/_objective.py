"""An Optuna objective: the validation error of a method under the schedule of a trial."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna import TrialPruned
from optuna.study import Study
from optuna.trial import BaseTrial, Trial

from optuna_s2e._attributes import CURVES_KEY, SEED_KEY, curves_to_json
from optuna_s2e._checks import check_choice, check_int
from optuna_s2e._optuna import first_try_number, set_running_trial_attr
from optuna_s2e._typing import FloatArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._methods import find_method, method_settings
from optuna_s2e.coteaching._networks import Network, check_inputs, find_network, make_network
from optuna_s2e.coteaching._noise_estimate import NoiseEstimate, epochs_beside, estimate_noise
from optuna_s2e.coteaching._steps import Method
from optuna_s2e.coteaching._study_spaces import ESTIMATE, StudySpaces
from optuna_s2e.coteaching._training import (
    Metrics,
    TrainingResult,
    find_device,
    last_epochs_mean,
    train_batch,
)
from optuna_s2e.coteaching._trial_display import TrialReporter, display
from optuna_s2e.coteaching.backends import BACKENDS, check_method
from optuna_s2e.coteaching.data import NoisyData, load_data
from optuna_s2e.schedules import DEFAULT_KIND, ScheduleSpace

TRIAL_STREAM = 0  # spawn key of the trials' seeds
_METRICS = {"validation_error": "error", "validation_loss": "loss"}
_N_REPORTS = 10
_SETTINGS_VERSION = 1
_N_TRIED = 8  # samples that `check` trains on

# There are 55 times fewer digits than images in MNIST. With the paper's values, the networks
# memorise nothing within 40 epochs. With these values and 50 % symmetric noise, Standard falls
# from 89 % to 71 % test accuracy, while Eq 1 with tau .6 ends at 93 % (mean of 8 seeds). All other
# data sets have the paper's values.
PRESETS = {"digits": TrainingConfig(batch_size=64, learning_rate=1e-2)}


class CoteachingObjective:
    """Train Co-teaching under the schedule that a trial suggests and return its validation error.

    The value is to be minimised. It is the mean over both networks and the last 10 % of the
    epochs (at least one). Each trial records these user attributes: `seed`, `validation_error`,
    `validation_loss`, `label_precision` (if clean labels are known), `train_accuracy` (against
    the noisy labels) and `training_seconds`. All curves are one system attribute in JSON,
    `coteaching:curves`.

    The seed of a trial follows from `seed` and the number of the trial, under any sampler. For a
    retry, it is the number of the first try; under `optimize_batch`, it is the number of the
    slot. If a trial already has a user attribute `seed`, it is trained with that one. A finished
    trial (`objective(study.best_trial)`) thus repeats its numbers.

    Args:
        data: Data to train on, from `load_data` or `NoisyData.from_arrays`, for example.
        network: A name ("mlp", "cnn2", ...) or a function, as in `make_network`.
        n_epochs: T, the number of training epochs, at least 2.
        device: "auto" (CUDA if there is any, else the CPU), "cpu", "cuda", ...
        seed: Seed that the seeds of the trials follow from, a non-negative int.
        kind: Space of the schedules, as in `ScheduleSpace`. None takes its default.
        noise_rate: Share of wrong labels that the ranges of the space follow from, as in
            `ScheduleSpace`. None (default) takes the wide ranges. "estimate": `estimate_noise`
            finds it, once per study, before the first trial, and the study records it. All workers
            and a resumed study go by what is recorded. The estimate costs about 1.3 trainings of
            T epochs if T <= 40, and less if T is larger. A `NoiseEstimate` that you have made is
            recorded in its place.
        config: Optimiser and mini-batches. None takes the preset of the data set: mini-batches of
            64 and a learning rate of 1e-2 for the digits, the paper's 128 and 1e-3 for all others.
        learning_rate: Learning rate that replaces that of `config`.
        batch_size: Size of the mini-batches that replaces that of `config`.
        metric: "validation_error" (0/1 loss) or "validation_loss" (cross-entropy). The error is
            the default, because the cross-entropy prefers schedules that do not resist pair
            noise. Both are recorded.
        prune: Whether to obey the study's pruner. The default is False, although `create_study`
            sets a MedianPruner: learning curves cross under label noise, schedules that memorise
            lead in the first epochs, and a pruner would favour them.
        backend: How to train, as in `train_batch`. Like the device, it is no part of `settings`.
            "graphs" is experimental: it has never run on a GPU.
        reporter: Object that shows each trial while it trains, such as
            `optuna_s2e.dashboard.DashboardReporter`. It changes no number.
        method: What is trained under the schedules, as in `train_batch`: "coteaching" (default),
            "mentornet", "coteaching+", "jocor", ... or a method with options.

    Raises:
        ValueError: If an argument is out of range, a network of that name does not fit the data,
            or the backend cannot train the method. `check` tries a network function.

    Warns:
        UserWarning: If the method makes no use of R(t): there is nothing to search.

    Example:
        >>> import optuna
        >>> data = load_data("digits", noise="symmetric", noise_rate=0.5, seed=0)
        >>> objective = CoteachingObjective(data, n_epochs=2, device="cpu")
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        >>> study.optimize(objective, n_trials=1)
        >>> study.best_value == study.best_trial.user_attrs["validation_error"]
        True
    """

    def __init__(
        self,
        data: NoisyData,
        *,
        network: Network = "mlp",
        n_epochs: int = 40,
        device: torch.device | str = "auto",
        seed: int = 0,
        kind: str | None = None,
        noise_rate: float | str | NoiseEstimate | None = None,
        config: TrainingConfig | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        metric: str = "validation_error",
        prune: bool = False,
        backend: str = "auto",
        reporter: TrialReporter | None = None,
        method: str | Method = "coteaching",
    ) -> None:
        check_choice("metric", metric, _METRICS)
        check_choice("backend", backend, BACKENDS)
        find_network(network)
        check_inputs(network, data.x.dtype)
        if isinstance(network, str):  # a function may be slow: `check` calls it
            make_network(network, data.input_shape, data.n_classes, seed=0)
        overrides: dict[str, Any] = {"learning_rate": learning_rate, "batch_size": batch_size}
        config = config or PRESETS.get(data.name, TrainingConfig())
        self.config = replace(config, **{k: v for k, v in overrides.items() if v is not None})
        self.device = find_device(device)
        self.data = data.to(self.device)
        self.network = network
        self.seed = check_int("seed", seed, 0)
        self._estimated = noise_rate if isinstance(noise_rate, NoiseEstimate) else None
        self.spaces = StudySpaces(
            n_epochs,
            kind or DEFAULT_KIND,
            ESTIMATE if isinstance(noise_rate, NoiseEstimate) else noise_rate,
            self._estimate,
            None if self._estimated else self.seed,
        )
        self.metric = metric
        self.prune = prune
        self.backend = backend
        self.reporter = reporter
        self.method = find_method(method)
        check_method(backend, self.method)
        if not self.method.uses_schedule:
            warnings.warn(
                f"method {self.method.name!r} makes no use of R(t): its trials differ by their "
                "seeds alone. Search under 'coteaching', for example.",
                stacklevel=2,
            )

    def __call__(self, trial: BaseTrial) -> float:
        """Train the networks under the schedule that a trial suggests.

        Args:
            trial: A running trial, or a `FixedTrial` or `FrozenTrial` whose schedule is repeated.

        Returns:
            The metric, or NaN if a loss became non-finite. Optuna records NaN as FAIL.

        Raises:
            TrialPruned: If `prune` is set and the pruner stops the trial.
            Exception: If the network or the storage raises.
        """
        (result,) = self.batch([trial])
        if isinstance(result, FloatingPointError):
            warnings.warn(
                f"Trial {trial.number} returns NaN, which Optuna records as FAIL: {result}. A "
                f"learning rate below {self.config.learning_rate} may help.",
                RuntimeWarning,
                stacklevel=2,
            )
            return math.nan
        if isinstance(result, Exception):
            raise result
        return result

    def batch(self, trials: Sequence[BaseTrial]) -> list[float | Exception]:
        """Train the schedules of several trials in one call (`optimize_batch` without executor).

        Args:
            trials: The trials, of any length.

        Returns:
            For each trial the metric or an exception: `TrialPruned`, a FloatingPointError if a
            loss became non-finite, or the exception that its training raised. An exception of one
            trial does not affect the others.
        """
        results: list[float | Exception] = []
        plans: list[tuple[int, FloatArray, int]] = []  # position, keep_rates, seed
        shows: list[Callable[..., None]] = []
        for position, trial in enumerate(trials):
            try:
                schedule = self.spaces.of_trial(trial).suggest(trial)
                seed = self._seed_of(trial)
                trial.set_user_attr(SEED_KEY, seed)
                shows.append(display(self.reporter, trial, schedule))
                plans.append((position, schedule.keep_rates, seed))
                results.append(math.nan)
            except Exception as error:
                results.append(error)

        def on_epoch(k: int, epoch: int, metrics: Metrics) -> bool:
            position = plans[k][0]
            shows[k](metrics)
            try:
                return self._report(trials[position], epoch, metrics)
            except Exception as error:
                results[position] = error
                return True

        if not plans:
            return results
        trained = train_batch(
            np.array([keep_rates for _, keep_rates, _ in plans]),
            [seed for *_, seed in plans],
            data=self.data,
            network=self.network,
            config=self.config,
            device=self.device,
            on_epoch=on_epoch,
            backend=self.backend,
            method=self.method,
        )
        for (position, *_), show, result in zip(plans, shows, trained, strict=True):
            if not isinstance(results[position], Exception):
                results[position] = self._finish(trials[position], result)
            show(final=True)
        return results

    def _finish(self, trial: BaseTrial, result: TrainingResult) -> float | Exception:
        """Record a training in its trial; return the metric or an exception."""
        if result.failure is None and result.n_epochs < self.n_epochs:
            return TrialPruned(f"pruned after {result.n_epochs} epochs")
        if result.failure is not None:
            return result.failure
        try:
            _record(trial, result)
        except Exception as error:
            return error
        return _rounded_mean(getattr(result.curves, _METRICS[self.metric]))

    @property
    def space(self) -> ScheduleSpace:
        """The space of the schedules.

        Raises:
            ValueError: If it follows from an estimate. Then each study has its own, which
                `prepare_study` returns.
        """
        return self.spaces.given

    @property
    def n_epochs(self) -> int:
        """T, the number of training epochs."""
        return self.spaces.n_epochs

    @property
    def noise_rate(self) -> float | str | None:
        """The noise rate that the space follows from, or "estimate"."""
        return self.spaces.noise_rate

    def prepare_study(
        self, study: Study, progress: Callable[[int, int], None] | None = None
    ) -> ScheduleSpace:
        """Return the space that a study searches; estimate the noise first if nobody has.

        The first trial calls it, and so does `optimize_batch`.

        Args:
            study: The study. It keeps the estimate as a user attribute, `s2e:noise`.
            progress: Function that is called with (epochs done, all epochs) during the estimate.

        Raises:
            ValueError: If the study maximises, or the noise cannot be estimated.
            RuntimeError: If the study cannot be written to.
        """
        return self.spaces.of_study(study, progress)

    def _estimate(self, progress: Callable[[int, int], None] | None) -> NoiseEstimate:
        """Return the estimate of the noise, which is the same for all studies."""
        if self._estimated is None:
            self._estimated = estimate_noise(
                self.data,
                network=self.network,
                config=self.config,
                n_epochs=epochs_beside(self.n_epochs),
                device=self.device,
                seed=self.seed,
                progress=progress,
            )
        return self._estimated

    def check(self) -> None:
        """Try the network on a few samples, before a study is made: an unfit one is found now.

        Two trials take one step and are evaluated, as in a search. Nothing is kept of them.

        Raises:
            ValueError: If the network or the backend cannot train on these data. The message says
                why, in one line.
        """
        n = min(_N_TRIED, self.config.batch_size)
        clean = self.data.clean_labels
        few = replace(
            self.data,
            x=self.data.x[:n],
            noisy_labels=self.data.noisy_labels[:n],
            clean_labels=None if clean is None else clean[:n],
            x_val=self.data.x_val[:n],
            y_val=self.data.y_val[:n],
        )
        results = train_batch(
            np.ones((2, 1)),
            [self.trial_seed(number) for number in (0, 1)],
            data=few,
            network=self.network,
            config=self.config,
            device=self.device,
            backend=self.backend,
            method=self.method,
        )
        failure = next((result.failure for result in results if result.failure), None)
        if failure is None:
            return
        why = " ".join(str(failure).split())
        if not isinstance(failure, ValueError):  # else it names the network already
            what = f"network {self.network!r}" if isinstance(self.network, str) else "network"
            why = (
                f"{what} must train on inputs of shape {self.data.input_shape} and "
                f"{self.data.n_classes} classes, but a first step on {len(few.x)} samples "
                f"failed: {type(failure).__name__}: {why}"
            )
        raise ValueError(why) from failure

    @property
    def settings(self) -> dict[str, Any] | None:
        """What `from_settings` needs to make this objective again, in JSON's types.

        It is None if the objective cannot be made again, because its data are arrays or data
        sets, or its network is a function. The device is left out: it belongs to the machine.
        """
        if self.data.settings is None or not isinstance(self.network, str):
            return None
        method = method_settings(self.method)
        return {
            "version": _SETTINGS_VERSION,
            "data": dict(self.data.settings),
            "network": self.network,
            "n_epochs": self.n_epochs,
            "seed": self.seed,
            "kind": self.spaces.kind,
            "config": asdict(self.config),
            "metric": self.metric,
            "prune": self.prune,
            **({} if self.noise_rate is None else {"noise_rate": self.noise_rate}),
            **({} if method == "coteaching" else {"method": method}),
        }

    @classmethod
    def from_settings(
        cls,
        settings: Mapping[str, Any] | None,
        *,
        data_root: str | Path | None = None,
        device: torch.device | str = "auto",
        download: bool = True,
    ) -> CoteachingObjective:
        """Make the objective that `settings` describes. The data are loaded again.

        Args:
            settings: What `settings` returned, also after a way through JSON.
            data_root: Folder of the data, as `root` of `load_data`.
            device: Device to train on, as in the constructor.
            download: Whether to download missing data, as in `load_data`.

        Returns:
            An objective with the same settings. The data have the same noise and splits.

        Raises:
            ValueError: If the settings are None, damaged, or of a later version.
            OSError: If the data are missing.
        """
        if settings is None:
            raise ValueError(
                "settings must be a mapping, but got None: the objective has data or a network "
                "of its own. Make it again with them."
            )
        known = _checked_settings(settings)
        try:
            config = TrainingConfig(**known.pop("config"))
            known["method"] = find_method(known.pop("method", "coteaching"))
            load = {**known.pop("data"), "root": data_root, "download": download}
            return cls(load_data(load.pop("name"), **load), config=config, device=device, **known)
        except (TypeError, KeyError) as error:  # a field is missing or unknown
            raise ValueError(f"settings are damaged: {error}.") from error

    def trial_seed(self, number: int) -> int:
        """Return the seed of the trial with this number, in [0, 2^32).

        Args:
            number: Number of the trial, or of its slot under `optimize_batch`, at least 0.
        """
        sequence = np.random.SeedSequence(self.seed, spawn_key=(TRIAL_STREAM, number))
        return int(sequence.generate_state(1)[0])

    def _seed_of(self, trial: BaseTrial) -> int:
        recorded = trial.user_attrs.get(SEED_KEY)
        if isinstance(recorded, int | np.integer) and not isinstance(recorded, bool):
            name = f"user attribute {SEED_KEY!r} of trial {trial.number}"
            return check_int(name, recorded, 0, 2**64 - 1)  # what PyTorch takes
        if isinstance(trial, Trial):
            return self.trial_seed(first_try_number(trial))
        return self.trial_seed(trial.number)

    def _report(self, trial: BaseTrial, epoch: int, metrics: Metrics) -> bool:
        """Report at most ten epochs, because a report costs as much as an epoch on the digits."""
        last = self.n_epochs - 1
        interval = math.ceil(self.n_epochs / _N_REPORTS)
        if (last - epoch) % interval:
            return False
        trial.report(round(float(getattr(metrics, _METRICS[self.metric]).mean()), 6), epoch)
        return self.prune and epoch < last and trial.should_prune()


def _checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the settings without their version."""
    expected = {"version", "data", "network", "n_epochs", "seed", "kind", "config"}
    expected |= {"metric", "prune"}
    if settings.get("version") != _SETTINGS_VERSION:
        raise ValueError(
            f"settings must be of version {_SETTINGS_VERSION}, but got "
            f"{settings.get('version')!r}. Use the release of optuna_s2e that wrote them."
        )
    if set(settings) - {"noise_rate", "method"} != expected:
        raise ValueError(
            f"settings must have the keys {sorted(expected)}, but got {sorted(settings)}."
        )
    return {key: value for key, value in settings.items() if key != "version"}


def _rounded_mean(curve: FloatArray) -> float:
    """Return the recorded mean of a curve; six digits fit into a dashboard's card."""
    return round(last_epochs_mean(curve), 6)


def _record(trial: BaseTrial, result: TrainingResult) -> None:
    values = {
        "validation_error": _rounded_mean(result.curves.error),
        "validation_loss": _rounded_mean(result.curves.loss),
        "label_precision": _rounded_mean(result.curves.label_precision),
        "train_accuracy": _rounded_mean(result.curves.train_accuracy),
        "training_seconds": round(result.seconds, 3),
    }
    for name, value in values.items():
        if math.isfinite(value):  # label precision is NaN without clean labels
            trial.set_user_attr(name, value)
    if isinstance(trial, Trial):  # a FixedTrial or FrozenTrial has no storage
        set_running_trial_attr(trial, CURVES_KEY, curves_to_json(_trained(result)))


def _trained(result: TrainingResult) -> dict[str, FloatArray]:
    """Return the curves of the epochs that were trained, (n_epochs, 2) each."""
    return {name: curve[: result.n_epochs] for name, curve in result.curves._asdict().items()}
