"""The launcher and the folder of pictures: who may see and change what."""

import contextlib
import io
import json
import re
import signal
import socket
import stat
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import optuna
import pytest
from optuna.artifacts import upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FixedTrial
from processes import PATIENCE, Command, wait_until
from reporting import IN_SQLITE, call, forget_trials, make_objective

from optuna_s2e import ScheduleSpace, suggest_simplex
from optuna_s2e.cli._main import main
from optuna_s2e.dashboard import (
    ArtifactFolder,
    DashboardReporter,
    default_artifact_dir,
    find_artifact_dir,
    serve,
)

UUID = "c0ffee00-0000-4000-8000-000000000000"


def status(url: str, method: str = "GET", **headers: str) -> int:
    try:
        with urlopen(Request(url, method=method, headers=headers, data=None)) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def api(base: str, path: str) -> str:
    return base.removesuffix("/dashboard") + path


def test_serve_shows_a_study_while_it_is_searched(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    with serve(study, tmp_path / "pictures") as base:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/dashboard", base)
        study.optimize(make_objective(reporter), n_trials=4, callbacks=[reporter])
        answer = json.loads(urlopen(api(base, "/api/studies/1")).read())
        assert len(answer["trials"]) == 4
    with pytest.raises(OSError, match="refused"):
        urlopen(base)


def test_the_plots_come_in_order(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    study.optimize(make_objective(reporter), n_trials=1, callbacks=[reporter])
    with serve(study) as base:
        answer = json.loads(urlopen(api(base, "/api/studies/1")).read())
    names = [plot["id"] for plot in answer["plotly_graph_objects"]]
    assert names == ["s2e_1_schedules", "s2e_2_theta", "s2e_3_generations", "s2e_4_curves"]


def test_constants_fill_no_page_and_no_plot(study: optuna.Study) -> None:
    study.optimize(lambda t: float(ScheduleSpace(8).suggest(t).keep_rates.mean()), n_trials=5)
    searched = {"R.tau", "R.tk", "R.c"}
    with serve(study) as base:
        answer = json.loads(urlopen(api(base, "/api/studies/1")).read())
        for space in ("intersection_search_space", "union_search_space"):
            assert {p["name"] for p in answer[space]} == searched
        for trial in (*answer["trials"], *answer["best_trials"]):
            assert {p["name"] for p in trial["params"]} == searched
        found = json.loads(urlopen(api(base, "/api/studies/1/param_importances")).read())
        assert {p["name"] for p in found["param_importances"][0]} == searched
        drawn = urlopen(api(base, "/api/studies/1/plot/slice")).read().decode()
        assert "R.tau" in drawn
        assert "R.eq1" not in drawn


def test_weights_are_shown_as_weights_and_exported_and_renamed_as_they_are_stored(
    study: optuna.Study,
) -> None:
    study.optimize(lambda t: float(suggest_simplex(t, "mix", 3)[0]), n_trials=6)
    names = ["mix 1", "mix 2", "mix 3"]
    with serve(study) as base:
        answer = json.loads(urlopen(api(base, "/api/studies/1")).read())
        assert [p["name"] for p in answer["union_search_space"]] == names
        for trial, stored in zip(answer["trials"], study.trials, strict=True):
            shown = [p["param_internal_value"] for p in trial["params"]]
            assert shown == suggest_simplex(FixedTrial(stored.params), "mix", 3).tolist()
        found = json.loads(urlopen(api(base, "/api/studies/1/param_importances")).read())
        assert {p["name"] for p in found["param_importances"][0]} == set(names)
        header = urlopen(api(base, "/csv/1")).read().decode().splitlines()[0]
        assert "Param mix.simplex3.1,Param mix.simplex3.2" in header
        before = [t.params for t in study.trials]
        call(base, "/api/studies/1/rename", "POST", {"study_name": "other"})
    renamed = optuna.load_study(study_name="other", storage=study._storage)
    assert [t.params for t in renamed.trials] == before


def test_a_line_per_trial_is_drawn_for_the_first_500_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optuna_s2e.dashboard._answers.MAX_LINES", 4)

    def objective(trial: optuna.Trial) -> float:
        trial.report(0.5, 0)
        return 0.5

    study = optuna.create_study()
    study.optimize(objective, n_trials=4)
    with serve(study) as base:
        path = f"/api/studies/{study._study_id}"
        assert json.loads(urlopen(api(base, path)).read())["has_intermediate_values"]
        forget_trials(monkeypatch)
        study.optimize(objective, n_trials=1)
        for after in ("", "?after=3", "?after=5"):
            answer = json.loads(urlopen(api(base, path + after)).read())
            assert not answer["has_intermediate_values"]
            assert all(t["intermediate_values"] for t in answer["trials"])


def test_the_page_has_our_style_however_it_is_asked_for(study: optuna.Study) -> None:
    with serve(study) as base:
        first = urlopen(base)
        page = first.read()
        assert b"currentColor" in page
        assert int(first.headers["Content-Length"]) == len(page)
        cached = {"If-Modified-Since": first.headers["Last-Modified"]}
        with urlopen(Request(f"{base}/studies/1", headers=cached)) as again:
            assert again.read() == page  # not what a browser has of a plain dashboard
        assert status(base, "HEAD") == 200
        assert status(api(base, "/api/studies/7")) == 404


def test_read_only_refuses_every_change(study: optuna.Study) -> None:
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    with serve(study, read_only=True) as base:
        assert status(api(base, "/api/studies/1")) == 200
        for method, path in (
            ("DELETE", "/api/studies/1"),
            ("PUT", "/api/studies/1/note"),
            ("POST", "/api/studies/1/rename"),
            ("POST", "/api/studies"),
        ):
            assert status(api(base, path), method) == 403
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(api(base, "/api/studies/1"), method="DELETE"))
        assert json.loads(refused.value.read()) == {"reason": "This dashboard is read-only."}
    assert [t.number for t in study.trials] == [0]


def test_a_password_is_asked_for(study: optuna.Study) -> None:
    def basic(text: str) -> str:
        return "Basic " + b64encode(text.encode()).decode()

    with serve(study, password="gehëim:1") as base:
        assert status(base) == 401
        for wrong in (basic("me:other"), basic("me"), "Basic %%%", "Bearer x", "Basic"):
            assert status(base, Authorization=wrong) == 401
        assert status(base, Authorization=basic("me:gehëim:1")) == 200
        assert status(api(base, "/api/studies"), Authorization=basic(":gehëim:1")) == 200


def test_other_names_of_this_machine_are_refused(study: optuna.Study) -> None:
    """A web page that points its own name at 127.0.0.1 must not read the studies."""
    with serve(study) as base:
        assert status(base, Host="evil.example") == 403
        assert status(base, Host="evil.example:80") == 403
        port = base.split(":")[2].split("/")[0]
        assert status(base.replace("127.0.0.1", "localhost"), Host=f"localhost:{port}") == 200


@pytest.mark.parametrize("port", [-1, 65_536, 80.5, True])
def test_a_port_must_be_an_int(port: Any) -> None:
    study = optuna.create_study()
    with pytest.raises(ValueError, match=r"port must be an int in \[0, 65535\], but got"):
        serve(study, port=port).__enter__()


def test_a_taken_port_is_one_clear_error(study: optuna.Study) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:\d+ .*0 takes a free one"),
        serve(study, port=taken.getsockname()[1]),
    ):
        pass


