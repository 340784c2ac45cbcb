"""s2e search --paper: what it sets, what is said, and that the best schedule is trained anew."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import DATA, make_arrays, only_line, study

from optuna_s2e import generations, replay
from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.cli import main

SETUP = (
    "The paper's set-up: {noise} --validation clean --network {network} --epochs 200 "
    "--batch-size 128 --learning-rate 0.001 --metric validation_loss --space table1 --trials 60 "
    "--population-size 6 --estimator paper, and the best schedule is trained anew."
)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(DATA, **make_arrays())


@pytest.mark.usefixtures("pictures_stay_empty")
def test_paper_sets_its_whole_setup_and_trains_the_best_schedule_anew(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["--paper", "--data", DATA, "--noise", "pair", "--noise-rate", "0.45"]
    line += ["--no-dashboard", "--study-name", "s"]
    small = ["--epochs", "3", "--trials", "5", "--popul=2"]
    assert main(["search", *line, *small]) == 0
    out = capsys.readouterr().out
    said = out.splitlines()
    assert said[0] == SETUP.format(noise="--published-noise", network="mlp")
    assert said[1] == (
        "Unlike the paper: --epochs 3 --trials 5 --population-size 2 (the paper: --epochs 200 "
        "--trials 60 --population-size 6)."
    )
    settings = study().user_attrs[OBJECTIVE_KEY]
    assert settings["data"]["published_noise"] is True
    assert settings["data"]["validation"] == "clean"
    assert settings["metric"] == "validation_loss"
    assert settings["config"]["batch_size"] == 128
    assert settings["config"]["learning_rate"] == 1e-3
    assert "R.table1" in study().best_trial.params
    record = study().trials[4].system_attrs["s2e:draw"]
    assert record["settings"]["estimator"] == "paper"
    assert (record["settings"]["sign"], record["settings"]["reuse"]) == ("-", 0)
    assert record["settings"]["theta_bounds"] == [0.1, 1000.0]
    told, computed = generations(study()), replay(study())
    assert [g.theta.tolist() for g in told] == [g.theta.tolist() for g in computed]
    assert len(told) == 3
    best = study().best_trial.number
    assert f"Schedule: trial {best} (rule: best)" in out  # of s2e evaluate
    assert "Recommended" not in out
    assert set(json.loads(Path("s/evaluation.json").read_text())["methods"]) == {
        "standard", "coteaching", "suggested", "searched",
    }  # fmt: skip
    capsys.readouterr()
    assert main(["search", *small, *line]) == 0  # the same again
    assert "Resuming study 's': 5 trials are complete." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "200"], None),  # as in the paper
        (["--space", "eq1"], "--space eq1 (the paper: --space table1)"),
        (["--epochs=40"], "--epochs 40 (the paper: --epochs 200)"),  # a default without --paper
        (["--validation", "noisy"], "--validation noisy (the paper: --validation clean)"),
        (["--no-published-noise", "--noise", "pair"],
         "--no-published-noise (the paper: --published-noise)"),
        (["--estimator", "natural", "--metric", "validation_error"],
         "--metric validation_error --estimator natural (the paper: --metric validation_loss "
         "--estimator paper)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_options_beside_paper_win_and_are_named(
    options: list[str], said: str | None, first: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = [*options, "--paper"] if first else ["--paper", *options]
    assert main(["search", "--data", DATA, *beside, "--device", "tpu"]) == 2  # before any training
    lines = capsys.readouterr().out.splitlines()
    noise = "--published-noise" if "--noise" in options else "--no-published-noise"
    assert lines[0] == SETUP.format(noise=noise, network="mlp")
    assert lines[1:] == ([] if said is None else [f"Unlike the paper: {said}."])


@pytest.mark.parametrize(("data", "network"), [("cifar10", "cnn2"), ("cifar100", "cnn7")])
def test_each_data_set_has_its_network(
    data: str, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--data", data, "--paper"]) == 2  # without its files
    said = capsys.readouterr().out.splitlines()
    assert said == [SETUP.format(noise="--published-noise", network=network)]


def test_own_labels_are_not_made_wrong_and_data_without_test_part_are_not_evaluated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = make_arrays()
    np.savez(DATA, x=arrays["train_x"], y=arrays["train_y"],
             x_val=arrays["test_x"], y_val=arrays["test_y"])  # fmt: skip
    line = ["search", "--paper", "--data", DATA, "--epochs", "2", "--trials", "2"]
    assert main([*line, "--no-dashboard"]) == 0
    out = capsys.readouterr().out
    assert f"The best schedule is not trained anew: {DATA!r} holds no test data." in out
    settings = study("own-none-paper").user_attrs[OBJECTIVE_KEY]["data"]
    assert (settings["noise"], settings["published_noise"]) == ("none", False)


def test_the_sign_of_eq_8_is_an_option_and_needs_the_papers_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["search", "--data", DATA, "--noise", "symmetric", "--epochs", "2", "--trials", "3"]
    line += ["--population-size", "2", "--no-dashboard", "--study-name", "s"]
    assert main([*line, "--estimator", "paper", "--sign", "+"]) == 0
    assert study().trials[2].system_attrs["s2e:draw"]["settings"]["sign"] == "+"
    changed = only_line(capsys, *line, "--estimator", "paper", "--sign", "-")
    assert "--sign is '-', was '+'" in changed
    with pytest.warns(UserWarning, match="sign has no effect with estimator='natural'"):
        main([*line, "--estimator", "natural", "--sign", "+", "--device", "tpu"])
