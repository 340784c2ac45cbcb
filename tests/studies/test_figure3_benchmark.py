"""The benchmark of all methods in small: its jobs, its file, its table and its picture."""

import json
from pathlib import Path

import figure3_benchmark as benchmark
import numpy as np
import pytest
import runs

from optuna_s2e.coteaching import METHODS, TrainingConfig, evaluate_schedules

SETUP = {"data": "digits", "n_epochs": 2, "n_trials": 2}


def test_every_method_is_compared():
    assert set(METHODS) - {"single"} <= set(benchmark.METHODS)
    jobs = benchmark.jobs_of(3)
    assert len(set(jobs)) == len(jobs) == 3 * 3 * len(benchmark.METHODS)


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


def test_a_search_trains_its_schedule_anew():
    result = benchmark.run(("symmetric 50 %", "s2e", 0), **SETUP)
    assert len(result["keep_rates"]) == len(result["test_accuracy"]) == 2
    assert result["keep_rates"][0] == 1.0


def test_the_table_and_the_picture_show_what_is_done(tmp_path: Path):
    results = {
        runs.key_of((setting, method, seed)): {
            "final_accuracy": 0.5 + 0.1 * seed, "test_accuracy": [0.1, 0.5 + 0.1 * seed],
            "label_precision": [0.5, None],
        }
        for setting in list(benchmark.SETTINGS)[:2]
        for method in ("standard", "s2e")
        for seed in (0, 1)
    }  # fmt: skip
    lines = benchmark.report({"results": results, "n_epochs": 2}).splitlines()
    assert lines[0].startswith("8 results of 2 epochs; ")
    assert len(lines) == 3 + len(benchmark.METHODS)
    assert lines[3].split() == ["Standard", *2 * ["55.00", "±", "7.07", "(2)"], "-"]
    assert lines[-1].split()[:2] == ["S2E", "55.00"]
    benchmark.draw({"results": results}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_another_setup_needs_another_file(tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": {}, "seconds": 0.0, **SETUP}))
    with pytest.raises(SystemExit, match=r"holds runs of .*'digits'.* --results"):
        benchmark.main(["--results", str(path), "--epochs", "2"])


def test_the_budget_names_every_method_and_the_sum():
    lines = benchmark.budget(3, 2, SETUP).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(benchmark.METHODS)
    n = 9 * len(benchmark.METHODS)
    assert lines[-1].startswith(f"{n} runs of 2 epochs: ")
    assert lines[-1].endswith(" hours with 2 processes")
