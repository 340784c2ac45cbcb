"""The regression against labels that are drawn from known probabilities."""

import numpy as np
import pytest
from scipy.special import softmax

from optuna_s2e.coteaching._odds_regression import (
    PRECISIONS,
    choose_precision,
    fit_regression,
)


def _drawn(
    rng: np.random.Generator, n: int, slopes: np.ndarray, n_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (1, n, C) of sd 1, P(z) (n, C) and z (n,)."""
    features = rng.normal(size=(1, n, n_classes))
    features -= features.mean(axis=2, keepdims=True)
    p = softmax(features[0] @ slopes, axis=1)
    return features, p, (p.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1)


def test_the_probabilities_that_made_the_labels_are_found() -> None:
    rng = np.random.default_rng(0)
    slopes = np.array([[2.0, -1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
    features, p, z = _drawn(rng, 20_000, slopes, 3)
    fit = fit_regression(features, z, np.ones(len(z)), 3, 0.01)
    assert np.abs(fit.probabilities(features)[0] - p).mean() < 0.01


def test_a_strong_prior_only_sharpens_what_the_networks_say() -> None:
    rng = np.random.default_rng(1)
    features, _, z = _drawn(rng, 1000, np.array([[0.0, 9.0], [9.0, 0.0]]), 2)  # upside down
    strong = fit_regression(features, z, np.ones(len(z)), 2, 1e5)
    off = strong.slopes - np.eye(2) * np.trace(strong.slopes) / 2
    np.testing.assert_allclose(off, 0.0, atol=0.01)
    features, _, z = _drawn(rng, 1000, 4.0 * np.eye(2), 2)
    sharper = fit_regression(features, z, np.ones(len(z)), 2, 1e3)
    np.testing.assert_allclose(sharper.slopes, 4.0 * np.eye(2), atol=0.8)


def test_weights_count_like_repeated_samples_and_networks_share_them() -> None:
    rng = np.random.default_rng(2)
    features, _, z = _drawn(rng, 60, 2.0 * np.eye(3), 3)
    weights = rng.integers(0, 3, 60)
    weighted = fit_regression(features, z, weights.astype(float), 3, 1.0)
    repeated = fit_regression(
        features.repeat(weights, axis=1), z.repeat(weights), np.ones(weights.sum()), 3, 1.0
    )
    twice = fit_regression(features.repeat(2, axis=0), z, weights.astype(float), 3, 1.0)
    for other in (repeated, twice):
        np.testing.assert_allclose(
            other.probabilities(features), weighted.probabilities(features), atol=1e-3
        )


@pytest.mark.parametrize(
    ("n", "slopes", "weakest", "strongest"),
    [
        (300, 2.0 * np.eye(8), 3.0, 30.0),  # all in the diagonal
        (300, np.array([[9.0, -9.0, 0.0], [-9.0, 0.0, 9.0], [0.0, 9.0, -9.0]]), 0.01, 0.3),
    ],
)
def test_held_out_labels_say_how_strong_the_prior_is(
    n: int, slopes: np.ndarray, weakest: float, strongest: float
) -> None:
    rng = np.random.default_rng(3)
    features, _, z = _drawn(rng, n, slopes, len(slopes))
    assert weakest <= choose_precision(features, z, len(slopes), rng) <= strongest


def test_few_labels_and_classes_without_any_are_no_obstacle() -> None:
    rng = np.random.default_rng(4)
    for n in (1, 2, 5):
        features, _, z = _drawn(rng, n, np.eye(4), 4)
        assert choose_precision(features, np.zeros_like(z), 4, rng) in PRECISIONS
