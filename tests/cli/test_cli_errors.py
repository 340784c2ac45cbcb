"""Errors in the words of the command line."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from commands import DATA, Searched, as_script, make_arrays, only_line, search, study
from processes import Process

from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.cli import main
from optuna_s2e.cli._errors import name_options, one_line

OPTIONS = ["epochs", "data", "data_root", "noise_rate", "network", "learning_rate", "space"]
ARGS = Namespace(storage="", on_config_change="refuse", **dict.fromkeys(OPTIONS))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("n_epochs must be an int.", "--epochs must be an int."),
        ("noise_rate must be low.", "--noise-rate must be low."),
        ("data set must be one of 'a'.", "--data must be one of 'a'."),
        ("network 'x' needs images.", "--network 'x' needs images."),
        ("population_size must be 3.", "population_size must be 3."),  # no option of this command
        ("The network must learn.", "The network must learn."),
        ("It was: n_epochs is 3, there 2.", "It was: --epochs is 3, there 2."),
        ("It was: config.learning_rate is 3, was 2.", "It was: --learning-rate is 3, was 2."),
        ("It was: config.momentum is 3, there 2.", "It was: config.momentum is 3, there 2."),
        ("It was: kind is 'a', there 'b'.", "It was: --space is 'a', there 'b'."),
    ],
)
def test_an_argument_becomes_the_option(text: str, shown: str) -> None:
    assert name_options(text, OPTIONS) == shown


def test_words_about_python_become_words_about_the_command_line() -> None:
    error = ValueError("root must be a folder,\nbut got None.")
    assert one_line(error, ARGS) == "--data-root must be a folder, but it is missing."
    error = ValueError('network must be "a" or a function (x) -> y that is new at each call.')
    assert one_line(error, ARGS) == '--network must be "a".'
    error = ValueError('Undo it, or pass on_config_change="adopt".')
    assert one_line(error, ARGS) == "Undo it, or pass --on-config-change adopt."
    assert one_line(KeyError(), ARGS) == "KeyError"


def test_an_error_in_the_module_of_an_objective_is_one_line(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    del searched
    study()._storage.set_study_user_attr(study()._study_id, OBJECTIVE_KEY, None)
    Path("broken_objective.py").write_text("1 / 0\n")
    line = only_line(capsys, "worker", "--objective", "broken_objective:f")
    assert "error: --objective 'broken_objective:f' cannot be imported: ZeroDivisionError" in line


def test_data_without_a_test_part_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    arrays = make_arrays()
    x, y = arrays["train_x"], arrays["train_y"]
    np.savez(DATA, x=x[:80], y=y[:80], x_val=x[80:], y_val=y[80:])
    assert main(search(1, "--epochs", "2")) == 0
    capsys.readouterr()
    assert main(["evaluate"]) == 2
    error = capsys.readouterr().err
    assert (
        error == "s2e evaluate: error: An evaluation needs test data, but 'own.npz' holds none.\n"
    )


def test_a_warning_is_one_line() -> None:
    arrays = make_arrays()
    x, y = arrays["train_x"], arrays["train_y"]
    np.savez(DATA, x=x[:80], y=y[:80], x_val=x[80:], y_val=y[80:])
    script = Process(as_script, search(1, "--epochs", "2", "--validation", "noisy"))
    assert script.wait() == 0, script.errors
    (line,) = (line for line in script.errors.splitlines() if "changes nothing" in line)
    assert line.startswith("Warning: validation 'noisy' changes nothing for 'own.npz'")
    assert "warnings.warn" not in script.errors
