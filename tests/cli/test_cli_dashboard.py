"""s2e dashboard in a process of its own; tests/dashboard has its pages, password and browser."""

import json
import re
import signal
import time
from typing import Any
from urllib.request import urlopen

import optuna
import pytest
from commands import Searched, last_line, only_line
from processes import Command

from optuna_s2e.cli import _dashboard


def test_dashboard_serves_the_studies_until_ctrl_c_and_warns_about_visitors(
    searched: Searched,
) -> None:
    server = Command("dashboard", "--host", "0.0.0.0", "--port", "0", "--no-browser")
    end = time.monotonic() + 60
    while "Pictures:" not in server.printed and server.is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    found = re.match(r"http://0\.0\.0\.0:(\d+)/dashboard \(Ctrl-C stops it\)\n", server.printed)
    try:
        assert found
        studies: Any = json.load(urlopen(f"http://127.0.0.1:{found[1]}/api/studies"))
        assert [s["study_name"] for s in studies["study_summaries"]] == ["s"]
    finally:
        code, _, errors = server.stop(signal.SIGINT)
    assert code == 130
    assert "Everyone who reaches this address can read and change the studies." in errors
    assert errors.endswith("Stopped.\n")


def test_empty_password_is_refused(
    searched: Searched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("S2E_DASHBOARD_PASSWORD", raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "")
    line = only_line(capsys, "dashboard", "--password", "--no-browser")
    assert "The password must not be empty." in line


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1"])  # no address, nobody's address
def test_an_address_of_another_machine_is_blamed_and_not_the_port(
    searched: Searched, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    line = last_line(capsys, "dashboard", "--host", host, "--no-browser")
    assert f"cannot listen on {host}:8080" in line
    assert line.endswith("Choose another --host: an address of this machine.")


def test_refresh_leaves_out_studies_of_several_objectives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="two", storage=storage, directions=["minimize", "maximize"])
    _dashboard._refresh(storage, None)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "Study 'two' has several objectives: nothing to paint.\n"
