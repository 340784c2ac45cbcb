"""Markdown for the dashboard's notes: strings that do nothing, and our block in a person's note.

Strings of the database (names, values, parameters) stand in code spans or code blocks, so that
nothing in them is markup, a link or a picture. A person's own text around our block survives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

BEGIN = "[s2e-begin]: # (kept up to date by optuna_s2e: write above or below, not in between)"
END = "[s2e-end]: # (end of what optuna_s2e keeps up to date)"
_BLOCK = re.compile(r"\[s2e-begin\]: #[^\n]*\n.*?\[s2e-end\]: #[^\n]*(?:\n|$)", re.DOTALL)
_STRAY = re.compile(r"^\[s2e-(?:begin|end)\]: #[^\n]*(?:\n|$)", re.MULTILINE)
_GAP = "\N{EM SPACE}"  # the dashboard's tables have no space between columns


def update_note(target: Any, block: str) -> None:
    """Put a block into the note of a study or a trial, in place of the earlier one.

    Args:
        target: What optuna-dashboard's `save_note` takes.
        block: Markdown.
    """
    from optuna_dashboard import get_note, save_note

    save_note(target, merge(get_note(target), block))


def merge(note: str, block: str) -> str:
    """Return a note with a block in place of the earlier one; all other text is kept."""
    marked = f"{BEGIN}\n\n{block.strip()}\n\n{END}\n"
    before, found, after = note, False, ""
    first = _BLOCK.search(note)
    if first is not None:
        before, found, after = note[: first.start()], True, note[first.end() :]
    before, after = (_STRAY.sub("", _BLOCK.sub("", part)) for part in (before, after))
    if not found and before and not before.endswith("\n\n"):
        before = before.rstrip("\n") + "\n\n"
    return before + marked + after


def code(value: object, max_length: int = 200) -> str:
    """Return a string of the database as a code span on one line."""
    shown = _printable(str(value))
    if len(shown) > max_length:
        shown = shown[: max_length - 1] + "\N{HORIZONTAL ELLIPSIS}"
    fence = "`" * (_longest_run_of_ticks([shown]) + 1)
    return f"{fence} {shown or '-'} {fence}"


def code_block(lines: Sequence[str]) -> str:
    """Return lines as a code block; control characters are replaced."""
    shown = [_printable(line) for line in lines]
    fence = "`" * max(3, _longest_run_of_ticks(shown) + 1)
    return "\n".join([fence, *shown, fence])


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], align: str = "---") -> str:
    """Return a table.

    Args:
        columns: Titles. A column without a title holds the labels of the rows.
        rows: Cells, as Markdown.
        align: "---" for text, "---:" for numbers.
    """
    gaps = [_GAP if title else "" for title in columns]

    def line(cells: Sequence[object]) -> str:
        return "|" + "".join(f" {gap}{cell} |" for gap, cell in zip(gaps, cells, strict=True))

    ruler = "|" + "".join(f"{align if title else '---'}|" for title in columns)
    return "\n".join([line(columns), ruler, *map(line, rows)])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _longest_run_of_ticks(lines: Sequence[str]) -> int:
    return max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
