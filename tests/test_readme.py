"""README's blocks of Python run, with fewer trials and epochs, and its commands exist.

`make readme` runs all of them as printed (`readme_blocks.py`).
"""

import re
from pathlib import Path
from typing import Any

import pytest

from optuna_s2e.cli._main import make_parser

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_is_a_script_of_its_own(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}  # processes are left to `make readme`
    short = re.sub(r"n_epochs=\d+", "n_epochs=4", re.sub(r"n_trials=\d+", "n_trials=3", block))
    exec(short, names)  # noqa: S102
    if "__main__" in block:
        return
    if "model" in names and "study" not in names:  # the classifier: more right than its labels
        assert names["model"].score(names["x"][1200:], names["clean"][1200:]) > 0.75
        return
    assert len(names["study"].trials) == 3
    if "best" in names:
        assert names["best"].schedule.n_epochs == 4


def test_there_are_blocks_for_each_way_to_search() -> None:
    assert len(BLOCKS) == 6
    assert sum("NoisyLabelClassifier(" in block for block in BLOCKS) == 1
    assert sum("optimize_batch(" in block for block in BLOCKS) == 1


def test_the_commands_are_those_of_the_makefile_and_the_parser() -> None:
    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    commands = re.findall(r"^s2e (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        make_parser().parse_args(command.split())
