"""The s2e command as a whole: help, versions, errors in one line, and what it imports."""

import argparse
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import optuna
import pytest
from commands import DATA, N_SEARCHED, SEARCH, K, Searched, last_line, only_line
from processes import Process

import optuna_s2e
from optuna_s2e.cli import main
from optuna_s2e.cli._common import shown
from optuna_s2e.cli._main import COMMANDS
from optuna_s2e.estimators import ESTIMATORS

ERRORS: dict[str, tuple[list[str], str]] = {
    "unknown data": (["search", "--data", "mnits"], "'mnits'"),
    "data root": (["search", "--data", "mnist"], "error: --data-root must be"),
    "npz": (["search", "--data", "none.npz"], "none.npz"),
    "network": (["search", "--network", "resnet"], "error: --network must be one of"),
    "device": (["search", "--device", "tpu"], "error: --device must be"),
    "epochs": (["search", "--epochs", "9999999"], "error: --epochs must be an int in"),
    "estimator": (
        ["search", "--estimator", "magic"],
        r"^s2e search: error: --estimator must be one of 'surrogate', .*, but got 'magic'",
    ),
    "storage": (["search", "--storage", "sqlite:////no/such/x.db"], "cannot be opened"),
    "url": (["search", "--storage", "here"], "error: --storage must be a database URL"),
    "server": (
        ["status", "--storage", "postgresql+psycopg://me:secret@127.0.0.1:1/x"],
        r"me:\*\*\*@127.0.0.1:1/x cannot be opened",
    ),
    "password": (["status", "postgresql://me:secret@db/x"], r"me:\*\*\*@db/x' is no option"),
    "no storage": (["status"], r"s2e.db cannot be opened: the file does not exist"),
    "no export": (["export", "--out", "x.json"], r"s2e.db cannot be opened: the file does not"),
    "no evaluation": (["evaluate"], r"s2e.db cannot be opened: the file does not exist"),
    "no worker": (["worker"], r"s2e.db cannot be opened: the file does not exist"),
    "no dashboard": (["dashboard"], r"s2e.db cannot be opened: the file does not exist"),
    "half a password": (
        ["status", "--storage", "postgresql://me:p@secret/secret@db/x"],
        r"error: --storage must be .* but got 'postgresql://\*\*\*'",
    ),
    "libpq": (
        ["status", "--storage", "host=db password='se secret'"],
        r"error: --storage must be .* but got '\*\*\*'",
    ),
    "no value": (["search", "--trials"], "error: --trials must have a value"),
    "a dash": (
        ["search", "--study-name", "-three"],
        "one that begins with a dash is written --study-name=-x",
    ),
    "no name": (["search", "--study-name", ""], "error: --study-name must not be empty"),
    "no option": (
        ["evaluate", "--seeds", "0"],
        r"^s2e evaluate: error: '--seeds' is no option of this command. See `s2e evaluate --help`",
    ),
    "no command": (["serach"], "^s2e: error: COMMAND must be one of .*, but got 'serach'"),
    "noise without noise": (
        ["search", "--noise", "none", "--noise-rate", ".3"],
        "error: --noise must be .* if a noise rate .* is asked for, but got 'none'",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_is_one_line_and_nothing_is_written(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, message = ERRORS[case]
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert re.match(r"s2e( \w+)?: error: ", error)
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert "secret" not in error
    assert [path.name for path in Path().iterdir()] == [DATA]


def test_a_study_that_does_not_exist_is_answered_with_those_that_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("mnist", "digits-pair-0.45", "digits-symmetric-0.5"):
        optuna.create_study(study_name=name, storage="sqlite:///s2e.db")
    for command in (["status"], ["worker"], ["evaluate"], ["export", "--out", "x.json"]):
        line = only_line(capsys, *command, "--study-name", "digits-symetric-0.5")
        assert line == (
            f"s2e {command[0]}: error: Study 'digits-symetric-0.5' does not exist: the storage "
            f"sqlite:///{Path.cwd()}/s2e.db holds 'digits-symmetric-0.5', 'digits-pair-0.45', "
            "'mnist'."
        )
    assert "'digits-pair-0.45', 'digits-symmetric-0.5', 'mnist'" in only_line(capsys, "status")


def test_next_steps_show_no_password() -> None:
    url = "postgresql://me:s3 cr'et@db/x"
    args = argparse.Namespace(storage=url)
    assert shown(args, ["s2e", "status", "--storage", url, f"--storage={url}"]) == (
        "s2e status --storage 'postgresql://me:***@db/x' '--storage=postgresql://me:***@db/x'"
    )


NUMBERS: dict[tuple[str, str, str], str] = {
    ("search", "--trials", "0"): "must be an int in [1, 1000000000], but got 0.",
    ("search", "--trials", "some"): "must be an int in [1, 1000000000], but got 'some'.",
    ("search", "--trials", "20.0"): "must be an int in [1, 1000000000], but got '20.0'.",
    ("search", "--trials", "inf"): "must be an int in [1, 1000000000], but got 'inf'.",
    ("search", "--epochs", "1"): "must be an int of at least 2, but got 1.",
    ("search", "--noise-rate", "1.0"): "must be a number in [0, 1), but got 1.0.",
    ("search", "--noise-rate", "nan"): "must be a number in [0, 1), but got nan.",
    ("search", "--batch-size", "0"): "must be an int in [1, 1000000000], but got 0.",
    ("search", "--learning-rate", "0"): "must be a finite number > 0, but got 0.0.",
    ("search", "--learning-rate", "inf"): "must be a finite number > 0, but got inf.",
    ("search", "--population-size", "0"): "must be an int of at least 1, but got 0.",
    ("search", "--reuse", "1001"): "must be an int in [0, 1000], but got 1001.",
    ("search", "--seed", "-1"): "must be an int in [0, 18446744073709551615], but got -1.",
    ("search", "--threads", "0"): "must be an int in [1, 1024], but got 0.",
    ("worker", "--trials", "0"): "must be an int in [1, 1000000000], but got 0.",
    ("worker", "--grace", "-1"): "must be a number in [0, 1e+06], but got -1.0.",
    ("evaluate", "--repeats", "0"): "must be an int in [1, 10000], but got 0.",
    ("evaluate", "--seed", "-1"): "must be an int in [0, 18446744073709551615], but got -1.",
    ("evaluate", "--noise-rate", "0.97"): "must be a number in [0, 0.95], but got 0.97.",
    ("dashboard", "--port", "99999"): "must be an int in [0, 65535], but got 99999.",
}


@pytest.mark.parametrize("case", NUMBERS, ids=" ".join)
def test_wrong_number_is_one_line_that_names_its_option(
    case: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, option, _ = case
    line = only_line(capsys, *case)
    assert line == f"s2e {command}: error: {option} {NUMBERS[case]} See `s2e {command} --help`."


def test_error_inside_the_database_is_one_line(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(sqlite3.connect("s2e.db")) as database:
        database.execute("ALTER TABLE trials RENAME COLUMN number TO gone")
    assert "no such column: trials.number" in last_line(capsys, "status")


def test_traceback_shows_where_an_error_came_from() -> None:
    with pytest.raises(ConnectionError, match="the file does not exist"):
        main(["status", "--traceback"])


def test_every_estimator_is_a_choice_that_the_help_explains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["search", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"\b{name}: \w", out) for name in ESTIMATORS)
    for name in ESTIMATORS:  # accepted: the error is that of the data
        assert "mnits" in last_line(capsys, *SEARCH, "--estimator", name, "--data", "mnits")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_teaches_and_fits_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(rf"^    s2e {command or 'search'}\b", out, re.MULTILINE)  # a typical line
    if command:
        assert re.search(r"^Next: ", out, re.MULTILINE)
    else:
        assert all(re.search(rf"^    {name}\b", out, re.MULTILINE) for name in COMMANDS)


# --- versions and imports --------------------------------------------------------------------


def test_version_is_that_of_pyproject_with_what_it_runs_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    stated = tomllib.loads(pyproject.read_text())["project"]["version"]
    assert optuna_s2e.__version__ == stated
    assert main(["--version"]) == 0
    shown = f"s2e {stated} (optuna {version('optuna')}, torch {version('torch')})\n"
    assert capsys.readouterr().out == shown


def test_version_of_a_checkout_says_that_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing_is_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    with monkeypatch.context() as patched:
        patched.setattr("importlib.metadata.version", nothing_is_installed)
        assert optuna_s2e.__version__ == "0+not.installed"
        assert main(["--version"]) == 0
    shown = "s2e 0+not.installed (optuna not installed, torch not installed)\n"
    assert capsys.readouterr().out == shown


CODE = """
import sys, json, runpy
sys.modules["torch"] = None  # as if it were not installed
from optuna_s2e.cli import main
from optuna_s2e.cli._common import shown
def run(*argv):
    print(json.dumps([argv[0], main(argv)]), file=sys.stderr)
before = set(sys.modules)
run("--help")
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(["imported", sorted(new - set(sys.stdlib_module_names))]), file=sys.stderr)
run("status", "--verify")
run("export", "--out", "schedule.json")
run("evaluate")
sys.argv = ["python -m optuna_s2e", "--version"]
runpy.run_module("optuna_s2e", run_name="__main__")
"""


def test_help_imports_no_more_than_its_parser_and_no_torch_is_needed_to_look(
    searched: Searched,
) -> None:
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    lines = ran.stderr.splitlines()
    results = dict(json.loads(line) for line in lines if line.startswith("["))
    expected = {"--help": 0, "imported": ["optuna_s2e"], "status": 0, "export": 0, "evaluate": 2}
    assert results == expected
    assert f"{N_SEARCHED // K} generations replay bit for bit" in ran.stdout
    (error,) = (line for line in lines if line.startswith("s2e "))
    assert 'pip install "optuna-s2e[coteaching]"' in error
    assert ran.stdout.splitlines()[-1].startswith(f"s2e {optuna_s2e.__version__} (optuna ")


def test_a_reader_that_stops_reading_is_no_error(searched: Searched) -> None:
    s2e = f"{sys.executable} -m optuna_s2e status"
    ran = subprocess.run(f"{s2e} | true", shell=True, capture_output=True, text=True)
    assert ran.stderr == ""


def status_without(streams: list[str]) -> None:
    """Begin as an interpreter does whose streams are closed (`>&-` in a shell)."""
    for name in streams:
        os.close(getattr(sys, name).fileno())
        setattr(sys, name, None)
    sys.argv = ["s2e", "status"]
    sys.exit(main())


@pytest.mark.parametrize("closed", [["stdout"], ["stderr"], ["stdout", "stderr"]], ids=str)
def test_closed_streams_are_no_error(searched: Searched, closed: list[str]) -> None:
    process = Process(status_without, closed)
    assert process.wait() == 0, process.errors
    assert "Traceback" not in process.errors
    assert "stdout" in closed or f"{N_SEARCHED} complete" in process.printed
