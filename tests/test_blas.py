"""The number of BLAS threads changes no bit of theta. One process with two threads shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

CODE = """
import json, os, threading
import numpy as np
import optuna
from threadpoolctl import ThreadpoolController, threadpool_limits
from optuna_s2e import S2ESampler, generations, replay
from optuna_s2e._blas import one_blas_thread

found = {}
blas = ThreadpoolController().select(user_api="blas")

def n_threads():
    return {pool["num_threads"] for pool in blas.info()}

# a model of 140 points is fitted: from 130 on, the number of threads would change its bits
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(sampler=S2ESampler(seed=0, population_size=70))
study.optimize(lambda t: sum(t.suggest_float(f"x{i}", 0, 1) ** 2 for i in range(20)), 141)
found["threads of the search"] = sorted(n_threads())
with threadpool_limits(1, user_api="blas"):
    computed = replay(study)
found["thetas"] = [
    (told.theta.tobytes().hex(), again.theta.tobytes().hex())
    for told, again in zip(generations(study), computed, strict=True)
]

# threads that come and go
inside = []
def work():
    for _ in range(200):
        with one_blas_thread():
            inside.append(n_threads())
before = n_threads()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
found["only one inside"] = inside == [{1}] * 800
found["restored"] = n_threads() == before

# a child that is forked while another thread is inside
entered, leave = threading.Event(), threading.Event()
def hold():
    with one_blas_thread():
        entered.set()
        leave.wait(20)
thread = threading.Thread(target=hold)
thread.start()
entered.wait()
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        with one_blas_thread():
            os._exit(7)
    found["child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
leave.set()
thread.join()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True, text=True, check=True, env=environment, timeout=120,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def test_theta_is_the_same_for_any_number_of_threads(found: dict[str, Any]) -> None:
    assert found["threads of the search"] == [2]
    assert len(found["thetas"]) == 3
    for told, again in found["thetas"]:
        assert told == again


def test_threads_that_come_and_go_leave_the_number_as_it_was(found: dict[str, Any]) -> None:
    assert found["only one inside"]
    assert found["restored"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_forked_inside_gets_a_lock_of_its_own(found: dict[str, Any]) -> None:
    assert found["child"] == 7
