"""optimize_batch under kill -9: are the thetas the same bits, whoever ran trials and died?

Runs one search with several executors, numbers of workers and storages. Its workers and its driver
are killed at random moments. Every theta is compared with that of an undisturbed run in one
process. The objective is noisy (by the seed of the slot) and fails at some points. Prints a table.
Exits with 1 if any run differs.

    python tests/faults/batch_storm.py --seconds 600 [--only grpc ray] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

sys.path.insert(0, str(Path(__file__).parents[1]))
from reports import save
from servers import GrpcProxy, PostgresServer, new_database

from optuna_s2e import RayExecutor, S2ESampler, generations, open_storage, optimize_batch
from optuna_s2e.analysis import Snapshot, verify

K, GENERATIONS = 6, 7
N_TRIALS = K * (GENERATIONS - 1) + 1  # the last one opens the last generation


class Run(NamedTuple):
    """One search: its executor, the number of workers, its storage, and what is killed."""

    executor: str
    workers: int
    storage: str
    killed: str


RUNS = [
    Run("threads", 1, "sqlite", "nothing"),
    Run("processes", 3, "sqlite", "both"),
    Run("processes", 8, "postgres", "both"),
    Run("processes", 3, "journal", "both"),
    Run("threads", 8, "postgres", "nothing"),
    Run("spawned", 3, "sqlite", "workers"),
    Run("none", 1, "postgres", "driver"),
    Run("together", 1, "journal", "driver"),
    Run("loky", 3, "journal", "workers"),
    Run("processes", 8, "sqlite", "both"),
    Run("processes", 1, "sqlite", "driver"),
    Run("processes", 3, "postgres", "both"),
    Run("spawned", 3, "postgres", "driver"),
    Run("threads", 8, "journal", "driver"),
    Run("loky", 8, "sqlite", "both"),
    Run("processes", 8, "journal", "both"),
    Run("processes", 3, "grpc", "both"),
    Run("threads", 8, "grpc", "driver"),
]
if importlib.util.find_spec("ray") is not None:
    RUNS.append(Run("ray", 3, "sqlite", "driver"))


class Objective:
    """A noisy bowl that fails in a corner and takes its time."""

    def __call__(self, trial: Trial) -> float:
        x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(5)]
        kind = trial.suggest_categorical("kind", ["a", "b"])
        time.sleep(random.random() * 0.15)
        if x[0] > 0.8:
            raise ValueError("x0 is too large")
        noise = np.random.default_rng(trial.user_attrs["seed"]).normal()
        return float(sum((v - 0.3) ** 2 for v in x) + (kind == "b") + 0.1 * noise)


class Together(Objective):
    """The same objective for a whole batch."""

    def batch(self, trials: Sequence[Trial]) -> list[float | Exception]:
        values: list[float | Exception] = []
        for trial in trials:
            try:
                values.append(self(trial))
            except ValueError as error:
                values.append(error)
        return values


def executor_of(run: Run) -> Any:
    def loky() -> Any:
        from joblib.externals.loky import get_reusable_executor

        return get_reusable_executor(run.workers)

    def processes(method: str) -> Callable[[], ProcessPoolExecutor]:
        context = multiprocessing.get_context(method)
        return lambda: ProcessPoolExecutor(run.workers, mp_context=context)

    def ray() -> RayExecutor:
        import ray

        if not ray.is_initialized():
            ray.init(num_cpus=run.workers, include_dashboard=False, log_to_driver=False)
        return RayExecutor()

    return {
        "none": None,
        "together": None,
        "threads": lambda: ThreadPoolExecutor(run.workers),
        "processes": processes("fork"),
        "spawned": processes("spawn"),
        "loky": loky,
        "ray": ray,
    }[run.executor]


def open_study(url: str | None) -> optuna.Study:
    return optuna.create_study(
        study_name="storm",
        storage=None if url is None else open_storage(url),
        # the estimator whose draws depend on what else is pending
        sampler=S2ESampler(population_size=K, seed=0, estimator="surrogate"),
        load_if_exists=True,
    )


def drive(url: str, run: Run) -> None:
    """Search until the trials are complete. This runs in the process that gets killed."""
    study = open_study(url)
    objective = Together() if run.executor == "together" else Objective()
    while (missing := missing_trials(study)) > 0:
        optimize_batch(study, objective, missing, executor=executor_of(run), max_attempts=4)


def missing_trials(study: optuna.Study) -> int:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    enough = len(generations(study)) >= GENERATIONS
    return 0 if enough else max(1, N_TRIALS - len(done))


def thetas(study: optuna.Study) -> str:
    told = generations(study)[:GENERATIONS]
    assert len(told) == GENERATIONS
    return hashlib.sha256(b"".join(g.theta.tobytes() for g in told)).hexdigest()[:12]


class Toll(NamedTuple):
    """How often workers and drivers of a run were killed, and how often it was started."""

    kills_of_workers: int
    kills_of_drivers: int
    starts: int


def storm(url: str, run: Run, n_kills: int, end: float) -> Toll:
    """Run a search to its end, and kill what the run says."""
    command = [sys.executable, "-W", "ignore", __file__, "--drive", url, *map(str, run)]
    study = open_study(url)
    kills = {"workers": 0, "driver": 0}
    starts = 0
    while True:
        asked = len(study.get_trials(deepcopy=False))
        driver = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        starts += 1
        try:
            while driver.poll() is None:
                if time.monotonic() > end:
                    raise TimeoutError(f"{run} did not end in time")
                time.sleep(random.uniform(0.0, 0.6))
                if len(study.get_trials(deepcopy=False)) == asked:
                    continue  # not begun yet
                victim = (
                    random.choice(["workers", "driver"]) if run.killed == "both" else run.killed
                )
                victims = {"workers": descendants(driver.pid), "driver": [driver.pid]}
                if victims.get(victim) and sum(kills.values()) < n_kills:
                    kills[victim] += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(random.choice(victims[victim]), signal.SIGKILL)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)  # also orphans of a dead driver
            driver.wait()
        if driver.returncode == 0:
            return Toll(kills["workers"], kills["driver"], starts)
        if starts > 3 * n_kills + 10:
            raise RuntimeError(f"{run}: the driver fails again and again")


def descendants(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found


@contextlib.contextmanager
def storages(folder: Path) -> Iterator[Callable[[str, int], str]]:
    """Yield a function that makes a fresh storage URL. PostgreSQL and proxies run inside."""
    server, proxies = PostgresServer(), []

    def make(kind: str, n: int) -> str:
        if kind in ("sqlite", "journal"):
            return f"{kind}:///{folder}/{n}.db"
        url = new_database(server.url)
        if kind == "grpc":
            proxies.append(GrpcProxy(url))
            url = proxies[-1].url
        return url

    try:
        yield make
    finally:
        for proxy in proxies:
            proxy.kill()
        server.remove()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, default=600, help="no run begins after that")
    parser.add_argument("--only", nargs="+", help="runs of these executors and storages")
    parser.add_argument("--kills", type=int, default=6, help="at most, in one run")
    parser.add_argument("--seed", type=int, default=None, help="of the kills")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--drive", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.drive:
        url, executor, workers, storage, killed = args.drive
        drive(url, Run(executor, int(workers), storage, killed))
        return 0
    random.seed(args.seed)
    calm = open_study(None)
    while missing := missing_trials(calm):
        optimize_batch(calm, Objective(), missing, max_attempts=4)
    expected, end = thetas(calm), time.monotonic() + args.seconds
    print(f"K = {K}, {GENERATIONS} thetas, undisturbed: {expected}")
    print(f"{'executor':10} {'workers':>7} {'storage':9} {'killed':8} {'kills w/d':>9} "
          f"{'starts':>6} {'trials':>6} {'seconds':>7}  thetas")  # fmt: skip
    same, total, tolls, rows = 0, 0, [], []
    with tempfile.TemporaryDirectory() as name, storages(Path(name)) as make:
        runs = [r for r in RUNS if not args.only or {r.executor, r.storage} & set(args.only)]
        for n, run in enumerate(runs):
            if time.monotonic() > end:
                print(f"Out of time: {len(runs) - n} runs were not made.")
                break
            started, url = time.monotonic(), make(run.storage, n)
            toll = storm(url, run, args.kills, end + 120)
            study = open_study(url)
            check = verify(Snapshot.of(study))
            running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
            sound = check.sound and "bit for bit" in check.message and running == 0
            equal = thetas(study) == expected
            total, same = total + 1, same + (equal and sound)
            tolls.append(toll)
            row = run._asdict() | toll._asdict() | {"bit_identical": equal, "sound": sound}
            rows.append(row)
            verdict = ("the same" if equal else "DIFFERENT") + ("" if sound else ", NOT SOUND")
            print(f"{run.executor:10} {run.workers:7} {run.storage:9} {run.killed:8} "
                  f"{toll.kills_of_workers:5}/{toll.kills_of_drivers:<3} {toll.starts:6} "
                  f"{len(study.trials):6} {time.monotonic() - started:7.1f}  {verdict}",
                  flush=True)  # fmt: skip
    workers, drivers = (sum(t[i] for t in tolls) for i in (0, 1))
    print(f"bit-identical / total: {same} / {total} ({workers} workers and {drivers} drivers "
          "killed)")  # fmt: skip
    save(args.json, rows)
    return 0 if same == total else 1


if __name__ == "__main__":
    sys.exit(main())
