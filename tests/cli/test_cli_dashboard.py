"""s2e dashboard in a process of its own; tests/dashboard has its pages, password and browser."""

import json
import re
import signal
import subprocess
import sys
from typing import Any
from urllib.request import urlopen

import optuna
import pytest
from commands import Searched, only_line

from optuna_s2e.cli import _dashboard


def test_dashboard_serves_the_studies_until_ctrl_c_and_warns_about_visitors(
    searched: Searched,
) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "optuna_s2e", "dashboard", "--host", "0.0.0.0", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a background job of a shell ignores SIGINT, and so do its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.fullmatch(r"http://0\.0\.0\.0:(\d+)/dashboard \(Ctrl-C stops it\)\n", line)
        assert found, line
        studies: Any = json.load(urlopen(f"http://127.0.0.1:{found[1]}/api/studies"))
        assert [s["study_name"] for s in studies["study_summaries"]] == ["s"]
    finally:
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 130
    assert "Everyone who reaches this address can read and change the studies." in errors
    assert errors.endswith("Interrupted.\n")


def test_empty_password_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("S2E_DASHBOARD_PASSWORD", raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "")
    line = only_line(capsys, "dashboard", "--password", "--no-browser")
    assert "The password must not be empty." in line


def test_refresh_leaves_out_studies_of_several_objectives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="two", storage=storage, directions=["minimize", "maximize"])
    _dashboard._refresh(storage, None)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "Study 'two' has several objectives: nothing to paint.\n"
