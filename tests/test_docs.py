"""What the pages of the docs name exists; nothing is missing or dead.

`make readme` runs their code, which has to print what they say. `make docs` builds the site, and
refuses dead links within it.
"""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from page_blocks import (
    DOCS,
    ROOT,
    Block,
    check_printed,
    commands,
    read_blocks,
    run_blocks,
    run_page,
)

from optuna_s2e.cli._main import make_parser

PAGES = sorted(page for page in DOCS.rglob("*.md") if "optunahub" not in page.parts)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_lines_of_the_start_page_run() -> None:
    from sklearn.datasets import load_wine

    X, y = load_wine(return_X_y=True)
    run_blocks(read_blocks((DOCS / "index.md").read_text()), {"X": X, "y": y, "X_new": X[:3]})


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name_of)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for block in read_blocks(text):
        if block.language == "bash":
            for command in commands(block.text):
                make_parser().parse_args(command.split()[1:])
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("optuna_s2e"):
                module = import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize(
    "name",
    ["optuna_s2e"]
    + [
        f"optuna_s2e.{room}"
        for room in (
            "classifier", "coteaching", "dashboard", "distributions", "estimators", "label_noise",
            "surrogate", "visualization",
        )
    ],
)  # fmt: skip
def test_the_reference_lists_every_public_name(name: str) -> None:
    listed = set()
    for page in (DOCS / "reference").glob("*.md"):
        for module, names in re.findall(
            r"currentmodule:: (\S+)\n\.\. autosummary::\n(?:   :.*\n)*\n((?:   \S+\n)+)",
            page.read_text(),
        ):
            listed |= {id(getattr(import_module(module), line)) for line in names.split()}
    module = import_module(name)
    public = getattr(module, "__all__", None) or [
        key
        for key, value in vars(module).items()
        if key[0] != "_" and getattr(value, "__module__", None) == name
    ]
    missing = [key for key in public if id(getattr(module, key)) not in listed]
    assert not missing


def test_blocks_and_what_they_print_are_read() -> None:
    script = "```python\n# a.py\n1\n```\n\n```text\n2\n```\n\n"
    rest = "Words.\n\n```text\n3\n```\n```bash\ns2e x\n```\n"
    first, second = read_blocks(script + rest)
    assert first == Block("python", "# a.py\n1\n", "2\n")
    assert first.file == "a.py"
    assert second == Block("bash", "s2e x\n", None)
    assert commands("s2e a \\\n    --b  # c\npip install d\n") == ["s2e a --b"]


def test_a_section_that_needs_an_optional_package_is_skipped() -> None:
    one, two, three = (
        f"## {title}\n```python\n{code}\n```\n"
        for title, code in (("A", "x = 1"), ("B", "import skorch"), ("C", "x += 1"))
    )
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "skorch", None)
        assert list(run_page(one + two + three, names)) == ["## B: skorch is not installed"]
    assert names["x"] == 2
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        list(run_page(two.replace("skorch", "nowhere"), names))


def test_printed_words_have_to_be_the_same_and_numbers_nearly() -> None:
    check_printed("0.91 of 12 are  right\n", "0.93 of 13 are right\n")
    check_printed("... right", "0.5 of 1 are right")
    for other in ("0.91 of 12 are wrong", "0.71 of 12 are right"):
        with pytest.raises(AssertionError, match="The page says"):
            check_printed("0.91 of 12 are right", other)
