"""Every study finds what it imports from the others and from the package."""

import importlib
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "studies"
PEERS = {"botorch", "cleanlab", "smac"}  # of the extra `studies`


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.py")))
def test_a_study_can_be_imported(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in PEERS:
            raise
        pytest.skip(f"{missing} is not installed")
