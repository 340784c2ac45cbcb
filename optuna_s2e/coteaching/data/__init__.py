"""Data with wrong labels: made from a name, a file, arrays or torch data sets."""

from optuna_s2e.coteaching.data._inputs import to_input
from optuna_s2e.coteaching.data._load import load_data
from optuna_s2e.coteaching.data._noisy_data import NoisyData
from optuna_s2e.coteaching.data._sources import DATA_SETS

__all__ = [
    "DATA_SETS",
    "NoisyData",
    "load_data",
    "to_input",
]
