"""s2e worker: joins, leaves cleanly, and what s2e status says of it."""

import os
import pty
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from processes import Command, Process, wait_until

from optuna_s2e import S2ESampler, generations, open_storage, optimize_batch
from optuna_s2e._attributes import SEARCH_KEY, STOPPED_BY_KEY
from optuna_s2e.analysis import Snapshot
from optuna_s2e.cli._main import main
from optuna_s2e.dashboard import DashboardReporter
from optuna_s2e.history import extend_search
from optuna_s2e.parallel._worker import load_objective, sampler_for, work

OBJECTIVES = """
import os, time
def quick(trial):
    return (trial.suggest_float("x", 0, 1) - 0.3) ** 2
def slow(trial):
    value = quick(trial)
    open("training", "w").close()
    while not os.path.exists(os.environ["S2E_END"]):
        time.sleep(0.02)
    return value
def extending(trial):
    if trial.number == 1:  # someone else asks for more while this worker runs its last trial
        trial.study.set_user_attr("s2e:n_trials", 4)
    return quick(trial)
def failing(trial):
    quick(trial)
    raise RuntimeError("out of memory")
class Own:
    objective = staticmethod(quick)
number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("own_objectives", None)
    Path("own_objectives.py").write_text(OBJECTIVES)


def make_study(**settings: Any) -> optuna.Study:
    sampler = S2ESampler(seed=0, **settings)
    return optuna.create_study(
        study_name="s", storage=open_storage("sqlite:///s2e.db"), sampler=sampler
    )


SLOW = ["worker", "--objective", "own_objectives:slow", "--no-dashboard"]


def start_worker(*options: str, end: str = "never") -> Command:
    """Start a worker whose first trial has begun, and ends when the file `end` exists."""
    worker = Command(*SLOW, *options, env={"S2E_END": end})
    wait_until(Path("training").exists, worker)
    return worker


def test_worker_joins_a_search_with_what_came_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    search = ["--epochs", "4", "--study-name", "s", "--population-size", "3", "--seed", "5",
              "--no-dashboard", "--no-noise-rate-estimate"]  # fmt: skip
    assert main(["search", *search, "--trials", "4"]) == 0
    assert main(["worker", "--study-name", "s", "--trials", "8", "--no-dashboard"]) == 0
    assert "Complete: 4 trials" in capsys.readouterr().out
    study = optuna.load_study(study_name="s", storage="sqlite:///s2e.db")
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 8
    assert [len(g.members) for g in generations(study)] == [0, 3, 3]
    assert "validation_error" in study.trials[-1].user_attrs
    assert main(["worker", "--study-name", "s"]) == 0  # nothing is left of the 8
    assert "is complete: 8 trials" in capsys.readouterr().out
    one = optuna.create_study(study_name="one", storage="sqlite:///one.db")
    assert len(one.trials) == 0
    assert main(["search", *search, "--trials", "8", "--storage", "sqlite:///one.db",
                 "--study-name", "whole"]) == 0  # fmt: skip
    whole = optuna.load_study(study_name="whole", storage="sqlite:///one.db")
    assert [t.params for t in whole.trials] == [t.params for t in study.trials]


def test_worker_runs_an_objective_of_ones_own() -> None:
    study = make_study(population_size=3)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    argv = ["worker", "--objective", "own_objectives:Own.objective", "--trials", "7"]
    assert main(argv) == 0
    assert len(generations(study)) == 3


def test_worker_goes_on_if_the_search_is_extended_meanwhile() -> None:
    study = make_study()
    extend_search(study, 2)
    assert main(["worker", "--objective", "own_objectives:extending"]) == 0
    assert len(study.trials) == 4


def test_sampler_takes_the_settings_of_the_study() -> None:
    study = make_study(population_size=3, reuse=2, max_kl=0.5, consider_pruned_trials=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    joined, own = sampler_for(study), study.sampler
    assert isinstance(own, S2ESampler)
    assert own.settings.items() <= joined.settings.items()
    joined.check(study)
    assert sampler_for(optuna.create_study()).settings == S2ESampler().settings


@pytest.mark.parametrize(
    ("sign", "grace", "end", "state"),
    [
        (signal.SIGTERM, "1000", "end", TrialState.COMPLETE),
        (signal.SIGTERM, "0.3", "never", TrialState.FAIL),
        (signal.SIGHUP, "0.3", "never", TrialState.FAIL),
    ],
)
def test_a_signal_lets_the_trial_end_or_fails_it_with_a_reason(
    sign: signal.Signals, grace: str, end: str, state: TrialState
) -> None:
    study = make_study()
    worker = start_worker("--grace", grace, end=end)
    worker.send_signal(sign)
    time.sleep(0.3)
    Path("end").touch()
    assert worker.wait() == 128 + sign
    assert worker.printed.count(f"{sign.name}: stopped. Completed trials are kept") == 1
    assert [t.state for t in study.trials] == [state]
    expected = {STOPPED_BY_KEY: sign.name} if state == TrialState.FAIL else {}
    assert study.trials[0].user_attrs == expected


@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGTERM", "SIGTERM"], ["SIGTERM", "SIGINT"]])
def test_second_signal_stops_at_once(signals: list[str]) -> None:
    study = make_study()
    worker = start_worker("--grace", "1000")
    for name in signals:
        worker.send_signal(signal.Signals[name])
        time.sleep(0.3)
    assert worker.wait() == (130 if signals[-1] == "SIGINT" else 143)
    (trial,) = study.trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs == {STOPPED_BY_KEY: signals[-1]}


def test_a_signal_amid_a_write_of_the_objective_lets_the_write_end() -> None:
    study = make_study()
    engine = study._storage._backend._backend.engine  # type: ignore[attr-defined]

    def shoot(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        sqlalchemy.event.listen(engine, "before_cursor_execute", shoot, once=True)
        trial.set_user_attr("a", 1)
        time.sleep(60)
        return 0.0

    assert work(study, objective, 1) == "SIGINT"
    (trial,) = study.trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs == {"a": 1, STOPPED_BY_KEY: "SIGINT"}
    assert trial.duration is not None
    assert trial.duration.total_seconds() < 30


def test_a_second_signal_amid_an_operation_outside_of_the_training_is_not_lost() -> None:
    """The operation ends, and the worker stops then, although it would go on writing."""
    study = make_study()
    engine = study._storage._backend._backend.engine  # type: ignore[attr-defined]

    def write_on(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # the first one lets the callbacks end
        sqlalchemy.event.listen(
            engine,
            "before_cursor_execute",
            lambda *_: os.kill(os.getpid(), signal.SIGINT),
            once=True,
        )
        study.set_user_attr("a", 1)
        time.sleep(60)

    start = time.monotonic()
    assert work(study, lambda trial: trial.suggest_float("x", 0, 1), 1, callbacks=[write_on]) == (
        "SIGINT"
    )
    assert time.monotonic() - start < 30
    assert study.trials[0].state == TrialState.COMPLETE


def test_suspended_worker_whose_trial_was_failed_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    study = make_study()

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:  # another worker takes this one for dead
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return trial.suggest_float("x", 0, 1) if trial.number else 0.0

    assert work(study, objective, 3) is None
    states = [t.state for t in study.trials]
    assert states == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert "set to FAIL while this worker was suspended" in caplog.text


def test_a_value_that_is_no_number_fails_its_trial_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = make_study()

    def objective(trial: optuna.Trial) -> Any:
        return [10**400, "0.5", trial.suggest_float("x", 0, 1)][min(trial.number, 2)]

    assert work(study, objective, 1) is None
    states = [t.state for t in study.trials]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    assert "Trial 1 failed. It returned '0.5', which is no number." in caplog.text


@pytest.mark.parametrize("n", [0, -1, 2.0, np.float64(2), float("inf"), float("nan"), True, "2"])
def test_the_number_of_trials_means_the_same_everywhere(n: Any) -> None:
    study, wording = make_study(), "n_trials must be an int of at least 1, but got"
    with pytest.raises(ValueError, match=wording):
        work(study, lambda trial: 0.0, n)
    with pytest.raises(ValueError, match=wording):
        optimize_batch(study, lambda trial: 0.0, n)
    with pytest.raises(ValueError, match=wording):
        DashboardReporter(None, n_trials=n)
    assert study.trials == []


def test_ints_of_numpy_are_numbers_of_trials() -> None:
    study = make_study()
    work(study, lambda trial: trial.suggest_float("x", 0, 1), np.int8(2))
    optimize_batch(study, lambda trial: trial.suggest_float("x", 0, 1), np.int64(3))
    assert len(study.trials) == 5


def test_own_assertion_of_an_objective_is_raised() -> None:
    def objective(trial: optuna.Trial) -> float:
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        work(make_study(), objective, 3)


def test_an_error_that_is_its_own_cause_ends_the_worker() -> None:
    def objective(trial: optuna.Trial) -> float:
        error = RuntimeError(f"trial {trial.number}")
        raise error from error

    with pytest.raises(RuntimeError, match="trial 0"):
        work(make_study(), objective, n_trials=3)


def failing(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.filterwarnings("ignore:.*trials in a row have failed")
def test_errors_name_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study()
    own = ["worker", "--no-dashboard", "--objective"]
    assert "name its objective with --objective" in failing(capsys, "worker")
    assert "must be module:function" in failing(capsys, *own, "own_objectives")
    assert "cannot be imported: No module" in failing(capsys, *own, "nowhere:f")
    assert "has no attribute 'f'" in failing(capsys, *own, "own_objectives:f")
    assert "must be callable, but is int" in failing(capsys, *own, "own_objectives:number")
    assert "--trials must be" in failing(capsys, "worker", "--trials", "0")
    assert "--grace must be" in failing(capsys, "worker", "--grace", "-1")
    assert "10 trials in a row have failed" in failing(capsys, *own, "own_objectives:failing")
    assert len(study.trials) == 10
    main(["search", "--epochs", "2", "--trials", "1", "--study-name", "t", "--no-dashboard",
          "--no-noise-rate-estimate"])  # fmt: skip
    line = failing(capsys, *own, "own_objectives:quick", "--study-name", "t")
    assert "leave out --objective" in line


DAMAGE: dict[str, Any] = {
    "text": "import os",
    "later": {"v": 2, "settings": None, "seed": 0, "n_trials": 5},
    "settings": {"v": 1, "settings": {"population_size": 10**30}, "seed": 0, "n_trials": 5},
    "seed": {"v": 1, "settings": S2ESampler().settings, "seed": -1, "n_trials": 5},
    "trials": {"v": 1, "settings": S2ESampler().settings, "seed": 1, "n_trials": 10**30},
    "missing": {"v": 1},
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_settings_are_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_study().set_user_attr(SEARCH_KEY, DAMAGE[case])
    line = failing(capsys, "worker", "--objective", "own_objectives:quick")
    assert "keeps for its workers are damaged" in line


def test_objective_is_never_named_by_the_storage() -> None:
    with pytest.raises(ValueError, match="objective must be module:function"):
        load_objective("os")
    study = make_study()
    study.set_user_attr("s2e:objective", "os:system")
    assert main(["worker"]) == 2
    assert study.trials == []


# --- s2e status ------------------------------------------------------------------------------


def test_status_shows_the_lag_of_several_workers(capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(population_size=2)
    asked = [study.ask() for _ in range(8)]
    values = [trial.suggest_float("x", 0, 1) for trial in asked]
    for trial, value in zip(asked, values, strict=True):  # eight draws of generation 0
        study.tell(trial, value)
        study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    assert main(["status"]) == 0
    assert "largest" in capsys.readouterr().out
    assert max(Snapshot.of(study).progress.lags) > 1


def _under_nohup(argv: list[str]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(main(argv))


def test_under_nohup_a_closed_terminal_is_ignored() -> None:
    study = make_study()
    worker = Process(_under_nohup, [*SLOW, "--trials", "1"], env={"S2E_END": "end"})
    wait_until(Path("training").exists, worker)
    worker.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert worker.is_alive()
    Path("end").touch()
    assert worker.wait() == 0
    assert [t.state for t in study.trials] == [TrialState.COMPLETE]


def _in_a_terminal_that_is_closed(argv: list[str]) -> None:
    """Run the command in a terminal until a file is there; end with its exit code."""
    code = "import sys; from optuna_s2e.cli import main; sys.exit(main())"
    pid, terminal = pty.fork()
    if pid == 0:
        env = {**os.environ, "S2E_END": "never"}
        os.execve(sys.executable, [sys.executable, "-c", code, *argv], env)
    while not Path("close").exists():
        time.sleep(0.02)
    os.close(terminal)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) % 256)


def test_a_worker_whose_terminal_is_closed_gives_its_trial_back() -> None:
    """With nobody left to read what it prints."""
    study = make_study()
    worker = Process(_in_a_terminal_that_is_closed, [*SLOW, "--grace", "0.3"])
    wait_until(Path("training").exists, worker)
    Path("close").touch()
    assert worker.wait() == 128 + signal.SIGHUP
    (trial,) = study.trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs == {STOPPED_BY_KEY: "SIGHUP"}
