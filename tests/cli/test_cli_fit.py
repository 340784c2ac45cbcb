"""s2e fit: from a file to a folder with a model, and what is never overwritten."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import optuna
import pytest
from commands import as_script, last_line, only_line, write_classes, write_table
from processes import Process, wait_until

from optuna_s2e import NoisyLabelClassifier, Schedule
from optuna_s2e.cli import main
from optuna_s2e.cli._fitting import TrainingData
from optuna_s2e.cli._main import make_parser
from optuna_s2e.cli._model_folder import ModelFolder

OPTIONS = ["--label", "kind", "--epochs", "4", "--out", "model"]
FIT = ["fit", "a.csv", *OPTIONS]


@pytest.fixture(autouse=True)
def _a_table() -> None:
    write_table("a.csv", 80, flipped=5)


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_search_a_model_and_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("a.csv").read_bytes()
    assert main([*FIT, "--budget", "2"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == (
        "Data: 80 rows, 2 columns (1 of numbers, 1 of categories), 2 classes of 40 to 40 samples"
    )
    assert lines[1].startswith("Noise rate, estimated: ")
    assert lines[1].endswith("], found without clean labels")
    assert lines[2] == (
        "Validation labels: a fifth of the samples, with their labels as they were given"
    )
    assert lines[3].startswith("Accuracy: networks agree with ")
    assert "  predict:            s2e predict model NEW.csv --out predictions.csv" in lines
    assert "  look at the search: s2e dashboard --storage sqlite:///s2e.db" in lines
    document = json.loads(Path("model/fit.json").read_text())
    (name,) = optuna.get_all_study_names("sqlite:///s2e.db")
    assert document["search"] == {
        "storage": f"sqlite:///{Path.cwd()}/s2e.db", "study": name, "n_trials": 2
    }  # fmt: skip
    model = NoisyLabelClassifier.load("model/model.npz")
    assert model.classes_.tolist() == ["cat", "dog"]
    assert document["noise"]["rate"] == model.noise_rate_
    assert document["noise"]["interval"] == list(model.noise_interval_)
    assert document["n_label_errors"] == len(model.find_label_errors())
    assert Schedule.load("model/schedule.json").keep_rates.tolist() == (
        model.schedule_.keep_rates.tolist()
    )
    assert {path for path in document["files"].values() if not Path(path).exists()} == set()
    assert Path("a.csv").read_bytes() == before
    capsys.readouterr()
    written = contents("model")  # the same command again trains nothing and changes nothing
    assert main([*FIT, "--budget", "2"]) == 0
    assert "'model' holds this model already; nothing is trained." in capsys.readouterr().out
    assert contents("model") == written


def test_other_commands_refuse_its_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--budget", "1"]) == 0
    (name,) = optuna.get_all_study_names("sqlite:///s2e.db")
    before = optuna.load_study(study_name=name, storage="sqlite:///s2e.db").trials
    own = "commands:make_arrays"
    search = ["search", "--data", "digits", "--epochs", "2", "--study-name", name]
    for command in (["evaluate"], ["worker"], ["worker", "--objective", own], search):
        line = last_line(capsys, *command)
        assert f"Study '{name}' is the search of `s2e fit` or of a NoisyLabelClassifier" in line
    assert optuna.load_study(study_name=name, storage="sqlite:///s2e.db").trials == before
    assert main(["status"]) == main(["export", "--json"]) == 0


def test_clean_labels_measure_the_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    write_table("val.csv", 40)
    assert main([*FIT, "--no-search", "--val", "val.csv", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["validation"] == "40 clean labels of 'val.csv'"
    model = NoisyLabelClassifier.load("model/model.npz")
    table = ModelFolder(Path("model")).training_inputs(document)[0]
    true = np.array(["dog", "cat"] * 40)
    assert document["accuracy"]["measured_on"] == "clean labels"
    assert document["accuracy"]["value"] == np.mean(model.predict(table[:40]) == true[:40])
    low, high = document["accuracy"]["interval"]
    assert 0 < low < document["accuracy"]["value"] <= high <= 1
    assert document["search"] is None
    assert not Path("s2e.db").exists()


def test_clean_labels_are_of_the_type_of_the_training_labels() -> None:
    Path("b.csv").write_text("x,kind\n" + "1,10\n2,x\n" * 3)
    Path("c.csv").write_text("x,kind\n" + "1,10\n2,9\n" * 3)
    Path("val.csv").write_text("kind,x\n10,5\n")
    for name, label in [("b.csv", "10"), ("c.csv", 10)]:
        line = ["fit", name, "--label", "kind", "--val", "val.csv", "--out", "m"]
        data = TrainingData.read(make_parser().parse_args(line))
        assert data.validation is not None
        assert data.validation[1].tolist() == [label]
        assert label in data.y.tolist()


def test_a_known_noise_rate_and_the_test_data_of_a_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["fit", "digits", "--noise", "pair", "--noise-rate", "0.2", "--known-noise-rate",
            "0.25", "--no-search", "--epochs", "2", "--out", "model"]  # fmt: skip
    assert main(line) == 0
    captured = capsys.readouterr()
    assert "Noise rate, as told: 25 % of the labels are wrong" in captured.out
    assert "on the test data\n" in captured.out
    assert "Label errors: 249 of 997 labels" in captured.out
    assert "Note: digits; 20 % pair noise is added to the training labels." in captured.err


def test_too_few_samples_for_an_estimate_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    write_table("few.csv", 8)
    assert main(["fit", "few.csv", *OPTIONS, "--no-search"]) == 0
    captured = capsys.readouterr()
    assert "Noise rate: unknown, there are too few samples to estimate it" in captured.out
    assert captured.err == ""


OTHERS: dict[str, tuple[list[str], str]] = {
    "seed": ([*FIT, "--seed", "1"], "fitted to '.*a.csv' with seed 0, now 1. Name another folder"),
    "column": (["fit", "a.csv", "--label", "colour", *OPTIONS[2:]], "with other columns or"),
    "data": (["fit", "b.csv", *OPTIONS], "with other content"),
    "search": ([*FIT, "--budget", "3"], "with search False, now True"),
}


def test_another_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write_table("b.csv", 81)
    assert main([*FIT, "--no-search"]) == 0
    written = contents("model")
    for name, (argv, message) in OTHERS.items():
        argv = argv if name == "search" else [*argv, "--no-search"]
        line = last_line(capsys, *argv)
        assert line.startswith("s2e fit: error: --out must be a new folder, but 'model' holds a ")
        assert re.search(message, line), line
    assert contents("model") == written


def test_a_folder_of_the_user_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("model").mkdir()
    Path("model/thesis.txt").write_text("mine")
    assert "did not write, such as 'thesis.txt'" in last_line(capsys, *FIT, "--no-search")
    assert contents("model") == {"thesis.txt": b"mine"}
    Path("model/thesis.txt").unlink()
    assert main([*FIT, "--no-search"]) == 0  # an empty one is taken
    message = "--out must be a folder, but 'a.csv' is a file"
    assert message in last_line(capsys, *FIT[:-1], "a.csv", "--no-search")


ERRORS: dict[str, tuple[list[str], str]] = {
    "no label": (["fit", "a.csv", "--out", "m"], "--label is needed: the column of a.csv"),
    "no data": (["fit", "b.csv", *OPTIONS], "There is no file or folder 'b.csv'"),
    "no out": (["fit", "a.csv"], "the following arguments are required: --out"),
    "no values": (["fit", "nan.csv", *OPTIONS], "1 of 8 are empty, the first of sample 2"),
    "text": (["fit", "text.csv", *OPTIONS], "'t' must .* Leave it out with --drop, or turn it"),
    "network": ([*FIT, "--network", "x"], "error: --network must be one of"),
    "budget": ([*FIT, "--budget", "soon"], "error: --budget must be a number of trainings or"),
    "device": ([*FIT, "--device", "tpu"], "error: --device must be"),
    "storage": ([*FIT, "--storage", "here"], "error: --storage must be a database URL"),
    "out": ([*FIT[:-1], "/proc/none/m"], "error: --out must be writable"),
    "classes": ([*FIT, "--val", "val.csv"], "but 'val.csv' holds 'cow'"),
    "no clean labels": ([*FIT, "--val", "x.csv"], "--val must hold labels, the column 'kind'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_and_writes_nothing(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, message = ERRORS[case]
    Path("nan.csv").write_text("x,kind\n1,a\n2,b\n3,\n" + "4,a\n" * 5)
    Path("text.csv").write_text("t,kind\n" + "".join(f"word {i},{i % 2}\n" for i in range(120)))
    Path("val.csv").write_text("size,colour,kind\n1,red,cow\n")
    Path("x.csv").write_text("size,colour\n1,red\n")
    before = contents(".")
    line = last_line(capsys, *argv)
    assert line.startswith("s2e fit: error: ")
    assert re.search(message, line), line
    assert contents(".") == before


HEAVY = """
import sys
from optuna_s2e.cli import main
main(["fit", "a.csv", "--label", "none", "--out", "model"])
main(["fit", "none.csv", "--label", "kind", "--out", "model"])
print(sorted({"torch", "sklearn", "matplotlib", "PIL"} & set(sys.modules)))
"""


def test_data_are_looked_at_before_torch_is_loaded() -> None:
    ran = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True)
    first, second = ran.stderr.splitlines()
    assert first.startswith("s2e fit: error: --label must be a column of a.csv")
    assert second.startswith("s2e fit: error: There is no file or folder 'none.csv'")
    assert ran.stdout == "[]\n"


def test_images_in_folders(capsys: pytest.CaptureFixture[str]) -> None:
    write_classes("photos", 40)
    (Path("photos") / "dark" / "01.png").rename("photos/light/wrong.png")
    assert main(["fit", "photos", "--no-search", "--epochs", "30", "--out", "model"]) == 0
    assert "Data: 40 images of 5 x 6 pixels, grey, 2 classes" in capsys.readouterr().out
    assert json.loads(Path("model/files.json").read_text())[:2] == ["dark/03.png", "dark/05.png"]
    assert main(["label-errors", "model", "--number", "1"]) == 0
    assert "\nlight/wrong.png,light,dark," in Path("model/label-errors.csv").read_text()
    page = Path("model/label-errors.html").read_text()
    assert "light/wrong.png" in page
    assert page.count("<img ") == 1
    assert "data: " not in only_line(capsys, "fit", "photos", "--label", "x", "--out", "m")


def test_a_stopped_fit_goes_on_and_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    script = Process(as_script, [*FIT, "--budget", "100000"])
    wait_until(lambda: Path("s2e.db-wal").exists(), script)  # the tables are made

    def n_complete() -> int:
        with closing(sqlite3.connect("file:s2e.db?mode=ro", uri=True)) as database:
            query = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
            return int(database.execute(query).fetchone()[0])

    wait_until(lambda: n_complete() > 0, script)
    code, out, _ = script.stop(signal.SIGINT)
    assert code == 130
    assert out.splitlines()[-1].startswith("SIGINT: stopped. Completed trials are kept")
    assert not Path("model").exists()
    kept = n_complete()
    assert main([*FIT, "--budget", str(kept)]) == 0  # nothing more is searched
    assert json.loads(Path("model/fit.json").read_text())["search"]["n_trials"] == kept
    assert n_complete() == kept


def test_quick_takes_the_networks_of_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--quick", "--budget", "3"]) == 0
    out, err = capsys.readouterr()
    assert "Validation labels: none, nothing was searched" in out
    assert "Note: Nothing is searched, so --budget is not used." in err
    model = NoisyLabelClassifier.load("model/model.npz")
    assert (model.n_pairs, len(model._networks)) == (0, 6)
    assert Schedule.load("model/schedule.json").keep_rates.tolist() == [1.0] * 4
    assert not Path("s2e.db").exists()
    assert main(["predict", "model", "a.csv"]) == 0
    assert main([*FIT, "--quick"]) == 0
    assert "holds this model already" in capsys.readouterr().out
    assert " with --quick, now without. Name" in last_line(capsys, *FIT, "--no-search")
    write_table("few.csv", 20)
    assert main(["fit", "few.csv", "--label", "kind", "--out", "few", "--quick"]) == 0
    assert "--known-noise-rate E without --quick changes that" in capsys.readouterr().out
    line = last_line(capsys, *FIT[:-1], "other", "--quick", "--known-noise-rate", "0.2")
    assert "--known-noise-rate must be left out if --quick is given, but got 0.2" in line
