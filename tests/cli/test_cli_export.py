"""s2e export: the schedule of a search as a file."""

import json
from pathlib import Path

import optuna
import pytest
from commands import Searched, only_line, study

from optuna_s2e import Schedule, recommend
from optuna_s2e.cli import main


@pytest.mark.parametrize("rule", ["smoothed", "theta", "best"])
def test_exported_schedule_is_that_of_the_rule(
    rule: str, searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--rule", rule, "--out", "schedule.json"]) == 0
    out = capsys.readouterr().out
    assert f"(rule: {rule})" in out
    assert "written to schedule.json" in out
    assert Schedule.load("schedule.json") == recommend(study(), rule).schedule


def test_the_default_is_that_of_recommend_and_best_is_the_best_trial(searched: Searched) -> None:
    assert main(["export", "--out", "default.json"]) == 0
    assert Schedule.load("default.json") == recommend(study()).schedule
    assert main(["export", "--rule", "best", "--out", "best.json"]) == 0
    assert Schedule.load("best.json") == Schedule.from_trial(study().best_trial)


@pytest.mark.parametrize("out", [[], ["--out", "x.json"]])
def test_json_is_one_document_with_the_schedule(
    out: list[str], searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--json", *out]) == 0
    document = json.loads(capsys.readouterr().out)
    picked = recommend(study())
    assert document.pop("schedule") == json.loads(picked.schedule.to_json())
    assert document == {
        "study": "s",
        "rule": "mean",
        "trial": None,
        "mean_of": list(picked.mean_of),
        "params": picked.params,
        "expected_value": picked.expected_loss,
        "interval": list(picked.interval),
        "file": out[1] if out else None,
    }
    assert Path("x.json").exists() == bool(out)


def test_a_file_that_cannot_be_written_is_one_line_that_names_the_option(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    line = only_line(capsys, "export", "--out", "no/such/x.json")
    assert "error: --out must be writable, but got 'no/such/x.json': No such file" in line


def test_study_without_schedules_is_one_line_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = optuna.create_study(study_name="own", storage="sqlite:///s2e.db")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert "hold no schedules" in only_line(capsys, "export", "--out", "x.json")
    assert not Path("x.json").exists()
    assert "error: --out is needed" in only_line(capsys, "export")


def test_a_file_of_the_user_is_never_replaced(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"table.csv": b"a,b\n1,2\n", "own.json": b'{"a": 1}', "own.npz": b"PK\x03\x04\xff\x00"}
    for name, content in own.items():
        Path(name).write_bytes(content)
        line = only_line(capsys, "export", "--out", name)
        assert f"--out must not replace files of your own, but '{name}' is there" in line
        assert Path(name).read_bytes() == content
    Path("empty.json").touch()  # as mktemp makes one
    for _ in range(2):  # an exported schedule is replaced
        assert main(["export", "--out", "empty.json"]) == 0
    assert Schedule.load("empty.json") == recommend(study()).schedule
