"""s2e status: where a search stands, and whether its thetas follow from its trials."""

import optuna
import pytest
from commands import N_SEARCHED, K, Searched, only_line, study

from optuna_s2e._attributes import DRAW_KEY, SEARCH_KEY
from optuna_s2e.cli import main


def test_status_shows_and_verifies_a_search(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert f"{N_SEARCHED} complete" in out
    assert "verify" not in out
    assert main(["status", "--verify"]) == 0
    assert f"{N_SEARCHED // K} generations replay bit for bit" in capsys.readouterr().out


def test_verify_finds_a_changed_theta(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = study().trials
    record = trials[3].system_attrs[DRAW_KEY]  # it opens generation 1
    trials[3].system_attrs[DRAW_KEY] = record | {"theta": [t + 1e-6 for t in record["theta"]]}
    optuna.create_study(study_name="forged", storage="sqlite:///s2e.db").add_trials(trials)
    assert main(["status", "--study-name", "forged", "--verify"]) == 1
    assert "FAILED: theta of generation 1" in capsys.readouterr().out
    assert main(["status", "--study-name", "s", "--verify"]) == 0


def test_status_of_a_damaged_study_says_so_and_goes_on(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    study().set_user_attr(SEARCH_KEY, "damaged")
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "keeps for its workers are damaged" in out
    assert f"{N_SEARCHED} complete" in out


def test_wrong_study_name_is_one_line_that_lists_the_studies(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    line = only_line(capsys, "status", "--study-name", "t")
    assert "Study 't' does not exist: the storage holds 's'" in line
    optuna.create_study(study_name="u", storage="sqlite:///s2e.db")
    assert "--study-name is needed: the storage holds 's', 'u'" in only_line(capsys, "status")
