"""The answer that a study's page waits for, in less time than optuna-dashboard takes for it.

The answer holds all trials. For each of them, optuna-dashboard looks through all attributes of the
study, most of which are the notes of other trials. And it writes every trial again for every page,
although finished trials never change. So it gets the study without the notes of trials, which are
put into its answer, and the finished trials of the study that was asked for last are kept as text.
They are written as soon as a browser opens the page, which loads its scripts meanwhile.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qs
from wsgiref.util import setup_testing_defaults

from optuna.storages import BaseStorage

from optuna_s2e import _optuna
from optuna_s2e.visualization import PlainStorage

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

MAX_LINES = 500  # Optuna's plot of intermediate values has a line per trial; thousands freeze it
MAX_KEPT = 20_000  # trials, of some three kilobytes each
_NOTE = re.compile(r"dashboard:(\d+):note_(ver|str:\d+)")
_OF_A_TRIAL = re.compile(r"dashboard:(artifacts:)?\d+:")
# No such text stands in a string, where its quotation marks would be escaped.
_TRIALS, _NEXT, _BEST = b'"trials": [', b', {"trial_id": ', b'], "best_trials":'
_NO_NOTE = b'"note": {"version": 0, "body": ""}'
_UNFINISHED = re.compile(rb'[^"]*"trial_id": [^"]*"study_id": [^"]*"number": [^"]*"state": "[RW]')


class NotesApart(PlainStorage):
    """The studies of a storage without the notes of their trials. Nothing can be written."""

    def get_all_studies(self) -> list[Any]:
        studies = [copy.copy(study) for study in super().get_all_studies()]
        for study in studies:
            attrs = study.system_attrs.items()
            study.system_attrs = {k: v for k, v in attrs if not _NOTE.fullmatch(k)}
        return studies


class _Identity(NamedTuple):
    """What the texts of a study's finished trials depend on."""

    study_id: int
    name: str
    start: bytes  # of the first trial: another one if the study was deleted and made again
    of_trials: dict[str, Any]  # notes and artifacts


