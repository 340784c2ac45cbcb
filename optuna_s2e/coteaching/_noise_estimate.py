r"""How many labels are wrong: the noise rate and the transition matrix, estimated from data.

Notation
    x, y        a training sample and its given label                                (N,)
    z           true class of a sample, unknown
    P           transition matrix, P[i, j] = P(y = j | z = i)                         (C, C)
    pi          shares of the true classes                                           (C,)
    odds        log-probabilities of networks that were not trained on the sample,
                less their mean over the classes; of one or two kinds of networks    (V, N, C)
    q           P(z = i | odds), what they say of the true class                     (N, C)
    epsilon     noise rate, 1 - sum_i pi_i P[i, i]                                    scalar

Networks are trained on folds of the data, as they are, and predict the samples of the other fold.
A label's error is assumed to depend on its true class alone, so given labels follow
P(y | odds) = sum_i q_i P[i, y].

With clean validation labels, further networks are trained on folds of the validation data: where
half of two classes' labels are wrong, networks learn nothing from the training data. q is a
multinomial logistic regression of the validation labels on the odds of both: it takes the
networks' own errors, and what they learned of the wrong labels, out again. P then maximises the
likelihood of the given labels, which is concave in P; EM finds the maximum.

Without any clean label, q is unknown. The samples of each class on whose predictions the networks
are surest are taken as samples of that class ("anchor points"). Where networks are wrong even
then, their errors count as wrong labels: the estimate is an upper bound rather than the truth. The
interval begins where the networks' own probabilities are taken for q: there their doubts explain
as much as they can.

References:
    Patrini et al., "Making Deep Neural Networks Robust to Label Noise: a Loss Correction
    Approach", CVPR 2017 (anchor points). Dawid and Skene, "Maximum Likelihood Estimation of
    Observer Error-Rates Using the EM Algorithm", Applied Statistics 1979. Rubin, "The Bayesian
    Bootstrap", Annals of Statistics 1981.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from optuna_s2e._blas import one_blas_thread
from optuna_s2e._checks import check_int
from optuna_s2e._typing import FloatArray, IntArray
from optuna_s2e.coteaching._config import DTYPES, TrainingConfig
from optuna_s2e.coteaching._networks import Network
from optuna_s2e.coteaching._odds_regression import choose_precision, fit_regression
from optuna_s2e.coteaching._predictions import predicted_logits
from optuna_s2e.coteaching._training import OnEpoch, train_batch
from optuna_s2e.coteaching.data import NoisyData

N_FOLDS, N_EPOCHS = 3, 15
ANCHORS = 0.2  # share of the samples of a predicted class that count as anchor points
FEWEST_ANCHORS = 5
N_REPLICATES = 12  # of the bootstrap
MAX_STEPS, TOLERANCE = 1000, 1e-5  # of EM
MAX_SAMPLES = 20_000  # whose labels enter one replicate: more do not narrow it
FEWEST_TO_LEARN = 30  # validation samples that networks are trained on
MOST_TO_LEARN = 1 / 3  # of the training data: more validation data get fewer epochs
N_MEASURED = 16  # validation samples of these trainings


@dataclass(frozen=True, eq=False)
class NoiseEstimate:
    """How many labels are wrong, and which are taken for which.

    Attributes:
        noise_rate: Estimated share of wrong labels, in [0, 1].
        interval: 95 % interval of the noise rate. Without clean labels it begins where the
            networks' own doubts explain as much as they can, and is wide.
        transition_matrix: Estimated P, rows sum to 1, (C, C). The row of a class without samples
            is that of the identity.
        deviations: Standard deviations of P's entries, (C, C).
        used_clean_labels: Whether clean validation labels were used. If not, the noise rate is
            an upper bound where the network makes many errors of its own.
        probabilities: Probability of each class for each sample, by networks that were not
            trained on it, (N, C): what is needed to look for single wrong labels. With clean
            labels it is q, which is calibrated on them.
        networks: The networks of the training data's folds, on the CPU, if they were kept.
    """

    noise_rate: float
    interval: tuple[float, float]
    transition_matrix: FloatArray
    deviations: FloatArray
    used_clean_labels: bool
    probabilities: FloatArray
    networks: tuple[nn.Module, ...] = ()

    def __str__(self) -> str:
        """Return the estimate as a sentence."""
        low, high = self.interval
        source = "with" if self.used_clean_labels else "without"
        return (
            f"{100 * self.noise_rate:.0f} % of the labels are wrong "
            f"({100 * low:.0f} to {100 * high:.0f} %, estimated {source} clean labels)"
        )


def estimate_noise(
    data: NoisyData,
    *,
    network: Network = "mlp",
    config: TrainingConfig | None = None,
    n_epochs: int = N_EPOCHS,
    clean_validation: bool | None = None,
    device: torch.device | str = "auto",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    keep_networks: bool = False,
) -> NoiseEstimate:
    """Estimate how many training labels are wrong.

    Three pairs of networks are trained, each on two thirds of the data, without selection, side
    by side where that is faster. That costs at most as much as `2 * n_epochs` epochs of one
    Co-teaching training. If the validation labels are right, as many are trained on the
    validation data, which are fewer. The estimate depends little on `n_epochs`.

    Args:
        data: Data whose training labels are partly wrong.
        network: Name or function, as in `make_network`.
        config: Optimiser and mini-batches. The default is `TrainingConfig()`.
        n_epochs: Epochs of each training, at least 2.
        clean_validation: Whether the validation labels are right. If they have errors of their
            own, say False: no label counts as right then. None takes what the data say
            (`NoisyData.clean_validation`).
        device: As in `train_batch`.
        seed: Seed of the folds, the networks and the interval, a non-negative int.
        progress: Function that is called with (epochs done, all epochs) after each epoch.
        keep_networks: Whether to return the six networks of the training data's folds, too.

    Returns:
        The estimate. The same arguments give the same numbers on the same device.

    Raises:
        ValueError: If an argument is out of range, a class has fewer than three samples, or a
            training fails.

    Example:
        >>> from optuna_s2e.coteaching import estimate_noise, load_data
        >>> data = load_data("digits", noise="pair", noise_rate=0.3, seed=0)
        >>> estimate = estimate_noise(data, device="cpu")
        >>> abs(estimate.noise_rate - 0.3) < 0.05
        True
    """
    n_epochs, seed = check_int("n_epochs", n_epochs, 2), check_int("seed", seed, 0)
    if clean_validation is None:
        clean_validation = data.clean_validation
    rng = np.random.default_rng([seed, 0])
    given, y_val = data.noisy_labels.cpu().numpy(), data.y_val.cpu().numpy()
    if len(given) < N_FOLDS:
        raise ValueError(f"data must hold at least {N_FOLDS} samples, but got {len(given)}.")
    learns = clean_validation and len(y_val) >= FEWEST_TO_LEARN
    share = min(1.0, MOST_TO_LEARN * len(given) / len(y_val))
    n_more = max(2, round(share * n_epochs)) if learns else 0
    done = 0

    def on_epoch(*_: object) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, N_FOLDS * (n_epochs + n_more))

    setup = _Setup(network, config, device, on_epoch)
    odds, odds_val, networks = _cross_predict(data, setup, n_epochs, [seed], rng)
    if not clean_validation:
        return replace(_by_anchors(odds, given, rng), networks=networks * keep_networks)
    views, views_val = [np.broadcast_to(odds, (N_FOLDS, *odds.shape))], [odds_val]
    if learns:
        swapped = replace(
            data, x=data.x_val, noisy_labels=data.y_val, x_val=data.x, y_val=data.noisy_labels
        )
        on_val, on_training, _ = _cross_predict(swapped, setup, n_more, [seed, N_FOLDS], rng)
        views.append(on_training)
        views_val.append(np.broadcast_to(on_val, odds_val.shape))
    _warn_if_noisy(views_val, y_val, odds, given)
    found = _by_clean_labels(views, given, views_val, y_val, rng)
    return replace(found, networks=networks * keep_networks)


def epochs_beside(n_epochs: int) -> int:
    """Return how many epochs an estimate has beside trainings of `n_epochs`."""
    return min(N_EPOCHS, max(2, 3 * n_epochs // 8))


# --- predictions of networks that have not seen the samples ---


class _Setup(NamedTuple):
    """What all trainings share, as in `train_batch`."""

    network: Network
    config: TrainingConfig | None
    device: torch.device | str
    on_epoch: OnEpoch


def _cross_predict(
    data: NoisyData, setup: _Setup, n_epochs: int, key: list[int], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, tuple[nn.Module, ...]]:
    """Train networks on folds of the training data.

    Returns:
        Their odds on the samples of the other fold, (N, C), and on the validation data,
        (folds, N_val, C), and all networks.
    """
    folds = _folds(data.noisy_labels.cpu().numpy(), rng)
    out_of_fold = np.empty((len(folds), data.n_classes))
    on_validation, every = [], list[nn.Module]()
    dtype = DTYPES[(setup.config or TrainingConfig()).dtype]
    for number, networks in enumerate(_train(data, folds, setup, n_epochs, key)):
        held_out = folds == number
        out_of_fold[held_out] = _log_odds(networks, data.x[torch.from_numpy(held_out)], dtype)
        on_validation.append(_log_odds(networks, data.x_val, dtype))
        every += networks
    return out_of_fold, np.stack(on_validation), tuple(every)


def _folds(labels: IntArray, rng: np.random.Generator) -> IntArray:
    """Return the fold of each sample, (N,); the folds share each class as equally as they can."""
    order = np.lexsort([rng.random(len(labels)), labels])
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % N_FOLDS
    return folds


def _train(
    data: NoisyData, folds: IntArray, setup: _Setup, n_epochs: int, key: list[int]
) -> list[tuple[nn.Module, nn.Module]]:
    """Train two networks without selection for each fold, on the samples outside, side by side."""
    labels = torch.full((N_FOLDS, len(folds)), -1)
    n_outside = len(folds) - np.bincount(folds).max()  # the same for all folds
    for k in range(N_FOLDS):
        outside = torch.from_numpy(np.flatnonzero(folds != k)[:n_outside])
        labels[k, outside] = data.noisy_labels.cpu()[outside]
    few = slice(N_MEASURED)  # its errors are measured after each epoch, and nobody looks at them
    results = train_batch(
        np.ones((N_FOLDS, n_epochs)),
        [int(np.random.SeedSequence([*key, k]).generate_state(1)[0]) for k in range(N_FOLDS)],
        data=replace(data, x_val=data.x_val[few], y_val=data.y_val[few], clean_labels=None),
        labels=labels, network=setup.network, config=setup.config, device=setup.device,
        keep_networks=True, on_epoch=setup.on_epoch,
    )  # fmt: skip
    pairs = []
    for result in results:
        if result.networks is None:
            raise ValueError(f"A training failed: {result.failure}") from result.failure
        pairs.append(result.networks)
    return pairs


def _log_odds(networks: tuple[nn.Module, nn.Module], x: Tensor, dtype: torch.dtype) -> FloatArray:
    """Return the mean log-probabilities of the networks, less their mean over classes, (N, C)."""
    parts = predicted_logits(networks, x.cpu(), dtype)
    log_p = torch.cat([logits.double().log_softmax(dim=2).mean(dim=0) for logits in parts])
    return np.asarray((log_p - log_p.mean(dim=1, keepdim=True)).numpy())


# --- with clean labels ---


class _Solution(NamedTuple):
    """P (C, C) and pi (C,)."""

    matrix: FloatArray
    shares: FloatArray

    @property
    def noise_rate(self) -> float:
        return float(1.0 - self.shares @ np.diag(self.matrix))


@one_blas_thread()
def _by_clean_labels(
    views: Sequence[FloatArray],
    given: IntArray,
    views_val: Sequence[FloatArray],
    y_val: IntArray,
    rng: np.random.Generator,
) -> NoiseEstimate:
    """Estimate from odds (K, N, C) and (K, N_val, C) of each kind, whose labels y_val are right.

    The regression sees one network at a time, so the given labels are explained by one network
    each, in turns: the mean of several is sharper than what the regression has seen. The
    bootstrap gives the deviations and the bias, which is taken off.
    """
    n_networks, _, n_classes = views[0].shape
    scales = [float(view.std()) or 1.0 for view in views_val]
    features_val = np.concatenate([v / s for v, s in zip(views_val, scales, strict=True)], axis=2)

    def features_of(network: int | IntArray, samples: IntArray) -> FloatArray:
        return np.concatenate(
            [v[network, samples] / s for v, s in zip(views, scales, strict=True)], axis=1
        )

    order = np.argsort(given, kind="stable")
    every = np.arange(len(given))
    features, ordered = features_of(every % n_networks, order), given[order]
    precision = choose_precision(features_val, y_val, n_classes, rng)
    fit = fit_regression(features_val, y_val, np.ones(len(y_val)), n_classes, precision)
    found = _maximize_likelihood(fit.probabilities(features), ordered, np.ones(len(given)))
    by_network = [fit.probabilities(features_of(k, every)) for k in range(n_networks)]
    replicates = []
    for _ in range(N_REPLICATES):
        some = np.sort(rng.permutation(len(given))[:MAX_SAMPLES])
        weights, weights_val = rng.exponential(size=len(some)), rng.exponential(size=len(y_val))
        refit = fit_regression(features_val, y_val, weights_val, n_classes, precision, fit)
        q = refit.probabilities(features[some])
        replicates.append(_maximize_likelihood(q, ordered[some], weights, found.matrix))
    rates = np.array([r.noise_rate for r in replicates])
    matrices = np.array([r.matrix for r in replicates])
    bias = float(rates.mean()) - found.noise_rate
    rate = float(np.clip(found.noise_rate - bias, 0.0, 1.0))
    matrix = np.clip(2.0 * found.matrix - matrices.mean(axis=0), 0.0, None)
    deviations = matrices.std(axis=0, ddof=1)
    unseen = np.setdiff1d(np.arange(len(matrix)), np.union1d(given, y_val))
    matrix[unseen], deviations[unseen] = np.eye(len(matrix))[unseen], 0.0
    spread = 1.96 * float(np.hypot(rates.std(ddof=1), bias))
    return NoiseEstimate(
        noise_rate=rate,
        interval=(max(rate - spread, 0.0), min(rate + spread, 1.0)),
        transition_matrix=matrix / matrix.sum(axis=1, keepdims=True),
        deviations=deviations,
        used_clean_labels=True,
        probabilities=np.mean(by_network, axis=0),
    )


def _maximize_likelihood(
    q: FloatArray, given: IntArray, weights: FloatArray, start: FloatArray | None = None
) -> _Solution:
    """Return P and pi that maximise the likelihood of given labels, by EM.

    Args:
        q: P(z = i | odds) of samples that are ordered by their given labels, (N, C).
        given: Their labels, (N,).
        weights: Their weights, (N,).
        start: P that EM begins with.
    """
    n_classes = q.shape[1]
    labels, starts = np.unique(given, return_index=True)
    matrix = np.eye(n_classes) if start is None else start
    matrix = 0.9 * matrix + 0.1 / n_classes  # EM never leaves an entry that is 0
    for _ in range(MAX_STEPS):
        joint = q * matrix[:, given].T  # P(z = i, y = given | odds)
        joint *= (weights / np.maximum(joint.sum(axis=1), 1e-300))[:, None]
        counts = np.zeros((n_classes, n_classes))
        counts[:, labels] = np.add.reduceat(joint, starts, axis=0).T
        before, matrix = matrix, (counts + 1e-9) / (counts + 1e-9).sum(axis=1, keepdims=True)
        if np.abs(matrix - before).max() < TOLERANCE:
            break
    return _Solution(matrix, counts.sum(axis=1) / counts.sum())


# --- without clean labels ---


def _by_anchors(odds: FloatArray, given: IntArray, rng: np.random.Generator) -> NoiseEstimate:
    """Estimate from samples on whose predictions odds (N, C) the networks are surest."""
    anchors = _anchors(odds)
    found = _from_anchors(anchors, given, np.ones(len(odds)), odds)
    replicates = [
        _from_anchors(anchors, given, rng.exponential(size=len(odds)), odds)
        for _ in range(N_REPLICATES)
    ]
    spread = 1.96 * float(np.std([r.noise_rate for r in replicates], ddof=1))
    order = np.argsort(given, kind="stable")
    doubts = _maximize_likelihood(softmax(odds[order], axis=1), given[order], np.ones(len(odds)))
    low = min(found.noise_rate - spread, doubts.noise_rate)
    return NoiseEstimate(
        noise_rate=found.noise_rate,
        interval=(max(low, 0.0), min(found.noise_rate + spread, 1.0)),
        transition_matrix=found.matrix,
        deviations=np.std([r.matrix for r in replicates], axis=0, ddof=1),
        used_clean_labels=False,
        probabilities=softmax(odds, axis=1),
    )


def _anchors(odds: FloatArray) -> list[IntArray]:
    """Return the anchor points of each class as sample numbers."""
    predicted, log_p = odds.argmax(axis=1), log_softmax(odds, axis=1)
    anchors = []
    for i in range(odds.shape[1]):
        of_class = np.flatnonzero(predicted == i)
        n = max(FEWEST_ANCHORS, int(ANCHORS * len(of_class)))
        anchors.append(of_class[np.argsort(-log_p[of_class, i], kind="stable")[:n]])
    return anchors


def _from_anchors(
    anchors: list[IntArray], given: IntArray, weights: FloatArray, odds: FloatArray
) -> _Solution:
    n_classes = odds.shape[1]
    eye = np.eye(n_classes)
    matrix = np.array([
        np.average(eye[given[a]], axis=0, weights=weights[a]) if len(a) else eye[i]
        for i, a in enumerate(anchors)
    ])  # fmt: skip
    shares = np.bincount(odds.argmax(axis=1), weights, minlength=n_classes) / weights.sum()
    return _Solution(matrix, shares)


def _warn_if_noisy(
    views_val: Sequence[FloatArray], y_val: IntArray, odds: FloatArray, given: IntArray
) -> None:
    """Warn if no kind of networks finds the validation labels cleaner than the training labels."""
    rate = _from_anchors(_anchors(odds), given, np.ones(len(odds)), odds).noise_rate
    labels = np.tile(y_val, len(views_val[0]))
    rates_val = []
    for view in views_val:
        flat = view.reshape(len(labels), -1)
        solution = _from_anchors(_anchors(flat), labels, np.ones(len(flat)), flat)
        rates_val.append(solution.noise_rate)
    if rate > 0.1 and min(rates_val) > 0.8 * rate:
        warnings.warn(
            f"Where they are surest, networks contradict {100 * min(rates_val):.0f} % of the "
            f"validation labels and {100 * rate:.0f} % of the training labels. Either the "
            "networks are weak on these data, or the validation labels are as wrong as the "
            "training labels. If they are, the estimate is too low: do not give them as clean "
            "labels (clean_validation=False; NoisyLabelClassifier without X_val; `s2e fit` "
            "without --val).",
            UserWarning,
            stacklevel=3,
        )
