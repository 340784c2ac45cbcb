"""What the server of `processes` has imported, read and set up before it forks a process.

What is collected from here on leaves that alone: a pass over it takes longer than many a process.
"""

import gc
from contextlib import suppress
from importlib import import_module

from read_once import keep_digits, keep_migrations

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
keep_migrations()
keep_digits()
with suppress(ModuleNotFoundError):
    from optuna.storages import RDBStorage

    RDBStorage("sqlite://").engine.dispose()
with suppress(ModuleNotFoundError):
    import sklearn.datasets

    sklearn.datasets.load_digits()
with one_blas_thread():  # looks through all libraries at its first use
    pass
gc.collect()
gc.freeze()
gc.enable()
