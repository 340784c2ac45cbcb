"""scikit-learn's own checks of estimators, none of them excused."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import parametrize_with_checks

from optuna_s2e import NoisyLabelClassifier

SHORT = {"search": False, "n_epochs": 10, "batch_size": 32, "learning_rate": 1e-2, "device": "cpu"}


@pytest.mark.filterwarnings("ignore:The noise rate cannot be estimated from")  # 20 samples
@parametrize_with_checks(
    [NoisyLabelClassifier(noise_rate=0.1, **SHORT), NoisyLabelClassifier(n_pairs=0, **SHORT)]
)
def test_check(estimator, check):
    check(estimator)
