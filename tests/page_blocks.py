"""Run the blocks of a page of the docs as a reader would: in order, in one folder.

The blocks of Python of a page share their names, like the cells of a notebook. A block that begins
with a comment such as `# search.py` is a file of its own: it is written, and run as a script. Of
the blocks of shell, the `s2e` commands run. A block of text below a block of Python is what that
one prints: words have to be the same, and numbers about the same, because they differ a little
from machine to machine. `...` stands for anything. A section that needs a package of OPTIONAL is
skipped where that is not installed.

`make readme` runs README and all pages, with the wheel:

    python tests/page_blocks.py PAGE
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("tutorials/*.md")), *sorted(DOCS.glob("guides/*.md")), DOCS / "faq.md"]
S2E = [sys.executable, "-m", "optuna_s2e"]
TIMEOUT = 600  # seconds that one command may take
OPTIONAL = {"cleanlab", "pytorch_lightning", "skorch", "transformers"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A block of a page, and what it prints, if the page says so."""

    language: str
    text: str
    printed: str | None

    @property
    def file(self) -> str | None:
        """Return the name of the file that the block is."""
        named = re.match(r"# ([\w-]+\.py)\n", self.text)
        return named and named[1]


def read_blocks(text: str) -> list[Block]:
    """Return the blocks of Python and shell of a page."""
    fences = re.finditer(r"^```(python|bash|text)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    blocks: list[Block] = []
    end = -1
    for fence in fences:
        if fence[1] != "text":
            blocks.append(Block(fence[1], fence[2], None))
        elif blocks and not text[end : fence.start()].strip():
            blocks[-1] = blocks[-1]._replace(printed=fence[2])
        end = fence.end()
    return blocks


def commands(block: str) -> list[str]:
    """Return the `s2e` commands of a block of shell, without comments; lines may go on."""
    joined = re.sub(r"\\\n\s*", "", block)
    lines = (re.sub(r"\s+#.*", "", line) for line in joined.splitlines())
    return [line for line in lines if line.startswith("s2e ")]


def numbers(text: str) -> list[float]:
    """Return the fractions in a text; whole numbers, such as those of samples, are left out."""
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def check_printed(expected: str, got: str) -> None:
    """Compare what a block printed with what the page says."""
    masked = [re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", text) for text in (expected, got)]
    same = doctest.OutputChecker().check_output(*masked, FLAGS)
    if same and "..." not in expected:
        pairs = zip(numbers(expected), numbers(got), strict=True)
        same = all(abs(a - b) <= max(0.11, 0.1 * abs(a)) for a, b in pairs)
    assert same, f"The page says that this is printed:\n{expected}\nbut it was:\n{got}"


def run_command(command: list[str]) -> str:
    """Run a command to its end; show what it printed only if it fails."""
    done = subprocess.run(
        command, timeout=TIMEOUT, text=True, stdin=subprocess.DEVNULL, capture_output=True
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"{shlex.join(command)} ended with {done.returncode}.\n{done.stderr}")
    return done.stdout


def run_blocks(blocks: list[Block], names: dict[str, Any]) -> None:
    """Run blocks in the working folder."""
    for number, block in enumerate(blocks):
        if block.language == "bash":
            for command in commands(block.text):
                run_command([*S2E, *shlex.split(command)[1:]])
        elif block.file:
            Path(block.file).write_text(block.text)
            printed = run_command([sys.executable, block.file])
            check_printed(block.printed or "...", printed)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as printed_to:
                exec(compile(block.text, f"<block {number}>", "exec"), names)  # noqa: S102
            check_printed(block.printed or "...", printed_to.getvalue())


def run_page(text: str, names: dict[str, Any]) -> Iterator[str]:
    """Run a page section by section, and yield the title of each one that is skipped."""
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        try:
            run_blocks(read_blocks(section), names)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            yield f"{section.splitlines()[0]}: {error.name} is not installed"


def main() -> None:
    """Run one page in the working folder."""
    page = Path(sys.argv[1])
    for skipped in run_page(page.read_text(), {"__name__": page.stem}):
        print(f"skipped {skipped}")


if __name__ == "__main__":
    main()
