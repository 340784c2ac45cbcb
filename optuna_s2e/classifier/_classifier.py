"""`NoisyLabelClassifier`: from data with wrong labels to predictions and a list of the errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from optuna.study import Study
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from optuna_s2e._checks import check_int, check_number
from optuna_s2e._typing import FloatArray
from optuna_s2e.classifier._calibration import at_temperature, fit_temperature
from optuna_s2e.classifier._defaults import (
    ESTIMATE_EPOCHS,
    N_EPOCHS,
    auto_network,
    describe_network,
    find_network,
    quick_epochs,
    training_config,
)
from optuna_s2e.classifier._fitting import Fitting, Labelled, Noise
from optuna_s2e.classifier._inputs import InputEncoder, read_dataset
from optuna_s2e.classifier._labels import read_classes, warn_of_other_order
from optuna_s2e.classifier._study import Budget, SearchStudy, quiet_optuna
from optuna_s2e.classifier._table import check_names
from optuna_s2e.coteaching import label_quality, list_label_errors, predict_probabilities
from optuna_s2e.schedules import Schedule, standard_schedule, suggested_schedule

if TYPE_CHECKING:
    import pandas as pd

NetworkFunction = Callable[[tuple[int, ...], int], nn.Module]


class NoisyLabelClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Train a classifier on data whose labels are partly wrong, and find the wrong ones.

    `fit` estimates how many labels are wrong, searches a schedule (how many samples of large loss
    are left out in which epoch), and trains two networks that select samples for each other with
    that schedule on all samples. Predictions are the mean of both networks' probabilities.

    It takes data frames and arrays (N, d) with numbers, categories and missing values, uint8
    images (channels first or last), arrays of more axes, tensors, and torch data sets of (input,
    label) items in place of X and y. Inputs are scaled and encoded by themselves. Classes may be
    strings or numbers.

    Args:
        network: "auto" (a perceptron of two hidden layers for tables, "cnn2" for images of at
            least 16 x 16 pixels), a name or a function, as in
            `optuna_s2e.coteaching.make_network`.
        n_epochs: T, epochs of each training, at least 2. None takes 20 for tables, 40 otherwise;
            with `n_pairs=0` it takes 5, and more of fewer than 300 samples.
        search: Whether to search a schedule. False trains the one that is suggested at the noise
            rate at once, which is `budget` + 1 times as fast.
        budget: Length of the search: a number of trainings, or a time such as "90 s", "10 min" or
            "2 h" (then the result depends on the speed of the machine).
        noise_rate: Share of wrong labels, in [0, 1), if you know it. None estimates it.
        storage: URL of a storage that the search is recorded in, as in `optuna_s2e.open_storage`,
            for example "sqlite:///s2e.db". A `fit` that was stopped goes on there if it is called
            again with the same data and arguments, and `s2e dashboard` shows it. None keeps the
            search in memory.
        study_name: Name of the study in the storage. None derives one from the data and the
            arguments.
        n_pairs: Number of pairs of networks in the final training. Several pairs predict somewhat
            better, and cost so many trainings. 0, with `search=False`: no pair is trained. The
            networks of the estimate are the model and judge the labels, which takes a third of the
            time. If there are too few samples for an estimate, one pair is trained all the same.
        device: "auto" (CUDA if there is any, else the CPU), "cpu", "cuda", ...
        batch_size: Size of the mini-batches. None takes about a fiftieth of the samples, between
            8 and 128 (256 for tables with `n_pairs=0`).
        learning_rate: Adam's learning rate. None takes 2e-3 for the network of tables, else 1e-3.
        validation_fraction: Share of the samples that is held out during the search, in (0, 1).
            It is not used if `X_val` is given or `search` is False.
        progress: Whether to show a progress bar. None shows it in a terminal.
        random_state: Seed: an int, a `numpy.random.RandomState` or None, as in scikit-learn. The
            same int repeats all numbers bit for bit on the same machine.

    Attributes:
        classes_: The classes, sorted, (C,).
        n_features_in_: Number of columns of X (of the first axis after the samples, for images).
        feature_names_in_: Names of the columns, if X was a data frame with string names.
        noise_rate_: Share of wrong labels, estimated or given.
        noise_interval_: 95 % interval of an estimated rate; None if the rate was given, or if
            there are too few samples to estimate it.
        transition_matrix_: Estimated P(given label | true class), (C, C); None if the noise rate
            was given.
        oof_proba_: Out-of-fold probability of each class for each training sample, by networks
            that were not trained on the sample, (N, C): what the estimate of the noise made on its
            way. Rows are NaN for classes of fewer than three samples. With clean labels (`X_val`)
            they are calibrated on them. None if the noise rate was given, or could not be
            estimated.
        schedule_: The schedule R(t) of the final training.
        study_: The study of the search; None without a search, and after `load`.
        label_quality_: How much the networks trust each training label, in [0, 1], (N,).
        temperature_: What calibrates the probabilities, fitted to the clean labels (`X_val`); 1.0
            without clean labels. Predictions do not depend on it.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e import NoisyLabelClassifier
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(300, 4))
        >>> true = np.where(X[:, 0] + X[:, 1] > 0, "yes", "no")
        >>> y = np.where(rng.random(300) < 0.2, np.where(true == "yes", "no", "yes"), true)
        >>> model = NoisyLabelClassifier(search=False, device="cpu", random_state=0).fit(X, y)
        >>> model.score(X, true) > 0.9
        True
    """

    def __init__(
        self,
        *,
        network: str | NetworkFunction = "auto",
        n_epochs: int | None = None,
        search: bool = True,
        budget: int | str = 12,
        noise_rate: float | None = None,
        storage: str | None = None,
        study_name: str | None = None,
        n_pairs: int = 1,
        device: str = "auto",
        batch_size: int | None = None,
        learning_rate: float | None = None,
        validation_fraction: float = 0.2,
        progress: bool | None = None,
        random_state: Any = None,
    ) -> None:
        self.network = network
        self.n_epochs = n_epochs
        self.search = search
        self.budget = budget
        self.noise_rate = noise_rate
        self.storage = storage
        self.study_name = study_name
        self.n_pairs = n_pairs
        self.device = device
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.progress = progress
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        """Return what inputs it takes, for scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = True
        return tags

    def fit(self, X: Any, y: Any = None, X_val: Any = None, y_val: Any = None) -> Self:
        """Estimate the noise, search a schedule and train the networks.

        Args:
            X: Training inputs, or a torch data set of (input, label) items.
            y: Their labels, some of them wrong, (N,). None if X is a data set.
            X_val: Inputs with clean labels, if you have any, or such a data set: both the estimate
                and the search are better with them.
            y_val: The clean labels.

        Returns:
            This classifier.

        Raises:
            ValueError: If an argument is out of range, the data cannot be used, or the study
                belongs to other data. The message says what to do.
        """
        budget = Budget.read(self.budget)
        n_pairs = check_int("n_pairs", self.n_pairs, 0)
        fraction = check_number(
            "validation_fraction", self.validation_fraction, 0, 1, open_low=True, open_high=True
        )
        given_rate = self.noise_rate
        if given_rate is not None:
            given_rate = check_number("noise_rate", given_rate, 0, 1, open_high=True)
        if n_pairs == 0:
            self._check_quick()
        x, y = self._read("X", X, y, reset=True)
        warn_of_other_order(X, y)
        self.classes_, numbers = read_classes(y)
        self._encoder = InputEncoder.learn(x)
        inputs = self._encoder.encode(x)
        validation = self._read_validation(X_val, y_val)
        kind = self._encoder.kind
        self._network = self.network
        if self._network == "auto":
            self._network = auto_network(kind, tuple(inputs.shape[1:]))
        config = training_config(
            self._network, len(numbers), self.batch_size, self.learning_rate, is_quick=n_pairs == 0
        )
        n_epochs = self.n_epochs
        if n_epochs is None and n_pairs == 0:
            n_epochs = quick_epochs(kind, len(numbers), config.batch_size)
        n_epochs = check_int("n_epochs", N_EPOCHS[kind] if n_epochs is None else n_epochs, 2)
        seed = int(check_random_state(self.random_state).randint(2**31))
        fitting = Fitting(
            train=(inputs, numbers),
            validation=validation,
            n_classes=len(self.classes_),
            network=find_network(self._network),
            n_epochs=n_epochs,
            n_estimate=min(ESTIMATE_EPOCHS, n_epochs) if n_pairs else n_epochs,
            config=config,
            device=self.device,
            seed=seed,
            bar=tqdm(disable=not self._shows_progress(), unit="epoch", leave=False),
        )
        with fitting.bar, quiet_optuna():
            self._fit(fitting, budget, fraction, given_rate, n_pairs)
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the most likely class of each sample, (N,).

        Args:
            X: Inputs as in `fit`.
        """
        probabilities = self._predict(X)
        predicted: npt.NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return predicted

    def predict_proba(self, X: Any) -> FloatArray:
        """Return the probability of each class, in the order of `classes_`, (N, C).

        They are calibrated if `fit` got clean labels (`X_val`). Without, they are what the
        networks say, who learned from wrong labels: good to compare samples, not to be taken at
        their word.

        Args:
            X: Inputs as in `fit`.
        """
        return at_temperature(self._predict(X), self.temperature_)

    def find_label_errors(
        self,
        *,
        n: int | None = None,
        noise_rate: float | None = None,
        threshold: float | None = None,
    ) -> pd.DataFrame:
        """Return the training labels that are most likely wrong, the worst first.

        Args:
            n: Number of labels. At most one of these arguments may be given; without any, as many
                labels are listed as `noise_rate_` says.
            noise_rate: Share of the labels, in [0, 1].
            threshold: Labels of a `label_quality_` below this are listed.

        Returns:
            A pandas data frame with the columns index (row of X, from 0), given_label,
            suggested_label, quality and evidence.

        Raises:
            ImportError: If pandas is missing.
            ValueError: If an argument is out of range, or several are given.
        """
        check_is_fitted(self)
        if n is None and noise_rate is None and threshold is None:
            noise_rate = self.noise_rate_
        return list_label_errors(
            self._samples,
            self._labels,
            noise=self._noise.known,
            classes=self.classes_.tolist(),
            n=n,
            noise_rate=noise_rate,
            threshold=threshold,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted classifier to a file, without pickle.

        A network function is not saved: `load` needs it again.

        Args:
            path: The file. An existing one is replaced.
        """
        from optuna_s2e.classifier._persistence import save

        check_is_fitted(self)
        save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str], *, network: NetworkFunction | None = None) -> Self:
        """Read a classifier that `save` wrote. It runs no code from the file.

        Args:
            path: The file.
            network: The network function, if it was fitted with one.

        Raises:
            ValueError: If the file is no classifier, or the network is missing or another one.
            OSError: If the file cannot be read.
        """
        from optuna_s2e.classifier._persistence import load

        return load(cls(), path, network)

    def _predict(self, X: Any) -> FloatArray:
        """Return the networks' mean probabilities as they are, (N, C)."""
        check_is_fitted(self)
        x, _ = self._read("X", X, None, reset=False, labelled=False)
        return self._probabilities(self._encoder.encode(x))

    def _fit(
        self,
        fitting: Fitting,
        budget: Budget,
        fraction: float,
        noise_rate: float | None,
        n_pairs: int,
    ) -> None:
        """Carry out the steps of a fit, and keep what they found."""
        bar, n_epochs = fitting.bar, fitting.n_epochs
        if not fitting.can_estimate():  # then it has no networks to be the model
            n_pairs = max(n_pairs, 1)
        bar.total = n_pairs * n_epochs + (0 if noise_rate is not None else fitting.estimate_epochs)
        self.study_: Study | None = None
        schedule: Schedule | None = None
        if self.search:
            bar.total += (budget.n_trials or 0) * n_epochs
            found = self._open_study(fitting, noise_rate)
            fitting = replace(fitting, seed=found.seed)
            self.study_ = found.study
        noise = fitting.noise(noise_rate, keep_networks=n_pairs == 0)
        if self.study_ is not None:
            schedule = fitting.search(self.study_, noise, fraction, *budget)
        self._keep_noise(noise)
        if n_pairs == 0:
            self.schedule_, results = standard_schedule(n_epochs), []
            self._networks = list(noise.networks)
        else:
            self.schedule_ = schedule or suggested_schedule(n_epochs, noise.rate)
            results = fitting.fit(self.schedule_.keep_rates, n_pairs)
            self._networks = [net for result in results for net in result.networks or ()]
        self._dtype = torch.float32
        if self._encoder.kind == "table" and isinstance(self._network, str):
            # the prediction of a row then does not depend on the rows beside it
            self._dtype = torch.float64
            self._networks = [net.double() for net in self._networks]
        self._samples = [result.samples for result in results if result.samples is not None]
        self._labels = fitting.train[1]
        self._input_shape = tuple(fitting.train[0].shape[1:])
        self.label_quality_ = label_quality(self._samples, self._labels, noise=noise.known)
        self.temperature_ = 1.0
        if fitting.validation is not None:
            x_val, y_val = fitting.validation
            self.temperature_ = fit_temperature(self._probabilities(x_val), y_val)

    def _check_quick(self) -> None:
        """Refuse what has no meaning without a pair."""
        if self.search:
            raise ValueError(
                "search must be False if n_pairs is 0, but got True: no schedule is trained."
            )
        if self.noise_rate is not None:
            raise ValueError(
                f"noise_rate must be None if n_pairs is 0, but got {self.noise_rate!r}: the "
                "networks of the estimate are the model."
            )

    def _keep_noise(self, noise: Noise) -> None:
        self._noise = noise._replace(networks=())
        self.noise_rate_, self.transition_matrix_ = noise.rate, noise.matrix
        self.noise_interval_, self.oof_proba_ = noise.interval, noise.probabilities

    def _open_study(self, fitting: Fitting, noise_rate: float | None) -> SearchStudy:
        settings = {
            "network": describe_network(self._network),
            "n_epochs": fitting.n_epochs,
            "batch_size": fitting.config.batch_size,
            "learning_rate": fitting.config.learning_rate,
            "validation_fraction": self.validation_fraction,
            "noise_rate": noise_rate,
        }
        return SearchStudy.open(
            self.storage,
            self.study_name,
            fingerprint=fitting.fingerprint(),
            settings=settings,
            seed=fitting.seed,
            is_seed_given=self.random_state is not None,
        )

    def _read(
        self, name: str, x: Any, y: Any, *, reset: bool, labelled: bool = True
    ) -> tuple[Any, Any]:
        """Return inputs as a data frame, an array or a tensor, and labels as they were given."""
        if isinstance(x, Dataset):
            x, found = read_dataset(name, x)
            y = found if y is None else y
        x, y = _masked_as_missing(x), _masked_as_missing(y)
        if isinstance(x, Tensor):
            validate_data(self, x.detach().cpu().numpy(), reset=reset, allow_nd=True,
                          ensure_all_finite=False, dtype=None)  # fmt: skip
        elif hasattr(x, "columns"):  # a data frame
            if min(x.shape) == 0:
                raise ValueError(f"{name} must hold rows and columns, but got shape {x.shape}.")
            check_names(name, list(x.columns))
            validate_data(self, x, reset=reset, skip_check_array=True)
        else:
            x = validate_data(self, x, reset=reset, allow_nd=True, ensure_all_finite=False,
                              dtype=None)  # fmt: skip
        if not labelled:
            return x, None
        if y is None:
            raise ValueError(
                f"requires y to be passed, but the target y is None. Give the labels of {name}."
            )
        check_consistent_length(x, y)
        return x, y

    def _read_validation(self, x: Any, y: Any) -> Labelled | None:
        """Return clean samples as `fit` got them, encoded; None if there are none."""
        if x is None and y is None:
            return None
        if x is None or (y is None and not isinstance(x, Dataset)):
            missing = "X_val" if x is None else "y_val"
            raise ValueError(f"X_val and y_val must be given together, but {missing} is missing.")
        x, y = self._read("X_val", x, y, reset=False)
        labels = column_or_1d(y, dtype=None)
        known = np.isin(labels, self.classes_)
        if not known.all():
            raise ValueError(
                f"y_val must hold classes of y, but holds {labels[~known].tolist()[0]!r}. "
                "Drop such samples, or add some to X and y."
            )
        return self._encoder.encode(x), np.searchsorted(self.classes_, labels)

    def _shows_progress(self) -> bool:
        return sys.stderr.isatty() if self.progress is None else bool(self.progress)

    def _probabilities(self, inputs: Tensor) -> FloatArray:
        """Return the mean probabilities of all networks, (N, C)."""
        return predict_probabilities(self._networks, inputs, dtype=self._dtype)


def _masked_as_missing(values: Any) -> Any:
    """Return a masked array with NaN in place of what is masked; anything else as it is."""
    if not np.ma.is_masked(values):
        return values
    return values.astype(np.float64 if values.dtype.kind in "biuf" else object).filled(np.nan)
