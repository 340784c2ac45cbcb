"""Co-teaching on data with wrong labels: data, training, and an Optuna objective over schedules.

This package needs PyTorch. MNIST, CIFAR, ResNets and DenseNets also need torchvision, and the
digits need scikit-learn.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "optuna_s2e.coteaching needs PyTorch, which cannot be imported. "
        'Install it with: pip install "optuna-s2e[coteaching]"'
    ) from error

from optuna_s2e.coteaching._config import TrainingConfig
from optuna_s2e.coteaching._evaluation import (
    Compared,
    Evaluation,
    compared_methods,
    evaluate_schedules,
    fixed_schedules,
)
from optuna_s2e.coteaching._evaluation_report import evaluation_table, save_evaluation, title_of
from optuna_s2e.coteaching._label_errors import find_label_errors, label_quality, list_label_errors
from optuna_s2e.coteaching._label_report import save_label_errors
from optuna_s2e.coteaching._methods import (
    METHODS,
    Bare,
    Coteaching,
    CoteachingPlus,
    Decoupling,
    ForwardCorrection,
    Jocor,
    MentorNet,
    Reweight,
    Standard,
    find_method,
)
from optuna_s2e.coteaching._networks import NETWORKS, make_network
from optuna_s2e.coteaching._noise_estimate import NoiseEstimate, estimate_noise
from optuna_s2e.coteaching._objective import CoteachingObjective
from optuna_s2e.coteaching._predictions import predict_probabilities
from optuna_s2e.coteaching._samples import SampleStatistics
from optuna_s2e.coteaching._steps import Method
from optuna_s2e.coteaching._training import (
    Metrics,
    TrainingResult,
    find_device,
    last_epochs_mean,
    train_batch,
)
from optuna_s2e.coteaching.data import DATA_SETS, NoisyData, load_data

__all__ = [
    "DATA_SETS",
    "METHODS",
    "NETWORKS",
    "Bare",
    "Compared",
    "Coteaching",
    "CoteachingObjective",
    "CoteachingPlus",
    "Decoupling",
    "Evaluation",
    "ForwardCorrection",
    "Jocor",
    "MentorNet",
    "Method",
    "Metrics",
    "NoiseEstimate",
    "NoisyData",
    "Reweight",
    "SampleStatistics",
    "Standard",
    "TrainingConfig",
    "TrainingResult",
    "compared_methods",
    "estimate_noise",
    "evaluate_schedules",
    "evaluation_table",
    "find_device",
    "find_label_errors",
    "find_method",
    "fixed_schedules",
    "label_quality",
    "last_epochs_mean",
    "list_label_errors",
    "load_data",
    "make_network",
    "predict_probabilities",
    "save_evaluation",
    "save_label_errors",
    "title_of",
    "train_batch",
]
