"""What a study says of its search: when it ends, and who may change that."""

from typing import Any

import optuna
import pytest

from optuna_s2e import S2ESampler
from optuna_s2e._attributes import MAX_TRIALS, N_TRIALS_KEY, SEARCH_KEY
from optuna_s2e.analysis import Snapshot
from optuna_s2e.history import Search, extend_search, planned_trials

SETTINGS = S2ESampler().settings


@pytest.mark.parametrize(
    ("search", "asked_since", "planned"),
    [
        (None, None, None),
        ({"v": 1, "n_trials": 60}, None, 60),
        (None, 40, 40),
        ({"v": 1, "n_trials": 60}, 100, 100),  # a worker was started with --trials 100
        ({"v": 1, "n_trials": None}, 40, 40),
        ({"n_trials": "60"}, True, None),
        ({"n_trials": -1}, 10**12, None),
        ("damaged", [60], None),
    ],
)
def test_a_search_ends_with_the_larger_sound_number(
    search: Any, asked_since: Any, planned: int | None
) -> None:
    attrs = {SEARCH_KEY: search, N_TRIALS_KEY: asked_since}
    assert planned_trials(attrs) == planned


def test_workers_and_pages_read_the_same_number_whoever_said_it() -> None:
    study = optuna.create_study()
    said: list[int | None] = []

    def both() -> int | None:
        worker, page = Search.read(study).n_trials, Snapshot.of(study).n_planned
        assert worker == page
        return page

    said.append(both())
    extend_search(study, 7)  # no `s2e search` made this study
    said.append(both())
    Search(SETTINGS, 0, 4).write(study)  # the last search decides
    said.append(both())
    extend_search(study, 8)
    said.append(both())
    extend_search(study, 5)  # it only ends early for itself
    said.append(both())
    Search(SETTINGS, 0, 6).write(study)
    said.append(both())
    assert said == [None, 7, 4, 8, 8, 6]


def test_a_number_beyond_the_largest_one_damages_nothing() -> None:
    study = optuna.create_study()
    Search(SETTINGS, 0, 10**12).write(study)
    assert Search.read(study).n_trials == MAX_TRIALS
    other = optuna.create_study()
    extend_search(other, 10**12)
    assert Search.read(other).n_trials == MAX_TRIALS


def test_what_is_written_is_read() -> None:
    study = optuna.create_study()
    assert Search.read(study) == Search()
    search = Search(SETTINGS, 5, 60)
    search.write(study)
    assert Search.read(study) == search
