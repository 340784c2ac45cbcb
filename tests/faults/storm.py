"""Kill many workers of one search at random (kill -9): nothing may be lost, doubled or stuck.

    python tests/faults/storm.py [--storage sqlite|postgresql|journal|grpc|URL] [--trials 500]
        [--kills 40] [--seconds 1200] [--crashes] [--crash-every 15]
        [--json FILE]

Eight workers share one search. One of them is killed and replaced again and again. With
`--crashes`, the PostgreSQL server is crashed now and then, too. At the end an undisturbed worker
finishes the search. Prints and checks: duplicated points, acknowledged results that are lost,
openers that fail to replay, completed draws that entered no update, forks, lag, longest stall.
Exits with 1 if anything is wrong. Stops killing after `--seconds` in any case.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).parents[1]))
from reports import save
from servers import GrpcProxy, PostgresServer, new_database

from optuna_s2e import S2ESampler, open_storage
from optuna_s2e.analysis import Snapshot
from optuna_s2e.analysis._generations import replay_thetas
from optuna_s2e.history._ledger import Ledger
from optuna_s2e.history._record import Rules

WORKER = Path(__file__).with_name("worker.py")
STUDY, K = "storm", 6
TURNED_AWAY = 75  # of worker.py


class Storm:
    """Workers that are killed and replaced."""

    def __init__(self, url: str, folder: Path, n_workers: int) -> None:
        self.url, self.started = url, 0
        self.kills = self.died = self.turned_away = 0
        self.acknowledged, self._log = folder / "acknowledged", (folder / "log").open("w")
        self.log = folder / "log"
        self.acknowledged.touch()
        self.workers = [self.start() for _ in range(n_workers)]

    def start(self) -> subprocess.Popen[bytes]:
        self.started += 1
        argv = [sys.executable, str(WORKER), self.url, str(self.acknowledged)]
        return subprocess.Popen(argv, stderr=self._log)

    def count_end(self, worker: subprocess.Popen[bytes]) -> None:
        turned_away = worker.returncode == TURNED_AWAY
        self.turned_away += turned_away
        self.died += not turned_away

    def kill_one(self) -> None:
        for i, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.count_end(worker)
                self.workers[i] = self.start()
        i = random.randrange(len(self.workers))
        self.workers[i].kill()
        self.workers[i].wait()
        self.kills += 1
        self.workers[i] = self.start()

    def results(self) -> list[tuple[int, float, float]]:
        """Return (number, value, time) of all acknowledged trials."""
        lines = self.acknowledged.read_text().split("\n")[:-1]
        return [(int(n), float(v), float(t)) for n, v, t in map(str.split, lines)]

    def end(self) -> None:
        for worker in self.workers:
            if worker.poll() is not None:
                self.count_end(worker)
            worker.kill()
            worker.wait()
        self._log.close()


def examine(url: str, storm: Storm) -> dict[str, Any]:
    """Finish the search with an undisturbed worker and count what has gone wrong."""
    storage = open_storage(url)
    sampler = S2ESampler(seed=0, population_size=K)
    study = optuna.load_study(study_name=STUDY, storage=storage, sampler=sampler)
    n_before = len(study.trials)
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    # asks use up the completed draws; they are not told, so that they add no draw
    for _ in range(len(complete) // K + 2):
        study.ask().suggest_float("x0", 0, 1)
        if len(complete) - len(Snapshot.of(study).progress.lags) < K:
            break
    trials = study.trials
    drawn = {t.number for t in complete}
    snapshot = Snapshot.of(study)
    generations = snapshot.generations
    used = [n for g in generations for n in g.members]
    openers, unequal = replay_all_openers(study)
    points = Counter(tuple(t.params.values()) for t in trials[:n_before] if len(t.params) == 4)
    stored = {t.number: t.value for t in trials}
    results = storm.results()
    times = sorted(t for _, _, t in results)
    lags = Counter(snapshot.progress.lags)
    return {
        "trials": n_before,
        "complete": len(complete),
        "workers started": storm.started,
        "kills": storm.kills,
        "workers that died of themselves": storm.died,
        "began while no server was there": storm.turned_away,
        "duplicated points": sum(c - 1 for c in points.values()),
        "acknowledged": len(results),
        "acknowledged lost": sum(stored.get(n) != v for n, v, _ in results),
        "generations": len(generations) - 1,
        "openers, forks included": openers,
        "openers that fail to replay": unequal + len(snapshot.ledger.damage()),
        "members used twice": len(used) - len(set(used)),
        "completed draws": len(drawn),
        "entered an update": len(drawn & set(used)),
        "left for the next (< K)": len(drawn - set(used)),
        "forks": snapshot.n_forks,
        "left RUNNING by kills": sum(t.state == TrialState.RUNNING for t in trials[:n_before]),
        "lag": {str(lag): lags[lag] for lag in sorted(lags)},
        "longest stall, s": round(max(np.diff(times), default=0.0), 2),
        "numbers without gaps": [t.number for t in trials] == list(range(len(trials))),
    }


def replay_all_openers(study: optuna.Study) -> tuple[int, int]:
    """Return the number of openers, with those of forks, and how many of them do not replay."""
    ledger = Ledger(Rules.of(study)).read(study.trials)
    chain = ledger.state(1).chain
    if chain is None:
        return 0, 0
    thetas = replay_thetas(chain, ledger)
    unequal = sum(not np.array_equal(t, ledger.openers[n].theta) for n, t in thetas.items())
    return len(thetas), unequal


def is_sound(report: dict[str, Any]) -> bool:
    """Say whether nothing is lost, doubled or stuck."""
    zero = (
        "workers that died of themselves", "duplicated points", "acknowledged lost",
        "openers that fail to replay", "members used twice",
    )  # fmt: skip
    return (
        not any(report[name] for name in zero)
        and report["left for the next (< K)"] < K
        and report["numbers without gaps"]
    )


def run_storm(
    url: str,
    folder: Path,
    *,
    n_trials: int,
    n_kills: int,
    seconds: float,
    n_workers: int = 8,
    pause: float = 1.0,
    server: PostgresServer | None = None,
    crash_every: int = 15,
) -> tuple[dict[str, Any], str]:
    """Kill workers until the numbers of trials and kills are reached, or the time is over.

    Returns:
        The report, and what the workers wrote to stderr.
    """
    start = time.monotonic()
    storm = Storm(url, folder, n_workers)
    crashes = 0
    try:
        while time.monotonic() - start < seconds:
            time.sleep(random.uniform(0.5, 1.5) * pause)
            storm.kill_one()
            if server is not None and storm.kills % crash_every == 0:
                server.stop("immediate")
                server.start()
                crashes += 1
            if storm.kills >= n_kills and len(storm.results()) >= n_trials:
                break
        time.sleep(2)
    finally:
        storm.end()
    report = examine(url, storm) | {
        "database crashes": crashes,
        "seconds": round(time.monotonic() - start),
        "trials and kills reached": storm.kills >= n_kills and len(storm.results()) >= n_trials,
    }
    return report, storm.log.read_text()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", default="sqlite")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between two kills")
    parser.add_argument("--crashes", action="store_true", help="crash PostgreSQL now and then")
    parser.add_argument("--crash-every", type=int, default=15, help="kills between two crashes")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    server = proxy = None
    with tempfile.TemporaryDirectory() as name:
        folder, url = Path(name), args.storage
        try:
            if url in ("postgresql", "grpc"):
                server = PostgresServer()
                url = new_database(server.url)
            if args.storage == "grpc":
                proxy = GrpcProxy(url, n_threads=20)
                url = proxy.url
            if url in ("sqlite", "journal"):
                url = f"{url}:///{folder}/storm.db"
            report, log = run_storm(
                url, folder, n_trials=args.trials, n_kills=args.kills, seconds=args.seconds,
                n_workers=args.workers, pause=args.pause, server=server if args.crashes else None,
                crash_every=args.crash_every,
            )  # fmt: skip
        finally:
            if proxy is not None:
                proxy.kill()
            if server is not None:
                server.remove()
    estimator = S2ESampler().settings["estimator"]
    report = {"storage": args.storage, "estimator": estimator, "workers": args.workers, **report}
    for key, value in report.items():
        print(f"{key + ':':34}{value}")
    save(args.json, [report])
    sound = is_sound(report)
    if not sound:
        print(log[-4000:])
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
