"""Options: every number of every command is checked, in one wording."""

import argparse
import re
from pathlib import Path

import pytest
from commands import only_line

from optuna_s2e.cli._main import COMMANDS, make_parser
from optuna_s2e.cli._options import number, whole

NEEDED = {"fit": ["DATA", "--out", "DIR"], "predict": ["MODEL", "NEW"], "label-errors": ["DATA"]}


def numbers() -> list[tuple[str, str]]:
    """Return the options of all commands that take a number."""
    found = []
    for command in COMMANDS:
        parser = make_parser()
        parser.parse_args([command, *NEEDED.get(command, [])])
        (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        for action in commands.choices[command]._actions:
            if getattr(action.type, "__name__", "") == "read":
                found.append((command, action.option_strings[0]))
    return found


NUMBERS = numbers()


def test_the_numbers_are_those_of_the_help() -> None:
    assert len(NUMBERS) == 33
    assert ("search", "--trials") in NUMBERS
    assert ("evaluate", "--noise-rate") in NUMBERS


@pytest.mark.parametrize("case", NUMBERS, ids=" ".join)
@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e999", "", "one", "True", "-1", "0x10"])
def test_what_is_no_number_in_range_is_one_line(
    case: tuple[str, str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, option = case
    line = only_line(capsys, command, f"{option}={text}")
    wording = rf"{option} must be an? (int|number|finite number) .*, but got .+\. See "
    assert re.match(rf"s2e {command}: error: {wording}", line), line


def test_readers_return_numbers_within_their_bounds() -> None:
    assert whole(2, 5)("5") == 5
    assert whole(2)("2") == 2
    assert number(0, 1)("1e-3") == 1e-3
    for read, text in ((whole(2, 5), "6"), (whole(2), "1"), (number(0, 1, open_high=True), "1")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^must be .*, but got {text}"):
            read(text)


@pytest.mark.parametrize("command", ["search", "worker", "dashboard"])
def test_a_file_is_no_folder_of_pictures(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("table.csv").write_text("a,b\n")
    line = only_line(capsys, command, "--artifact-dir", "table.csv")
    assert "error: --artifact-dir must be a folder, but 'table.csv' is a file" in line
