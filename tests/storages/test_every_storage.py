"""The contract for many workers on SQLite, PostgreSQL, the journal and the gRPC proxy."""

import multiprocessing
import pickle
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from processes import CONTEXT

from optuna_s2e import S2ESampler, generations, open_storage, replay

K = 4
SCHEMES = [
    "sqlite",
    "journal",
    pytest.param("postgresql", marks=pytest.mark.postgres),
    pytest.param("grpc", marks=pytest.mark.postgres),
]
pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


@pytest.fixture(params=SCHEMES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in ("sqlite", "journal"):
        return f"{request.param}:///{tmp_path}/s.db"
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return str(request.getfixturevalue("grpc_proxy").url)


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex  # the gRPC proxy is shared


def objective(trial: optuna.Trial) -> float:
    return sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(3))


def make_study(url: str, name: str) -> optuna.Study:
    sampler = S2ESampler(population_size=K, estimator="natural", seed=0)
    return optuna.create_study(
        study_name=name, storage=open_storage(url), sampler=sampler, load_if_exists=True
    )


def open_and_work(url: str, name: str, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    make_study(url, name).optimize(objective, n_trials=n_trials)


def work(study: optuna.Study, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study.optimize(objective, n_trials=n_trials)


def assert_sound(study: optuna.Study, n_trials: int) -> None:
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * n_trials
    assert len({tuple(t.params.values()) for t in study.trials}) == n_trials
    told, computed = generations(study), replay(study)
    for a, b in zip(told, computed, strict=True):
        assert np.array_equal(a.theta, b.theta)
    members = [n for g in told for n in g.members]
    assert len(members) == len(set(members))
    for _ in range(n_trials // K + 1):  # asks that drain the pool
        used = {n for g in generations(study) for n in g.members}
        if len(set(range(n_trials)) - used) < K:
            return
        study.ask().suggest_float("x0", 0, 1)
    pytest.fail("Completed draws wait for an update.")


def test_search_with_processes_threads_and_asks_ahead(url: str, name: str) -> None:
    study = make_study(url, name)
    study.optimize(objective, n_trials=2)  # connections are open when the children come
    # a fresh process of its own for each child, as with "spawn", but one start of an interpreter
    fresh, fork = CONTEXT, multiprocessing.get_context("fork")
    children: list[Any] = [
        fresh.Process(target=open_and_work, args=(url, name, 4)),
        fresh.Process(target=work, args=(study, 4)),  # pickled
        fork.Process(target=work, args=(study, 4)),
    ]
    for child in children:
        child.start()
    study.optimize(objective, n_trials=9, n_jobs=3)
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 3
    asked = [study.ask() for _ in range(2 * K)]  # before any of them is told
    values = [objective(trial) for trial in asked]
    for trial, value in zip(asked, values, strict=True):
        study.tell(trial, value)
    assert_sound(study, 2 + 3 * 4 + 9 + 2 * K)


@pytest.fixture(scope="module")
def in_memory() -> optuna.Study:
    """Return the search that every storage must make."""
    study = optuna.create_study(sampler=S2ESampler(population_size=K, estimator="natural", seed=0))
    study.optimize(objective, n_trials=3 * K + 1)
    return study


def test_one_worker_draws_the_same_on_every_storage(
    url: str, name: str, in_memory: optuna.Study
) -> None:
    make_study(url, name).optimize(objective, n_trials=K + 1)
    # another opening goes on, from a pickled study as well
    again = pickle.loads(pickle.dumps(make_study(url, name)))
    again.optimize(objective, n_trials=2 * K)
    assert [t.params for t in again.trials] == [t.params for t in in_memory.trials]
    for a, b in zip(generations(again), generations(in_memory), strict=True):
        assert np.array_equal(a.theta, b.theta)
