"""How long a page of a long study takes in Chromium: `serve` beside plain optuna-dashboard.

    python tests/benchmarks/bench_browser.py                       # 500 and 5,000 trials
    python tests/benchmarks/bench_browser.py --trials 5000 --repeats 5 --json browser.json

Studies of Eq 1 with the reporter's attributes, and notes of the first 500 trials, are made in
memory and put into SQLite in bulk. Then both servers, in turns, each started anew in a process of
its own, are opened in a Chromium: seconds from the request to the plot of the losses on the page
of the study, of the first page after the start and of the next one, and the server's CPU seconds.
`--epochs` adds that many intermediate values to each trial.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

import optuna

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "dashboard"))
from bench_growth import put
from chromium import FLAGS, find_chromium
from reports import save, shown

from optuna_s2e import S2ESampler, ScheduleSpace, open_storage
from optuna_s2e.dashboard import DashboardReporter, serve
from optuna_s2e.dashboard._server import _Quiet, _Server

SERVERS = ("optuna-dashboard", "s2e dashboard")
PATIENCE = 300_000  # in Playwright's milliseconds
MAX_NOTES = 500
CONTEXT = multiprocessing.get_context("spawn")


def fill(path: Path, n_trials: int, n_epochs: int) -> None:
    """Make a finished study of Eq 1."""
    space = ScheduleSpace(40)

    def objective(trial: optuna.Trial) -> float:
        rates = space.suggest(trial).keep_rates
        trial.set_user_attr("generation", trial.number // 6)
        trial.set_user_attr("keep_rate_mean", round(float(rates.mean()), 4))
        trial.set_user_attr("keep_rate_final", round(float(rates[-1]), 4))
        for epoch in range(n_epochs):
            trial.report(round(abs(float(rates[epoch % 40]) - 0.5), 6), epoch)
        return float(abs(rates - 0.5).mean())

    study = optuna.create_study(sampler=S2ESampler(seed=0, estimator="natural"))
    study.optimize(objective, n_trials=n_trials)
    notes = {}
    for trial_id in range(1, min(n_trials, MAX_NOTES) + 1):
        notes[f"dashboard:{trial_id}:note_ver"] = 1
        notes[f"dashboard:{trial_id}:note_str:0"] = "A note as long as those of the reporter. " * 8
    put(path, study.trials, notes)
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
            [(t.number + 1, k, str(v)) for t in study.trials for k, v in t.user_attrs.items()],
        )
        connection.executemany(
            "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, "
            "intermediate_value_type) VALUES (?, ?, ?, 'FINITE')",
            [(t.number + 1, k, v) for t in study.trials for k, v in t.intermediate_values.items()],
        )
    connection.close()
    stored = optuna.load_study(study_name="s", storage=open_storage(f"sqlite:///{path}"))
    DashboardReporter(None).paint(stored)


def run_server(name: str, url: str, pipe: Connection) -> None:
    """Serve until told to stop; send the address, then the CPU seconds whenever asked."""
    warnings.simplefilter("ignore")
    if name == "s2e dashboard":
        with serve(url) as address:
            answer(pipe, address)
        return
    from optuna_dashboard import wsgi

    app = wsgi(optuna.storages.get_storage(url))
    server = make_server("127.0.0.1", 0, app, _Server, _Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answer(pipe, f"http://127.0.0.1:{server.server_port}/dashboard")


def answer(pipe: Connection, address: str) -> None:
    pipe.send(address)
    while pipe.recv():
        pipe.send(time.process_time())


def cpu(pipe: Connection) -> float:
    pipe.send(True)
    return float(pipe.recv())


def visit(chromium: Any, address: str) -> float:
    """Return the seconds until the study's page shows a plot of all trials."""
    context = chromium.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    started = time.perf_counter()
    page.goto(f"{address}/studies/1", wait_until="commit", timeout=PATIENCE)
    page.locator("[id='user-defined-plot:s2e_3_generations'] .main-svg").first.wait_for()
    seconds = time.perf_counter() - started
    context.close()
    return seconds


def measure(chromium: Any, name: str, url: str) -> dict[str, float]:
    """Return the seconds of the first and the second page of a new server."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=run_server, args=(name, url, theirs))
    process.start()
    address = ours.recv()
    before = cpu(ours)
    first = visit(chromium, address)
    between = cpu(ours)
    second = visit(chromium, address)
    after = cpu(ours)
    ours.send(False)
    process.join(10)
    process.kill()
    return {
        "first_s": first, "second_s": second,
        "first_server_cpu_s": between - before, "second_server_cpu_s": after - between,
    }  # fmt: skip


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--epochs", type=int, default=0, help="intermediate values of a trial")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from playwright.sync_api import sync_playwright

    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        for n in args.trials:
            path = Path(folder, f"{n}.db")
            fill(path, n, args.epochs)
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in SERVERS}
            for _ in range(args.repeats):
                for name in SERVERS:
                    runs[name].append(measure(chromium, name, f"sqlite:///{path}"))
            plain = {}
            for name, of in runs.items():
                row = {k: round(statistics.median(r[k] for r in of), 2) for k in of[0]}
                ratios = {f"{k}_ratio": round(row[k] / plain[k], 2) for k in row if plain.get(k)}
                plain = plain or row
                rows.append({"server": name, "trials": n, "epochs": args.epochs, **row, **ratios})
                print(shown(rows[-1]), flush=True)
    save(args.json, rows)


if __name__ == "__main__":
    main()
