"""s2e evaluate: schedules side by side on test data."""

import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from commands import EPOCHS, Searched, only_line, study

from optuna_s2e import Schedule, recommend
from optuna_s2e.cli import main


def test_evaluation_prints_a_table_and_writes_three_files(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--repeats", "2", "--out", "report"]) == 0
    out = capsys.readouterr().out
    for method in ("Standard", "Co-teaching", "Searched"):
        assert method in out
    assert "s2e export --storage sqlite:///s2e.db --study-name s --out schedule.json" in out
    report = json.loads(Path("report/evaluation.json").read_text())
    assert np.shape(report["methods"]["searched"]["test_accuracy"]) == (2, EPOCHS)  # repeats
    assert Path("report/evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert Schedule.load("report/schedule.json") == recommend(study()).schedule


def test_study_of_another_objective_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    optuna.create_study(study_name="own", storage="sqlite:///s2e.db")
    assert "was not made by `s2e search`" in only_line(capsys, "evaluate")
