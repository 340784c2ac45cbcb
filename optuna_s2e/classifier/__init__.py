"""A classifier for data with wrong labels, in the style of scikit-learn.

It estimates how many labels are wrong, searches a schedule, trains a pair of networks with it, and
says which labels are wrong. This package needs PyTorch and scikit-learn.
"""

try:
    import sklearn as _sklearn  # noqa: F401
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"optuna_s2e.classifier needs PyTorch and scikit-learn, but {error.name} cannot be "
        'imported. Install them with: pip install "optuna-s2e[coteaching]"'
    ) from error

from optuna_s2e.classifier._classifier import NoisyLabelClassifier

__all__ = ["NoisyLabelClassifier"]