def test_uploaded_documents_run_nothing(study: optuna.Study, tmp_path: Path) -> None:
    folder = ArtifactFolder(tmp_path / "pictures")
    page = tmp_path / "page.html"
    page.write_text("<script>fetch('/api/studies')</script>")
    trial = study.ask()
    artifact = upload_artifact(artifact_store=folder, file_path=str(page), study_or_trial=trial)
    with (
        serve(study, folder) as base,
        urlopen(api(base, f"/artifacts/1/{trial._trial_id}/{artifact}")) as answer,
    ):
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/../../secret", "secret", "", "x\0", UUID + "/..", UUID + "\n"],
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = ArtifactFolder(tmp_path / "pictures")
    folder.write(UUID, io.BytesIO(b"picture"))
    for attempt in (
        lambda: folder.open_reader(name),
        lambda: folder.write(name, io.BytesIO(b"x")),
        lambda: folder.remove(name),
    ):
        with pytest.raises(ArtifactNotFound, match="must be a UUID"):
            attempt()
    assert (tmp_path / "secret").read_text() == "secret"


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = ArtifactFolder(tmp_path / "pictures")
    folder.path.mkdir()
    (folder.path / UUID).symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactNotFound):
        folder.open_reader(UUID)
    folder.write(UUID, io.BytesIO(b"picture"))  # replaces the link, not what it points to
    assert (tmp_path / "secret").read_text() == "secret"
    with folder.open_reader(UUID) as file:
        assert file.read() == b"picture"
    assert stat.S_IMODE((folder.path / UUID).stat().st_mode) == 0o600
    folder.remove(UUID)
    assert list(folder.path.iterdir()) == []


