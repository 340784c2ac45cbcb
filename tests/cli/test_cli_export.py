"""s2e export: the schedule of a search as a file."""

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


def test_rules_smoothed_and_best_are_the_default_and_the_best_trial(searched: Searched) -> None:
    assert main(["export", "--out", "default.json"]) == 0
    assert Schedule.load("default.json") == recommend(study()).schedule
    assert main(["export", "--rule", "best", "--out", "best.json"]) == 0
    assert Schedule.load("best.json") == Schedule.from_trial(study().best_trial)


def test_study_without_schedules_is_one_line_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = optuna.create_study(study_name="own", storage="sqlite:///s2e.db")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert "hold no schedules" in only_line(capsys, "export", "--out", "x.json")
    assert not Path("x.json").exists()
    assert "required: --out" in only_line(capsys, "export")
