"""s2e evaluate: schedules side by side on test data, and what it keeps of them."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import optuna
import pytest
from commands import DATA, EPOCHS, Searched, make_arrays, only_line, search, study
from processes import Command, wait_until

from optuna_s2e import Schedule, recommend
from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.cli import main
from optuna_s2e.coteaching import CoteachingObjective, load_data, train_batch

NOISE = ["--noise-rate", "0.3"]


def test_evaluation_prints_a_table_and_writes_its_files(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", "--repeats", "2", "--out", "report", *NOISE]) == 0
    out, bar = capsys.readouterr()
    assert "retraining: 100%" in bar  # however short it is
    for method in ("Standard", "Co-teaching", "Searched"):
        assert re.search(rf"^{method} ", out, re.MULTILINE)
    assert "left out" not in out
    assert "s2e export --storage sqlite:///s2e.db --study-name s --out schedule.json" in out
    report = json.loads(Path("report/evaluation.json").read_text())
    assert np.shape(report["methods"]["searched"]["test_accuracy"]) == (2, EPOCHS)  # repeats
    assert report["methods"]["coteaching"]["params"]["R.tau"] == 0.3
    assert Path("report/evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert Schedule.load("report/schedule.json") == recommend(study()).schedule


@pytest.mark.usefixtures("pictures_stay_empty")
@pytest.mark.parametrize(
    ("noise", "why"),
    [
        (
            ["--noise", "none"],
            "it needs the true noise rate, which is unknown; --noise-rate E adds it",
        ),
        (["--noise", "symmetric", "--noise-rate", "0.97"], "the rate is 0.97; --noise-rate 0.95"),
        (["--noise", "symmetric", "--noise-rate", "0"], "the noise rate is 0"),
    ],
)
def test_coteaching_is_left_out_without_a_noise_rate_that_it_can_take(
    noise: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(search(1, "--epochs", "2", *noise)) == 0
    assert main(["evaluate", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "Co-teaching" in line)
    assert line.startswith("Co-teaching is left out: ")
    assert why in line
    assert list(json.loads(Path("s/evaluation.json").read_text())["methods"]) == [
        "standard", "searched",
    ]  # fmt: skip
    assert main(["evaluate", "--repeats", "1", *NOISE]) == 0
    assert re.search(r"^Co-teaching  ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.usefixtures("pictures_stay_empty")
def test_json_is_one_document(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", "--repeats", "1", "--json"]) == 0  # 50 % symmetric noise
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    file = json.loads(Path("s/evaluation.json").read_text())
    assert {key: document[key] for key in file} == file
    picked = recommend(study())
    assert document["searched"]["rule"] == picked.rule == "mean"
    assert document["searched"]["params"] == picked.params
    assert document["searched"]["mean_of"] == list(picked.mean_of)
    assert document["methods"]["searched"]["keep_rates"] == picked.schedule.keep_rates.tolist()
    assert document["methods"]["searched"]["params"] is None
    assert document["left_out"] == {}
    assert set(document["methods"]) == {"standard", "coteaching", "suggested", "searched"}
    assert document["noise"] is None
    assert all(Path(name).is_file() for name in document["files"].values())
    (accuracy,) = document["methods"]["searched"]["final_accuracy"]
    assert f"{100 * accuracy:.2f}" in printed.err  # the table, for people


def test_all_methods_are_compared_in_table_json_and_picture(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", "--repeats", "1", "--methods", "all", *NOISE]) == 0
    out = capsys.readouterr().out
    report = json.loads(Path("s/evaluation.json").read_text())["methods"]
    titles = {
        "Standard", "Standard, early stopping", "Decoupling", "F-correction",
        "F-correction, true T", "MentorNet", "MentorNet, searched R(t)", "Co-teaching",
        "Co-teaching+", "Co-teaching+, searched R(t)", "Reweight", "JoCoR",
        "JoCoR, searched R(t)", "BARE", "Suggested", "Searched (S2E)",
    }  # fmt: skip
    assert len(report) == len(titles)
    lines = [line[:32].rstrip() for line in out.splitlines()]
    for title in titles:
        assert any(re.match(rf"{re.escape(title)}  ", line + "  ") for line in lines), title
    assert report["jocor"]["method"] == report["jocor/searched"]["method"] == "jocor"
    assert report["jocor"]["keep_rates"] == report["coteaching"]["keep_rates"]
    assert report["jocor/searched"]["keep_rates"] == report["searched"]["keep_rates"]
    assert report["early-stopping"]["method"] == "early-stopping"
    assert report["standard"]["method"] == "standard"
    assert report["searched"]["method"] == report["suggested"]["method"] == "coteaching"
    objective = CoteachingObjective.from_settings(study().user_attrs[OBJECTIVE_KEY])
    for row in ("jocor/searched", "bare", "f-correction", "reweight"):
        (result,) = train_batch(
            [report[row]["keep_rates"]], report[row]["seeds"], data=objective.data,
            config=objective.config, evaluate_on="test", method=row.split("/")[0],
        )  # fmt: skip
        accuracy = 1 - result.curves.error.mean(axis=1)
        np.testing.assert_allclose(report[row]["test_accuracy"][0], accuracy, atol=1e-5)
    assert Path("s/evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_a_list_of_methods_and_those_that_cannot_be_compared(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    line = only_line(capsys, "evaluate", "--methods", "jocor,s2e")
    assert "--methods must be one of 'standard', 'coteaching'" in line
    assert "'s2e'" in line
    assert "'all' alone" in only_line(capsys, "evaluate", "--methods", "jocor,all")
    assert main(search(1, "--epochs", "2", "--noise", "none", "--method", "jocor", name="j")) == 0
    capsys.readouterr()
    assert main(["evaluate", "--study-name", "j", "--repeats", "1", "--methods", "bare, mentornet",
                 "--json"]) == 0  # fmt: skip
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert set(document["left_out"]) == {"coteaching", "mentornet", "jocor"}
    assert "MentorNet is left out: its schedule needs a noise rate." in printed.err
    assert set(document["methods"]) == {"standard", "bare", "mentornet/searched", "searched"}
    assert document["methods"]["searched"]["method"] == "jocor"
    assert re.search(r"^Searched \(S2E, JoCoR\) ", printed.err, re.MULTILINE)


# --- what is kept ----------------------------------------------------------------------------


def test_the_folder_is_tried_before_anything_is_trained(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    for out in ("file", "file/below"):
        line = only_line(capsys, "evaluate", "--out", out)  # one line: no progress bar
        assert f"error: --out must be writable, but got '{out}': " in line
    Path("s").touch()
    assert "--out must be writable, but got 's': File exists." in only_line(capsys, "evaluate")


def test_files_of_the_user_are_never_replaced(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("schedule.json", "evaluation.json", "evaluation.png"):
        Path(name).write_text("mine")  # or the schedule of a fitted model
        line = only_line(capsys, "evaluate", "--out", ".")
        assert f"--out must not replace files of your own, but '{name}' is there" in line
        assert Path(name).read_text() == "mine"
        Path(name).unlink()
    assert not Path("networks.jsonl").exists()


@pytest.mark.usefixtures("pictures_stay_empty")
@pytest.mark.parametrize("name", ["..", "../up", "n" * 300, "a/b", "/abs", ".hidden", "-x"])
def test_results_of_any_study_name_are_in_a_folder_here(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    url = f"sqlite:///{tmp_path}/s2e.db"
    objective = CoteachingObjective(load_data(DATA), n_epochs=2)
    own = optuna.create_study(study_name=name, storage=url)
    own.set_user_attr(OBJECTIVE_KEY, objective.settings)
    own.optimize(objective, n_trials=1)
    Path(inside / DATA).write_bytes(Path(DATA).read_bytes())
    before = set(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(inside)
        assert main(["evaluate", "--repeats", "1", "--storage", url]) == 0
    assert set(tmp_path.iterdir()) == before
    (folder,) = (path for path in inside.iterdir() if path.is_dir())
    assert (folder / "evaluation.json").is_file()


@pytest.mark.usefixtures("pictures_stay_empty")
def test_a_second_evaluation_trains_nothing_and_more_repeats_train_the_rest(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows() -> list[str]:
        return [line for line in Path("s/networks.jsonl").read_text().splitlines() if line]

    def evaluate(*options: str) -> str:
        capsys.readouterr()
        assert main(["evaluate", *NOISE, *options]) == 0
        return capsys.readouterr().out

    first = evaluate("--repeats", "1")
    kept = rows()
    assert len(kept) == 4
    assert evaluate("--repeats", "1") == first
    assert rows() == kept
    evaluate("--repeats", "2")
    assert rows()[:4] == kept
    assert len(rows()) == 8
    evaluate("--repeats", "2", "--rule", "best")  # all others are known
    assert len(rows()) == 10
    np.savez(DATA, **(make_arrays() | {"test_x": np.random.default_rng(1).random((12, 4))}))
    n = len(rows())
    evaluate("--repeats", "1")  # other test data
    assert len(rows()) == n + 4


@pytest.mark.usefixtures("pictures_stay_empty")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_evaluation_goes_on_where_it_was(sign: signal.Signals) -> None:
    n_epochs = 100  # half a tenth of a second
    assert main(search(1, "--epochs", str(n_epochs), "--noise", "none")) == 0
    kept = Path("s/networks.jsonl")
    process = Command("evaluate", "--repeats", "1000")
    wait_until(lambda: kept.exists() and kept.read_text().count("\n") >= 4, process)
    code, _, errors = process.stop(sign)
    if sign == signal.SIGINT:
        assert code == 130
        assert errors.splitlines()[-1] == (
            f"Interrupted: networks that were trained to their end are kept in {kept}; "
            "the same command trains the others."
        )
    before = kept.read_text()
    n_kept = before.count('"key"')
    assert 2 <= n_kept < 2000
    n_repeats = n_kept // 2 + 1
    assert main(["evaluate", "--repeats", str(n_repeats)]) == 0
    assert kept.read_text().startswith(before)
    assert kept.read_text().count('"key"') == 2 * n_repeats
    assert main(["evaluate", "--repeats", str(n_repeats), "--out", "undisturbed"]) == 0
    one, two = (json.loads(Path(f, "evaluation.json").read_text()) for f in ("s", "undisturbed"))
    assert one == two


def test_study_of_another_objective_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    optuna.create_study(study_name="own", storage="sqlite:///s2e.db")
    assert "was not made by `s2e search`" in only_line(capsys, "evaluate")