@IN_SQLITE
def test_the_folder_is_found_again(study: optuna.Study, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s2e.db"
    assert default_artifact_dir(url) == tmp_path / "s2e.db.artifacts"
    assert find_artifact_dir(study._storage, url) == tmp_path / "s2e.db.artifacts"
    reporter = DashboardReporter(tmp_path / "elsewhere")
    study.optimize(make_objective(reporter), n_trials=1, callbacks=[reporter])
    assert find_artifact_dir(study._storage, url) == tmp_path / "elsewhere"
    assert default_artifact_dir("journal:////a/j.log") == Path("/a/j.log.artifacts")
    for other in ("postgresql://me@db/s2e", "sqlite:///:memory:", "sqlite://"):
        assert default_artifact_dir(other) == Path.cwd() / "s2e-artifacts"


# --- s2e dashboard -----------------------------------------------------------------------------


@contextmanager
def launched(folder: Path, *argv: str, **env: str) -> Iterator[tuple[str, list[str]]]:
    """Run `s2e dashboard`; yield its address and the lines before it."""
    with contextlib.chdir(folder):
        server = Command("dashboard", "--port", "0", *argv, env=env)
    wait_until(lambda: "(Ctrl-C stops it)\n" in server.printed, server)
    before, _, line = server.printed.partition("http")
    try:
        yield f"http{line.split()[0]}", before.splitlines(keepends=True)
    finally:
        assert server.stop(signal.SIGINT)[0] == 130


@IN_SQLITE
def test_s2e_dashboard_serves_refreshes_asks_for_its_password_and_opens_a_browser(
    study: optuna.Study, tmp_path: Path
) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    study.optimize(make_objective(reporter), n_trials=4, callbacks=[reporter])
    optuna.copy_study(
        from_study_name="s", from_storage=study._storage, to_storage=study._storage,
        to_study_name="copy",
    )  # fmt: skip
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    options = ("--refresh", "--read-only", "--password")
    env = {"BROWSER": str(browser), "S2E_DASHBOARD_PASSWORD": "secret"}
    with launched(tmp_path, *options, **env) as (base, before):
        known = {"Authorization": "Basic " + b64encode(b":secret").decode()}

        def answer(path: str) -> bytes:
            with urlopen(Request(api(base, path), headers=known)) as found:
                content: bytes = found.read()
            return content

        assert status(base) == 401  # the password comes from the environment
        assert status(base, **known) == 200
        assert sorted(before) == [
            f"Study {name!r}: painted, with 4 trials.\n" for name in ("copy", "s")
        ]
        trial: Any = json.loads(answer("/api/studies/2"))["trials"][0]
        path = re.search(r"\((/artifacts/[^)]*)\)", trial["note"]["body"])[1]  # type: ignore[index]
        assert path.startswith("/artifacts/2/")
        assert answer(path).startswith(b"<svg")  # from the recorded folder
        assert status(api(base, "/api/studies/1"), "DELETE", **known) == 403
        end = time.monotonic() + PATIENCE
        while not opened.exists() or not opened.read_text():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert opened.read_text().strip() == base


@IN_SQLITE
def test_s2e_dashboard_on_a_taken_port_is_one_line(
    study: optuna.Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        url = f"sqlite:///{tmp_path}/s2e.db"
        assert main(["dashboard", "--storage", url, "--port", port, "--no-browser"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("s2e dashboard: error: The dashboard cannot listen on")
    assert "\n" not in line


@IN_SQLITE
def test_s2e_dashboard_shows_the_plots_of_a_study_that_had_no_reporter(
    study: optuna.Study, tmp_path: Path
) -> None:
    study.optimize(lambda t: float(ScheduleSpace(8).suggest(t).keep_rates.mean()), n_trials=5)
    url = f"sqlite:///{tmp_path}/s2e.db"
    with launched(tmp_path, "--storage", url, "--no-browser") as (base, _):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            answer = json.loads(urlopen(api(base, "/api/studies/1")).read())
            if len(answer["plotly_graph_objects"]) == 4 and answer["note"]["body"]:
                break
            time.sleep(0.1)
        assert len(answer["plotly_graph_objects"]) == 4
        assert " · 5 trials" in answer["note"]["body"]
