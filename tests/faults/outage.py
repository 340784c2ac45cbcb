"""Restart, crash and stop PostgreSQL under four workers, with open_storage and Optuna's default.

    python tests/faults/outage.py [--away 30] [--workers 4] [--trials 8] [--json FILE]

Prints, for each fault and storage, how many workers died without being killed, how many trials
are complete, how many are left RUNNING, and how many heartbeat threads died. Exits with 1 if a
worker with `open_storage` dies or loses anything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).parents[1]))
from reports import save
from servers import PostgresServer, new_database

from optuna_s2e import open_storage

WORKER = Path(__file__).with_name("worker.py")
STARTED = 300.0  # seconds within which the workers begin, on a busy machine


class Outage(NamedTuple):
    """What a fault did to the workers and their trials."""

    workers: int
    died: int
    asked: int  # trials that the workers were to run
    complete: int
    running: int
    dead_heartbeats: int
    log: str


def run_outage(
    url: str, fault: Callable[[], None], folder: Path, *, workers: int, trials: int, plain: bool
) -> Outage:
    """Start workers, let a fault happen while all of them train, and wait for their end."""
    optuna.create_study(study_name="storm", storage=url)
    acknowledged, log = folder / "acknowledged", folder / "log"
    options = ["--trials", str(trials), "--sleep", "0.8", "1.2", "--heartbeat", "1"]
    with log.open("w") as out:
        running = [
            subprocess.Popen(
                [sys.executable, str(WORKER), url, str(acknowledged), *options]
                + (["--plain"] if plain else []),
                stderr=out,
            )
            for _ in range(workers)
        ]
        try:
            end = time.monotonic() + STARTED
            while not acknowledged.exists() or acknowledged.read_text().count("\n") < workers:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            fault()
            codes = [w.wait(timeout=STARTED + 10 * trials) for w in running]
        finally:
            for worker in running:
                worker.kill()
                worker.wait()
    storage = open_storage(url)
    states = [t.state for t in optuna.load_study(study_name="storm", storage=storage).trials]
    text = log.read_text()
    return Outage(
        workers,
        sum(code != 0 for code in codes),
        workers * trials,
        states.count(TrialState.COMPLETE),
        states.count(TrialState.RUNNING),
        text.count("Exception in thread"),
        text,
    )


def faults(server: PostgresServer, away: float) -> dict[str, Callable[[], None]]:
    def restart() -> None:
        server.stop()
        server.start()

    def crash() -> None:
        server.stop("immediate")
        server.start()

    def outage() -> None:
        server.stop()
        time.sleep(away)
        server.start()

    return {"restart": restart, "crash": crash, f"gone for {away:g} s": outage}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--away", type=float, default=30)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    sound, rows = True, []
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer()
        try:
            for name, fault in faults(server, args.away).items():
                for plain in (False, True):
                    inner = Path(tempfile.mkdtemp(dir=folder))
                    o = run_outage(
                        new_database(server.url), fault, inner,
                        workers=args.workers, trials=args.trials, plain=plain,
                    )  # fmt: skip
                    which = "Optuna's default" if plain else "open_storage    "
                    print(
                        f"{name:14} {which} died {o.died} of {o.workers}, complete {o.complete} "
                        f"of {o.asked}, left running {o.running}, dead heartbeats "
                        f"{o.dead_heartbeats}",
                        flush=True,
                    )
                    result = {k: v for k, v in o._asdict().items() if k != "log"}
                    rows.append({"fault": name, "storage": which.strip(), **result})
                    if not plain:
                        sound &= not o.died and o.complete == o.asked and not o.dead_heartbeats
                        sound &= not o.running
        finally:
            server.remove()
    save(args.json, rows)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
