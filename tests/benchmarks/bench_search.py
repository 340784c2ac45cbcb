"""What the demo's search takes as a whole: 60 trials of 40 epochs on the digits, on SQLite.

    python tests/benchmarks/bench_search.py --out search.json       # five repeats, ten minutes

Each run is the command of `make demo`, `s2e search`, in a process and a folder of its own, so that
imports, sampler, storage and the dashboard's pictures count. The ways take turns:

    loop        every trial by PyTorch's autograd (backend "loop"): the search before there were
                other backends
    auto        the command as it is
    batch       the command with `--batch`: the K = 6 trials of a generation in one call

Printed and written are wall and processor seconds, and how many times those of the loop in the
same repeat they go into. Runs found in `--out` are not repeated; `--limit` ends a call, and the
next one goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("loop", "auto", "batch")


def search(way: str, n_trials: int) -> int:
    """Run the demo's search in this process and the current folder; return its exit status."""
    from optuna_s2e.cli import _main as cli
    from optuna_s2e.coteaching import _training as training

    if way == "loop":
        find = training.find_backend
        training.find_backend = lambda name, *rest: find("loop", *rest)
    return cli.main([
        "search", "--data", "digits", "--noise", "symmetric", "--noise-rate", "0.5",
        "--epochs", "40", "--trials", str(n_trials), "--storage", "sqlite:///s2e.db",
        "--study-name", "digits-sym50", "--seed", "0", *(["--batch"] if way == "batch" else []),
    ])  # fmt: skip


def measure(way: str, n_trials: int) -> dict[str, float]:
    """Run a search in a process of its own; return its wall and processor seconds."""
    command = [sys.executable, str(Path(__file__).resolve()), "--way", way]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [*command, "--trials", str(n_trials)],
            cwd=folder, check=True, capture_output=True, env=environment,
        )  # fmt: skip
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(wall, 2), "cpu": round(cpu, 2)}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--way", choices=WAYS, help="run one search here, and nothing else")
    parser.add_argument("--trials", type=int, default=60, help="of a search")
    parser.add_argument("--repeats", type=int, default=5, help="searches of each way")
    parser.add_argument("--limit", type=float, default=math.inf, help="start no run after (s)")
    parser.add_argument("--out", type=Path, help="JSON file to go on with and to write")
    args = parser.parse_args()
    if args.way:
        sys.exit(search(args.way, args.trials))
    start = time.monotonic()
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    if args.out and args.out.exists():
        runs = json.loads(args.out.read_text())["runs"]
    for repeat in range(args.repeats):
        for way in WAYS:
            if len(runs[way]) == repeat and time.monotonic() - start < args.limit:
                runs[way].append({**measure(way, args.trials), "load": os.getloadavg()[0]})
                document = {"trials": args.trials, "runs": runs}
                if args.out:
                    args.out.write_text(json.dumps(document, indent=1) + "\n")
    for clock in ("wall", "cpu"):
        for way in (way for way in WAYS if runs[way]):
            seconds = [run[clock] for run in runs[way]]
            loop = [run[clock] for run in runs["loop"]]
            ratios = [slow / fast for slow, fast in zip(loop, seconds, strict=False)]
            print(
                f"{clock:5}{way:6}{statistics.median(seconds):8.1f} s"
                f" ({min(seconds):.1f} .. {max(seconds):.1f})"
                f"   loop / {way}: {statistics.median(ratios):.2f}"
                f" ({min(ratios):.2f} .. {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
