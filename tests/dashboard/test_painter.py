"""An open dashboard paints what no reporter paints, and leaves everything else alone."""

from pathlib import Path

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna_dashboard import get_note
from reporting import IN_SQLITE, PLOTS, call, detail, make_objective, plots

from optuna_s2e import ScheduleSpace, open_storage
from optuna_s2e.dashboard import DashboardReporter, Painter, serve
from optuna_s2e.dashboard._painter import BEHIND


def objective(trial: optuna.Trial) -> float:
    return float(ScheduleSpace(6).suggest(trial).keep_rates.mean())


def test_a_study_without_a_reporter_is_painted_at_the_first_look(study: optuna.Study) -> None:
    study.optimize(objective, n_trials=5)
    painter = Painter(study._storage)
    assert painter.look() == ["s"]
    assert "5 trials" in get_note(study)
    with serve(study) as base:
        assert set(plots(detail(base))) == PLOTS
    assert painter.look() == []
    assert Painter(study._storage).look() == []  # another process knows, too


def test_a_running_search_is_followed(study: optuna.Study) -> None:
    painter = Painter(study._storage)
    assert painter.look() == []  # nothing is complete
    study.optimize(objective, n_trials=2)
    assert painter.look() == []  # perhaps a reporter is at work
    assert painter.look() == ["s"]  # no
    study.optimize(objective, n_trials=BEHIND - 1)
    assert painter.look() == []
    study.optimize(objective, n_trials=1)
    assert painter.look() == ["s"]  # no reporter is so far behind
    assert f"{BEHIND + 2} trials" in get_note(study)


def test_what_a_reporter_has_painted_is_not_painted_again(
    study: optuna.Study, tmp_path: Path
) -> None:
    reporter = DashboardReporter(tmp_path / "pictures", n_trials=5)
    study.optimize(make_objective(reporter), n_trials=5, callbacks=[reporter])
    note = get_note(study)
    painter = Painter(study._storage)
    assert painter.look() == painter.look() == []
    assert get_note(study) == note


@IN_SQLITE
def test_a_renamed_study_gets_its_plots_back(study: optuna.Study) -> None:
    study.optimize(objective, n_trials=4)
    Painter(study._storage).look()
    with serve(study) as base:
        call(base, "/api/studies/1/rename", "POST", {"study_name": "renamed"})
        assert set(plots(detail(base, 2))) == set()
        assert Painter(study._storage).look() == ["renamed"]
        assert set(plots(detail(base, 2))) == PLOTS


def test_studies_of_others_are_left_alone(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s2e.db")
    plain = optuna.create_study(study_name="plain", storage=storage, sampler=RandomSampler(seed=0))
    plain.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=3)
    two = optuna.create_study(study_name="two", storage=storage, directions=["minimize"] * 2)
    two.optimize(lambda t: (t.suggest_float("x", 0, 1), 0.0), n_trials=3)
    schedules = optuna.create_study(study_name="z", storage=storage, sampler=RandomSampler(seed=0))
    schedules.optimize(objective, n_trials=3)
    assert Painter(storage).look() == ["z"]
    for study in (plain, two):
        assert not storage.get_study_system_attrs(study._study_id)


def test_reading_only_names_what_is_missing_and_writes_nothing(study: optuna.Study) -> None:
    study.optimize(objective, n_trials=3)
    painter = Painter(study._storage, read_only=True)
    assert painter.look() == ["s"]
    assert not study._storage.get_study_system_attrs(study._study_id)


class Enough(BaseException):
    """Ends `keep_looking`."""


def test_an_error_is_told_once_and_looking_goes_on(
    study: optuna.Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study.optimize(objective, n_trials=3)
    moved = tmp_path / "moved"
    database = tmp_path / "s2e.db"
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise Enough

    monkeypatch.setattr("time.sleep", sleep)
    painter = Painter(study._storage)
    monkeypatch.setattr(
        painter, "look", lambda: (_ for _ in ()).throw(OSError(f"{database} -> {moved}\nmore"))
    )
    with pytest.raises(Enough):
        painter.keep_looking()
    err = capsys.readouterr().err
    assert err.count("The plots are not kept up to date") == 1
    assert "more" not in err
    assert min(slept) >= 10
