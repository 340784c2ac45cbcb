"""The contract for many workers on SQLite, PostgreSQL, the journal and the gRPC proxy."""

import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

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
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param in ("sqlite", "journal"):
        yield f"{request.param}:///{tmp_path}/s.db"
        return
    database: str = request.getfixturevalue("postgres_url")
    if request.param == "postgresql":
        yield database
        return
    from servers import GrpcProxy

    proxy = GrpcProxy(database)
    yield proxy.url
    proxy.kill()


def objective(trial: optuna.Trial) -> float:
    return sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(3))


def make_study(url: str) -> optuna.Study:
    sampler = S2ESampler(population_size=K, seed=0)
    return optuna.create_study(
        study_name="s", storage=open_storage(url), sampler=sampler, load_if_exists=True
    )


def work(url: str, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    make_study(url).optimize(objective, n_trials=n_trials)


def work_on(pickled: bytes, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pickle.loads(pickled).optimize(objective, n_trials=n_trials)


def work_in_a_fork(study: optuna.Study, n_trials: int) -> None:
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
        study.ask().suggest_float("x0", 0, 1)
    used = {n for g in generations(study) for n in g.members}
    assert len(set(range(n_trials)) - used) < K


def test_search_with_processes_threads_and_asks_ahead(url: str) -> None:
    study = make_study(url)
    study.optimize(objective, n_trials=2)  # connections are open when the children come
    spawn, fork = (multiprocessing.get_context(method) for method in ("spawn", "fork"))
    children = [
        spawn.Process(target=work, args=(url, 10)),
        spawn.Process(target=work_on, args=(pickle.dumps(study), 10)),
        fork.Process(target=work_in_a_fork, args=(study, 10)),
    ]
    for child in children:
        child.start()
    study.optimize(objective, n_trials=12, n_jobs=3)
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0, 0]
    asked = [study.ask() for _ in range(2 * K)]  # before any of them is told
    values = [objective(trial) for trial in asked]
    for trial, value in zip(asked, values, strict=True):
        study.tell(trial, value)
    assert_sound(study, 44 + 2 * K)


def test_one_worker_draws_the_same_on_every_storage(url: str) -> None:
    reference = optuna.create_study(sampler=S2ESampler(population_size=K, seed=0))
    reference.optimize(objective, n_trials=3 * K + 1)
    study = make_study(url)
    study.optimize(objective, n_trials=K + 1)
    again = make_study(url)  # another opening goes on
    again.optimize(objective, n_trials=2 * K)
    assert [t.params for t in again.trials] == [t.params for t in reference.trials]
    for a, b in zip(generations(again), generations(reference), strict=True):
        assert np.array_equal(a.theta, b.theta)


@pytest.mark.postgres
def test_grpc_proxy_that_is_killed_and_started_again_costs_nothing(postgres_url: str) -> None:
    from servers import GrpcProxy

    proxy = GrpcProxy(postgres_url)
    study = make_study(proxy.url)

    def killing(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number == 5:
            proxy.kill()
            proxy.start()
        return value

    study.optimize(killing, n_trials=10)
    assert_sound(study, 10)
    proxy.kill()


@pytest.mark.parametrize("url", ["grpc://", "grpc://host", "grpc://host:x", "grpc://u:secret@h"])
def test_grpc_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="must be grpc://HOST:PORT") as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
