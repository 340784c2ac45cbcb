"""What networks' odds say of the true class: a multinomial logistic regression on clean labels.

Notation
    features    odds of V kinds of networks, each divided by its deviation; of each kind there
                are K networks                                                     (K, N, V C)
    z           true classes of the samples                                              (N,)
    precision   of the normal prior on what the regression does beside weighing, sharpening or
                flattening the networks' probabilities                                 scalar

How strong that prior has to be differs by a factor of a thousand: ten classes and 500 labels need
a strong one, while three classes around each other cannot be told with one. The labels themselves
tell: the precision is the one under which labels that were held out are likeliest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from optuna_s2e._typing import FloatArray, IntArray

PRECISIONS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
N_FOLDS = 3  # of the labels that are held out in turns
FLAT = 1e-4  # relative change of the loss that ends a fit: rates move by .002 at most


class Regression(NamedTuple):
    """Slopes (V C, C) and intercepts (C,)."""

    slopes: FloatArray
    intercepts: FloatArray

    def probabilities(self, features: FloatArray) -> FloatArray:
        """Return P(z = i | odds) from features (..., V C), (..., C)."""
        return np.asarray(softmax(features @ self.slopes + self.intercepts, axis=-1))


def fit_regression(
    features: FloatArray,
    z: IntArray,
    weights: FloatArray,
    n_classes: int,
    precision: float,
    start: Regression | None = None,
) -> Regression:
    """Return the likeliest regression of z on features (K, N, V C), samples weighted (N,)."""
    n_networks, n_samples, n_features = features.shape
    x, y = features.reshape(-1, n_features), np.tile(z, n_networks)
    w = np.tile(weights, n_networks) / n_networks
    n_views = n_features // n_classes
    eye, rows = np.eye(n_classes), np.arange(n_networks * n_samples)

    def loss(v: FloatArray) -> tuple[float, FloatArray]:
        slopes, intercepts = v[:-n_classes].reshape(n_views, n_classes, -1), v[-n_classes:]
        logits = x @ slopes.reshape(-1, n_classes) + intercepts
        logits -= logits.max(axis=1, keepdims=True)
        q = np.exp(logits)
        sums = q.sum(axis=1)
        q /= sums[:, None]
        traces = np.trace(slopes, axis1=1, axis2=2)
        off = slopes - eye * traces[:, None, None] / n_classes
        penalty = 0.5 * precision * ((off**2).sum() + intercepts @ intercepts)
        by_logits = (q - eye[y]) * w[:, None]
        by_slopes = x.T @ by_logits + precision * off.reshape(-1, n_classes)
        by_intercepts = by_logits.sum(axis=0) + precision * intercepts
        return (
            float(penalty - w @ (logits[rows, y] - np.log(sums))),
            np.concatenate([by_slopes.ravel(), by_intercepts]),
        )

    if start is None:
        start = Regression(np.tile(eye / n_views, (n_views, 1)), np.zeros(n_classes))
    begin = np.concatenate([start.slopes.ravel(), start.intercepts])
    v = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"ftol": FLAT}).x
    return Regression(v[:-n_classes].reshape(-1, n_classes), v[-n_classes:])


def choose_precision(
    features: FloatArray, z: IntArray, n_classes: int, rng: np.random.Generator
) -> float:
    """Return the precision under which held-out labels z of features (K, N, V C) are likeliest.

    It begins with the strongest prior, and ends where a weaker one is worse.
    """
    folds = rng.permutation(len(z)) % N_FOLDS
    fits: list[Regression | None] = [None] * N_FOLDS
    chosen, least = PRECISIONS[0], np.inf
    for precision in PRECISIONS:
        loss = 0.0
        for number in range(N_FOLDS):
            held = folds == number
            ones = np.ones(len(z) - held.sum())
            fit = fit_regression(
                features[:, ~held], z[~held], ones, n_classes, precision, fits[number]
            )
            fits[number] = fit
            log_q = log_softmax(features[:, held] @ fit.slopes + fit.intercepts, axis=2)
            loss -= float(log_q[:, np.arange(held.sum()), z[held]].sum())
        if loss >= least:
            break
        chosen, least = precision, loss
    return chosen
