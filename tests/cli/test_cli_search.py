"""s2e search: what it prints, what it refuses, and how it goes on after a signal."""

import contextlib
import re
import shlex
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from commands import (
    DATA,
    EPOCHS,
    LONG,
    N_SEARCHED,
    K,
    Searched,
    last_line,
    make_arrays,
    only_line,
    search,
    study,
)
from processes import Command

from optuna_s2e import S2ESampler, generations, recommend, replay
from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.cli import main
from optuna_s2e.coteaching import CoteachingObjective, load_data


def test_search_of_the_digits_prints_its_result_and_what_comes_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["search", "--epochs", "2", "--trials", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Best of 2 trials: trial [01], validation_error 0\.\d{4} \(R\.tau ", out)
    best, picked = (
        study("digits-symmetric-0.5").best_trial,
        recommend(study("digits-symmetric-0.5")),
    )
    assert f"Best of 2 trials: trial {best.number}," in out
    assert f"partly luck. Recommended: {picked.source}, after smoothing" in out
    assert picked.source.startswith("the mean of the ")
    which = "--storage sqlite:///s2e.db --study-name digits-symmetric-0.5"
    assert f" s2e evaluate {which}\n" in out
    assert f" s2e status {which}\n" in out
    assert f" s2e export {which} --out schedule.json\n" in out
    assert " s2e dashboard --storage sqlite:///s2e.db\n" in out
    assert " s2e search --epochs 2 --trials 4\n" in out  # searches on
    assert [t.state.name for t in study("digits-symmetric-0.5").trials] == ["COMPLETE"] * 2


def test_defaults_of_the_help_are_those_of_the_trainings(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["search", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    digits = CoteachingObjective(load_data("digits")).config
    other = study().user_attrs[OBJECTIVE_KEY]["config"]
    for one, two in (
        (digits.batch_size, other["batch_size"]),
        (digits.learning_rate, other["learning_rate"]),
    ):
        assert f"(default: {one} for the digits, {two} for other data)" in out


def test_same_command_resumes_in_the_papers_space(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--space", "table1", "--estimator", "newton"]
    assert main(search(2, *options)) == 0
    assert "Resuming" not in capsys.readouterr().out
    assert main(search(4, *options)) == 0
    assert "Resuming study 's': 2 trials are complete." in capsys.readouterr().out
    assert [len(t.params) for t in study().trials] == [2 + 19] * 4


def test_batches_are_the_search_of_one_worker(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(search(5, "--batch", name="batches")) == 0  # in the middle of a batch
    assert main(search(8, "--batch", name="batches")) == 0
    assert "Resuming study 'batches': 5 trials are complete" in capsys.readouterr().out
    for one, other in zip(study().trials[:8], study("batches").trials, strict=True):
        assert (one.params, one.value) == (other.params, other.value)
        assert one.user_attrs["seed"] == other.user_attrs["seed"]


def test_study_of_another_objective_is_refused(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    line = only_line(capsys, *search(20, "--noise-rate", "0.2", "--learning-rate", "0.1"))
    assert "--learning-rate is 0.1, there 0.001" in line
    assert "--noise-rate is 0.2, there 0.5" in line
    line = only_line(capsys, *search(20, "--population-size", "4"))
    assert f"--population-size is 4, was {K}" in line
    assert "--on-config-change adopt" in line

    foreign = optuna.create_study(study_name="own", storage="sqlite:///s2e.db")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    line = only_line(capsys, *search(20, name="own"))
    assert "holds trials of another objective" in line
    optuna.create_study(study_name="up", storage="sqlite:///s2e.db", direction="maximize")
    assert "must minimise one objective" in only_line(capsys, *search(20, name="up"))


def test_a_study_remembers_its_method(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    line = only_line(capsys, *search(20, "--method", "jocor"))
    assert "--method is 'jocor', there 'coteaching'. Use another --study-name" in line
    line = only_line(capsys, *search(1, "--method", "s2e", name="other"))
    assert "--method must be one of 'standard', 'coteaching', " in line
    assert main(search(1, "--epochs", "2", "--method", "jocor", name="j")) == 0
    assert study("j").user_attrs[OBJECTIVE_KEY]["method"] == "jocor"
    assert main(["worker", "--study-name", "j", "--trials", "2", "--no-dashboard"]) == 0
    assert len(study("j").trials) == 2
    objective = CoteachingObjective.from_settings(study("j").user_attrs[OBJECTIVE_KEY])
    for trial in study("j").trials:
        assert objective(trial) == trial.value
    line = only_line(capsys, *search(20, "--epochs", "2", name="j"))
    assert "--method is 'coteaching', there 'jocor'" in line


def test_a_data_file_that_has_changed_is_refused_by_all_who_train(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = make_arrays()
    np.savez(DATA, **{**arrays, "train_y": np.roll(arrays["train_y"], 1)})
    line = only_line(capsys, *search(20))
    assert f"Study 's' searches another objective: the data in {DATA!r} have changed. Use" in line
    for command in ("evaluate", "worker"):
        line = last_line(capsys, command)
        assert f"{command}: error: {DATA!r} has changed: its training and validation data" in line
    assert main(["status"]) == main(["export", "--json"]) == 0  # they need no data
    assert len(study().trials) == N_SEARCHED


def test_studies_of_earlier_releases_recorded_no_content_of_files(searched: Searched) -> None:
    settings = study().user_attrs[OBJECTIVE_KEY]
    del settings["data"]["content"]
    study().set_user_attr(OBJECTIVE_KEY, settings)
    assert main(search(N_SEARCHED + 1)) == 0
    assert len(study().trials) == N_SEARCHED + 1
    assert study().user_attrs[OBJECTIVE_KEY] == settings


def test_an_unfit_network_is_found_before_the_storage_is_touched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = only_line(capsys, *search(1, "--network", "cnn2"))
    assert "error: --network 'cnn2' needs inputs" in line
    line = only_line(capsys, *search(1, "--learning-rate", "1e30"))
    assert "became non-finite" in line
    assert not Path("s2e.db").exists()


@pytest.mark.filterwarnings("ignore:.*returns NaN", "ignore:.*trials in a row have failed")
def test_worker_that_only_fails_gives_up_and_its_study_takes_new_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    objective = CoteachingObjective(
        load_data(DATA, noise="symmetric"), n_epochs=EPOCHS, learning_rate=1e30
    )
    url = "sqlite:///s2e.db"
    own = optuna.create_study(study_name="s", storage=url, sampler=S2ESampler(population_size=K))
    own.set_user_attr(OBJECTIVE_KEY, objective.settings)
    own.optimize(objective, n_trials=1)
    line = last_line(capsys, "worker", "--no-dashboard", "--trials", "50")
    assert "10 trials in a row have failed" in line
    assert [t.state.name for t in study().trials] == ["FAIL"] * 11

    mended = ["--space", "table1", "--population-size", "2", "--metric", "validation_loss"]
    capsys.readouterr()
    assert main(search(2, *mended)) == 0
    out = capsys.readouterr().out
    assert "Study 's' has no completed trial, so its settings are replaced: " in out
    assert "--learning-rate is 0.001, there 1e+30" in out
    assert "--space is 'table1', there 'eq1'" in out
    assert "--population-size is" not in out  # no `s2e search` has said it
    assert study().metric_names == ["validation_loss"]

    # from now on they are the study's
    line = only_line(capsys, *search(50, "--learning-rate", "0.1"))
    assert "--learning-rate is 0.1, there 0.001" in line
    assert main(["worker", "--no-dashboard", "--trials", "3"]) == 0
    assert main(search(5, *mended)) == 0
    told, computed = generations(study()), replay(study())
    assert len(told) == 3
    assert all(np.array_equal(a.theta, b.theta) for a, b in zip(told, computed, strict=True))
    assert all(t.value is not None for t in study().trials[11:])


def test_settings_of_a_running_trial_are_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    objective = CoteachingObjective(load_data(DATA, noise="symmetric"), n_epochs=2)
    other = optuna.create_study(study_name="s", storage="sqlite:///s2e.db")
    other.set_user_attr(OBJECTIVE_KEY, objective.settings)
    trial = other.ask()
    line = only_line(capsys, *search(1))
    assert f"--epochs is {EPOCHS}, there 2" in line
    assert "Trial 0 is RUNNING with them." in line
    other.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert main(search(1)) == 0


def test_adopted_settings_are_named(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    adopt = ["--population-size", "4", "--on-config-change", "adopt"]
    capsys.readouterr()
    assert main(search(N_SEARCHED + 1, *adopt)) == 0
    out = capsys.readouterr().out
    assert f"from the next generation on: --population-size is 4, there {K}." in out
    assert main(search(N_SEARCHED + 2, *adopt)) == 0
    assert "next generation" not in capsys.readouterr().out


NAMES = np.array(["cat", "dog", "emu"])


def test_own_labels_are_searched_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    own = make_arrays()
    np.savez(DATA, **own | {key: NAMES[own[key]] for key in ("train_y", "test_y")})
    assert main(["search", "--data", DATA, "--epochs", "2", "--trials", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Data: own.npz; the labels are as they were given, no noise is")
    recorded = study("own-none").user_attrs[OBJECTIVE_KEY]["data"]
    assert (recorded["noise"], recorded["noise_rate"]) == ("none", 0)
    line = only_line(capsys, "search", "--data", DATA, "--noise-rate", "0.3")
    assert "error: --noise must be 'symmetric' or 'pair' if a noise rate" in line


@pytest.mark.usefixtures("pictures_stay_empty")
def test_noise_that_is_added_is_printed_with_its_default(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    named = "Data: own.npz; 50 % symmetric noise is added to the training labels."
    assert searched.printed.splitlines()[0] == named
    for command in (
        ["worker", "--trials", "10", "--no-dashboard"],
        ["evaluate", "--repeats", "1"],
    ):
        assert main(command) == 0
        assert named in capsys.readouterr().out.splitlines()
    digits = ["search", "--epochs", "2", "--trials", "1", "--no-dashboard"]
    assert main([*digits, "--no-noise-rate-estimate"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        "Data: digits; 50 % symmetric noise is added to the training labels. Add none with "
        "--noise none."
    )


def test_validation_labels_of_the_file_are_taken_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    x, y = make_arrays()["train_x"], make_arrays()["train_y"]
    np.savez(DATA, x=x, y=y, x_val=x, y_val=y)
    with pytest.warns(UserWarning, match="validation 'noisy' changes nothing for 'own.npz'"):
        assert main(search(1, "--epochs", "2", "--validation", "noisy")) == 0


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "missing class": ({"train_y": np.full(120, 7)}, "label|class"),
    "negative label": ({"train_y": np.full(120, -1)}, "label"),
    "nan": ({"train_x": np.full((120, 4), np.nan)}, "NaN|finite"),
    "lengths": ({"train_x": np.zeros((119, 4))}, "119"),
    "features": ({"test_x": np.zeros((12, 5))}, "shape"),
    "types": ({"train_y": np.full(120, "a")}, "one type, but got 'a' in y and . in y_test"),
    "missing": ({"train_y": np.full(120, np.nan)}, "120 of 120 are missing"),
    "objects": ({"train_y": np.full(120, "a", dtype=object)}, r"array\.astype\(str\)"),
    "one-hot": ({"train_y": np.eye(120)}, r"Take y\.argmax\(axis=1\)"),
    "text": ({"train_x": np.full((120, 4), "a")}, r"x must hold numbers, but x\[0, 0\] is 'a'"),
    "scalar": ({"train_y": np.array(1)}, "120 and 0"),
    "tokens": (
        {"train_x": np.ones((120, 4), int), "test_x": np.ones((12, 4), int)},
        "error: --network 'mlp' needs images .* or floats, but the data hold integers",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_unusable_data_are_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = DAMAGED[case]
    np.savez(DATA, **(make_arrays() | damage))
    line = only_line(capsys, *search(1))
    assert re.search(message, line), line
    assert not Path("s2e.db").exists()


# --- signals ---------------------------------------------------------------------------------


def stop_early(process: Command, sign: signal.Signals, training: str) -> tuple[int | None, str]:
    """Stop a search while it trains in its second generation; return exit code and output.

    Until then the database is only read: an RDBStorage here would make tables.

    Args:
        process: The search.
        sign: The signal.
        training: A query that returns a row while trials are trained.
    """
    complete = "SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'"
    end, ready = time.monotonic() + 60, False
    while not ready and process.is_alive() and time.monotonic() < end:
        with contextlib.suppress(sqlite3.OperationalError):  # there is no table yet
            reader = sqlite3.connect("file:s2e.db?mode=ro", uri=True)
            with contextlib.closing(reader):
                ready = (
                    reader.execute(complete).fetchone()[0] > K
                    and reader.execute(training).fetchone() is not None
                )
        time.sleep(0.005)
    was_running = process.is_alive()
    code, printed, errors = process.stop(sign)
    assert was_running, errors
    assert ready, "the search made no progress"
    return code, printed


# the last parameter is there: what follows is the training
TRAINS_ONE = """
    SELECT 1 FROM trial_params JOIN trials USING (trial_id)
    WHERE state = 'RUNNING' AND param_name = 'R.c'
"""
# all K are asked
TRAINS_K = f"SELECT 1 FROM trials WHERE state = 'RUNNING' GROUP BY state HAVING COUNT(*) = {K}"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_stopped_search_goes_on_with_the_same_command(
    sign: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = stop_early(Command(*search(500, *LONG)), sign, TRAINS_ONE)
    if sign == signal.SIGINT:
        assert code == 130
        said = "Completed trials are kept, interrupted ones are failed. Go on: "
        command = shlex.join(["s2e", *search(500, *LONG)])
        assert out.splitlines()[-1] == f"SIGINT: stopped. {said}{command}"
    else:
        assert code == -signal.SIGKILL
    states = [t.state.name for t in study().trials]
    n_complete = states.count("COMPLETE")
    assert len(states) - n_complete <= 1

    assert main(search(n_complete + 3, *LONG)) == 0
    assert f"{n_complete} trials are complete" in capsys.readouterr().out
    told, computed = generations(study()), replay(study())
    assert all(np.array_equal(a.theta, b.theta) for a, b in zip(told, computed, strict=True))
    assert len(told) >= 1 + (n_complete + 2) // K
    points = [tuple(t.params.values()) for t in study().trials]
    assert len(points) == len(set(points))
    assert sum(t.state.name == "COMPLETE" for t in study().trials) == n_complete + 3


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_batches_go_on_as_if_nothing_had_happened(
    sign: signal.Signals, undisturbed: Callable[[int], list[bytes]]
) -> None:
    process = Command(*search(500, "--batch", *LONG))
    code, out = stop_early(process, sign, TRAINS_K)
    states = [t.state.name for t in study().trials]
    if sign == signal.SIGTERM:
        assert code == 128 + signal.SIGTERM
        assert out.splitlines()[-1].startswith("SIGTERM: stopped. Completed trials are kept, ")
        assert "optimize_batch" not in process.errors  # what was saved is said once
        assert "RUNNING" not in states
    n_trials = states.count("COMPLETE") + 3
    assert main(search(n_trials, "--batch", *LONG)) == 0
    thetas = [g.theta.tobytes() for g in generations(study())]
    assert len(thetas) >= 3
    assert thetas == undisturbed(n_trials)
