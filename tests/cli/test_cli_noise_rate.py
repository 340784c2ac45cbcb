"""The noise rate that a search goes by: estimated, told or not used; who shows it."""

import json
import re
from pathlib import Path

import numpy as np
import optuna
import pytest
from commands import DATA, EPOCHS, K, Searched, make_arrays, only_line, study

from optuna_s2e import ScheduleSpace
from optuna_s2e._attributes import NOISE_KEY, OBJECTIVE_KEY, read_noise
from optuna_s2e.cli import main
from optuna_s2e.coteaching import CoteachingObjective, load_data

LINE = re.compile(r"^Noise rate, estimated: \d+ % of the labels are wrong \[\d+, \d+\]", re.M)


def search(n_trials: int, *options: str) -> list[str]:
    """Return the command line of a search on the file, whose labels are as they are."""
    return [
        "search", "--data", DATA, "--study-name", "s", "--epochs", str(EPOCHS),
        "--population-size", str(K), "--no-dashboard", "--trials", str(n_trials), *options,
    ]  # fmt: skip


def _ranges() -> list[object]:
    return [t.distributions["R.tau"] for t in study().trials]


def _range(noise_rate: float | None) -> object:
    return ScheduleSpace(EPOCHS, noise_rate=noise_rate).distributions["R.tau"]


def test_a_search_estimates_once_and_all_others_go_by_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(search(1)) == 0
    line = LINE.search(capsys.readouterr().out)
    assert line
    attr = study().user_attrs[NOISE_KEY]
    noise = read_noise(study().user_attrs)
    assert noise is not None
    assert not noise.used_clean_labels  # the validation labels are those of the file
    marked = {**attr, "noise_rate": 0.25, "interval": [0.2, 0.3]}  # nobody would estimate that
    study().set_user_attr(NOISE_KEY, marked)
    for command in (
        search(2),
        search(3, "--noise-rate-estimate", "--batch"),
        ["worker", "--no-dashboard", "--trials", "4"],
    ):
        assert main(command) == 0
        told = "Noise rate, estimated: 25 % of the labels are wrong [20, 30], found without clean"
        assert told in capsys.readouterr().out
    assert _ranges()[1:] == [_range(0.25)] * 3
    assert study().user_attrs[NOISE_KEY] == marked

    assert main(["status"]) == 0
    assert told in capsys.readouterr().out.splitlines()[1]
    assert main(["status", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["noise"]["noise_rate"] == 0.25
    assert document["noise"]["transition_matrix"] == attr["transition_matrix"]


@pytest.mark.usefixtures("pictures_stay_empty")
def test_an_evaluation_compares_at_the_estimated_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(search(1)) == 0
    study().set_user_attr(NOISE_KEY, {**study().user_attrs[NOISE_KEY], "noise_rate": 0.25})
    capsys.readouterr()
    assert main(["evaluate", "--repeats", "1", "--json"]) == 0
    printed = capsys.readouterr()
    remark = "(estimated rate .25)"
    for row in ("Standard  ", f"Co-teaching {remark}", f"Suggested {remark}"):
        assert re.search(rf"^{re.escape(row)}", printed.err, re.M), row
    document = json.loads(printed.out)
    assert list(document["methods"]) == ["standard", "coteaching", "suggested", "searched"]
    assert document["methods"]["coteaching"]["params"]["R.tau"] == 0.25
    middle = ScheduleSpace(EPOCHS, noise_rate=0.25).middle
    assert middle is not None
    assert document["methods"]["suggested"]["params"] == middle.params
    assert document["noise"]["noise_rate"] == 0.25
    assert document["left_out"] == {}
    # a rate that is given is Co-teaching's; the suggestion stays that of the search
    assert main(["evaluate", "--repeats", "1", "--noise-rate", "0.4"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^Co-teaching  ", out, re.M)
    assert f"Suggested {remark}" in out


def test_a_known_rate_is_told_and_nothing_is_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(search(1, "--known-noise-rate", "0.4")) == 0
    assert "Noise rate, as told: 40 % of the labels are wrong\n" in capsys.readouterr().out
    assert NOISE_KEY not in study().user_attrs
    assert main(search(2)) == 0  # it goes on as it began
    assert main(["worker", "--no-dashboard", "--trials", "3"]) == 0
    assert _ranges() == [_range(0.4)] * 3
    line = only_line(capsys, *search(4, "--known-noise-rate", "0.2"))
    assert "searched with --known-noise-rate 0.2, there with --known-noise-rate 0.4" in line
    line = only_line(capsys, *search(4, "--noise-rate-estimate"))
    assert "searched with --noise-rate-estimate, there with --known-noise-rate 0.4" in line
    line = only_line(capsys, *search(4, "--no-noise-rate-estimate"))
    assert "searched with --no-noise-rate-estimate, there with --known-noise-rate 0.4" in line
    assert len(study().trials) == 3


def test_a_study_that_began_without_an_estimate_goes_on_without(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = study().user_attrs[OBJECTIVE_KEY]
    assert "noise_rate" not in recorded  # as earlier releases wrote it
    n = len(study().trials)
    assert main(search(n + 1, "--noise", "symmetric")) == 0
    assert "Noise rate" not in capsys.readouterr().out
    assert study().user_attrs[OBJECTIVE_KEY] == recorded
    assert len(set(map(str, _ranges()))) == 1


def test_the_papers_space_takes_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    line = only_line(capsys, *search(1, "--space", "table1", "--noise-rate-estimate"))
    assert "--space must be 'eq1' if" in line
    line = only_line(capsys, *search(1, "--known-noise-rate", "0.4", "--noise-rate-estimate"))
    assert "--known-noise-rate and --noise-rate-estimate exclude each other" in line
    line = only_line(capsys, *search(1, "--known-noise-rate", "1.2"))
    assert "--known-noise-rate must be a number in [0, 1]" in line
    assert not Path("s2e.db").exists()
    assert main(search(1, "--space", "table1")) == 0
    assert "Noise rate" not in capsys.readouterr().out


def test_settings_that_are_replaced_take_their_estimate_with_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    objective = CoteachingObjective(load_data(DATA), n_epochs=2, noise_rate="estimate")
    own = optuna.create_study(study_name="s", storage="sqlite:///s2e.db")
    own.set_user_attr(OBJECTIVE_KEY, objective.settings)
    objective.prepare_study(own)
    old = read_noise(own.user_attrs)
    own.tell(own.ask(), state=optuna.trial.TrialState.FAIL)
    assert main(search(1, "--noise", "pair", "--noise-rate", "0.5")) == 0
    assert "Study 's' has no completed trial, so its settings are" in capsys.readouterr().out
    new = read_noise(study().user_attrs)
    assert old is not None
    assert new is not None
    fresh = ["--storage", "sqlite:///fresh.db"]
    assert main([*search(1, "--noise", "pair", "--noise-rate", "0.5"), *fresh]) == 0
    begun = optuna.load_study(study_name=None, storage="sqlite:///fresh.db")
    assert new == read_noise(begun.user_attrs) != old
    assert study().trials[-1].distributions["R.tau"] == _range(new.noise_rate)


@pytest.mark.filterwarnings("ignore:.*holds no sample of the classes")
@pytest.mark.parametrize("n", [20, 8])
def test_tiny_data_are_searched(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {key: array[:n] for key, array in make_arrays().items()}
    names = np.array(["cat", "dog", "emu"])
    for key in ("train_y", "test_y"):
        arrays[key] = names[arrays[key]]
    np.savez(DATA, **arrays)
    assert main(search(1)) == 0
    assert LINE.search(capsys.readouterr().out)
