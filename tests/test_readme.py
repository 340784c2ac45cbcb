"""README's Python runs, its commands exist, and so does what it says of OptunaHub.

`make readme` runs all of its blocks as printed (`readme_blocks.py`).
"""

import re
from pathlib import Path
from typing import Any

import pytest
from page_blocks import commands, read_blocks

from optuna_s2e.cli._main import make_parser

README = Path(__file__).parent.parent / "README.md"


def test_the_classifier_of_readme_is_more_right_than_its_labels() -> None:
    pytest.importorskip("torch")
    (block,) = [b.text for b in read_blocks(README.read_text()) if b.language == "python"]
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102
    assert names["model"].score(names["x"][1200:], names["clean"][1200:]) > 0.75


def test_the_commands_are_those_of_the_makefile_and_the_parser() -> None:
    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    found = [c for b in read_blocks(text) if b.language == "bash" for c in commands(b.text)]
    assert len(found) == 3
    for command in found:
        make_parser().parse_args(command.split()[1:])
