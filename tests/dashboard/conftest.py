import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from chromium import FLAGS, find_chromium

from optuna_s2e import S2ESampler, open_storage


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with Optuna's tables, which take most of the time of a small test."""
    path = tmp_path_factory.mktemp("empty") / "s2e.db"
    open_storage(f"sqlite:///{path}")
    return path


@pytest.fixture
def study(request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path) -> optuna.Study:
    """The study "s", in a journal: it writes JSON as a database does, in a third of the time.

    `IN_SQLITE` puts it into the file "s2e.db", where `s2e` looks for it.
    """
    if getattr(request, "param", None) == "sqlite":
        url = f"sqlite:///{tmp_path}/s2e.db"
        source, own = sqlite3.connect(empty_database), sqlite3.connect(tmp_path / "s2e.db")
        source.backup(own)
        source.close()
        own.close()
    else:
        url = f"journal:///{tmp_path}/s2e.log"
        optuna.create_study(study_name="first", storage=open_storage(url))
        optuna.delete_study(study_name="first", storage=open_storage(url))  # "s" is number 1
    return optuna.create_study(
        study_name="s", storage=open_storage(url), sampler=S2ESampler(population_size=4, seed=0)
    )


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:  # not "browser": pytest-playwright, if installed, owns that name
    """A real Chromium; without one these tests are skipped, but fail where CI is set."""
    missing = pytest.fail if os.environ.get("CI") else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install playwright")
    found = find_chromium()
    if found is None:
        missing("no Chromium (Debian: apt-get install chromium; or set S2E_CHROMIUM to one)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()
