"""Drivers and workers that die, at any write and at any time: no theta changes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from batches import (
    Dead,
    DyingStorage,
    K,
    assert_sound,
    completed,
    new_study,
    parabola,
    states,
    thetas,
)
from optuna.trial import Trial, TrialState

from optuna_s2e import generations, open_storage, optimize_batch
from optuna_s2e.parallel import _lease as lease


def failing_above(trial: Trial) -> float:
    trial.set_user_attr("note", 1)
    x = trial.suggest_float("x", 0, 1)
    if x > 0.4:
        raise ValueError("too large")
    return x


@pytest.mark.parametrize(
    ("after", "estimator", "step"),
    [(False, "natural", 1), (True, "natural", 1), (False, "surrogate", 4)],
)
def test_a_driver_may_die_at_any_write(
    after: bool, estimator: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_lives", lambda *_: False)  # its process is this one
    calm = new_study(size=2, estimator=estimator)
    optimize_batch(calm, failing_above, 5, max_attempts=2)
    assert len(generations(calm)) == 3
    assert any(t.state == TrialState.FAIL for t in calm.trials)
    n, died = 0, True
    while died:
        n += step
        storage = DyingStorage(10**9, after)
        study = new_study(storage, size=2, estimator=estimator)
        storage.left, died = n, False
        try:
            optimize_batch(study, failing_above, 5, max_attempts=2)
        except Dead:
            died = True
        storage.left = 10**9
        optimize_batch(study, failing_above, 5, max_attempts=2)
        assert thetas(study, 3) == thetas(calm), n
        assert_sound(study)
    assert n > 30


@pytest.mark.parametrize("after", [False, True])
def test_no_enqueued_point_is_lost_with_its_driver(
    after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_lives", lambda *_: False)
    n, died = 0, True
    while died:
        n += 1
        storage = DyingStorage(10**9, after)
        study = new_study(storage, size=2)
        study.enqueue_trial({"x": 0.25})
        storage.left, died = n, False
        try:
            optimize_batch(study, failing_above, 1)
        except Dead:
            died = True
        storage.left = 10**9
        optimize_batch(study, failing_above, 2)
        assert any(t.params.get("x") == 0.25 and t.value == 0.25 for t in study.trials), n
        assert states(study) <= {TrialState.COMPLETE, TrialState.FAIL}
    assert n > 5


DRIVER = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import optuna
from optuna_s2e import S2ESampler, open_storage, optimize_batch
from batches import K, parabola
optuna.logging.set_verbosity(optuna.logging.ERROR)

def make():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))

if __name__ == "__main__":
    study = optuna.create_study(
        study_name="s", storage=open_storage(sys.argv[1]), load_if_exists=True,
        sampler=S2ESampler(population_size=K, estimator="natural", seed=0),
    )
    optimize_batch(study, parabola, int(sys.argv[2]), executor=make, max_attempts=50)
"""


def start_driver(url: str, n_trials: int) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DRIVER, url, str(n_trials)],
        env=env,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def storm(url: str) -> optuna.Study:
    """Drive a search while its workers and its driver are killed, -9, at random moments."""
    study = new_study(open_storage(url))
    end, n = time.monotonic() + 90, 5 * K + 1
    kills = 0
    for target in (n // 2, n):
        driver = start_driver(url, n - completed(study))
        while completed(study) < target and driver.poll() is None:
            assert time.monotonic() < end, "the driver made no progress"
            time.sleep(random.random() * 0.2)
            workers = children(driver.pid)
            if workers and kills < 4:
                os.kill(random.choice(workers), signal.SIGKILL)
                kills += 1
        if target < n:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    assert driver.wait(60) == 0
    assert kills > 0
    return study


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_killed_workers_and_drivers_change_no_theta(
    tmp_path: Path, undisturbed: list[str]
) -> None:
    study = storm(f"sqlite:///{tmp_path}/s.db")
    assert thetas(study, 6) == undisturbed[6]
    assert_sound(study)


@pytest.mark.postgres
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_killed_workers_and_drivers_change_no_theta_on_postgresql(
    postgres_url: str, undisturbed: list[str]
) -> None:
    study = storm(postgres_url)
    assert thetas(study, 6) == undisturbed[6]
    assert_sound(study)


def test_sigterm_leaves_no_trial_running(tmp_path: Path, undisturbed: list[str]) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study = new_study(open_storage(url))
    driver = start_driver(url, 1000)
    while completed(study) < 3:
        assert driver.poll() is None
        time.sleep(0.02)
    driver.terminate()
    assert driver.wait(60) == 128 + signal.SIGTERM
    assert TrialState.RUNNING not in states(study)
    optimize_batch(study, parabola, 2 * K)
    assert thetas(study, 3) == undisturbed[3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_no_trial_running(error: type[BaseException]) -> None:
    def interrupted(trial: Trial) -> float:
        if trial.number == K + 2:
            raise error
        return parabola(trial)

    study = new_study()
    with pytest.raises(error):
        optimize_batch(study, interrupted, 20)
    assert len(study.trials) == 2 * K
    assert TrialState.RUNNING not in states(study)
    optimize_batch(study, parabola, 4 * K)
    study.optimize(parabola, 1)
    calm = new_study()
    optimize_batch(calm, parabola, 4 * K + 1)
    assert thetas(study, 5) == thetas(calm)
