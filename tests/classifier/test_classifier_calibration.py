"""Clean labels give the probabilities a temperature; predictions do not know of it."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

pytest.importorskip("torch")

from optuna_s2e import NoisyLabelClassifier
from optuna_s2e.classifier._calibration import at_temperature, fit_temperature


def draw(temperature, n, n_classes=3, seed=0):
    """Return probabilities, and labels that they would be right about at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, n_classes))
    given = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    right = np.exp(logits / temperature)
    right /= right.sum(axis=1, keepdims=True)
    labels = (rng.random((n, 1)) > right.cumsum(axis=1)).sum(axis=1)
    return given, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_of_many_labels_is_found(temperature):
    found = fit_temperature(*draw(temperature, 20_000))
    assert found == pytest.approx(temperature, rel=0.05)


def test_few_labels_that_are_all_predicted_change_little():
    confident = np.tile([0.9, 0.05, 0.05], (10, 1))
    assert 0.5 < fit_temperature(confident, np.zeros(10, dtype=int)) < 1.5


def test_one_wrong_prediction_of_probability_zero_is_no_error():
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = fit_temperature(probabilities, np.array([0, 1, 1]))
    assert 1 < found < np.inf
    scaled = at_temperature(probabilities, found)
    assert np.isfinite(scaled).all()
    np.testing.assert_allclose(scaled.sum(axis=1), 1)


def test_a_temperature_is_a_power():
    probabilities, _ = draw(1.0, 50)
    expected = probabilities**0.4
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(at_temperature(probabilities, 2.5), expected)
    assert at_temperature(probabilities, 1.0) is probabilities


RNG = np.random.default_rng(1)
TRUE = RNG.integers(0, 3, size=900)
X = RNG.normal(size=(900, 4)) + TRUE[:, None]
Y = np.where(RNG.random(900) < 0.4, RNG.integers(0, 3, size=900), TRUE)
TRAIN, CLEAN, TEST = slice(0, 300), slice(300, 500), slice(500, None)


def fit(*clean):
    model = NoisyLabelClassifier(
        search=False, noise_rate=0.3, n_epochs=20, batch_size=16, learning_rate=1e-2,
        device="cpu", random_state=0,
    )  # fmt: skip
    return model.fit(X[TRAIN], Y[TRAIN], *clean)


def test_clean_labels_calibrate_and_predictions_stay(tmp_path):
    plain, calibrated = fit(), fit(X[CLEAN], TRUE[CLEAN])
    assert plain.temperature_ == 1.0
    assert calibrated.temperature_ > 1.3  # the networks learned wrong labels by heart
    before, after = plain.predict_proba(X[TEST]), calibrated.predict_proba(X[TEST])
    assert (calibrated.predict(X[TEST]) == plain.predict(X[TEST])).all()
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    assert log_loss(TRUE[TEST], after) < log_loss(TRUE[TEST], before) - 0.05
    np.testing.assert_allclose(after, at_temperature(before, calibrated.temperature_))

    calibrated.save(tmp_path / "model.npz")
    again = NoisyLabelClassifier.load(tmp_path / "model.npz")
    assert again.temperature_ == calibrated.temperature_
    assert (again.predict_proba(X[TEST]) == after).all()
