"""Many workers at once on one PostgreSQL: real storage calls, training is a sleep.

    python tests/benchmarks/bench_load.py [--workers 128] [--trials 3] [--train 26]
    python tests/benchmarks/bench_load.py --grpc [--workers 256] [--trials 2] [--train 51]

Processes that open PostgreSQL themselves, or clients of Optuna's gRPC proxy in front of it (64
threads in each of four processes: the proxy sees as many clients, this machine has the memory).
Wall milliseconds of an ask with its suggestions and of a tell, trials per second between the
first and the last 10 %, and what of the ask is spent outside of the storage.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import random
import re
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psycopg
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).parents[1]))
from reports import objective, quantiles, save, shown
from servers import GrpcProxy, PostgresServer, new_database

from optuna_s2e import S2ESampler, generations, open_storage, replay
from optuna_s2e.analysis import Snapshot
from optuna_s2e.storages._retry import RetryingStorage

MAX_CONNECTIONS = 500  # of the server; PostgreSQL's default is 100
PROCESSES = 4  # that the clients of the proxy share


class Clock(threading.local):
    """Seconds that this thread has spent in storage calls."""

    def __init__(self) -> None:
        self.stored = 0.0


CLOCK = Clock()


def prepare() -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run = RetryingStorage._run

    def timed(self: Any, operation: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return run(self, operation, **options)
        finally:
            CLOCK.stored += time.perf_counter() - start

    RetryingStorage._run = timed  # type: ignore[assignment, method-assign]


def worker(url: str, estimator: str, n_trials: int, train: float, found: Any) -> None:
    time.sleep(random.random() * train)  # a cluster does not start all at once either
    sampler = S2ESampler(seed=0, estimator=estimator)
    study = optuna.load_study(study_name="load", storage=open_storage(url), sampler=sampler)
    for _ in range(n_trials):
        begin, stored = time.perf_counter(), CLOCK.stored
        trial = study.ask()
        value = objective(trial)
        asked = time.perf_counter() - begin
        in_storage = CLOCK.stored - stored
        time.sleep(random.uniform(0.5, 1.5) * train)
        begin = time.perf_counter()
        study.tell(trial, value)
        told = time.perf_counter() - begin
        found.put((asked, told, in_storage, time.time()))


def threads_of_workers(n: int, *args: Any) -> None:
    prepare()
    threads = [threading.Thread(target=worker, args=args) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def load(
    n_workers: int, n_trials: int, train: float, estimator: str, *, grpc: bool
) -> dict[str, Any]:
    """Let workers loose and measure."""
    server, proxy = PostgresServer(), None
    try:
        plain = server.url.replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}")  # type: ignore[arg-type]
        server.stop()
        server.start()
        url = address = new_database(server.url)
        optuna.create_study(study_name="load", storage=open_storage(url))
        context = multiprocessing.get_context("spawn" if grpc else "fork")
        found = context.Queue()
        if grpc:
            proxy = GrpcProxy(url, n_threads=20)
            address = proxy.url
            args = (n_workers // PROCESSES, address, estimator, n_trials, train, found)
            processes = [
                context.Process(target=threads_of_workers, args=args) for _ in range(PROCESSES)
            ]
        else:
            prepare()
            processes = [
                context.Process(target=worker, args=(address, estimator, n_trials, train, found))
                for _ in range(n_workers)
            ]
        start = time.time()
        for process in processes:
            process.start()
        results, memory, at_load = collect(found, processes, n_workers * n_trials)
        codes = [process.exitcode for process in processes]
        study = optuna.load_study(study_name="load", storage=open_storage(url))
        return report(study, results, n_workers * n_trials) | {
            "workers": n_workers,
            "estimator": estimator,
            "as": "clients of the gRPC proxy" if grpc else "processes",
            "mean_trial_s": train,
            "processes_died": sum(code != 0 for code in codes),
            "memory_of_workers_gb": round(memory, 1),
            "seconds": round(time.time() - start),
            "load_average": round(at_load, 1),
        }
    finally:
        if proxy is not None:
            proxy.kill()
        server.remove()


def collect(found: Any, processes: list[Any], n: int) -> tuple[list[Any], float, float]:
    """Return all results, the most memory that the workers held (GB), and the load average."""
    results: list[Any] = []
    memory = at_load = 0.0
    while len(results) < n:
        try:
            results.append(found.get(timeout=5))
        except queue.Empty:
            if not any(process.is_alive() for process in processes):
                break
        if len(results) % 100 == 50:
            memory = max(memory, held_memory([process.pid for process in processes]))
        at_load = max(at_load, os.getloadavg()[0])
    for process in processes:
        process.join()
    return results, memory, at_load


def held_memory(pids: list[int]) -> float:
    """Return GB that processes hold, shared pages counted once (PSS)."""
    kb = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kb += int(re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)[0])
    return kb / 1024**2


def report(study: optuna.Study, results: list[Any], n: int) -> dict[str, Any]:
    asked, told, in_storage, done = map(list, zip(*results, strict=True))
    middle = np.quantile(done, [0.1, 0.9])
    trials = study.trials
    points = [tuple(t.params.values()) for t in trials if t.params]
    pairs = list(zip(generations(study), replay(study), strict=True))
    return {
        "trials": n,
        "complete": sum(t.state == TrialState.COMPLETE for t in trials),
        "duplicated_points": len(points) - len(set(points)),
        "thetas": len(pairs),
        "forks": Snapshot.of(study).n_forks,
        "thetas_that_fail_to_replay": sum(not np.array_equal(a.theta, b.theta) for a, b in pairs),
        "trials_per_s": round(0.8 * len(done) / (middle[1] - middle[0]), 2),
        "ask_wall": quantiles(asked),
        "tell_wall": quantiles(told),
        "ask_outside_of_storage_percent": round(100 * (1 - sum(in_storage) / sum(asked)), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grpc", action="store_true", help="through Optuna's gRPC proxy")
    parser.add_argument("--workers", type=int, help="default 128; 256 clients of the proxy")
    parser.add_argument("--trials", type=int, default=3, help="of each worker")
    parser.add_argument("--train", type=float, help="mean seconds of a trial; default W / 5")
    parser.add_argument("--estimator", default=S2ESampler().settings["estimator"])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    n_workers = args.workers or (256 if args.grpc else 128)
    train = n_workers / 5 if args.train is None else args.train
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    row = load(n_workers, args.trials, train, args.estimator, grpc=args.grpc)
    print(shown(row))
    save(args.json, [row])


if __name__ == "__main__":
    main()
