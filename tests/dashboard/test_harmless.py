"""Nothing hurts a search that is reported: no full disk, click, rename or other worker."""

import re
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note
from processes import Process
from reporting import IN_SQLITE, PLOTS, call, detail, make_objective, plots, search_with, unwrapped
from sqlalchemy import event
from sqlalchemy.pool import Pool

from optuna_s2e import S2ESampler, ScheduleSpace, open_storage
from optuna_s2e.cli._main import main
from optuna_s2e.dashboard import DashboardReporter, serve


def test_a_deleted_folder_is_made_again(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    assert search_with(study, reporter) == []
    shutil.rmtree(tmp_path / "pictures")
    assert search_with(study, reporter) == []
    assert len(list((tmp_path / "pictures").iterdir())) == 6
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


class FullDisk:
    """An artifact store on a disk without space."""

    def open_reader(self, artifact_id: str) -> Any:
        raise OSError(28, "No space left on device")

    def write(self, artifact_id: str, content_body: Any) -> None:
        raise OSError(28, "No space left on device")

    def remove(self, artifact_id: str) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_costs_one_warning(study: optuna.Study, tmp_path: Path) -> None:
    (message,) = search_with(study, DashboardReporter(FullDisk()))
    assert "No space left on device" in message
    assert "The search goes on" in message
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == 6
    assert "4 trials" in get_note(study)  # what needs no disk is still written
    keys = [k for k in study.trials[0].system_attrs if k.startswith("artifacts:")]
    assert len(keys) == 1

    (tmp_path / "file").write_text("in the way")
    (message,) = search_with(study, DashboardReporter(tmp_path / "file" / "pictures"))
    assert "Error" in message
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == 12


@IN_SQLITE
def test_a_study_without_its_pictures_can_be_deleted(study: optuna.Study, tmp_path: Path) -> None:
    assert search_with(study, DashboardReporter(tmp_path / "pictures"), n_trials=2) == []
    for file in (tmp_path / "pictures").iterdir():
        file.unlink()
    with serve(study, tmp_path / "pictures") as base:
        call(base, "/api/studies/1", "DELETE")
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/s2e.db") == []


def test_without_optuna_dashboard_a_search_works_and_says_so_once() -> None:
    code = """
import sys, warnings
sys.modules["optuna_dashboard"] = None
import optuna
from optuna_s2e import S2ESampler, ScheduleSpace
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from optuna_s2e.dashboard import DashboardReporter, serve
    reporter = DashboardReporter("pictures")
    def objective(trial):
        schedule = ScheduleSpace(5).suggest(trial)
        reporter.show(trial, schedule, {"error": [0.5]}, final=True)
        return 0.5
    study = optuna.create_study(sampler=S2ESampler())
    study.optimize(objective, n_trials=7, callbacks=[reporter])
print(len(study.trials), *[w.message for w in caught], sep="|")
try:
    serve(study).__enter__()
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = out.stdout.strip().splitlines()
    assert first.startswith("7|")
    assert first.count("|") == 1
    assert 'pip install "optuna-s2e[dashboard]"' in first
    assert 'pip install "optuna-s2e[dashboard]"' in second


def test_a_trial_failed_by_a_click_costs_no_warning(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    trial = study.ask()
    schedule = ScheduleSpace(8).suggest(trial)
    with serve(study, tmp_path / "pictures") as base:
        reporter.show(trial, schedule, {"error": [0.5]})
        call(base, f"/api/trials/{trial._trial_id}/tell", "POST", {"state": "Fail"})
    reporter.show(trial, schedule, {"error": [0.5, 0.4]}, final=True)  # pytest: warnings raise
    reporter(study, study.trials[0])
    assert search_with(study, reporter) == []


@IN_SQLITE
def test_a_study_renamed_by_a_click_is_painted_again(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    save_note(study, "Mine.")
    search_with(study, reporter, n_trials=5)
    frozen = study.trials[-1]
    storage = f"sqlite:///{tmp_path}/s2e.db"
    with serve(storage, tmp_path / "pictures") as base:
        call(base, "/api/studies/1/rename", "POST", {"study_name": "new"})
        with pytest.warns(RuntimeWarning, match="Record does not exist"):
            reporter(study, frozen)  # the study that it knows is gone
        reporter(study, frozen)  # and it does not say so again

        renamed = optuna.load_study(
            study_name="new", storage=storage, sampler=S2ESampler(population_size=4, seed=0)
        )
        study_id = renamed._study_id
        assert not plots(detail(base, study_id))  # the rename has dropped them
        fresh = DashboardReporter(tmp_path / "pictures")
        assert fresh.repaint(renamed) == 5
        answer = detail(base, study_id)
        assert set(plots(answer)) == PLOTS
        assert answer["note"]["body"].startswith("Mine.")
        for trial in answer["trials"]:
            (path,) = re.findall(r"\((/artifacts/[^)]*)\)", trial["note"]["body"])
            assert path.startswith(f"/artifacts/{study_id}/{trial['trial_id']}/")
            assert call(base, path).startswith(b"<svg")
        assert search_with(renamed, fresh, n_trials=3) == []
        assert len(renamed.trials) == 8


def report(url: str, pictures: Path, n_trials: int) -> None:
    """Run half of the trials of a search, without a warning."""
    warnings.simplefilter("error")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = S2ESampler(population_size=4, seed=0)
    study = optuna.load_study(study_name="s", storage=open_storage(url), sampler=sampler)
    reporter = DashboardReporter(pictures, n_trials=n_trials)
    study.optimize(make_objective(reporter), n_trials=n_trials // 2, callbacks=[reporter])


def test_two_workers_at_once_leave_sound_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/s2e.db"
    optuna.create_study(study_name="s", storage=open_storage(url))
    workers = [Process(report, url, tmp_path / "pictures", 16) for _ in range(2)]
    assert [w.wait() for w in workers] == [0, 0], [w.errors for w in workers]
    with serve(url, tmp_path / "pictures") as base:
        answer = detail(base)
        assert set(plots(answer)) == PLOTS  # each is valid JSON
        assert "16 of 16 trials · finished" in answer["note"]["body"]
        assert all(len(t["artifacts"]) == 1 for t in answer["trials"])


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_empty_folder")
def test_s2e_search_draws_by_default_and_not_on_request(tmp_path: Path) -> None:
    argv = ["search", "--epochs", "3", "--no-noise-rate-estimate", "--trials", "2"]
    assert main([*argv, "--study-name", "shown"]) == 0
    assert main([*argv, "--study-name", "plain", "--no-dashboard"]) == 0
    storage = open_storage("sqlite:///s2e.db")
    shown, plain = (optuna.load_study(study_name=n, storage=storage) for n in ("shown", "plain"))
    assert len(list((tmp_path / "s2e.db.artifacts").iterdir())) == 2
    assert "2 of 2 trials · finished" in get_note(shown)
    command = (
        "s2e search --epochs 3 --no-noise-rate-estimate --trials 4 --study-name shown "
        f"--storage sqlite:///{tmp_path}/s2e.db"
    )
    assert f"\n{command}\n" in unwrapped(get_note(shown))
    assert "\ns2e evaluate --storage" in get_note(shown)
    assert "s2e worker" not in get_note(shown)  # it has ended
    assert get_note(plain) == ""
    assert plain.trials[0].values == shown.trials[0].values  # reporting changes no number
    # both search the same objective: the pages link to a comparison
    DashboardReporter("s2e.db.artifacts").paint(shown)
    assert "[Compare](/dashboard/compare-studies?ids=1,2)" in get_note(shown)


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize("click", ["fail", "rename"])
def test_s2e_search_survives_clicks(click: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Someone fails a running trial, or renames the study, on the dashboard's pages."""
    argv = ["search", "--epochs", "5", "--no-noise-rate-estimate", "--trials", "2"]
    argv += ["--study-name", "s"]
    clicked: list[int] = []

    def visit(*_: Any) -> None:
        """Click as soon as a running trial has its picture, between two of its transactions."""
        searching = threading.current_thread() is threading.main_thread()
        if clicked or not searching or not Path("s2e.db.artifacts").exists():
            return
        running = [t for t in detail(base)["trials"] if t["state"] == "Running" and t["artifacts"]]
        if running:
            trial_id = running[0]["trial_id"]
            clicked.append(trial_id)
            if click == "fail":
                call(base, f"/api/trials/{trial_id}/tell", "POST", {"state": "Fail"})
            else:
                call(base, "/api/studies/1/rename", "POST", {"study_name": "new"})

    open_storage("sqlite:///s2e.db")
    with serve("sqlite:///s2e.db") as base, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        event.listen(Pool, "checkin", visit)
        code = main(argv)
        event.remove(Pool, "checkin", visit)
    assert len(clicked) == 1
    assert len([w for w in caught if "dashboard" in str(w.message)]) <= 1
    if click == "fail":
        assert code == 0
        study = optuna.load_study(study_name="s", storage="sqlite:///s2e.db")
        states = [t.state.name for t in study.trials]
        assert (states.count("COMPLETE"), states.count("FAIL")) == (2, 1)
    else:
        assert code == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "Study 's' was deleted or renamed meanwhile" in line
        assert main([*argv[:-1], "new"]) == 0  # the copy goes on
