"""The study of memorisation in small: its jobs, its curves, its table and its picture."""

from pathlib import Path

import figure1_memorization as figure1
import numpy as np
import pytest
import runs
import tasks

from optuna_s2e.coteaching import load_data

SETUP = {"data": "digits", "n_epochs": 3, "n_images": 200, "n_trials": 2}
CASE = "optimiser: RMSprop"  # it learns the digits fast


def test_one_thing_at_a_time_is_changed_in_the_base():
    assert len(figure1.CASES) == 11
    base = figure1.PANELS["data set"]["MNIST"]
    assert all(base in of.values() for of in figure1.PANELS.values())
    jobs = figure1.jobs_of(2, 0, list(figure1.CASES.values()))
    assert len(set(jobs)) == len(jobs) == 2 * 11 * 4
    assert {job[1] for job in jobs} == {"none", "random", "Co-teaching", "suggested"}


def test_the_first_images_are_those_of_the_whole_data():
    data = load_data("digits", noise="symmetric", noise_rate=0.5)
    few = tasks.first_images(data, 30)
    assert tasks.first_images(data, None) is data
    assert len(few.x) == len(few.noisy_labels) == len(few.clean_labels) == 30
    assert len(few.x_val) == len(few.y_val) == len(few.x_test) == len(few.y_test) == 30
    assert (few.noisy_labels == data.noisy_labels[:30]).all()


@pytest.mark.parametrize("schedule", figure1.SCHEDULES)
def test_a_run_has_its_curves(schedule: str):
    found = figure1.run((CASE, schedule, 0), **SETUP)
    assert found["keep_rates"][0] == 1.0
    for name in ("keep_rates", "test_accuracy", "train_accuracy", "memorised"):
        assert len(found[name]) == 3
        assert all(0 <= value <= 1 for value in found[name])
    assert found["memorised"] == sorted(found["memorised"])
    if schedule in ("none", "Co-teaching"):
        assert found["keep_rates"] == ([1.0] * 3 if schedule == "none" else [1.0, 0.8333, 0.6667])


def test_without_a_schedule_the_wrong_labels_are_memorised_in_the_end():
    setup = SETUP | {"n_epochs": 60}
    none, told = (
        figure1.run(("data set: digits", name, 0), **setup) for name in ("none", "Co-teaching")
    )
    assert none["memorised"][-1] > told["memorised"][-1] + 0.3
    assert none["memorised"][5] < 0.1  # later than the right ones
    assert none["train_accuracy"][-1] > none["memorised"][-1] > 0.6


def test_another_seed_is_another_random_schedule():
    data = figure1.load("digits", 200)
    case = figure1.PANELS["data set"]["digits"]
    setup = SETUP | {"n_epochs": 40}
    first, again, other = (
        figure1.schedule("random", case, data, setup, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_table_and_the_picture_show_what_is_done(tmp_path: Path):
    results = {
        runs.key_of((case, schedule, seed)): {
            "test_accuracy": [0.1, 0.5, 0.4], "final_accuracy": 0.4, "memorised": [0, 0.1, 0.25]
        }
        for case in ("data set: MNIST", "optimiser: SGD")
        for schedule in ("none", "suggested")
        for seed in (0, 1)
    }  # fmt: skip
    document = {"results": results, "n_epochs": 3, "n_images": 200}
    lines = figure1.report(document).splitlines()
    assert lines[0] == (
        "8 trainings. Reduced: 3 of 200 epochs, the first 200 images, 2 of 3 seeds."
    )
    assert lines[2].split() == ["none", "suggested"]
    assert [line.split()[:2] for line in lines[3:]] == [["data", "set:"], ["optimiser:", "SGD"]]
    assert lines[3].split()[3:] == 2 * ["50.0", ">", "40.0", "(25)"]
    figure1.draw(document, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_the_results():
    page = Path(__file__).parents[2] / "docs" / "reproduction" / "figure1.md"
    text = figure1.markdown(runs.read(figure1.RESULTS))
    assert runs.filled(page.read_text(), "figure 1", text) == page.read_text()


def test_the_budget_counts_the_trainings_of_searches():
    cases = ["data set: digits", CASE]
    lines = figure1.budget(figure1.jobs_of(3, 2, cases), 2, SETUP).splitlines()
    assert [line[:18].strip() for line in lines[:-1]] == cases
    assert lines[-1].startswith(f"{3 * 2 * (4 + 3)} trainings of 3 epochs: ")
