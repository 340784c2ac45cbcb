r"""Which labels are wrong: a quality of each label, and the list of those that are worst.

Two networks that select samples for each other are hardly trained on wrong labels. So they prefer
another class to a wrong label for the whole training, and not only until they have learned it.

Notation
    y, r        given label of a sample; its rival, the class that a network prefers among the
                others, as class numbers                                             (N,)
    P           transition matrix, P[i, j] = P(given label j | true class i)         (C, C)
    m           networks that watched the samples, two per training
    margin      mean over the epochs of the logit of y less that of the best other class (N, m)
    quality     how likely y is to be right, in [0, 1]                               (N,)

References:
    Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS
    2020 (the margin, of one network that is trained on all labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit

from optuna_s2e._checks import check_int, check_number, check_shape
from optuna_s2e._typing import FloatArray, IntArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._networks import Network
from optuna_s2e.coteaching._noise_estimate import NoiseEstimate, estimate_noise
from optuna_s2e.coteaching._samples import SampleStatistics
from optuna_s2e.coteaching._training import train_batch
from optuna_s2e.coteaching.data import NoisyData
from optuna_s2e.schedules import Schedule, coteaching_schedule

if TYPE_CHECKING:
    import pandas as pd

_SMOOTHING = 0.02

Statistics = SampleStatistics | Sequence[SampleStatistics]
Noise = NoiseEstimate | npt.ArrayLike


def label_quality(
    statistics: Statistics,
    labels: npt.ArrayLike,
    *,
    noise: Noise | None = None,
) -> FloatArray:
    r"""Return how likely each given label is to be right, in [0, 1].

    $q = \sigma\left(\mathrm{mean}_i \left[\mathrm{margin}_i +
    \log \frac{P[y, y]}{P[r_i, y]}\right]\right)$: the odds of the given label y against its rival
    r by what the networks saw, times the odds that noise makes y of y rather than of r. Where
    labels of class r are never given as y, y is right, whatever the networks say.

    Args:
        statistics: What one training saw of its samples (`TrainingResult.samples`), or those of
            several trainings on the same labels.
        labels: The given labels as class numbers, which the networks were trained on, (N,).
        noise: What `estimate_noise` returned, or the transition matrix P, (C, C), if it is known.
            With it, noise that turns classes into certain others is seen much better. None takes
            all classes alike.

    Returns:
        Quality of each label, (N,); 1 for samples that were never seen: nothing speaks against
        them.

    Raises:
        ValueError: If there are no statistics, shapes differ, labels are no class numbers, or
            rows of the matrix do not sum to 1.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.coteaching import NoisyData, label_quality, train_batch
        >>> x, y = np.eye(8, dtype=np.float32), np.arange(8) % 2
        >>> data = NoisyData.from_arrays(x, y, x, y)
        >>> (result,) = train_batch([[1.0, 0.5]], [0], data=data, device="cpu", watch_samples=True)
        >>> label_quality(result.samples, y).shape
        (8,)
    """
    joined = _Joined(statistics)
    given = _checked_labels(labels, len(joined.rival))
    log_odds = joined.margin.copy()
    if noise is not None:
        p = _credible_matrix(noise, 1 + max(int(given.max()), int(joined.rival.max())))
        log_odds += np.log(p[given, given][:, None] / p[joined.rival, given[:, None]])
    seen = np.isfinite(log_odds)
    mean = np.where(seen, log_odds, 0.0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    return np.asarray(np.where(seen.any(axis=1), expit(mean), 1.0))


def list_label_errors(
    statistics: Statistics,
    labels: npt.ArrayLike,
    *,
    noise: Noise | None = None,
    classes: Sequence[object] | None = None,
    n: int | None = None,
    noise_rate: float | None = None,
    threshold: float | None = None,
) -> pd.DataFrame:
    """Return the labels that are most likely wrong, the worst first.

    Say how many by `n`, `noise_rate`, `threshold` or an estimate of the noise.

    Args:
        statistics: As in `label_quality`.
        labels: As in `label_quality`.
        noise: As in `label_quality`. If it is an estimate, its rate says how many are listed.
        classes: The label of each class, for the columns, such as `NoisyData.classes`. None shows
            class numbers.
        n: Number of labels, in [0, N].
        noise_rate: Share of the labels, in [0, 1].
        threshold: Labels of a quality below this are listed.

    Returns:
        One row per label, with the columns index (number of the sample), given_label,
        suggested_label (the other class that most networks prefer), quality and evidence (a
        sentence; epochs count from 0). Samples that were never seen are left out.

    Raises:
        ImportError: If pandas is missing.
        ValueError: If shapes differ, an argument is out of range, more than one of `n`,
            `noise_rate` and `threshold` is given, or nothing that says how many are listed.
    """
    joined = _Joined(statistics)
    quality = label_quality(statistics, labels, noise=noise)
    if n is None and noise_rate is None and threshold is None and isinstance(noise, NoiseEstimate):
        noise_rate = noise.noise_rate
    given = np.asarray(labels)
    n_classes = 1 + max(int(given.max()), int(joined.rival.max()))
    names = list(range(n_classes)) if classes is None else list(classes)
    if len(names) < n_classes:
        raise ValueError(
            f"classes must name all {n_classes} classes of the labels, but got {len(names)}."
        )
    worst = np.argsort(quality, kind="stable")[: _how_many(quality, n, threshold, noise_rate)]
    worst = worst[(joined.rival[worst] >= 0).any(axis=1)]  # the others were never seen
    suggested = joined.suggested(worst, len(names))
    return _pandas().DataFrame({
        "index": worst,
        "given_label": [names[label] for label in given[worst]],
        "suggested_label": [names[label] for label in suggested],
        "quality": quality[worst],
        "evidence": [
            joined.evidence(i, label, names[label])
            for i, label in zip(worst.tolist(), suggested.tolist(), strict=True)
        ],
    })  # fmt: skip


def find_label_errors(
    data: NoisyData,
    schedule: Schedule | None = None,
    *,
    noise: NoiseEstimate | float | None = None,
    n: int | None = None,
    threshold: float | None = None,
    network: Network = "mlp",
    config: TrainingConfig | None = None,
    n_epochs: int = 40,
    n_pairs: int = 1,
    clean_validation: bool | None = None,
    device: torch.device | str = "auto",
    backend: str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """Train two networks on the data and return the labels that are most likely wrong.

    As many labels are listed as the noise rate says, unless `n` or `threshold` is given.

    Args:
        data: Data whose training labels are partly wrong.
        schedule: R(t) of the training. The default drops 1.2 times the noise rate, slowly, until
            the middle of the training.
        noise: What `estimate_noise` returned, or a noise rate in [0, 1], which says nothing of
            which classes are taken for which. None estimates the noise, which costs about as much
            as the training.
        n: Number of labels to list, in [0, N].
        threshold: Labels of a quality below this are listed.
        network: Name or function, as in `make_network`.
        config: Optimiser and mini-batches. The default is `TrainingConfig()`.
        n_epochs: Epochs of the default schedule, at least 2.
        n_pairs: Number of trainings whose networks judge together, at least 1. More of them find
            somewhat more, at so many times the cost.
        clean_validation: Whether the validation labels are right, for the estimate. None: as the
            data say (`NoisyData.clean_validation`).
        device: As in `train_batch`.
        backend: As in `train_batch`.
        seed: Seed of the estimate and of the first training, a non-negative int; the others have
            the next ones.

    Returns:
        What `list_label_errors` returns.

    Raises:
        ImportError: If pandas is missing.
        ValueError: If an argument is out of range, or a training fails.

    Example:
        >>> from optuna_s2e.coteaching import find_label_errors, load_data
        >>> data = load_data("digits", noise="symmetric", noise_rate=0.3, seed=0)
        >>> errors = find_label_errors(data, noise=0.3, device="cpu")
        >>> wrong = (data.noisy_labels != data.clean_labels).numpy()
        >>> bool(wrong[errors["index"]].mean() > 0.9)
        True
    """
    _pandas()  # before the training
    seed, n_pairs = check_int("seed", seed, 0), check_int("n_pairs", n_pairs, 1)
    if n is not None or threshold is not None:  # before the training, too
        _how_many(np.zeros(len(data.noisy_labels)), n, threshold)
    if noise is None:
        noise = estimate_noise(
            data, network=network, config=config, clean_validation=clean_validation,
            device=device, seed=seed,
        )  # fmt: skip
    estimate = noise if isinstance(noise, NoiseEstimate) else None
    rate = estimate.noise_rate if estimate else check_number("noise", noise, 0.0, 1.0)
    # drops late: a sample that is dropped before it could be learned looks like a wrong label
    schedule = schedule or coteaching_schedule(n_epochs, min(0.95, 1.2 * rate), n_epochs / 2, 1.5)
    results = train_batch(
        np.tile(schedule.keep_rates, (n_pairs, 1)), range(seed, seed + n_pairs), data=data,
        network=network, config=config, device=device, backend=backend, watch_samples=True,
    )  # fmt: skip
    for result in results:
        if result.failure is not None:
            raise ValueError(f"A training failed: {result.failure}") from result.failure
    return list_label_errors(
        [result.samples for result in results if result.samples is not None],
        data.noisy_labels.cpu().numpy(),
        noise=estimate,
        classes=data.classes or None,
        n=n,
        threshold=threshold,
        noise_rate=rate if n is None and threshold is None else None,
    )


class _Joined:
    """The statistics of all networks side by side, (N, m)."""

    def __init__(self, statistics: Statistics) -> None:
        several = [statistics] if isinstance(statistics, SampleStatistics) else list(statistics)
        if not several:
            raise ValueError("statistics must hold those of at least one training, but got none.")
        for each in several:
            check_shape("mean_margin", each.mean_margin, "(N, 2)", several[0].mean_margin.shape)

        def join(name: str) -> npt.NDArray[Any]:
            return np.concatenate([getattr(each, name) for each in several], axis=1)

        self.margin: FloatArray = join("mean_margin")
        self.trained: FloatArray = join("trained_share")
        self.predicted: IntArray = join("predicted")
        self.since: FloatArray = join("predicted_since")
        self.rival: IntArray = join("rival")

    def suggested(self, samples: IntArray, n_classes: int) -> IntArray:
        """Return the class other than the given label that most networks prefer.

        A network that predicts it counts more than all that only think of it next.
        """
        rival, predicted = self.rival[samples], self.predicted[samples]
        votes = np.zeros((len(samples), n_classes), dtype=np.int64)
        weights = np.where(predicted == rival, 1 + rival.shape[1], 1) * (rival >= 0)
        np.add.at(votes, (np.arange(len(samples))[:, None], rival), weights)
        return np.asarray(votes.argmax(axis=1))

    def evidence(self, i: int, label: int, name: object) -> str:
        """Say in a sentence what speaks for a class and against the given label of sample i."""
        say_so = self.predicted[i] == label
        n, m = int(say_so.sum()), len(say_so)
        everyone = "both networks" if m == 2 else f"all {m} networks"
        if n == 0:
            found = f"{everyone} say the given label, after doubts; {name!r} comes next"
        else:
            who = everyone if n == m else f"{n} of {m} networks"
            verb = "says" if n == 1 else "say"
            since = int(self.since[i][say_so].max())
            found = f"{who} {verb} {name!r} from epoch {since} on"
        return f"{found}; trained on in {100 * np.nanmean(self.trained[i]):.0f} % of the epochs"


def _checked_labels(labels: npt.ArrayLike, n_samples: int) -> IntArray:
    given = np.asarray(labels)
    check_shape("labels", given, "(N,)", (n_samples,))
    if given.dtype.kind in "iu" and given.min() >= 0:
        return given.astype(np.intp)
    wrong = given.min() if given.dtype.kind in "iu" else given[0]
    raise ValueError(
        f"labels must be class numbers, ints of at least 0, but got {wrong.item()!r}. "
        "NoisyData.noisy_labels holds them."
    )


def _credible_matrix(noise: Noise, n_classes: int) -> FloatArray:
    """Return a transition matrix without zeros, and without what may be chance in an estimate.

    The wrong labels of each class are spread evenly over the others, as far as the estimate's
    deviations explain that they are not (James and Stein's shrinkage).
    """
    estimate = noise if isinstance(noise, NoiseEstimate) else None
    p = np.array(noise if estimate is None else estimate.transition_matrix, dtype=np.float64)
    size = max(n_classes, len(p))
    check_shape("transition_matrix", p, "(C, C)", (size, size))
    if (p < 0).any() or not np.allclose(p.sum(axis=1), 1.0):
        raise ValueError(
            "transition_matrix must have non-negative rows that sum to 1, but got rows that sum "
            f"to {p.sum(axis=1).tolist()}."
        )
    if estimate is not None and size > 2:
        off = ~np.eye(size, dtype=bool)
        even = np.broadcast_to((1.0 - np.diag(p))[:, None] / (size - 1), p.shape)
        spread, chance = ((p - even)[off] ** 2).sum(), (estimate.deviations[off] ** 2).sum()
        p[off] = even[off] + max(0.0, 1.0 - chance / max(spread, 1e-300)) * (p - even)[off]
    return np.asarray((1.0 - _SMOOTHING) * p + _SMOOTHING / size)


def _how_many(
    quality: FloatArray,
    n: int | None = None,
    threshold: float | None = None,
    noise_rate: float | None = None,
) -> int:
    sizes = {"n": n, "noise_rate": noise_rate, "threshold": threshold}
    given = [f"{name}={value!r}" for name, value in sizes.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            "exactly one of n, noise_rate and threshold must be given, "
            f"but got {', '.join(given) or 'none'}."
        )
    if n is not None:
        return check_int("n", n, 0, len(quality))
    if noise_rate is not None:
        return round(check_number("noise_rate", noise_rate, 0.0, 1.0) * len(quality))
    return int((quality < check_number("threshold", threshold)).sum())


def _pandas() -> ModuleType:
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ImportError(
            "A list of label errors needs pandas, which cannot be imported. "
            'Install it with: pip install "optuna-s2e[coteaching]"'
        ) from error
    return pd  # type: ignore[no-any-return]
