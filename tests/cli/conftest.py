import contextlib
import io
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import DATA, LONG, N_SEARCHED, Searched, make_arrays, search, study

from optuna_s2e import generations
from optuna_s2e.cli import main


@pytest.fixture(autouse=True)
def _in_a_folder_with_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_are_read_once: None
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(DATA, **make_arrays())


@pytest.fixture
def pictures_stay_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of other things: matplotlib takes longer than all trainings of an evaluation."""

    def touch(figure: Any, path: Path, **_: Any) -> None:
        path.touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", touch)


@pytest.fixture(scope="session")
def _searched_once(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder, printed = tmp_path_factory.mktemp("searched"), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        np.savez(DATA, **make_arrays())
        assert main(search(N_SEARCHED)) == 0
    return Searched(folder, printed.getvalue())


@pytest.fixture
def searched(_searched_once: Searched, tmp_path: Path) -> Searched:
    """The study "s", in a database of the test's own in the working folder."""
    source = sqlite3.connect(_searched_once.folder / "s2e.db")
    target = sqlite3.connect(tmp_path / "s2e.db")
    with contextlib.closing(source), contextlib.closing(target):
        source.backup(target)
    return Searched(tmp_path, _searched_once.printed)


@pytest.fixture(scope="session")
def undisturbed(_searched_once: Searched) -> Callable[[int], list[bytes]]:
    """The thetas of a search of n long trials that nothing disturbed."""

    def thetas(n_trials: int) -> list[bytes]:
        with contextlib.chdir(_searched_once.folder), contextlib.redirect_stdout(io.StringIO()):
            url = "sqlite:///long.db"
            assert main(search(n_trials, *LONG, "--storage", url)) == 0  # goes on
            told = generations(study(storage=url))
        return [g.theta.tobytes() for g in told if g.opener is None or g.opener < n_trials]

    return thetas
