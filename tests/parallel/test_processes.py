"""Several processes on one study: no point drawn twice, nothing waits, every theta replays."""

import signal
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from processes import Process, wait_until

from optuna_s2e import S2ESampler, generations, open_storage, replay


def objective(trial: optuna.Trial) -> float:
    loss = sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(4))
    time.sleep(0.02)
    return loss


def work(url: str, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name="s",
        storage=open_storage(url),
        sampler=S2ESampler(seed=0),
        load_if_exists=True,
    )
    study.optimize(objective, n_trials=n_trials)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def n_complete(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))


def assert_sound(study: optuna.Study) -> None:
    told, computed = generations(study), replay(study)
    assert len(told) > 1
    for a, b in zip(told, computed, strict=True):
        assert np.array_equal(a.theta, b.theta)
    members = [n for g in told for n in g.members]
    assert len(members) == len(set(members))
    points = [tuple(t.params.values()) for t in study.trials if len(t.params) == 4]
    assert len(points) == len(set(points))


@pytest.mark.postgres
def test_three_processes_with_one_seed_share_a_postgresql_database(
    postgres_url: str,
) -> None:
    storage = open_storage(postgres_url)
    workers = [Process(work, postgres_url, 8) for _ in range(3)]
    assert [w.wait() for w in workers] == [0] * 3, [w.errors for w in workers]
    study = optuna.load_study(study_name="s", storage=storage)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 24
    assert_sound(study)


def test_two_processes_with_one_seed_share_a_sqlite_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"  # both find no table and make them at once
    workers = [Process(work, url, 18) for _ in range(2)]
    assert [w.wait() for w in workers] == [0, 0], [w.errors for w in workers]
    study = optuna.load_study(study_name="s", storage=url)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 36
    assert_sound(study)
    assert sum(len(g.members) for g in generations(study)) >= 36 - 2 * 6


def test_killed_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """kill -9 in the middle of a generation, three times, then the same command again."""
    url = f"sqlite:///{tmp_path}/s.db"
    open_storage(url)
    optuna.create_study(study_name="s", storage=url)
    study = optuna.load_study(study_name="s", storage=url)
    for kill in range(1, 4):
        worker = Process(work, url, 1000)
        wait_until(lambda n=9 * kill: n_complete(study) >= n, worker)  # type: ignore[misc]
        worker.stop(signal.SIGKILL)
    before = len(study.trials)
    assert Process(work, url, 12).wait() == 0
    assert len(study.trials) == before + 12
    assert sum(t.state == TrialState.RUNNING for t in study.trials) <= 3  # one per kill at most
    assert_sound(study)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_running_zombies_never_block(tmp_path: Path) -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=3, seed=0))
    for _ in range(20):
        study.ask().suggest_float("x", 0, 1)  # and never told
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(generations(study)) == 1 + 19 // 3
