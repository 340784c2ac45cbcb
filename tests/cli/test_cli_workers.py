"""s2e worker --devices: several workers from one command, real processes on CPU devices.

Where no search is needed, a script takes the place of Python in the workers: it starts at once.
"""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from commands import Searched, only_line, study
from processes import PATIENCE, Command, Process, wait_until

from optuna_s2e.cli import main
from optuna_s2e.cli._workers import _without_option

WORKERS = ["worker", "--study-name", "s", "--no-dashboard", "--trials", "100000", "--devices"]
SCRIPT = r"""#!/bin/sh
trap 'echo INT >> told; exit 130' INT
trap 'echo TERM >> told; exit 143' TERM
echo $$ >> started
number=$(grep -n "^$$\$" started | cut -d: -f1)
while sleep 0.05; do [ -f codes ] && exit $(sed -n "${number}p" codes); done
"""


def _trials_by_worker(study: optuna.Study) -> dict[int, list[optuna.trial.FrozenTrial]]:
    """Return the trials by the process that runs them; those that have just begun are left out."""
    found: dict[int, list[optuna.trial.FrozenTrial]] = defaultdict(list)
    for trial in study.trials:
        if "s2e:worker" in trial.system_attrs:
            found[trial.system_attrs["s2e:worker"]["pid"]].append(trial)
    return found


def _pids(parent: Process) -> list[int]:
    """Return the processes of the workers that the command has named."""
    found = re.findall(r"^worker \d on cpu: process (\d+)$", parent.printed, re.MULTILINE)
    return list(map(int, found))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_workers_share_a_search_and_stop_when_their_parent_is_killed(
    searched: Searched,
) -> None:
    parent, opened = Command(*WORKERS, "cpu,cpu", "--grace", "60"), study()
    wait_until(lambda: len(_pids(parent)) == 2, parent)
    pids = _pids(parent)
    assert all(map(_lives, pids))
    wait_until(lambda: all(len(_trials_by_worker(opened)[pid]) > 1 for pid in pids), parent)
    assert parent.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    end = time.monotonic() + PATIENCE
    while any(map(_lives, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert parent.printed.count("stopped. Completed trials are kept") == 2
    found = _trials_by_worker(opened)
    assert found.keys() == {os.getpid(), *pids}  # the search ran in this process
    begun = [t for t in opened.trials if t.params]  # one that was just made does not begin
    assert {t.state.name for t in begun} == {"COMPLETE"}  # within the grace


# --- scripts as workers ---


def _command_with_scripts(how: str = "") -> None:
    """Run the command with a script in place of Python; the second start may raise."""
    script, popen = Path("script").absolute(), subprocess.Popen
    script.write_text(SCRIPT)
    script.chmod(0o755)
    sys.executable = str(script)

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        if not Path("began").exists():
            Path("began").touch()
        elif how == "raise":
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        elif how == "signal":  # while a process is being started
            signal.raise_signal(signal.SIGTERM)
        return popen(*args, **options)

    if how == "ignore":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    subprocess.Popen = start  # type: ignore[assignment, misc]
    sys.exit(main([*WORKERS, "cpu,cpu,cpu" if how == "signal" else "cpu,cpu"]))


def _told() -> list[str]:
    return Path("told").read_text().split() if Path("told").exists() else []


def _started() -> list[int]:
    return list(map(int, Path("started").read_text().split())) if Path("started").exists() else []


@pytest.mark.parametrize(
    ("sign", "code", "told"),
    [
        (signal.SIGTERM, 143, "TERM"),
        (signal.SIGINT, 130, "INT"),
        (signal.SIGHUP, 129, "TERM"),
    ],
    ids=["SIGTERM", "SIGINT", "SIGHUP"],
)
def test_a_signal_is_handed_on_to_all_workers(sign: int, code: int, told: str) -> None:
    parent = Process(_command_with_scripts)
    wait_until(lambda: len(_started()) == 2, parent)
    assert parent.stop(sign)[0] == code
    assert _told() == [told, told]
    assert not any(map(_lives, _started()))


def test_a_signal_that_is_ignored_is_not_handed_on() -> None:
    parent = Process(_command_with_scripts, "ignore")
    wait_until(lambda: len(_started()) == 2, parent)
    parent.send_signal(signal.SIGHUP)
    Path("codes").write_text("0\n0\n")
    assert parent.wait() == 0
    assert _told() == []


def test_a_signal_reaches_a_worker_that_is_just_being_started() -> None:
    parent = Process(_command_with_scripts, "signal")
    assert parent.wait() == 143
    assert len(parent.printed.splitlines()) == 2  # and the third worker is not started
    assert not any(map(_lives, _started()))


def test_no_worker_is_left_if_another_cannot_be_started() -> None:
    parent = Process(_command_with_scripts, "raise")
    assert parent.wait() == 2
    assert parent.errors == (
        "s2e worker: error: worker 2 on cpu cannot be started: [Errno 11] Resource temporarily "
        "unavailable. No worker is left.\n"
    )
    (pid,) = _pids(parent)
    assert not _lives(pid)


@pytest.mark.parametrize(("codes", "code"), [("0\n0\n", 0), ("0\n3\n", 3)])
def test_the_exit_code_is_that_of_a_worker_that_failed(codes: str, code: int) -> None:
    Path("codes").write_text(codes)
    parent = Process(_command_with_scripts)
    assert parent.wait() == code
    assert ("ended with exit code 3" in parent.errors) == (code == 3)


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
