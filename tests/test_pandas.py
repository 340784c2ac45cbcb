"""pandas is imported where it is needed, and missing only there."""

import sys

import pandas
import pytest

from optuna_s2e._pandas import import_pandas


def test_pandas_is_returned() -> None:
    assert import_pandas("Tables need") is pandas


def test_the_error_says_what_needs_it_and_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'^Tables need pandas, .*"optuna-s2e\[coteaching\]"$'):
        import_pandas("Tables need")
