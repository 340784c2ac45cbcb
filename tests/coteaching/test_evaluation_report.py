"""The report of an evaluation: the table against numbers computed by hand, and the files."""

import json

import numpy as np
import pytest

from optuna_s2e.coteaching import Evaluation, evaluation_table, fixed_schedules, save_evaluation
from optuna_s2e.coteaching._evaluation_report import _describe
from optuna_s2e.schedules import Schedule

SETTINGS = {
    "data": {"name": "digits", "noise": "pair", "noise_rate": 0.45},
    "network": "mlp",
}
PNG = b"\x89PNG\r\n\x1a\n"


def _make_evaluation(final, precision=0.75):
    n_repeats = len(final)
    return Evaluation(
        test_accuracy=np.linspace(0.1, final, 4).T,
        label_precision=np.full((n_repeats, 4), precision),
        seeds=tuple(range(n_repeats)),
        final_accuracy=np.array(final),
    )


def _rows(table):
    return {line.split("  ")[0]: line.split() for line in table.splitlines()[1:-1]}


def test_the_table_has_mean_deviation_extremes_and_the_paired_difference():
    table = evaluation_table(
        {
            "standard": _make_evaluation([0.60, 0.70, 0.80]),
            "searched": _make_evaluation([0.70, 0.90, 0.80]),
            "mine": _make_evaluation([0.5, 0.5, 0.5]),
        }
    )
    rows = _rows(table)
    assert list(rows) == ["Standard", "Searched (S2E)", "mine"]
    # accuracies 60, 70, 80: mean 70, deviation 10
    assert rows["Standard"] == ["Standard", "70.00", "±", "10.00", "80.00,", "60.00"]
    # gains 10, 20, 0: mean 10, deviation 10, standard error 10 / sqrt(3) = 5.77
    gain = ["+10.00", "±", "5.77"]
    assert rows["Searched (S2E)"][2:] == ["80.00", "±", "10.00", "90.00,", "70.00", *gain]
    assert rows["mine"][1:] == ["50.00", "±", "0.00", "50.00,", "50.00", "-20.00", "±", "5.77"]
    assert "3 fresh seeds" in table.splitlines()[-1]


def test_one_seed_has_no_deviation():
    table = evaluation_table(
        {"standard": _make_evaluation([0.6]), "coteaching": _make_evaluation([0.7])}
    )
    assert "±" not in table
    assert table.endswith("epochs, one fresh seed.")
    assert _rows(table)["Co-teaching"][1:] == ["70.00", "70.00,", "70.00", "+10.00"]


def test_remarks_follow_the_titles_in_the_table_and_in_the_file(tmp_path):
    schedules = {**fixed_schedules(4, 0.45), "searched": Schedule(np.array([1, 0.9, 0.8, 0.7]))}
    evaluations = {name: _make_evaluation([0.6, 0.7]) for name in schedules}
    remarks = {"coteaching": "estimated rate .45", "searched": "JoCoR"}
    lines = evaluation_table(evaluations, remarks).splitlines()
    assert lines[4].startswith("Searched (S2E, JoCoR)  ")
    assert lines[2].startswith("Co-teaching (estimated rate .45)  ")
    assert lines[3].startswith("Suggested  ")
    columns = [line.index("65.00") for line in lines[1:-1]]
    assert columns == [columns[0]] * len(schedules)
    options = {"settings": SETTINGS, "study_name": "s", "remarks": remarks}
    methods = save_evaluation(tmp_path, schedules, evaluations, **options)["methods"]
    assert [methods[name]["remark"] for name in schedules] == [
        None, "estimated rate .45", None, "JoCoR",
    ]  # fmt: skip


@pytest.mark.parametrize("precision", [0.75, np.nan])
def test_files_hold_all_numbers_schedules_and_settings(tmp_path, precision):
    schedules = {**fixed_schedules(4, 0.45), "searched": Schedule(np.array([1, 0.9, 0.8, 0.7]))}
    evaluations = {name: _make_evaluation([0.6, 0.7], precision) for name in schedules}
    folder = tmp_path / "new" / "folder"
    save_evaluation(folder, schedules, evaluations, settings=SETTINGS, study_name="a/b")
    assert {path.name for path in folder.iterdir()} == {
        "evaluation.json", "evaluation.png", "schedule.json",
    }  # fmt: skip
    document = json.loads((folder / "evaluation.json").read_text())
    assert (document["study"], document["settings"]) == ("a/b", SETTINGS)
    assert {"python", "torch", "optuna-s2e"} <= set(document["versions"])
    assert list(document["methods"]) == ["standard", "coteaching", "suggested", "searched"]
    for name, method in document["methods"].items():
        assert method["keep_rates"] == schedules[name].keep_rates.tolist()
        assert (method["seeds"], method["final_accuracy"]) == ([0, 1], [0.6, 0.7])
        np.testing.assert_allclose(
            method["test_accuracy"], evaluations[name].test_accuracy, atol=1e-5
        )
        known = None if np.isnan(precision) else [[precision] * 4] * 2
        assert method["label_precision"] == known
    saved = Schedule.load(folder / "schedule.json")
    np.testing.assert_array_equal(saved.keep_rates, schedules["searched"].keep_rates)
    assert (folder / "evaluation.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("data", "title"),
    [
        ({"noise": "pair", "noise_rate": 0.45}, "own.npz, 45 % pair noise, mlp"),
        ({"noise": "none", "noise_rate": 0.5}, "own.npz, no noise added, mlp"),
        ({"noise": "none", "noise_rate": 0.0}, "own.npz, no noise added, mlp"),
        ({"noise": "symmetric", "noise_rate": 0.0}, "own.npz, no noise added, mlp"),
        ({}, "own.npz, no noise added, mlp"),
    ],
)
def test_the_title_names_the_noise_that_was_added(data, title):
    assert _describe({"data": {"name": "own.npz", **data}, "network": "mlp"}) == title


def test_the_file_is_json_also_if_a_training_failed(tmp_path):
    schedules = {**fixed_schedules(4, None), "searched": Schedule(np.array([1, 0.9, 0.8, 0.7]))}
    evaluation = _make_evaluation([0.6, 0.7])
    evaluation.test_accuracy[1, 2:] = np.nan
    evaluation.final_accuracy[1] = np.nan
    evaluations = dict.fromkeys(schedules, evaluation)
    document = save_evaluation(tmp_path, schedules, evaluations, settings=SETTINGS, study_name="s")

    def refuse(name):
        raise AssertionError(name)

    text = (tmp_path / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=refuse) == document
    assert document["methods"]["searched"]["final_accuracy"] == [0.6, None]
    assert document["methods"]["searched"]["test_accuracy"][1][2:] == [None, None]


def test_missing_schedules_are_named(tmp_path):
    evaluations = {"mine": _make_evaluation([0.5])}
    with pytest.raises(ValueError, match=r"evaluations must hold \['standard'\], but got"):
        evaluation_table(evaluations)
    options = {"settings": SETTINGS, "study_name": "a"}
    with pytest.raises(ValueError, match=r"schedules must hold \['searched', 'mine'\], but got"):
        save_evaluation(tmp_path / "no", fixed_schedules(4, 0.45), evaluations, **options)
    assert not (tmp_path / "no").exists()
