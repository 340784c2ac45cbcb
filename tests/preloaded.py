"""What the server of `processes` has imported, read and set up before it forks a process.

What is collected from here on leaves that alone: a pass over it takes longer than many a process.
"""

import gc
from contextlib import suppress
from functools import cache
from importlib import import_module

from optuna_s2e._blas import one_blas_thread

NAMES = [
    "optuna_s2e.coteaching", "optuna_s2e.cli._evaluate", "optuna_s2e.cli._search",
    "optuna_s2e.cli._worker", "optuna_s2e.parallel", "optuna_s2e.analysis",
    "optuna_s2e.storages._rdb", "optuna_s2e.dashboard", "optuna_dashboard", "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg", "sklearn.datasets", "tqdm.rich", "pytest",
]  # fmt: skip

gc.disable()
for name in NAMES:
    with suppress(ModuleNotFoundError):  # the machine of a GPU may have little beside PyTorch
        import_module(name)
with suppress(ModuleNotFoundError):
    import alembic.util
    from optuna.storages import RDBStorage

    # ten files whenever a storage is opened
    alembic.util.load_python_file = cache(alembic.util.load_python_file)
    RDBStorage("sqlite://").engine.dispose()
with suppress(ModuleNotFoundError):
    import sklearn.datasets

    sklearn.datasets.load_digits = cache(sklearn.datasets.load_digits)
    sklearn.datasets.load_digits()
with one_blas_thread():  # looks through all libraries at its first use
    pass
gc.collect()
gc.freeze()
gc.enable()
