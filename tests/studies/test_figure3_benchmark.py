"""The benchmark of all methods in small: its jobs, its file, its table and its picture."""

import json
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import figure3_benchmark as benchmark
import numpy as np
import optuna
import published
import pytest
import runs
import scipy
import torch
from optuna.trial import TrialState
from processes import PATIENCE, Process, wait_until

from optuna_s2e import ScheduleSpace, _optuna, open_storage
from optuna_s2e._attributes import DRIVER_KEY
from optuna_s2e.coteaching import METHODS, TrainingConfig, _evaluation, evaluate_schedules
from optuna_s2e.parallel._process import Process as Identity

SETUP = {"data": "digits", "n_epochs": 2, "n_trials": 2, "n_images": None}
PAGE = Path(__file__).parents[2] / "docs" / "reproduction" / "figure3.md"


def document(values: dict[tuple[str, str, int], float]) -> dict[str, Any]:
    """Return results with these final accuracies."""
    return {
        "data": "mnist", "n_epochs": 2, "results": {
            runs.key_of(job): {
                "final_accuracy": value, "test_accuracy": [0.1, value],
                "label_precision": [0.5, None],
            }
            for job, value in values.items()
        },
    }  # fmt: skip


def test_every_method_is_compared():
    assert set(METHODS) - {"single"} <= set(benchmark.METHODS)
    jobs = benchmark.jobs_of(3)
    assert len(set(jobs)) == len(jobs) == 3 * 3 * len(benchmark.METHODS)


def test_an_interrupted_study_covers_all_settings():
    jobs = benchmark.jobs_of(2)
    assert [seed for *_, seed in jobs] == sorted(seed for *_, seed in jobs)
    for i in range(0, len(jobs), 3):  # no method comes again before each setting has it
        assert [setting for setting, *_ in jobs[i : i + 3]] == list(benchmark.PAPER)
        assert len({method for _, method, _ in jobs[i : i + 3]}) == 1


def test_a_run_is_an_evaluation_with_its_seed():
    result = benchmark.run(("pair 45 %", "jocor", 4), **SETUP)
    data = benchmark.load("digits", "pair 45 %")
    assert data.noise_rate == 0.45
    found = evaluate_schedules(
        {"a": result["keep_rates"]}, data, methods={"a": "jocor"}, n_repeats=1, seed=4,
        config=TrainingConfig(64, 1e-2), device="cpu",
    )["a"]  # fmt: skip
    np.testing.assert_allclose(result["test_accuracy"], found.test_accuracy[0], atol=1e-5)
    np.testing.assert_allclose(result["label_precision"], found.label_precision[0], atol=1e-5)


@pytest.mark.parametrize("method", benchmark.SEARCHES)
def test_a_search_trains_its_schedule_anew(method: str):
    result = benchmark.run(("symmetric 50 %", method, 0), **SETUP)
    assert len(result["keep_rates"]) == len(result["test_accuracy"]) == 2
    assert result["keep_rates"][0] == 1.0


def test_a_searched_schedule_serves_other_methods(tmp_path: Path):
    path = tmp_path / "results.json"
    own, others = (
        benchmark.run(("pair 45 %", method, 2), **SETUP, kept=path)
        for method in ("s2e", "jocor/searched")
    )
    assert own["keep_rates"] == others["keep_rates"]
    assert optuna.get_all_study_names(open_storage(benchmark.storage_of(path))) == [
        "digits|pair 45 %|s2e|2|2 epochs|all images"
    ]
    data = benchmark.load("digits", "pair 45 %")
    found = evaluate_schedules(
        {"a": others["keep_rates"]}, data, methods={"a": "jocor"}, n_repeats=1, seed=2,
        config=TrainingConfig(64, 1e-2), device="cpu",
    )["a"]  # fmt: skip
    np.testing.assert_allclose(others["test_accuracy"], found.test_accuracy[0], atol=1e-5)


def test_the_papers_own_method_is_algorithm_2_on_table_1(monkeypatch: pytest.MonkeyPatch):
    studies = []
    create = optuna.create_study
    monkeypatch.setattr(
        optuna, "create_study", lambda **options: studies.append(create(**options)) or studies[-1]
    )
    found = benchmark.run(("symmetric 50 %", "s2e-paper", 3), **SETUP | {"n_trials": 13})
    (study,) = studies
    records = [t.system_attrs["s2e:draw"] for t in study.trials]
    assert [record["generation"] for record in records] == [0] * 6 + [1] * 6 + [2]
    assert records[0]["settings"]["estimator"] == "paper"
    best = min(study.trials, key=lambda t: t.value)
    assert best.value == best.user_attrs["validation_loss"]
    assert "R.table1" in best.params
    schedule = ScheduleSpace(2, "table1").from_params(best.params)
    np.testing.assert_allclose(found["keep_rates"], schedule.keep_rates, atol=1e-4)


