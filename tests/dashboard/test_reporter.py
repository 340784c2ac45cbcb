"""What a reporter writes while a search runs, as optuna-dashboard's own API shows it."""

import json
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import urlopen

import numpy as np
import optuna
import pytest
from observed_storages import CountingStorage
from optuna.trial import TrialState
from optuna_dashboard import get_note
from reporting import IN_SQLITE, PLOTS, call, detail, make_objective, plots, search_with, unwrapped

from optuna_s2e import S2ESampler, Schedule, ScheduleSpace, optimize_batch, suggested_schedule
from optuna_s2e._attributes import CURVES_KEY
from optuna_s2e.dashboard import ArtifactFolder, DashboardReporter, serve
from optuna_s2e.dashboard import _reporter as reporter_module
from optuna_s2e.schedules._formulas import SPACES


def user_attrs(answer: Any, number: int) -> dict[str, Any]:
    attrs = answer["trials"][number]["user_attrs"]
    return {a["key"]: json.loads(a["value"]) for a in attrs}


@IN_SQLITE
@pytest.mark.parametrize("kind", SPACES)
def test_a_search_fills_the_pages(study: optuna.Study, tmp_path: Path, kind: str) -> None:
    reporter = DashboardReporter(tmp_path / "pictures", n_trials=10)
    study.optimize(make_objective(reporter, kind=kind), n_trials=10, callbacks=[reporter])
    with serve(study, tmp_path / "pictures") as base:
        answer = detail(base)
        figures = plots(answer)
        assert set(figures) == PLOTS
        assert sum(len(p["graph_object"]) for p in answer["plotly_graph_objects"]) < 100_000
        poll = base.removesuffix("/dashboard") + "/api/studies/1?after=10"
        assert len(urlopen(poll).read()) < 100_000
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


def test_the_first_trial_of_an_informed_space_belongs_to_no_generation(
    study: optuna.Study, tmp_path: Path
) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    study.optimize(make_objective(reporter, noise_rate=0.4), n_trials=3, callbacks=[reporter])
    assert [t.user_attrs.get("generation") for t in study.trials] == [None, 0, 0]
    assert Schedule.from_trial(study.trials[0]) == suggested_schedule(8, 0.4)


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
    monkeypatch.setattr(reporter_module, "LIVE_INTERVAL", 0.0)  # no waiting between two updates
    monkeypatch.setattr(reporter_module, "LIVE_SHARE", 1e9)
    seen = []

    def on_epoch(trial: optuna.Trial, epoch: int) -> None:
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


class CountingFolder(ArtifactFolder):
    """A folder that counts how often a picture is written."""

    n_writes = 0

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.n_writes += 1
        super().write(artifact_id, content_body)


def test_live_updates_keep_their_distance(study: optuna.Study, tmp_path: Path) -> None:
    folder = CountingFolder(tmp_path / "pictures")
    study.optimize(make_objective(DashboardReporter(folder), n_epochs=100), n_trials=1)
    # at the start and the end; live ones are 2 s apart, and the trial is over before
    assert folder.n_writes == 2


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


# --- what it costs -----------------------------------------------------------------------------


@pytest.fixture
def counted() -> tuple[optuna.Study, CountingStorage]:
    storage = CountingStorage()
    sampler = S2ESampler(population_size=4, seed=0)
    return optuna.create_study(storage=storage, sampler=sampler), storage


def test_each_callback_reads_the_trials_at_most_once(
    counted: tuple[optuna.Study, CountingStorage], tmp_path: Path
) -> None:
    study, storage = counted
    reporter = DashboardReporter(tmp_path / "pictures", n_trials=12)
    reads, pages = [], []

    def callback(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        before, page = storage.n_reads, get_note(study)
        reporter(study, trial)
        reads.append(storage.n_reads - before)
        pages.append(get_note(study) != page)

    study.optimize(make_objective(reporter), n_trials=12, callbacks=[callback])
    assert reads == [1] * 12
    assert [n for n, written in enumerate(pages) if written] == [0, 3, 7, 11]


def test_painting_all_pages_reads_the_trials_once(
    counted: tuple[optuna.Study, CountingStorage], tmp_path: Path
) -> None:
    study, storage = counted
    reporter = DashboardReporter(tmp_path / "pictures")
    study.optimize(make_objective(reporter), n_trials=9)
    for paint in (reporter.paint, reporter.repaint):
        before = storage.n_reads
        paint(study)
        assert storage.n_reads == before + 1


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Let threads take turns all the time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("frequent_switches")
@pytest.mark.parametrize("attempt", range(3))
def test_callbacks_in_threads_find_the_end_of_each_generation(attempt: int) -> None:
    """As `study.optimize(n_jobs=8)` calls them: all at once."""
    sampler = S2ESampler(population_size=4, estimator="natural", seed=attempt)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=80)
    reporter = DashboardReporter(None)
    reporter.paint(study)
    barrier = threading.Barrier(8)

    def is_due(trial: optuna.trial.FrozenTrial) -> bool:
        barrier.wait()
        return reporter._trials_if_due(study, trial) is not None

    with ThreadPoolExecutor(8) as executor:
        due = list(executor.map(is_due, study.trials[-8:]))
    assert due == [False, False, False, True] * 2


def test_a_reporter_travels_with_its_objective(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    assert search_with(study, reporter, n_trials=5) == []
    assert search_with(study, pickle.loads(pickle.dumps(reporter)), n_trials=3) == []
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == 8
    assert "Generation 2" in get_note(study)


@pytest.mark.parametrize("n_trials", [0, -1, True, 2.5, "60"])
def test_the_number_of_trials_must_be_an_int(n_trials: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_trials must be an int of at least 1, but got"):
        DashboardReporter(tmp_path, n_trials=n_trials)


def test_a_long_search_has_notes_and_pictures_of_its_first_trials_only(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_s2e.dashboard._trial_page.MAX_ILLUSTRATED", 3)
    reporter = DashboardReporter(tmp_path / "pictures")
    assert search_with(study, reporter, n_trials=5) == []
    assert reporter.repaint(study) == 3
    with serve(study, tmp_path / "pictures") as base:
        trials = detail(base)["trials"]
    assert [bool(t["note"]["body"]) for t in trials] == [True] * 3 + [False] * 2
    assert [len(t["artifacts"]) for t in trials] == [1] * 3 + [0] * 2
    assert all("generation" in t.user_attrs for t in study.trials)
