"""s2e label-errors: from a model or from data, as many as asked for, in three files."""

import csv
import json
from pathlib import Path

import pytest
from commands import last_line, write_table

from optuna_s2e.cli import main
from optuna_s2e.cli._label_errors import N_SHOWN

WRONG = {str(i) for i in range(0, 80, 5)}
DATA = ["label-errors", "a.csv", "--label", "kind", "--epochs", "8"]


@pytest.fixture(autouse=True)
def _a_table() -> None:
    write_table("a.csv", 80, flipped=5)


@pytest.fixture
def _a_model(_a_table: None) -> None:
    fit = ["fit", "a.csv", "--label", "kind", "--no-search", "--epochs", "8", "--out", "model"]
    assert main(fit) == 0


def listed(folder: str) -> list[dict[str, str]]:
    with Path(folder, "label-errors.csv").open() as file:
        return list(csv.DictReader(file))


def test_data_are_fitted_and_the_worst_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main([*DATA, "--number", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "16 of 80 labels are listed as wrong. The worst 10:"
    assert lines[3] == "index  given  suggested  quality  evidence"
    assert len(lines) == 5 + N_SHOWN
    assert max(map(len, lines[3:-1])) <= 60
    assert {line.split()[0] for line in lines[4:-1]} <= WRONG
    assert lines[-1] == (
        "Files: label-errors/label-errors.html, label-errors/label-errors.csv, "
        "label-errors/label-errors.json"
    )
    rows = listed("label-errors")
    assert {row["index"] for row in rows} == WRONG
    assert {(row["given_label"], row["suggested_label"]) for row in rows} == {
        ("cat", "dog"), ("dog", "cat")
    }  # fmt: skip
    assert "<dt>colour</dt><dd>red</dd>" in Path("label-errors/label-errors.html").read_text()


@pytest.mark.usefixtures("_a_model")
def test_a_model_lists_more_or_fewer(capsys: pytest.CaptureFixture[str]) -> None:
    by_rate = listed("model")
    assert main(["label-errors", "model", "--number", "3"]) == 0
    assert listed("model") == by_rate[:3]
    capsys.readouterr()
    assert main(["fit", "a.csv", "--label", "kind", "--no-search", "--epochs", "8",
                 "--out", "model"]) == 0  # fmt: skip
    assert "Label errors: 3 of 80 labels are listed in model/" in capsys.readouterr().out
    assert main(["label-errors", "model", "--number", "80", "--out", "all"]) == 0
    assert len(listed("all")) == 80
    assert main(["label-errors", "model", "--threshold", "0.5", "--out", "low"]) == 0
    low = [row for row in listed("all") if float(row["quality"]) < 0.5]
    assert 0 < len(low) < 80
    assert listed("low") == low
    capsys.readouterr()
    assert main(["label-errors", "model", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["n_samples"], document["n"]) == (80, len(by_rate))
    assert [str(row["index"]) for row in document["label_errors"]] == [
        row["index"] for row in by_rate
    ]
    assert document["files"]["csv"] == "model/label-errors.csv"


@pytest.mark.usefixtures("_a_model")
def test_data_that_changed_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path("model/label-errors.html")
    assert "<dt>colour</dt>" in page.read_text()
    for change in (lambda: write_table("a.csv", 81), lambda: Path("a.csv").unlink()):
        change()
        assert main(["label-errors", "model", "--number", "2"]) == 0
        assert "Note: The data cannot be shown: " in capsys.readouterr().err
        assert "<dt>colour</dt>" not in page.read_text()
        assert page.read_text().count("<h3>Sample ") == 2


@pytest.mark.usefixtures("_a_model")
def test_files_of_the_user_are_never_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own").mkdir()
    for name in ("label-errors.csv", "label-errors.html"):
        Path("own", name).write_text("index,given_label,suggested_label,quality,evidence,mine\n")
        line = last_line(capsys, "label-errors", "model", "--out", "own")
        assert f"--out must not replace files of your own, but 'own/{name}' is there" in line
        Path("own", name).unlink()
    line = last_line(capsys, "label-errors", "model", "--out", "a.csv")
    assert "--out must be a folder, but 'a.csv' is a file" in line


@pytest.mark.usefixtures("_a_model")
def test_lists_that_were_removed_are_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("label-errors.csv", "label-errors.html"):
        Path("model", name).unlink()
        assert main(["label-errors", "model", "--number", "2"]) == 0
        assert len(listed("model")) == 2
    Path("model/fit.json").unlink()
    line = last_line(capsys, "label-errors", "model")
    assert "'model' holds no model: fit.json is missing" in line


@pytest.mark.usefixtures("_a_model")
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in [
        (["--number", "81"], "--number must be at most 80, the number of labels, but got 81"),
        (["--number", "-1"], "--number must be an int of at least 0, but got -1"),
        (["--threshold", "2"], "--threshold must be a number in [0, 1], but got 2.0"),
        (["--number", "1", "--threshold", "1"], "--number must be left out if --threshold"),
    ]:
        assert message in last_line(capsys, "label-errors", "model", *options)
    line = last_line(capsys, "label-errors", "model/model.npz")
    assert "'model/model.npz' is a file of a model. Name its folder, 'model'." in line
    assert "--label is needed" in last_line(capsys, "label-errors", "a.csv")


def test_names_of_classes_stay_on_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    table = Path("a.csv")
    table.write_text(table.read_text().replace("dog", '"dog\nor \x1b[31mcat"'))
    assert main([*DATA, "--number", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all("dog\\nor \\x1b[31mcat" in line for line in lines[4:7])
    assert {row["given_label"] for row in listed("label-errors")} <= {"cat", "dog\nor \x1b[31mcat"}


def test_quick_lists_by_the_networks_of_the_estimate() -> None:
    assert main([*DATA[:4], "--quick", "--number", "7"]) == 0
    rows = listed("label-errors")
    assert {row["index"] for row in rows} <= WRONG
    start = "networks that were not trained on it give the label "
    assert all(row["evidence"].startswith(start) for row in rows)


@pytest.mark.usefixtures("_a_model")
def test_options_of_a_fit_are_not_used_for_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label-errors", "model", "--number", "2", "--device", "cpu"]) == 0
    assert "Not used" not in capsys.readouterr().err
    assert (
        main(["label-errors", "model", "--quick", "--known-noise-rate", "0", "--label", "a"]) == 0
    )
    note = "Note: 'model' is a fitted model, so nothing is trained"
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith(note)]
    assert line.endswith(" Not used: --label, --known-noise-rate, --quick")