class StudyAnswers:
    """Answers with a study as its pages get it.

    Args:
        app: The dashboard of `NotesApart`.
        storage: The storage itself.
    """

    def __init__(self, app: App, storage: BaseStorage) -> None:
        self._app = app
        self._storage = storage
        self._lock = threading.Lock()
        self._of: _Identity | None = None  # what the texts below depend on
        self._finished: list[bytes] = []  # the trials before the first that is not finished

    def __call__(
        self, study_id: int, environ: dict[str, Any], start: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request for a study: all trials, or those after the number in the query."""
        after = parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[0]
        if not after.isdecimal():
            return self._app(environ, start)
        whole = int(after) == 0
        with self._lock if whole else nullcontext():  # a second page waits, and then has it, too
            attrs = self._attrs(study_id)
            identity = self._identity(study_id, attrs) if whole else None
            known = self._finished if identity is not None and identity == self._of else []
            environ["QUERY_STRING"] = f"after={int(after) + len(known)}"

            def edit(body: bytes) -> bytes:
                head, trials, rest = _split(body, find_notes(attrs))
                trials = known + trials
                if identity is not None and trials and identity.start in trials[0]:
                    n = next((i for i, t in enumerate(trials) if _UNFINISHED.match(t)), MAX_KEPT)
                    self._of, self._finished = identity, trials[: min(n, MAX_KEPT)]
                if int(after) + len(trials) > MAX_LINES:
                    rest["has_intermediate_values"] = False
                return head + b", ".join(trials) + b"], " + json.dumps(rest).encode()[1:]

            return edited(self._app, environ, start, edit)

    def prepare(self, study_id: int) -> None:
        """Begin to write the trials of a study; a request that comes meanwhile shares the work.

        Nothing is done if they were written before.
        """
        if self._of is None or self._of.study_id != study_id:
            threading.Thread(target=self._prepare, args=(study_id,), daemon=True).start()

    def read_ahead(self) -> None:
        """Begin to read the trials of the study, if there is one only: its page comes next.

        The storage keeps finished trials. The dashboard is not asked yet: it would show what it
        knows now for ten seconds.
        """
        threading.Thread(target=self._read_ahead, daemon=True).start()

    def _read_ahead(self) -> None:
        with suppress(Exception):  # the request itself says what is wrong
            studies: list[Any] = self._storage.get_all_studies()
            if len(studies) == 1:
                self._storage.get_all_trials(_optuna.study_id(studies[0]), deepcopy=False)

    def _prepare(self, study_id: int) -> None:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)  # the least that an application may expect
        environ["PATH_INFO"] = f"/api/studies/{study_id}"
        with suppress(Exception):  # the request itself says what is wrong
            self(study_id, environ, lambda *_: None)

    def _attrs(self, study_id: int) -> Mapping[str, Any]:
        try:
            return self._storage.get_study_system_attrs(study_id)
        except KeyError:  # the dashboard says so
            return {}

    def _identity(self, study_id: int, attrs: Mapping[str, Any]) -> _Identity | None:
        try:
            name = self._storage.get_study_name_from_id(study_id)
            trials = self._storage.get_all_trials(study_id, deepcopy=False)
        except KeyError:
            return None
        start = trials[0].datetime_start if trials else None
        if start is None:
            return None
        of_trials = {k: v for k, v in attrs.items() if _OF_A_TRIAL.match(k)}
        return _Identity(study_id, name, start.isoformat().encode(), of_trials)


def _split(
    body: bytes, notes: Mapping[int, Mapping[str, Any]]
) -> tuple[bytes, list[bytes], dict[str, Any]]:
    """Return the answer up to its trials, the trials with their notes, and the rest, parsed.

    The trials, megabytes of a long study, are not parsed. The plots of a study, whose order is
    random, are put in order.
    """
    begin, end = body.index(_TRIALS) + len(_TRIALS), body.index(_BEST)
    texts = body[begin:end].split(_NEXT)
    trials = [texts[0], *(_NEXT[2:] + text for text in texts[1:])] if texts[0] else []
    if notes:
        for i, trial in enumerate(trials):
            note = notes.get(int(trial[len(_NEXT) - 2 : trial.index(b",")]))
            if note is not None:
                trials[i] = trial.replace(_NO_NOTE, b'"note": ' + json.dumps(note).encode(), 1)
    rest = json.loads(b"{" + body[end + 3 :])
    for best in rest["best_trials"]:
        best["note"] = notes.get(best["trial_id"], best["note"])
    rest["plotly_graph_objects"].sort(key=lambda plot: str(plot["id"]))
    return body[:begin], trials, rest


def find_notes(attrs: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the notes of trials, as the dashboard's pages get them, by trial identifier.

    Args:
        attrs: The system attributes of a study. A long note is in several of them.
    """
    parts: dict[int, dict[str, Any]] = defaultdict(dict)
    for key, value in attrs.items():
        found = _NOTE.fullmatch(key)
        if found is not None:
            parts[int(found[1])][found[2]] = value
    return {
        trial_id: {
            "version": int(of["ver"]),
            "body": "".join(str(of.get(f"str:{i}", "")) for i in range(len(of) - 1)),
        }
        for trial_id, of in parts.items()
        if "ver" in of
    }


def edited(
    app: App,
    environ: dict[str, Any],
    start: Callable[..., Any],
    edit: Callable[[bytes], bytes],
) -> list[bytes]:
    """Answer with what `edit` makes of the dashboard's answer."""
    for name in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE"):
        environ.pop(name, None)  # a whole answer, not what a browser has or wants of the original
    head: list[Any] = []
    chunks = app(environ, lambda status, headers, *rest: head.extend((status, headers)))
    body = b"".join(chunks)
    if hasattr(chunks, "close"):  # it is a file
        chunks.close()
    status, headers = head
    if environ["REQUEST_METHOD"] == "GET" and status.startswith("200"):
        body = edit(body)
        headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
        headers.append(("Content-Length", str(len(body))))
    start(status, headers)
    return [body]