def test_standard_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, trained = tmp_path / "results.json", []
    train = _evaluation.train_batch

    def counted(rates: Any, seeds: Any, **options: Any) -> Any:
        trained.append(options["evaluate_on"])
        return train(rates, seeds, **options)

    monkeypatch.setattr(_evaluation, "train_batch", counted)
    for method in ("standard", "early-stopping"):
        job = ("pair 45 %", method, 0)
        found = benchmark.run(job, **SETUP, kept=path)
        assert trained == ["test" if method == "standard" else "validation"]
        assert found | {"seconds": 0} == benchmark.run(job, **SETUP) | {"seconds": 0}
        trained.clear()


def stamped(job: runs.Job) -> tuple[float, float]:
    """Take a while; return when."""
    begun = time.monotonic()
    time.sleep(0.5)
    return begun, time.monotonic()


def test_a_search_runs_once_at_a_time(tmp_path: Path):
    methods = ("s2e", "jocor/searched", "mentornet/searched", "s2e-paper")
    jobs = [("pair 45 %", method, 0) for method in methods]
    path = tmp_path / "results.json"
    runs.run_missing(path, jobs, stamped, n_processes=4, minutes=1, apart=benchmark.search_of)
    times = [runs.read(path)["results"][runs.key_of(job)] for job in jobs]
    assert times[0][1] < times[1][0] < times[1][1] < times[2][0]
    assert times[3][0] < times[1][0]  # it need not wait for any


