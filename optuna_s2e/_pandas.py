"""pandas, which belongs to the extra `coteaching` and is imported where it is needed."""

from __future__ import annotations

from types import ModuleType


def import_pandas(purpose: str) -> ModuleType:
    """Return pandas.

    Args:
        purpose: What needs it, with the verb, such as "Tables need".

    Raises:
        ImportError: If it is missing. The message says how to install it.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{purpose} pandas, which cannot be imported. "
            'Install it with: pip install "optuna-s2e[coteaching]"'
        ) from error
    return pandas  # type: ignore[no-any-return]
