"""A study as its pages get it: the same as from optuna-dashboard, with less work."""

import io
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import optuna
import pytest
from observed_storages import CountingStorage
from optuna.storages import BaseStorage
from optuna_dashboard import _serializer, save_note, wsgi
from reporting import IN_SQLITE, forget_trials

from optuna_s2e import _optuna
from optuna_s2e.dashboard import serve
from optuna_s2e.dashboard._answers import NotesApart, StudyAnswers

Ask = Callable[[str], Any]
write_trial = _serializer.serialize_frozen_trial


def objective(trial: optuna.Trial) -> float:
    trial.set_user_attr('"trials": [', '], "best_trials": {"trial_id": ')  # looks like our marks
    return trial.suggest_float("x", 0, 1)


def note(study: optuna.Study, number: int, text: str) -> None:
    save_note(_optuna.note_target(study, study.trials[number]), text)


def asked(app: Callable[..., Iterable[bytes]], query: str) -> Any:
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies/1", "QUERY_STRING": query,
        "SERVER_NAME": "host", "SERVER_PORT": "80", "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr,
    }  # fmt: skip
    return json.loads(b"".join(app(environ, lambda *_: None)))


def ours(storage: BaseStorage) -> Ask:
    answers = StudyAnswers(wsgi(NotesApart(storage)), storage)
    return lambda query: asked(lambda *request: answers(1, *request), query)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the trials that optuna-dashboard has written, in order."""
    numbers: list[int] = []

    def counted(study_id: int, trial: Any, attrs: Any) -> Any:
        numbers.append(trial.number)
        return write_trial(study_id, trial, attrs)

    monkeypatch.setattr(_serializer, "serialize_frozen_trial", counted)
    return numbers


def test_the_answer_is_that_of_optuna_dashboard(study: optuna.Study) -> None:
    storage = study._storage
    assert ours(storage)("") == asked(wsgi(storage), "")  # without trials
    study.optimize(objective, n_trials=5)
    study.enqueue_trial({"x": 0.5})
    save_note(study, "of the study")
    note(study, 1, "short")
    note(study, study.best_trial.number, 'long "note"\n' * 500)  # in several attributes
    ask = ours(storage)
    for query, n_trials in (("", 6), ("after=0", 6), ("after=2", 4), ("after=6", 0)):
        for _ in range(2):  # the second answer has texts that were kept
            shown = ask(query)
            assert len(shown["trials"]) == n_trials
            assert shown == asked(wsgi(storage), query)


def test_a_finished_trial_is_written_once(study: optuna.Study, written: list[int]) -> None:
    study.optimize(objective, n_trials=4)
    study.enqueue_trial({"x": 0.5})
    best = study.best_trial.number
    ask = ours(study._storage)
    ask("")
    assert written == [0, 1, 2, 3, 4, best]
    written.clear()
    assert [t["number"] for t in ask("")["trials"]] == [0, 1, 2, 3, 4]
    assert written == [4, best]  # it was 0 to 4 before, whichever page asked


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_trials_are_written_before_the_page_asks_for_them(
    study: optuna.Study, written: list[int]
) -> None:
    study.optimize(objective, n_trials=4)
    of_a_page = [0, 1, 2, 3, study.best_trial.number]
    with serve(study) as address:
        urllib.request.urlopen(f"{address}/studies").read()
        assert not written  # which page comes is known when it comes
        page = f"{address}/studies/1"
        urllib.request.urlopen(page).read()
        wait_for(lambda: written == of_a_page)
        urllib.request.urlopen(f"{address.removesuffix('/dashboard')}/api/studies/1").read()
        urllib.request.urlopen(page).read()  # nothing is left to prepare
    assert written == [*of_a_page, study.best_trial.number]


@pytest.mark.parametrize("n_studies", [1, 2])
def test_the_only_study_is_read_when_the_server_starts(n_studies: int) -> None:
    storage = CountingStorage()
    for _ in range(n_studies):
        optuna.create_study(storage=storage)
    with serve(storage) as address:
        if n_studies == 1:
            wait_for(lambda: storage.n_reads == 1)
        time.sleep(0.2)
        assert storage.n_reads == (n_studies == 1)
        assert urllib.request.urlopen(address).status == 200


def test_a_request_shares_the_work_of_the_one_that_prepares(
    study: optuna.Study, written: list[int]
) -> None:
    study.optimize(objective, n_trials=20)
    answers = StudyAnswers(wsgi(NotesApart(study._storage)), study._storage)
    answers.prepare(1)
    shown = asked(lambda *request: answers(1, *request), "")
    assert shown == asked(wsgi(study._storage), "")
    best = study.best_trial.number
    assert written.count((best + 1) % 20) == 2  # by our dashboard once, by plain wsgi once
    answers.prepare(7)  # there is none


def test_the_notes_of_trials_are_not_looked_through_for_every_trial(study: optuna.Study) -> None:
    study.optimize(objective, n_trials=3)
    view = NotesApart(study._storage)
    before = len(view.get_all_studies()[0].system_attrs)
    for number in range(3):
        note(study, number, "text")
    assert len(view.get_all_studies()[0].system_attrs) == before
    assert len(study._storage.get_all_studies()[0].system_attrs) == before + 6


def test_a_later_note_is_shown(study: optuna.Study) -> None:
    study.optimize(objective, n_trials=2)
    ask = ours(study._storage)
    for text in ("first", "second"):
        note(study, 1, text)
        assert ask("")["trials"][1]["note"]["body"] == text


@IN_SQLITE
def test_a_study_that_was_made_again_has_its_own_trials(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = study._storage
    study.optimize(objective, n_trials=2)
    ask = ours(storage)
    ask("")
    optuna.delete_study(study_name="s", storage=storage)
    again = optuna.create_study(study_name="s", storage=storage)
    assert again._study_id == 1  # SQLite gives the identifier again
    again.optimize(objective, n_trials=2)
    ask("")
    forget_trials(monkeypatch)
    shown = [t["params"][0]["param_internal_value"] for t in ask("")["trials"]]
    assert shown == [t.params["x"] for t in again.trials]
