"""The README's Python runs as printed, with fewer trials; its commands exist."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optuna_s2e.cli._main import make_parser

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_quickstart_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, y = rng.random((120, 64)).astype(np.float32), np.arange(120) % 3
    names: dict[str, Any] = {
        "torch": pytest.importorskip("torch"),
        "x": x[:80], "y": y[:80], "x_val": x[80:], "y_val": y[80:],
        "my_training": lambda keep_rates: float(keep_rates.mean()),
        "train": lambda weights, lr, depth: float(weights[0]) + lr + depth,
    }  # fmt: skip
    for block in BLOCKS:
        exec(re.sub(r"n_trials=\d+", "n_trials=3", block), names)  # noqa: S102
    assert names["best"].schedule.n_epochs == 40
    names["study"].optimize(names["my_objective"], n_trials=2)
    own = names["objective"]
    assert len(BLOCKS) == 5
    assert callable(own)


def test_the_commands_are_those_of_the_makefile_and_the_parser() -> None:
    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    commands = re.findall(r"^s2e (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        make_parser().parse_args(command.split())


REGISTRY = README.parent / "docs" / "optunahub" / "package"
HUB = REGISTRY / "samplers" / "s2e"


def test_the_optunahub_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = (HUB / "example.py").read_text()
    here = example.replace("load_module(", f"load_local_module(registry_root={str(REGISTRY)!r}, ")
    assert here != example
    exec(here, {})  # noqa: S102
    assert len(capsys.readouterr().out.splitlines()) == 1 + 10


def test_the_optunahub_package_has_its_front_matter() -> None:
    head = (HUB / "README.md").read_text().split("---")[1]
    for key in ("author", "title", "description", "tags", "optuna_versions", "license"):
        assert f"\n{key}: " in head
