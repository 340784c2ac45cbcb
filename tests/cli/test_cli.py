"""The s2e command as a user runs it."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import optuna
import pytest

from optuna_s2e import Schedule, generations, recommend, replay
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.cli._main import main

SHORT = ["--epochs", "4", "--trials", "3", "--study-name", "s"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def study(name: str = "s") -> optuna.Study:
    return optuna.load_study(study_name=name, storage="sqlite:///s2e.db")


def failing(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail with exit code 2 and one line; return the line."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    line: str = captured.err.strip()
    assert line.startswith(f"s2e {argv[0]}: error: ")
    assert "\n" not in line
    return line


def test_search_status_evaluate_export(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", *SHORT]) == 0
    out = capsys.readouterr().out
    assert "Best of 3 trials" in out
    assert "s2e evaluate --storage sqlite:///s2e.db --study-name s" in out
    assert "s2e dashboard" in out

    assert main(["search", *SHORT[:3], "8", *SHORT[4:]]) == 0  # resumes
    assert "Resuming study 's': 3 trials are complete" in capsys.readouterr().out
    assert len(study().trials) == 8

    assert main(["status", "--verify"]) == 0
    out = capsys.readouterr().out
    assert "8 complete" in out
    assert "2 generations replay bit for bit" in out

    assert main(["evaluate", "--repeats", "2", "--out", "report"]) == 0
    out = capsys.readouterr().out
    for method in ("Standard", "Co-teaching", "Searched"):
        assert method in out
    report = json.loads(Path("report/evaluation.json").read_text())
    assert np.shape(report["methods"]["searched"]["test_accuracy"]) == (2, 4)
    assert Path("report/evaluation.png").read_bytes().startswith(b"\x89PNG")

    assert main(["export", "--out", "schedule.json"]) == 0
    exported = Schedule.load("schedule.json")
    assert exported == Schedule.load("report/schedule.json")
    assert exported == recommend(study()).schedule
    assert main(["export", "--rule", "best", "--out", "best.json"]) == 0
    assert Schedule.load("best.json") == Schedule.from_trial(study().best_trial)


def test_batches_are_the_search_of_one_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", *SHORT[:3], "8", *SHORT[4:]]) == 0
    batches = [*SHORT[:4], "--study-name", "batches", "--batch"]
    assert main(["search", *batches[:3], "5", *batches[4:]]) == 0  # in the middle of a batch
    assert main(["search", *batches[:3], "8", *batches[4:]]) == 0
    assert "Resuming study 'batches': 5 trials are complete" in capsys.readouterr().out
    for one, other in zip(study().trials, study("batches").trials, strict=True):
        assert (one.params, one.value) == (other.params, other.value)
        assert one.user_attrs["seed"] == other.user_attrs["seed"]


def test_search_in_the_papers_space() -> None:
    assert main(["search", *SHORT, "--space", "table1", "--estimator", "newton"]) == 0
    assert len(study().trials[0].params) == 2 + 19


def test_verify_finds_a_changed_theta(capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", *SHORT[:3], "7", *SHORT[4:]])
    original = study()
    trials = original.trials
    record = trials[6].system_attrs[DRAW_KEY]
    trials[6].system_attrs[DRAW_KEY] = record | {"theta": [t + 1e-6 for t in record["theta"]]}
    optuna.create_study(study_name="forged", storage="sqlite:///s2e.db").add_trials(trials)
    assert main(["status", "--study-name", "forged", "--verify"]) == 1
    assert "FAILED: theta of generation 1" in capsys.readouterr().out
    assert main(["status", "--study-name", "s", "--verify"]) == 0


ERRORS: dict[str, tuple[list[str], str]] = {
    "unknown data": (["search", "--data", "mnits"], "'mnits'"),
    "data root": (["search", "--data", "mnist"], "--data-root|root"),
    "noise rate": (["search", "--noise-rate", "1.0"], "noise_rate must be"),
    "network": (["search", "--network", "resnet"], "network must be"),
    "device": (["search", "--device", "tpu"], "device"),
    "epochs": (["search", "--epochs", "1"], "n_epochs must be an int in"),
    "trials": (["search", "--trials", "0"], "--trials must be at least 1"),
    "threads": (["search", "--threads", "0"], "--threads must be at least 1"),
    "population": (["search", "--population-size", "0"], "population_size must be"),
    "estimator": (["search", "--estimator", "magic"], "estimator must be one of"),
    "storage": (["search", "--storage", "sqlite:////no/such/x.db"], "cannot be opened"),
    "url": (["search", "--storage", "here"], "must be a database URL"),
    "server": (
        ["status", "--storage", "postgresql+psycopg://me:secret@127.0.0.1:1/x"],
        r"me:\*\*\*@127.0.0.1:1/x cannot be opened",
    ),
    "no study": (["status"], "the storage holds no studies"),
    "npz": (["search", "--data", "none.npz"], "none.npz"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_is_one_line_and_nothing_is_written(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv, message = ERRORS[case]
    line = failing(capsys, *argv)
    assert re.search(message, line), line
    assert "secret" not in line
    studies = optuna.get_all_study_names("sqlite:///s2e.db") if Path("s2e.db").exists() else []
    assert studies == []


def test_study_of_another_objective_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", *SHORT])
    line = failing(capsys, "search", *SHORT, "--noise-rate", "0.2", "--learning-rate", "0.1")
    assert "config.learning_rate is 0.1, there 0.01" in line
    assert "data.noise_rate is 0.2, there 0.5" in line
    line = failing(capsys, "search", *SHORT, "--population-size", "4")
    assert "population_size is 4, was 6" in line
    line = failing(capsys, "status", "--study-name", "t")
    assert "Study 't' does not exist: the storage holds 's'" in line

    foreign = optuna.create_study(study_name="own", storage="sqlite:///s2e.db")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    line = failing(capsys, "search", *SHORT[:4], "--study-name", "own")
    assert "holds trials of another objective" in line
    line = failing(capsys, "evaluate", "--study-name", "own")
    assert "was not made by `s2e search`" in line
    line = failing(capsys, "export", "--study-name", "own", "--out", "x.json")
    assert "hold no schedules" in line
    assert not Path("x.json").exists()
    assert "--study-name is needed" in failing(capsys, "status")


@pytest.mark.filterwarnings("ignore:.*returns NaN", "ignore:.*trials in a row have failed")
def test_search_that_only_fails_gives_up(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["search", *SHORT[:3], "50", *SHORT[4:], "--learning-rate", "1e30"]
    assert "10 trials in a row have failed" in failing_last_line(capsys, *argv)
    assert len(study().trials) == 10


def failing_last_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    line: str = capsys.readouterr().err.strip().splitlines()[-1]
    return line


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"train_y": np.full(100, 7)}, "label|class"),
        ({"train_y": np.full(100, -1)}, "label"),
        ({"train_x": np.full((100, 4), np.nan)}, "NaN|finite"),
        ({"train_x": np.zeros((99, 4))}, "99"),
        ({"test_x": np.zeros((10, 5))}, "shape"),
    ],
)
def test_unusable_data_are_one_line(
    damage: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.random((100, 4)),
        "train_y": np.arange(100) % 3,
        "test_x": rng.random((10, 4)),
        "test_y": np.arange(10) % 3,
    }
    np.savez("own.npz", **arrays)
    assert main(["search", "--data", "own.npz", *SHORT, "--storage", "sqlite:///good.db"]) == 0
    np.savez("own.npz", **(arrays | damage))
    line = failing(capsys, "search", "--data", "own.npz", *SHORT)
    assert re.search(message, line), line
    assert not Path("s2e.db").exists()


def start_search(n_trials: int, *options: str) -> "subprocess.Popen[bytes]":
    argv = ["search", "--epochs", "4", "--trials", str(n_trials), "--study-name", "s", *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "optuna_s2e.cli", *argv],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_for_trials(search: "subprocess.Popen[bytes]", n: int, seconds: float = 120) -> None:
    """Wait until n trials are complete, reading only: an RDBStorage here would make tables."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert search.poll() is None, "the search ended by itself"
        try:
            reader = sqlite3.connect("file:s2e.db?mode=ro", uri=True)
            with contextlib.closing(reader):
                query = "SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'"
                if reader.execute(query).fetchone()[0] >= n:
                    return
        except sqlite3.OperationalError:
            pass  # not there yet
        time.sleep(0.1)
    raise AssertionError("the search made no progress")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_stopped_search_goes_on_with_the_same_command(sign: signal.Signals) -> None:
    first = start_search(500)
    try:
        wait_for_trials(first, 8)
    finally:
        first.send_signal(sign)
        out = first.communicate(timeout=60)[0].decode()
    if sign == signal.SIGINT:
        assert first.returncode == 130
        assert "at most the running trial is lost" in out
        assert "resume:" in out
    n_before = len(study().trials)
    n_complete = sum(t.state.name == "COMPLETE" for t in study().trials)
    assert n_before - n_complete <= 1

    second = start_search(n_complete + 7)
    out = second.communicate(timeout=120)[0].decode()
    assert second.returncode == 0
    assert f"{n_complete} trials are complete" in out
    told, computed = generations(study()), replay(study())
    assert all(np.array_equal(a.theta, b.theta) for a, b in zip(told, computed, strict=True))
    assert len(told) >= 1 + (n_complete + 6) // 6 - 1
    points = [tuple(t.params.values()) for t in study().trials]
    assert len(points) == len(set(points))
    assert sum(t.state.name == "COMPLETE" for t in study().trials) == n_complete + 7


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_batches_go_on_as_if_nothing_had_happened(sign: signal.Signals) -> None:
    first = start_search(500, "--batch")
    try:
        wait_for_trials(first, 8)
    finally:
        first.send_signal(sign)
        out = first.communicate(timeout=60)[0].decode()
    states = [t.state.name for t in study().trials]
    if sign != signal.SIGKILL:
        assert first.returncode == 128 + sign
        assert "at most the running trials are lost" in out
        assert "RUNNING" not in states
    n = states.count("COMPLETE") + 7
    batches = ["--study-name", "s", "--batch"]
    assert main(["search", "--epochs", "4", "--trials", str(n), *batches]) == 0
    assert main(["search", "--epochs", "4", "--trials", str(n), "--study-name", "calm"]) == 0
    told, calm = generations(study()), generations(study("calm"))
    assert [g.theta.tobytes() for g in told] == [g.theta.tobytes() for g in calm]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["search", "--help"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "s2e search --data mnist --data-root" in out
    assert "the same command again resumes" in out


def test_dashboard_starts_on_the_storage() -> None:
    main(["search", *SHORT])
    server = subprocess.Popen(
        [sys.executable, "-m", "optuna_s2e.cli", "dashboard", "--port", "18437"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert b"http://127.0.0.1:18437/dashboard" in server.stdout.readline()
        studies: Any = None
        for _ in range(100):
            try:
                studies = json.loads(urlopen("http://127.0.0.1:18437/api/studies").read())
                break
            except OSError:
                time.sleep(0.2)
        assert [s["study_name"] for s in studies["study_summaries"]] == ["s"]
    finally:
        server.kill()
        server.communicate()