def run_missing(path: Path, job: runs.Job, setup: dict[str, Any]) -> None:
    run = partial(benchmark.run, **setup, kept=path)
    runs.run_missing(path, [job], run, n_processes=1, minutes=1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # for what the process prints
    job, setup = ("pair 45 %", "s2e", 1), SETUP | {"n_epochs": 4, "n_trials": 8}
    path, url = tmp_path / "results.json", benchmark.storage_of(tmp_path / "results.json")
    name = "digits|pair 45 %|s2e|1|4 epochs|all images"

    def complete() -> list[int]:
        if name not in optuna.get_all_study_names(storage):
            return []
        trials = optuna.load_study(study_name=name, storage=storage).trials
        return [t.number for t in trials if t.state == TrialState.COMPLETE]

    storage = open_storage(url)
    killed = Process(run_missing, path, job, setup)
    wait_until(lambda: len(complete()) >= 2, killed)
    assert killed.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    study = optuna.load_study(study_name=name, storage=storage)
    lease = _optuna.study_system_attrs(study)[
        DRIVER_KEY
    ]  # the training process must end with the study's
    trains = Identity(*(lease[field] for field in Identity._fields))
    end = time.monotonic() + PATIENCE
    while trains.lives and time.monotonic() < end:
        time.sleep(0.02)
    kept = complete()
    assert 2 <= len(kept) < 8
    run_missing(path, job, setup)
    assert complete()[: len(kept)] == kept
    assert len(complete()) == 8
    found = runs.read(path)["results"][runs.key_of(job)]
    expected = benchmark.run(job, **setup)
    assert found | {"seconds": 0} == expected | {"seconds": 0}


def test_classes_turn_as_in_jocors_program():
    data = benchmark.load("digits", "asymmetric 40 %")
    turned = {1: (7,), 7: (2,), 6: (5,), 5: (6,), 8: (3,)}
    for label in range(10):
        of_label = set(data.clean_labels[data.noisy_labels == label].tolist())
        assert of_label == {label, *turned.get(label, ())}
    share = float((data.noisy_labels != data.clean_labels).double().mean())
    assert abs(share - benchmark.kept_rate("asymmetric 40 %")) < 0.04
    assert benchmark.kept_rate("symmetric 50 %") == 0.5


def test_a_run_of_some_methods_does_not_say_that_it_is_all(tmp_path, capsys):
    file = str(tmp_path / "results.json")
    benchmark.main(["--seeds", "1", "--methods", "standard", "--minutes", "0", "--results", file])
    assert (
        f"0 results of 200 epochs; complete with {3 * len(benchmark.METHODS)}"
        in capsys.readouterr().out
    )


def test_images_are_cut():
    data = benchmark.load("digits", "pair 45 %", 50)
    assert len(data.x) == len(data.x_val) == len(data.x_test) == 50
    found = benchmark.run(("pair 45 %", "coteaching", 0), **SETUP | {"n_images": 50})
    assert 0 <= found["final_accuracy"] <= 1


@pytest.mark.parametrize("setting", benchmark.PAPER)
def test_classes_are_left_out(setting: str):
    data, whole = benchmark.load("digits", setting, 200, 4), benchmark.load("digits", setting)
    noise, rate = benchmark.SETTINGS[setting]
    assert data.n_classes == 4
    kept = whole.clean_labels < 4
    assert torch.equal(data.x, whole.x[kept][:200])
    assert torch.equal(data.clean_labels, whole.clean_labels[kept][:200])
    assert torch.equal(data.x_test, whole.x_test[whole.y_test < 4][:200])
    assert max(data.noisy_labels.max(), data.y_val.max(), data.y_test.max()) == 3
    turned = (data.noisy_labels - data.clean_labels) % 4
    assert abs(float((turned != 0).double().mean()) - rate) < 0.1
    assert set(turned.tolist()) == ({0, 1} if noise == "pair" else {0, 1, 2, 3})


def test_a_run_with_less_classes_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "results.json"
    own = ["--data", "mnist", "--epochs", "2", "--classes", "4", "--batch-size", "16"]
    benchmark.main([*own, "--results", str(path), "--minutes", "0"])
    assert "Reduced: 2 of 200 epochs, 4 classes, 16 samples in a mini-batch; a" in (
        capsys.readouterr().out
    )
    found = benchmark.run(
        ("pair 45 %", "bare", 3), **SETUP | {"n_classes": 4, "batch_size": 16}
    )  # fmt: skip
    expected = evaluate_schedules(
        {"a": found["keep_rates"]}, benchmark.load("digits", "pair 45 %", None, 4),
        methods={"a": "bare"}, n_repeats=1, seed=3, config=TrainingConfig(16, 1e-2), device="cpu",
    )["a"]  # fmt: skip
    np.testing.assert_allclose(found["test_accuracy"], expected.test_accuracy[0], atol=1e-5)


@pytest.mark.parametrize("options", [["--data", "cifar100"], ["--classes", "4"]])
def test_class_dependent_noise_needs_the_classes_it_is_known_for(
    options: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        benchmark.main([*options, "--settings", "asymmetric 40 %"])
    assert "which of these" in capsys.readouterr().err


def test_jocors_noises_run_in_small(capsys: pytest.CaptureFixture[str]):
    settings = ["symmetric 80 %", "asymmetric 40 %"]
    methods = ["standard", "coteaching", "coteaching+", "jocor"]
    benchmark.main(["--smoke", "--settings", *settings, "--methods", *methods])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("8 results of 4 epochs; ")
    row = next(line for line in lines if line.startswith("JoCoR "))
    assert row.count("(1)") == 2


def test_a_file_in_the_data_root_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (3000, 4, 4, 3), dtype=np.uint8), np.arange(3000) % 100
    np.savez(tmp_path / "cifar100.npz", train_x=x, train_y=y, test_x=x[:100], test_y=y[:100])
    monkeypatch.setenv("S2E_DATA_ROOT", str(tmp_path))
    benchmark.load.cache_clear()
    data = benchmark.load("cifar100", "symmetric 20 %", 2500)
    assert data.n_classes == 100
    assert len(data.x) == 2500


def test_the_table_and_the_picture_show_what_is_done(tmp_path: Path):
    found = document({
        (setting, method, seed): 0.5 + 0.1 * seed + 0.05 * (method == "s2e")
        for setting in list(benchmark.PAPER)[:2]
        for method in ("standard", "s2e")
        for seed in (0, 1)
    })  # fmt: skip
    lines = benchmark.report(found).splitlines()
    assert lines[0].startswith("8 results of 2 epochs; ")
    assert "Reduced: 2 of 200 epochs; " in lines[0]
    assert lines[4].split() == ["Standard", *2 * ["55.00", "±", "7.07", "(2)"], "-"]
    row = next(line for line in lines if line.startswith("S2E "))
    assert row.split()[:2] == ["S2E", "60.00"]
    at = lines.index("Published (200 epochs, all images) beside ours, in %")
    assert lines[at + 2].split()[:9] == [
        "symmetric", "20", "%,", "Standard", "79.56", "55.00", "±", "7.07", "(2)"
    ]  # fmt: skip
    assert lines[at + 2].split()[9] == "-24.56"
    (other,) = (line.split() for line in lines if " 94.05 " in line)
    assert other[:3] + other[8:10] == ["symmetric", "20", "%,", "(2)", "-39.05"]
    assert other[-4:] == ["CNN", "of", "9", "layers"]
    benchmark.draw(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_differences_are_paired_by_seed():
    values = {("pair 45 %", "s2e", s): 0.6 + 0.1 * s for s in range(3)}
    values |= {("pair 45 %", "jocor", s): 0.5 + 0.1 * s + 0.01 * (s == 2) for s in range(4)}
    results = document(values)["results"]
    d = np.array([10.0, 10.0, 9.0])
    low, high = scipy.stats.ttest_1samp(d, 0).confidence_interval()
    expected = f"{d.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    assert benchmark.difference(results, "pair 45 %", "jocor") == expected
    del results["pair 45 %|s2e|1"]
    assert benchmark.difference(results, "pair 45 %", "jocor") == "+9.50 (2 of 3 seeds)"
    assert benchmark.difference(results, "pair 45 %", "bare") == "-"


def test_a_page_is_filled_between_its_comments(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- mnist -->\nold\n<!-- end of mnist -->\nAfter\n")
    for _ in range(2):
        runs.fill_page(page, "mnist", "new")
        assert page.read_text() == (
            "Before\n<!-- mnist -->\n\nnew\n\n<!-- end of mnist -->\nAfter\n"
        )
    with pytest.raises(ValueError, match="<!-- cifar10 -->"):
        runs.fill_page(page, "cifar10", "new")


@pytest.mark.parametrize("data", ["mnist", "cifar10", "cifar100"])
def test_the_page_shows_the_results(data: str):
    file = benchmark.FOLDER / benchmark.FILES.get(data, f"figure3_{data}.json")
    if not file.exists():
        pytest.skip(f"{file.name} is not there yet")
    text = benchmark.markdown(json.loads(file.read_text()))
    assert runs.filled(PAGE.read_text(), data, text) == PAGE.read_text()


def test_published_numbers_are_those_of_the_page():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (PAGE.parent / "published-tables.md").read_text().splitlines()
    ]
    for table in published.TABLES["mnist"]:
        for setting, values in table.values.items():
            name = setting.replace("asymmetric", "class-dependent")
            (row,) = (
                row for row in rows
                if row[0] in (name, f"{table.source.partition(' (')[0]}, {name}")
                and len(row) == (6 if table is published.COTEACHING else 7)
            )  # fmt: skip
            assert [float(cell) for cell in row[1:] if cell] == list(values)


@pytest.mark.parametrize("file", sorted(benchmark.FOLDER.glob("figure3_*.json")))
def test_the_results_hold_one_search_per_setting_and_seed(file: Path):
    results = runs.read(file)["results"]
    for key, result in results.items():
        setting, method, seed = key.split("|")
        if method.endswith("/searched"):
            assert result["keep_rates"] == results[f"{setting}|s2e|{seed}"]["keep_rates"]


def test_another_setup_needs_another_file(tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": {"a": 1}, "seconds": 0.0, **SETUP}))
    with pytest.raises(SystemExit, match=r"holds runs of .*'digits'.* --results"):
        benchmark.main(["--results", str(path), "--epochs", "2", "--trials", "2"])
    setup = {"data": "mnist", "n_epochs": 60, "n_trials": 12}  # of a file without "n_images"
    path.write_text(json.dumps({"results": {"a": 1}, "seconds": 0.0, **setup}))
    with pytest.raises(SystemExit, match=r"holds runs of .*'n_images': None"):
        runs.note_setup(path, setup | {"n_images": 500})
    runs.note_setup(path, setup | {"n_images": None})


def test_the_budget_names_every_method_and_the_sum():
    lines = benchmark.budget(benchmark.jobs_of(3), 2, SETUP).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(benchmark.METHODS)
    n = 9 * len(benchmark.METHODS)
    assert lines[-1].startswith(f"{n} runs of 2 epochs: ")
    assert lines[-1].endswith(" hours with 2 processes")
