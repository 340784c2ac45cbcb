"""What optuna-dashboard's own API answers about a study that a reporter has shown."""

import json
import re
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note
from reporting import make_objective

from optuna_s2e import S2ESampler, ScheduleSpace, open_storage, optimize_batch, suggest_simplex
from optuna_s2e._attributes import CURVES_KEY
from optuna_s2e.cli._main import main
from optuna_s2e.dashboard import DashboardReporter, serve
from optuna_s2e.dashboard import _reporter as reporter_module
from optuna_s2e.schedules._formulas import SPACES

PLOTS = {"s2e_1_schedules", "s2e_2_theta", "s2e_3_generations", "s2e_4_curves"}


def call(base: str, path: str, method: str = "GET", body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    url = base.removesuffix("/dashboard") + path
    with urlopen(Request(url, data=data, headers=headers, method=method)) as answer:
        content = answer.read()
    return json.loads(content) if content and path.startswith("/api") else content


def detail(base: str, study_id: int = 1, after: int = 0) -> Any:
    return call(base, f"/api/studies/{study_id}?after={after}")


def plots(answer: Any) -> dict[str, Any]:
    return {p["id"]: json.loads(p["graph_object"]) for p in answer["plotly_graph_objects"]}


def unwrapped(note: str) -> str:
    """Return a note with its long command lines in one piece."""
    return note.replace(" \\\n    ", " ")


def user_attrs(answer: Any, number: int) -> dict[str, Any]:
    attrs = answer["trials"][number]["user_attrs"]
    return {a["key"]: json.loads(a["value"]) for a in attrs}


@pytest.mark.parametrize("kind", SPACES)
def test_a_search_fills_the_pages(study: optuna.Study, tmp_path: Path, kind: str) -> None:
    reporter = DashboardReporter(tmp_path / "pictures", n_trials=10)
    study.optimize(make_objective(reporter, kind=kind), n_trials=10, callbacks=[reporter])
    with serve(study, tmp_path / "pictures") as base:
        answer = detail(base)
        figures = plots(answer)
        assert set(figures) == PLOTS
        assert sum(len(p["graph_object"]) for p in answer["plotly_graph_objects"]) < 100_000
        assert [f["layout"]["title"]["text"][0] for _, f in sorted(figures.items())] == list(
            "1234"
        )
        assert all(f["layout"]["uirevision"] for f in figures.values())

        for number, trial in enumerate(answer["trials"]):
            (artifact,) = trial["artifacts"]  # exactly one, also of trial 0: the gallery needs it
            assert artifact["mimetype"] == "image/svg+xml"
            trial_id = trial["trial_id"]
            svg = call(base, f"/artifacts/1/{trial_id}/{artifact['artifact_id']}").decode()
            assert re.match(r'<svg [^>]*width="\d+" height="\d+"', svg)  # else it fills the page
            assert f">#{number}<" in svg
            assert ">8/8<" not in svg  # it has ended
            assert f"/artifacts/1/{trial_id}/{artifact['artifact_id']}?v=" in trial["note"]["body"]
            assert "final R" in trial["note"]["body"]
            attrs = user_attrs(answer, number)
            assert attrs["generation"] == number // 4
            assert all(isinstance(v, int | float) for v in attrs.values())
        assert not any(":" in name for name in figures)

        note = unwrapped(answer["note"]["body"])
        assert "3 of 3 generations · 10 of 10 trials · finished" in note
        best = study.best_trial.number
        assert f"[#{best}](/dashboard/studies/1/trials?numbers={best})" in note
        assert f"s2e status --storage sqlite:///{tmp_path}/s2e.db --study-name s --verify" in note


def test_the_pages_follow_each_generation(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures", n_trials=40)
    objective = make_objective(reporter)
    heads = []
    for _ in range(9):
        study.optimize(objective, n_trials=1, callbacks=[reporter])
        heads.append(re.search("## (.*)", get_note(study))[1])  # type: ignore[index]
    shown = [int(re.search(r"(\d+) of 40 trials", h)[1]) for h in heads]  # type: ignore[index]
    assert shown == [1, 1, 1, 4, 4, 4, 4, 8, 8]  # the first trial, then the ends of generations
    assert heads[7].startswith("Generation 2 of 10")
    assert "left (until" in heads[7]


def test_a_running_trial_is_shown_live(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter_module, "LIVE_SHARE", 1.0)  # no waiting on a slow disk
    seen = []

    def on_epoch(trial: optuna.Trial, epoch: int) -> None:
        if epoch in (1, 4):
            time.sleep(2.1)  # the reporter waits at least 2 s between two updates
        if epoch in (2, 5):
            answer = detail(base)["trials"][trial.number]
            assert answer["state"] == "Running"
            (artifact,) = answer["artifacts"]
            path = re.search(r"\((/artifacts/[^)]*)\)", answer["note"]["body"])[1]  # type: ignore[index]
            assert artifact["artifact_id"] in path
            seen.append((path, call(base, path).decode()))

    reporter = DashboardReporter(tmp_path / "pictures")
    with serve(study, tmp_path / "pictures") as base:
        study.optimize(make_objective(reporter, on_epoch=on_epoch), n_trials=1)
    (early_path, early), (late_path, late) = seen
    assert ">3/8<" in early
    assert ">6/8<" in late
    assert early_path != late_path  # so that a page fetches the new picture


def test_own_objectives_keep_their_curves(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    study.optimize(make_objective(reporter), n_trials=2, callbacks=[reporter])
    recorded = json.loads(study.trials[0].system_attrs[CURVES_KEY])
    assert recorded["epochs"] == list(range(8))
    assert recorded["error"][0][-1] == pytest.approx(study.trials[0].value, abs=1e-4)


def test_trials_that_run_in_an_executor_have_their_pages_too(
    study: optuna.Study, tmp_path: Path
) -> None:
    reporter = DashboardReporter(tmp_path / "pictures", n_trials=8)
    with ThreadPoolExecutor(2) as executor:
        optimize_batch(study, make_objective(reporter), 8, executor=executor, callbacks=[reporter])
    with serve(study, tmp_path / "pictures") as base:
        answer = detail(base)
        assert "2 of 2 generations · 8 of 8 trials · finished" in answer["note"]["body"]
        assert set(plots(answer)) == PLOTS
        for number, trial in enumerate(answer["trials"]):
            (artifact,) = trial["artifacts"]
            assert f"generation {number // 4}" in trial["note"]["body"]
            (path,) = re.findall(r"\((/artifacts/[^)]*)\)", trial["note"]["body"])
            assert path.startswith(f"/artifacts/1/{trial['trial_id']}/{artifact['artifact_id']}")
            assert f">#{number}<" in call(base, path).decode()


def test_a_persons_text_survives(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    save_note(study, "My *plan*.\n")
    study.optimize(make_objective(reporter), n_trials=4, callbacks=[reporter])
    text = get_note(study)
    assert text.startswith("My *plan*.\n\n[s2e-begin]")
    save_note(study, text + "\nMy conclusion.\n")
    study.optimize(make_objective(reporter), n_trials=4, callbacks=[reporter])
    assert get_note(study).startswith("My *plan*.\n\n[s2e-begin]")
    assert get_note(study).endswith("\nMy conclusion.\n")
    assert "8 trials" in get_note(study)
    assert get_note(study).count("[s2e-begin]") == 1


def test_other_studies_get_what_they_have(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s2e.db")
    reporter = DashboardReporter(tmp_path / "pictures")
    random = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
    random.optimize(make_objective(reporter), n_trials=6, callbacks=[reporter])
    weights = optuna.create_study(storage=storage, sampler=S2ESampler(population_size=3))
    weights.optimize(
        lambda t: float(suggest_simplex(t, "w", 3)[0]), n_trials=6, callbacks=[reporter]
    )
    both = optuna.create_study(storage=storage, directions=["minimize", "minimize"])
    with pytest.warns(RuntimeWarning, match="one objective"):
        both.optimize(lambda t: (t.suggest_float("x", 0, 1), 0.0), 2, callbacks=[reporter])
    with serve(storage) as base:
        assert set(plots(detail(base, 1))) == {"s2e_1_schedules", "s2e_4_curves"}
        assert set(plots(detail(base, 2))) == PLOTS - {"s2e_1_schedules"}
        assert "Generation 2" in detail(base, 2)["note"]["body"]
        assert not plots(detail(base, 3))


# --- strings of the database ---------------------------------------------------------------------

HOSTILE = "a|b`c``d\n```\n<script>alert(1)</script> ![x](http://evil/x.png) www.evil.com ‮"


def test_strings_of_the_database_are_inert(tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    study = optuna.create_study(
        study_name=HOSTILE,
        storage=open_storage(f"sqlite:///{tmp_path}/s2e.db"),
        sampler=S2ESampler(population_size=2),
    )
    study.set_user_attr("s2e:command", HOSTILE)
    study.set_user_attr("s2e:n_trials", HOSTILE)
    study.optimize(lambda t: t.suggest_float(HOSTILE, 0, 1), n_trials=4, callbacks=[reporter])
    note = get_note(study)
    assert "‮" not in note
    outside = re.sub(r"^(````+)\n.*?^\1$", "", note, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)
    for sign in ("<script", "evil", "alert", "a|b"):
        assert sign in note or sign == "a|b"
        assert sign not in outside


def test_passwords_are_masked(tmp_path: Path) -> None:
    from optuna_s2e.dashboard._notes import masked, shown_command

    url = "postgresql+psycopg://me:s3cret@db/s2e?password=s3cret&sslmode=require"
    assert masked(url) == "postgresql+psycopg://me:***@db/s2e?password=***&sslmode=require"
    assert "s3cret" not in shown_command(["s2e", "search", "--storage", url])
    assert "s3cret" not in shown_command(["s2e", "search", f"--storage={url}"])
    assert "s3cret" not in masked("me:s3cret@nowhere?password=s3cret")


# --- nothing hurts a search ----------------------------------------------------------------------


def search_with(
    study: optuna.Study, reporter: Any, n_trials: int = 6, **options: Any
) -> list[str]:
    """Search, and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study.optimize(
            make_objective(reporter, **options), n_trials=n_trials, callbacks=[reporter]
        )
    return [str(w.message) for w in caught]


def test_a_deleted_folder_is_made_again(study: optuna.Study, tmp_path: Path) -> None:
    import shutil

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


def test_a_copied_and_an_imported_study_are_painted(study: optuna.Study, tmp_path: Path) -> None:
    search_with(study, DashboardReporter(tmp_path / "pictures"), n_trials=5)
    other = open_storage(f"sqlite:///{tmp_path}/other.db")
    optuna.create_study(study_name="first", storage=other).optimize(lambda t: 0.0, n_trials=3)
    optuna.copy_study(
        from_study_name="s", from_storage=study._storage, to_storage=other, to_study_name="copy"
    )
    copy = optuna.load_study(study_name="copy", storage=other)
    DashboardReporter(tmp_path / "pictures").repaint(copy)
    with serve(other, tmp_path / "pictures") as base:
        answer = detail(base, copy._study_id)
        assert set(plots(answer)) == PLOTS
        for trial in answer["trials"]:
            assert f"/artifacts/{copy._study_id}/{trial['trial_id']}/" in trial["note"]["body"]


def test_a_retry_keeps_one_picture(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    first = study.ask()
    reporter.show(first, ScheduleSpace(8).suggest(first), {})  # its worker dies here
    dead = study.trials[0]
    study.tell(first, state=TrialState.FAIL)
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=dead.params,
            distributions=dead.distributions,
            user_attrs=dead.user_attrs,
            system_attrs={**dead.system_attrs, "failed_trial": 0, "retry_history": [0]},
        )
    )
    assert search_with(study, reporter, n_trials=1) == []
    keys = [k for k in study.trials[1].system_attrs if k.startswith("artifacts:")]
    assert len(keys) == 1


def test_two_workers_at_once_leave_sound_pages(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s2e.db"
    optuna.create_study(study_name="s", storage=open_storage(url))
    code = f"""
import sys, warnings
sys.path.insert(0, {str(Path(__file__).parent)!r})
warnings.simplefilter("error")
import optuna
from optuna_s2e import S2ESampler, open_storage
from optuna_s2e.dashboard import DashboardReporter
from reporting import make_objective
optuna.logging.set_verbosity(optuna.logging.ERROR)
reporter = DashboardReporter({str(tmp_path / "pictures")!r}, n_trials=24)
study = optuna.load_study(
    study_name="s", storage=open_storage({url!r}), sampler=S2ESampler(population_size=4, seed=0)
)
study.optimize(make_objective(reporter), n_trials=12, callbacks=[reporter])
"""
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [w.wait(timeout=120) for w in workers] == [0, 0]
    with serve(url, tmp_path / "pictures") as base:
        answer = detail(base)
        assert set(plots(answer)) == PLOTS  # each is valid JSON
        assert "24 of 24 trials · finished" in answer["note"]["body"]
        assert all(len(t["artifacts"]) == 1 for t in answer["trials"])


def test_plots_that_another_worker_mixed_up_are_painted_again(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    study.optimize(make_objective(reporter), n_trials=4)
    n_reads = 0
    read = reporter_module._stored_plot

    def meddle(attrs: Any, name: str) -> str:
        """Find a piece of another worker's plot at the first look."""
        nonlocal n_reads
        n_reads += 1
        if n_reads == 1:
            key = f"dashboard:plot_data:{name}:0"
            study._storage.set_study_system_attr(study._study_id, key, '{"data": [oth')
            attrs = {**attrs, key: '{"data": [oth'}
        return read(attrs, name)

    monkeypatch.setattr(reporter_module, "_stored_plot", meddle)
    reporter.paint(study)
    with serve(study) as base:
        assert set(plots(detail(base))) == PLOTS  # all are JSON


def test_reporting_changes_no_draw(tmp_path: Path) -> None:
    points = []
    for shown in (True, False):
        study = optuna.create_study(sampler=S2ESampler(population_size=3, seed=0))
        reporter = DashboardReporter(tmp_path / "pictures")
        callbacks = [reporter] if shown else []
        study.optimize(make_objective(reporter), n_trials=10, callbacks=callbacks)
        points.append([tuple(t.params.values()) for t in study.trials])
    np.testing.assert_array_equal(*points)


def test_the_objective_is_shown_and_trains_as_before(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from optuna_s2e.coteaching import CoteachingObjective, load_data

    data = load_data("digits", noise="symmetric", noise_rate=0.5, seed=0)
    values = []
    for reporter in (DashboardReporter(tmp_path / "pictures"), None):
        objective = CoteachingObjective(data, n_epochs=3, device="cpu", reporter=reporter)
        study = optuna.create_study(sampler=S2ESampler(seed=0))
        study.optimize(objective, n_trials=2, callbacks=[reporter] if reporter else [])
        values.append([t.value for t in study.trials])
        if reporter is not None:
            assert {"validation_error", "generation", "keep_rate_final"} <= set(
                study.trials[0].user_attrs
            )
            with serve(study, tmp_path / "pictures") as base:
                trial = detail(base, 0)["trials"][1]
                assert "3 epochs" in trial["note"]["body"]
                assert "| training accuracy |" in trial["note"]["body"]
    assert values[0] == values[1]


# --- the s2e command -----------------------------------------------------------------------------


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_empty_folder")
def test_s2e_search_draws_by_default_and_not_on_request(tmp_path: Path) -> None:
    argv = ["search", "--epochs", "3", "--trials", "2"]
    assert main([*argv, "--study-name", "shown"]) == 0
    assert main([*argv, "--study-name", "plain", "--no-dashboard"]) == 0
    storage = open_storage("sqlite:///s2e.db")
    shown, plain = (optuna.load_study(study_name=n, storage=storage) for n in ("shown", "plain"))
    assert len(list((tmp_path / "s2e.db.artifacts").iterdir())) == 2
    assert "2 of 2 trials · finished" in get_note(shown)
    command = f"s2e search --epochs 3 --trials 2 --study-name shown --storage sqlite:///{tmp_path}/s2e.db"
    assert f"\n{command}\n" in unwrapped(get_note(shown))
    assert "\ns2e evaluate --storage" in get_note(shown)
    assert f"\ns2e worker --storage sqlite:///{tmp_path}/s2e.db --study-name shown\n" in unwrapped(
        get_note(shown)
    )
    assert get_note(plain) == ""
    assert plain.trials[0].values == shown.trials[0].values  # reporting changes no number
    # both search the same objective: the pages link to a comparison
    DashboardReporter("s2e.db.artifacts").paint(shown)
    assert "[Compare](/dashboard/compare-studies?ids=1,2)" in get_note(shown)


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize("click", ["fail", "rename"])
def test_s2e_search_survives_clicks(click: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Someone fails a running trial, or renames the study, on the dashboard's pages."""
    argv = ["search", "--epochs", "120", "--trials", "4", "--study-name", "s"]
    main([*argv[:4], "1", *argv[5:]])
    storage = open_storage("sqlite:///s2e.db")
    failed: list[int] = []

    def visit() -> None:
        with serve(storage) as base:
            for _ in range(600):
                time.sleep(0.05)
                running = [t for t in detail(base)["trials"] if t["state"] == "Running"]
                if not running or not running[0]["artifacts"]:
                    continue
                trial_id = running[0]["trial_id"]
                if click == "fail":
                    call(base, f"/api/trials/{trial_id}/tell", "POST", {"state": "Fail"})
                else:
                    call(base, "/api/studies/1/rename", "POST", {"study_name": "new"})
                failed.append(trial_id)
                return

    visitor = threading.Thread(target=visit)
    visitor.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = main(argv)
    visitor.join()
    assert len(failed) == 1
    assert len([w for w in caught if "dashboard" in str(w.message)]) <= 1
    if click == "fail":
        assert code == 0
        states = [t.state.name for t in optuna.load_study(study_name="s", storage=storage).trials]
        assert (states.count("COMPLETE"), states.count("FAIL")) == (4, 1)
    else:
        assert code == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "Study 's' was deleted or renamed meanwhile" in line
        assert main([*argv[:-1], "new"]) == 0  # the copy goes on


def test_a_poll_of_a_page_is_small(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    study.optimize(make_objective(reporter), n_trials=8, callbacks=[reporter])
    with serve(study, tmp_path / "pictures") as base:
        url = base.removesuffix("/dashboard") + "/api/studies/1?after=8"
        assert len(urlopen(url).read()) < 100_000
