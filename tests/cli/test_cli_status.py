"""s2e status: where a search stands, and whether its thetas follow from its trials."""

import json
from datetime import datetime

import numpy as np
import optuna
import pytest
from commands import N_SEARCHED, K, Searched, only_line, study

from optuna_s2e import recommend
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


def test_json_is_one_document_of_numbers_and_iso_times(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["status", "--json", "--verify"]) == 0
    document = json.loads(capsys.readouterr().out)
    best, picked = study().best_trial, recommend(study())
    times = [document["first_start"], document["best"].pop("end"), document["last_end"]]
    read = [datetime.fromisoformat(time) for time in [*times, document["time"]]]
    assert read == sorted(read)
    assert all(time.tzinfo is not None for time in read)
    end = best.datetime_complete
    assert end is not None
    assert abs(read[1].timestamp() - end.timestamp()) < 1  # a local time
    assert document["best"] == {"trial": best.number, "value": best.value, "params": best.params}
    assert document["recommended"] == {
        "rule": "mean",
        "trial": None,
        "mean_of": list(picked.mean_of),
        "params": picked.params,
        "expected_value": picked.expected_loss,
        "interval": list(picked.interval),
    }
    counts = dict.fromkeys(["running", "pruned", "fail", "waiting"], 0)
    assert document["trials"] == {"complete": N_SEARCHED, **counts}
    assert (document["study"], document["n_trials"], document["direction"]) == (
        "s", N_SEARCHED, "minimize",
    )  # fmt: skip
    assert [row["opener"] for row in document["generations"]] == [None, K, 2 * K]
    means = [
        np.mean([t.value for t in study().trials[i : i + K]]) for i in range(0, N_SEARCHED, K)
    ]
    np.testing.assert_allclose([row["mean"] for row in document["generations"]], means)
    assert document["verify"]["sound"] is True


def test_json_of_an_empty_study_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    optuna.create_study(study_name="new", storage="sqlite:///s2e.db", direction="maximize")
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["trials_per_minute"] is None
    assert document["seconds_left"] is None
    assert document["best"] is document["recommended"] is document["first_start"] is None
    assert document["direction"] == "maximize"


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
    assert "Study 't' does not exist: the storage sqlite:///" in line
    assert line.endswith("s2e.db holds 's'.")
    optuna.create_study(study_name="u", storage="sqlite:///s2e.db")
    line = only_line(capsys, "status")
    assert "--study-name is needed: the storage sqlite:///" in line
    assert line.endswith("s2e.db holds 's', 'u'.")
