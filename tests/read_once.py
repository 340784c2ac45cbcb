"""Files of libraries that take long to read: once per process, not whenever they are needed."""

from contextlib import suppress
from functools import cache


def keep_migrations() -> None:
    """Keep Alembic's: it runs ten files of Optuna whenever a storage is opened."""
    with suppress(ModuleNotFoundError):  # a GPU's machine may have little beside PyTorch
        import alembic.util

        alembic.util.load_python_file = cache(alembic.util.load_python_file)


def keep_digits() -> None:
    """Keep scikit-learn's: reading them takes as long as a short training."""
    with suppress(ModuleNotFoundError):
        import sklearn.datasets

        sklearn.datasets.load_digits = cache(sklearn.datasets.load_digits)
