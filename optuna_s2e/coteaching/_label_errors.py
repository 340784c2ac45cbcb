r"""Which labels are wrong: a quality of each label, and the list of those that are worst.

Two witnesses judge a label: the networks that were trained on it, by their whole training, and
networks that were never trained on it, which the estimate of the noise leaves behind. The first
ones saw more samples and more epochs. The second ones cannot have learned the label by heart, and
their probabilities are calibrated on clean labels if there are any.

Notation
    y, r        given label of a sample; its rival, the class that a network prefers among the
                others, as class numbers                                             (N,)
    P           transition matrix, P[i, j] = P(given label j | true class i)         (C, C)
    m           networks that watched the samples, two per training
    margin      mean over the epochs of the logit of y less that of the best other class (N, m)
    h           history: log-odds of y by the margins                                (N,)
    q           P(true class | x) by networks that were not trained on x             (N, C)
    f           out-of-fold probability that y is right, q_y P[y, y] / sum_i q_i P[i, y] (N,)
    quality     how likely y is to be right, in [0, 1]                               (N,)

The margins are log-odds of an unknown scale. The scale is the one at which they say of f what f
says of itself: if f is calibrated, samples with right labels have the mean m1 = E[f f] / E[f], and
those with wrong ones m0 = E[f (1 - f)] / E[1 - f]. If the errors of h and f were independent,
E[f | h] = m0 + (m1 - m0) sigmoid(a h + b); a and b minimise the cross-entropy of f under it.

References:
    Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS
    2020 (the margin, of one network that is trained on all labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit

from optuna_s2e._blas import one_blas_thread
from optuna_s2e._checks import check_int, check_number, check_shape
from optuna_s2e._pandas import import_pandas
from optuna_s2e._typing import FloatArray, IntArray
from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._networks import Network
from optuna_s2e.coteaching._noise_estimate import NoiseEstimate, epochs_beside, estimate_noise
from optuna_s2e.coteaching._samples import SampleStatistics
from optuna_s2e.coteaching._training import train_batch
from optuna_s2e.coteaching.data import NoisyData
from optuna_s2e.schedules import Schedule, coteaching_schedule, standard_schedule

if TYPE_CHECKING:
    import pandas as pd

_SMOOTHING = 0.02
_DOUBT = 2.0  # variance of an estimated matrix's errors, in that of its bootstrap, which does not
# see the networks' own errors
_SHARED = 0.5  # weight of the history's log-odds: both witnesses err at the same hard samples
_SUREST = 1e-12
_NEEDING = "A list of label errors needs"

Statistics = SampleStatistics | Sequence[SampleStatistics]
Noise = NoiseEstimate | npt.ArrayLike


def label_quality(
    statistics: Statistics,
    labels: npt.ArrayLike,
    *,
    noise: Noise | None = None,
) -> FloatArray:
    r"""Return how likely each given label is to be right, in [0, 1].

    By the history of the networks, it is $\sigma(h)$ with $h = \mathrm{mean}_i \left[
    \mathrm{margin}_i + \log \frac{P[y, y]}{P[r_i, y]}\right]$: the odds of the given label y
    against its rival r by what the networks saw, times the odds that noise makes y of y rather
    than of r. Where labels of class r are never given as y, y is right, whatever the networks say.

    With an estimate of the noise, it is $\sigma\left(\mathrm{logit} f + a h / 2\right)$, where f
    is the out-of-fold probability that y is right, and a the scale at which h agrees with f.

    Args:
        statistics: What one training saw of its samples (`TrainingResult.samples`), or those of
            several trainings on the same labels. None at all (an empty list) if there is an
            estimate: the quality is f then.
        labels: The given labels as class numbers, which the networks were trained on, (N,).
        noise: What `estimate_noise` returned for these labels, or the transition matrix P, (C, C),
            if it is known. With it, noise that turns classes into certain others is seen much
            better. None takes all classes alike.

    Returns:
        Quality of each label, (N,); 1 for samples of which nothing is known: nothing speaks
        against them.

    Raises:
        ValueError: If there are neither statistics nor an estimate, shapes differ, labels are no
            class numbers, or rows of the matrix do not sum to 1.

    Example:
        >>> import numpy as np
        >>> from optuna_s2e.coteaching import NoisyData, label_quality, train_batch
        >>> x, y = np.eye(8, dtype=np.float32), np.arange(8) % 2
        >>> data = NoisyData.from_arrays(x, y, x, y)
        >>> (result,) = train_batch([[1.0, 0.5]], [0], data=data, device="cpu", watch_samples=True)
        >>> label_quality(result.samples, y).shape
        (8,)
    """
    return _Witnesses(statistics, labels, noise).quality


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
        sentence; epochs count from 0). Samples of which nothing is known are left out.

    Raises:
        ImportError: If pandas is missing.
        ValueError: If shapes differ, an argument is out of range, more than one of `n`,
            `noise_rate` and `threshold` is given, or nothing that says how many are listed.
    """
    seen = _Witnesses(statistics, labels, noise)
    if n is None and noise_rate is None and threshold is None and isinstance(noise, NoiseEstimate):
        noise_rate = noise.noise_rate
    names = list(range(seen.n_classes)) if classes is None else list(classes)
    if len(names) < seen.n_classes:
        raise ValueError(
            f"classes must name all {seen.n_classes} classes of the labels, but got {len(names)}."
        )
    n = _how_many(seen.quality, n, threshold, noise_rate)
    worst = np.argsort(seen.quality, kind="stable")[:n]
    worst = worst[seen.is_known[worst]]
    suggested = seen.suggested(worst)
    return import_pandas(_NEEDING).DataFrame({
        "index": worst,
        "given_label": [names[label] for label in seen.given[worst]],
        "suggested_label": [names[label] for label in suggested],
        "quality": seen.quality[worst],
        "evidence": seen.evidence(worst, suggested, names),
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
        schedule: R(t) of the training. If the noise was estimated with clean labels, the default
            selects nothing: the matrix tells then what the margins cannot, and networks that
            select by their own errors see less. Otherwise it drops 1.2 times the noise rate,
            slowly, until the middle of the training.
        noise: What `estimate_noise` returned, or a noise rate in [0, 1], which says nothing of
            which classes are taken for which. None estimates the noise, which costs about as much
            as the training.
        n: Number of labels to list, in [0, N].
        threshold: Labels of a quality below this are listed.
        network: Name or function, as in `make_network`.
        config: Optimiser and mini-batches. The default is `TrainingConfig()`.
        n_epochs: Epochs of the default schedule, at least 2.
        n_pairs: Number of trainings whose networks judge together. More of them find somewhat
            more, at so many times the cost. 0: the networks of the estimate judge alone, which is
            fastest.
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
    import_pandas(_NEEDING)  # before the training
    n_epochs = schedule.n_epochs if schedule else check_int("n_epochs", n_epochs, 2)
    seed, n_pairs = check_int("seed", seed, 0), check_int("n_pairs", n_pairs, 0)
    if n is not None or threshold is not None:  # before the training, too
        _how_many(np.zeros(len(data.noisy_labels)), n, threshold)
    if noise is None:
        noise = estimate_noise(
            data, network=network, config=config, n_epochs=epochs_beside(n_epochs),
            clean_validation=clean_validation, device=device, seed=seed,
        )  # fmt: skip
    estimate = noise if isinstance(noise, NoiseEstimate) else None
    if n_pairs == 0 and estimate is None:
        raise ValueError(
            f"n_pairs must be at least 1 if noise is a number, but got 0 and {noise!r}. "
            "Leave noise out: the estimate's networks judge then."
        )
    rate = estimate.noise_rate if estimate else check_number("noise", noise, 0.0, 1.0)
    if schedule is None and estimate and estimate.used_clean_labels:
        schedule = standard_schedule(n_epochs)
    elif schedule is None:
        # drops late: a sample that is dropped before it could be learned looks like a wrong label
        schedule = coteaching_schedule(n_epochs, min(0.95, 1.2 * rate), n_epochs / 2, 1.5)
    results = [] if n_pairs == 0 else train_batch(
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


class _Witnesses:
    """What all networks say of the labels: those that were trained on them, and out of fold."""

    def __init__(self, statistics: Statistics, labels: npt.ArrayLike, noise: Noise | None) -> None:
        several = [statistics] if isinstance(statistics, SampleStatistics) else list(statistics)
        q = noise.probabilities if isinstance(noise, NoiseEstimate) else None
        witness = several[0].mean_margin if several else q
        if witness is None:
            raise ValueError(
                "statistics must hold those of at least one training, but got none. Without any, "
                "give what estimate_noise returned as noise."
            )
        n_samples = len(witness)
        for each in several:
            check_shape("mean_margin", each.mean_margin, "(N, 2)", (n_samples, 2))
        self.given = _checked_labels(labels, n_samples)

        def join(name: str) -> npt.NDArray[Any]:
            nothing = np.empty((n_samples, 0), dtype=np.intp)
            return np.concatenate([nothing, *(getattr(s, name) for s in several)], axis=1)

        self.margin: FloatArray = join("mean_margin").astype(np.float64)
        self.trained: FloatArray = join("trained_share")
        self.predicted: IntArray = join("predicted")
        self.since: FloatArray = join("predicted_since")
        self.rival: IntArray = join("rival")
        n_seen = 1 + max(int(self.given.max()), int(self.rival.max(initial=-1)))
        self.n_classes = n_seen if q is None else max(n_seen, q.shape[1])
        matrix = None if noise is None else _credible_matrix(noise, self.n_classes)
        self._history = self._log_odds(matrix)
        self._posterior: FloatArray | None = None
        if q is not None and matrix is not None:
            self._posterior = _posterior(q, self.given, matrix)
        # out-of-fold probabilities of the given labels, f; NaN if unknown
        self._of_given = np.full(n_samples, np.nan)
        if self._posterior is not None:
            self._of_given = self._posterior[np.arange(n_samples), self.given]
        self.quality = _together(self._history, self._of_given)

    @property
    def is_known(self) -> npt.NDArray[np.bool_]:
        """Whether any network says anything of each sample, (N,)."""
        return np.asarray(np.isfinite(self._history) | np.isfinite(self._of_given))

    def _log_odds(self, matrix: FloatArray | None) -> FloatArray:
        """Return what the history says, h, (N,)."""
        log_odds = self.margin.copy()
        if matrix is not None:
            own = matrix[self.given, self.given][:, None]
            log_odds += np.log(own / matrix[self.rival, self.given[:, None]])
        seen = np.isfinite(log_odds)
        total = np.where(seen, log_odds, 0.0).sum(axis=1)
        return np.where(seen.any(axis=1), total / np.maximum(seen.sum(axis=1), 1), np.nan)

    def suggested(self, samples: IntArray) -> IntArray:
        """Return the class other than the given label that most networks prefer.

        A network that predicts it counts more than all that only think of it next. What networks
        say out of fold decides where no other has seen the sample.
        """
        rival, predicted = self.rival[samples], self.predicted[samples]
        votes = np.zeros((len(samples), self.n_classes))
        weights = np.where(predicted == rival, 1 + rival.shape[1], 1) * (rival >= 0)
        np.add.at(votes, (np.arange(len(samples))[:, None], rival), weights)
        if self._posterior is not None:
            others = np.nan_to_num(self._posterior[samples])
            others[np.arange(len(samples)), self.given[samples]] = -1.0
            unseen = votes.sum(axis=1) == 0
            votes[unseen] = others[unseen]
        return np.asarray(votes.argmax(axis=1))

    def evidence(
        self, samples: IntArray, suggested: IntArray, names: Sequence[object]
    ) -> list[str]:
        """Say of each sample what speaks for a class and against the given label."""
        say_so = self.predicted[samples] == suggested[:, None]
        since = np.where(say_so, self.since[samples], -1.0).max(axis=1, initial=-1.0)
        trained = self.trained[samples]
        known = np.isfinite(trained)
        share = np.where(known, trained, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        seen = (self.rival[samples] >= 0).any(axis=1)
        rows = (suggested, seen, say_so.sum(axis=1), since, share, self._of_given[samples])
        return [
            self._sentence(repr(names[label]), *row)
            for label, *row in zip(*(values.tolist() for values in rows), strict=True)
        ]

    def _sentence(
        self, name: str, is_seen: bool, n: int, since: float, share: float, f: float
    ) -> str:
        """Say it of a sample whose class n networks predict since then."""
        m, parts = self.predicted.shape[1], []
        everyone = "both networks" if m == 2 else f"all {m} networks"
        if is_seen and n == 0:
            parts = [f"{everyone} say the given label, after doubts; {name} comes next"]
        elif is_seen:
            who = everyone if n == m else f"{n} of {m} networks"
            parts = [f"{who} {'says' if n == 1 else 'say'} {name} from epoch {since:.0f} on"]
        if is_seen:
            parts.append(f"trained on in {100 * share:.0f} % of the epochs")
        if not np.isnan(f):
            parts.append(f"networks that were not trained on it give the label {100 * f:.0f} %")
        return "; ".join(parts)


def _together(history: FloatArray, f: FloatArray) -> FloatArray:
    """Return the quality by the history's log-odds and out-of-fold; NaN is unknown."""
    f = np.clip(f, _SUREST, 1.0 - _SUREST)
    both = np.isfinite(history) & np.isfinite(f)
    known = np.where(np.isnan(f), expit(history), f)
    if both.any():
        log_odds = logit(f[both]) + _SHARED * _scale(history[both], f[both]) * history[both]
        known[both] = expit(log_odds)
    return np.where(np.isnan(known), 1.0, known)


def _posterior(q: FloatArray, given: IntArray, matrix: FloatArray) -> FloatArray:
    """Return the probabilities of the true classes, given q and the given labels, (N, C)."""
    check_shape("probabilities", q, "(N, C)", (len(given), len(matrix)))
    joint = np.asarray(q, dtype=np.float64) * matrix[:, given].T
    return np.asarray(joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300))


@one_blas_thread()
def _scale(history: FloatArray, f: FloatArray) -> float:
    """Return a >= 0, by which the history must be multiplied to be log-odds."""
    unit = history.std() or 1.0
    h = history / unit
    right, wrong = (f @ f) / f.sum(), (f @ (1.0 - f)) / (1.0 - f).sum()

    def loss(v: FloatArray) -> float:
        expected = np.clip(wrong + (right - wrong) * expit(v[0] * h + v[1]), _SUREST, 1 - _SUREST)
        return -float(f @ np.log(expected) + (1.0 - f) @ np.log1p(-expected)) / len(f)

    found = minimize(loss, [1.0, logit(f.mean())], bounds=[(0.0, None), (None, None)])
    return float(found.x[0]) / float(unit)


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

    It is drawn to the symmetric matrix of the same mean diagonal, as far as the estimate's
    deviations, and the doubt beyond them, explain the difference (James and Stein's shrinkage).
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
        right = float(np.diag(p).mean())
        even = np.where(np.eye(size, dtype=bool), right, (1.0 - right) / (size - 1))
        spread, chance = ((p - even) ** 2).sum(), _DOUBT * (estimate.deviations**2).sum()
        p = even + max(0.0, 1.0 - chance / max(spread, 1e-300)) * (p - even)
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
