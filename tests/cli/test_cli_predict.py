"""s2e predict: predictions of new data, printed or written, and files that are not ours."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import last_line, write_table

from optuna_s2e.cli import main
from optuna_s2e.cli._model_folder import ModelFolder

NEW = "colour;size;remark\nred;-0,3;a\nblue;3,1;b\n;2,9;c\n"


@pytest.fixture(autouse=True)
def _a_model() -> None:
    write_table("a.csv", 80, flipped=5)
    fit = ["fit", "a.csv", "--label", "kind", "--no-search", "--epochs", "8", "--out", "model"]
    assert main(fit) == 0
    Path("new.csv").write_text(NEW)


def test_predictions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["predict", "model", "new.csv"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(captured.out.splitlines()))
    assert [(row["index"], row["prediction"]) for row in rows] == [
        ("0", "dog"), ("1", "cat"), ("2", "cat")
    ]  # fmt: skip
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    note = "Note: Columns that the model does not know are not used: 'remark'.\n"
    assert captured.err == note


def test_predictions_are_written_and_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["predict", "model", "a.csv", "--out", "p.csv"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "80 predictions written to p.csv ('cat' 40, 'dog' 40)\n"
    # of the labels in the file, every fifth is wrong
    assert captured.err == (
        "Note: the labels that a.csv holds agree with 80.0 % of the predictions.\n"
    )
    Path("part.csv").write_text("size,colour,kind\n-0.3,red,dog\n3.1,blue,\n")
    assert main(["predict", "model", "part.csv"]) == 0
    assert "that part.csv holds agree with 100.0 %" in capsys.readouterr().err
    Path("part.csv").write_text("size,colour,kind\n-0.3,red,\n")
    assert main(["predict", "model", "part.csv"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["predict", "model", "new.csv", "--out", "p.csv", "--proba"]) == 0
    rows = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
    document, model = ModelFolder(Path("model")).load()
    assert document["data"]["classes"] == model.classes_.tolist()
    expected = model.predict_proba(_table())
    found = [[float(row[f"probability of {c}"]) for c in ("cat", "dog")] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def _table() -> object:
    import pandas as pd

    return pd.DataFrame({"size": [-0.3, 3.1, 2.9], "colour": ["red", "blue", None]})


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["predict", "model", "new.csv", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {name: document[name] for name in ("model", "data", "file", "n")} == {
        "model": "model", "data": "new.csv", "file": None, "n": 3
    }  # fmt: skip
    assert document["predictions"][1]["prediction"] == "cat"


def test_files_of_the_user_are_never_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    for out, message in [
        ("new.csv", "--out must not replace files of your own, but 'new.csv' is there"),
        ("model", "--out must be a file, but got the folder 'model'"),
        ("none/p.csv", "--out must be in a folder that exists, but got 'none/p.csv'"),
        ("/proc/p.csv", "--out must be writable, but got '/proc/p.csv'"),
    ]:
        assert message in last_line(capsys, "predict", "model", "new.csv", "--out", out)
    assert Path("new.csv").read_text() == NEW


def test_predictions_of_classes_with_quotation_marks_are_replaced() -> None:
    Path("q.csv").write_text(Path("a.csv").read_text().replace("cat", '"a ""cat"""'))
    fit = ["fit", "q.csv", "--label", "kind", "--no-search", "--epochs", "2", "--out", "quoted"]
    assert main(fit) == 0
    for _ in range(2):
        assert main(["predict", "quoted", "new.csv", "--out", "p.csv", "--proba"]) == 0
    (header, *rows) = csv.reader(Path("p.csv").read_text().splitlines())
    assert header[3:] == ['probability of a "cat"', "probability of dog"]
    assert len(rows) == 3


def test_errors_name_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("less.csv").write_text("size\n1\n")
    Path("words.csv").write_text("size,colour\n1,red\nlong,red\n")
    for new, message in [
        ("less.csv", "'less.csv' lacks the column 'colour', which the model was fitted with"),
        ("words.csv", "Column 'size' must hold numbers, as it did in fit, .* 'long'"),
        ("none.csv", "There is no file 'none.csv'"),
        ("model", "but is a folder"),
    ]:
        line = last_line(capsys, "predict", "model", new)
        assert re.search(message, line), line
        assert "np.str_" not in line
    for model in ("none", "a.csv"):
        line = last_line(capsys, "predict", model, "new.csv")
        assert f"'{model}' holds no model: fit.json is missing" in line
        assert f"--out {'none' if model == 'none' else 'NEW_FOLDER'}` makes one" in line
    for file in ("model.npz", "fit.json", "label-errors.csv"):
        line = last_line(capsys, "predict", f"model/{file}", "new.csv")
        assert f"'model/{file}' is a file of a model. Name its folder, 'model'." in line


def test_a_damaged_model_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    folder = ModelFolder(Path("model"))
    folder.file("model.npz").write_bytes(b"PK")
    line = last_line(capsys, "predict", "model", "new.csv")
    assert "must be a file that save() wrote, but is not. Fit the model anew" in line
    folder.file("model.npz").unlink()
    assert "the fit was stopped" in last_line(capsys, "predict", "model", "new.csv")
    document = json.loads(folder.file("fit.json").read_text())
    folder.file("fit.json").write_text(json.dumps({**document, "version": 99}))
    assert "not written by this release" in last_line(capsys, "predict", "model", "new.csv")
    for lost in ("fitted_to", "data", "noise"):
        rest = {name: own for name, own in document.items() if name != lost}
        folder.file("fit.json").write_text(json.dumps(rest))
        line = last_line(capsys, "predict", "model", "new.csv")
        assert f"'model/fit.json' is damaged: '{lost}'. Fit the model anew" in line
    folder.file("fit.json").write_text("{")
    assert "'model/fit.json' is damaged" in last_line(capsys, "predict", "model", "new.csv")
