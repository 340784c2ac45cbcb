"""An objective that shows its trials on the dashboard, and what the dashboard answers."""

import json
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.request import Request, urlopen

import optuna
import pytest

from optuna_s2e import ScheduleSpace
from optuna_s2e.dashboard import DashboardReporter

# for tests of what SQLite and paths of databases mean to the pages
IN_SQLITE = pytest.mark.parametrize("study", ["sqlite"], indirect=True)
PLOTS = {"s2e_1_schedules", "s2e_2_theta", "s2e_3_generations", "s2e_4_curves"}

Objective = Callable[[optuna.Trial], float]


def forget_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let optuna-dashboard, which remembers trials for some seconds, read them at each request."""
    monkeypatch.setattr("optuna_dashboard._storage.timedelta", lambda seconds: timedelta(0))


def make_objective(
    reporter: DashboardReporter,
    n_epochs: int = 8,
    kind: str = "eq1",
    on_epoch: Callable[[optuna.Trial, int], None] = lambda trial, epoch: None,
    noise_rate: float | None = None,
) -> Objective:
    """Return an objective as a user writes it: shows its trial after every epoch."""
    space = ScheduleSpace(n_epochs, kind, noise_rate=noise_rate)

    def objective(trial: optuna.Trial) -> float:
        schedule = space.suggest(trial)
        curves: dict[str, list[float]] = {"error": [], "label_precision": []}
        reporter.show(trial, schedule, curves)
        for epoch, rate in enumerate(schedule.keep_rates):
            curves["error"].append(abs(float(rate) - 0.5) / (epoch + 1))
            curves["label_precision"].append(1 - float(rate) / 2)
            reporter.show(trial, schedule, curves)
            on_epoch(trial, epoch)
        reporter.show(trial, schedule, curves, final=True)
        return curves["error"][-1]

    return objective


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


def unwrapped(note: str) -> str:
    """Return a note with its long command lines in one piece."""
    return note.replace(" \\\n    ", " ")
