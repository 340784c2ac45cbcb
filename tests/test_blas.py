"""The number of BLAS threads changes no bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

THETA = """
import optuna
from optuna_s2e import S2ESampler, generations
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(sampler=S2ESampler(seed=0, population_size=100))
study.optimize(lambda t: sum(t.suggest_float(f"x{i}", 0, 1) ** 2 for i in range(30)), 301)
print(generations(study)[3].theta.tobytes().hex())
"""


def run(code: str, *, threads: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_theta_is_the_same_for_any_number_of_threads() -> None:
    assert run(THETA, threads="1") == run(THETA, threads="2")


COME_AND_GO = """
import threading
from threadpoolctl import threadpool_info
from optuna_s2e._blas import one_blas_thread
def n_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
seen = []
def work():
    for _ in range(200):
        with one_blas_thread():
            seen.append(n_threads())
before = n_threads()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert seen == [{1}] * 800
assert n_threads() == before
"""


def test_threads_that_come_and_go_leave_the_number_as_it_was() -> None:
    run(COME_AND_GO, threads="2")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_forked_inside_gets_a_lock_of_its_own() -> None:
    code = """
import os, threading
from optuna_s2e._blas import one_blas_thread
inside, leave = threading.Event(), threading.Event()
def hold():
    with one_blas_thread():
        inside.set()
        leave.wait(20)
thread = threading.Thread(target=hold)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    with one_blas_thread():
        os._exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
leave.set()
thread.join()
raise SystemExit(status)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 7
