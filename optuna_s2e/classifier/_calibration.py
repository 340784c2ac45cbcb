r"""One temperature that makes probabilities honest, fitted to right labels.

Networks that were trained on wrong labels doubt too much, or too little once they learned them by
heart. With clean labels one number mends most of it, and no prediction changes.

Notation
    p    predicted probabilities of a sample                      (C,)
    T    temperature: the probabilities become p^(1/T) / sum_i p_i^(1/T); 1 leaves them as they are

References:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from optuna_s2e._typing import FloatArray, IntArray

SPREAD = 0.5  # of the normal prior on log T
LARGEST = 3.0  # of |log T|


def fit_temperature(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the temperature at which right labels are most likely.

    A prior keeps few labels, all of them predicted, from making the networks too sure: log T is
    normal, and one more sample has a label that is any class.

    Args:
        probabilities: Predictions for samples that the networks were not trained on, (N, C).
        labels: Their right class numbers, (N,).
    """
    log_p, rows = _log(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(log_p / np.exp(log_temperature), axis=1)
        prior = (log_temperature / SPREAD) ** 2 / 2
        return float(prior - scaled[rows, labels].sum() - scaled.mean())

    found = minimize_scalar(loss, bounds=(-LARGEST, LARGEST), method="bounded")
    return float(np.exp(found.x))


def at_temperature(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Return the probabilities at a temperature, (N, C)."""
    if temperature == 1.0:
        return probabilities
    return np.asarray(np.exp(log_softmax(_log(probabilities) / temperature, axis=1)))


def _log(probabilities: FloatArray) -> FloatArray:
    return np.asarray(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)))
