"""scikit-learn's own checks of estimators, none of them excused."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import parametrize_with_checks

from optuna_s2e import NoisyLabelClassifier

QUICK = NoisyLabelClassifier(
    search=False, noise_rate=0.1, n_epochs=10, batch_size=32, learning_rate=1e-2, device="cpu"
)


@parametrize_with_checks([QUICK])
def test_check(estimator, check):
    check(estimator)
