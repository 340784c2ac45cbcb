"""s2e worker --devices: several workers from one command, real processes on CPU devices."""

import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace

import optuna
import pytest
from commands import N_SEARCHED, Searched, only_line, search, study

from optuna_s2e.cli import main
from optuna_s2e.cli._workers import _without_option, run_workers

WORKERS = ["worker", "--study-name", "s", "--no-dashboard", "--devices", "cpu,cpu"]


def _pids(trials: list[optuna.trial.FrozenTrial]) -> set[int]:
    """Return the processes that ran these trials."""
    return {t.system_attrs["s2e:worker"]["pid"] for t in trials if "s2e:worker" in t.system_attrs}


def test_two_workers_share_a_search(searched: Searched, capfd: pytest.CaptureFixture[str]) -> None:
    n = N_SEARCHED + 6
    assert main([*WORKERS, "--trials", str(n)]) == 0
    out = capfd.readouterr().out
    pids = re.findall(r"^worker \d on cpu: process (\d+)$", out, re.MULTILINE)
    assert len(set(pids)) == 2
    trials = study().trials
    assert n <= len(trials) <= n + 1
    assert {t.state.name for t in trials} == {"COMPLETE"}
    assert _pids(trials[N_SEARCHED:]) <= set(map(int, pids))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_ends_all_workers_and_leaves_no_trial_running(number: int, code: int) -> None:
    assert main(search(1)) == 0
    command = [sys.executable, "-m", "optuna_s2e", *WORKERS, "--trials", "100000", "--grace", "60"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pids = [int(started.stdout.readline().rsplit(maxsplit=1)[-1]) for _ in range(2)]
    deadline = time.monotonic() + 90
    while len(_pids(study().trials[1:])) < 2:
        assert time.monotonic() < deadline, "the workers do not work"
        time.sleep(0.2)
    started.send_signal(number)
    out, _ = started.communicate(timeout=90)
    assert started.returncode == code
    assert out.count("stopped. Completed trials are kept") == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert {t.state.name for t in study().trials} <= {"COMPLETE", "FAIL"}


def test_a_signal_reaches_a_worker_that_is_just_being_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed_on: list[int] = []

    class Starting:
        pid = 1

        def __init__(self, *_: object, **__: object) -> None:
            signal.raise_signal(signal.SIGTERM)

        def send_signal(self, number: int) -> None:
            handed_on.append(number)

        def wait(self) -> int:
            return 143

    monkeypatch.setattr(subprocess, "Popen", Starting)
    args = Namespace(devices=["cpu", "cpu"], device="auto", objective=None, argv=["worker"])
    assert run_workers(args) == 143
    assert handed_on == [signal.SIGTERM]  # and the second worker is not started


def test_the_exit_code_is_that_of_a_worker_that_failed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "--storage", "sqlite:///none.db", "--devices", "cpu"]) == 2
    assert "worker 1 on cpu: ended with exit code 2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "all"], "--devices all: torch finds no CUDA device"),
        (["--devices", "cpu,cuda:99"], "device must be one that torch finds, but got 'cuda:99'"),
        (["--devices", "cpu", "--device", "cpu"], "--devices and --device cannot be given"),
        (["--devices", "cpu", "--objective", "m:f"], "--devices and --objective cannot be given"),
    ],
)
def test_devices_that_cannot_be_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available() and "all" in options:
        pytest.skip("CUDA is there")
    assert message in only_line(capsys, "worker", *options)


@pytest.mark.parametrize("names", ["", "cpu,", "all,cpu"])
def test_names_of_devices_are_checked(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "--devices", names]) == 2
    assert "--devices must be 'all' or names with commas" in capsys.readouterr().err


def test_workers_get_all_other_options() -> None:
    words = ["worker", "--devices", "cpu,cpu", "--trials", "9", "--devices=all", "--threads", "2"]
    assert _without_option(words) == ["worker", "--trials", "9", "--threads", "2"]
