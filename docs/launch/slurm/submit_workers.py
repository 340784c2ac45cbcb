"""Submit workers of a search of your own to SLURM, with submitit (`pip install submitit`).

    python submit_workers.py --storage postgresql://me@db/s2e --study-name own \
        --objective my_module:objective --trials 200 --workers 16

makes the study if it is missing. The same command resumes the search. `--cluster local` starts the
workers on this machine. The password is in ~/.pgpass, not in the URL.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna
import submitit

from optuna_s2e import S2ESampler, open_storage
from optuna_s2e.cli import main as s2e


class Worker:
    """One `s2e worker`. A job that is preempted or out of time is put into the queue again."""

    def __call__(self, *command: str) -> int:
        """Work until the search is complete or a signal comes; return the exit code."""
        return s2e(command)

    def checkpoint(self, *command: str) -> submitit.helpers.DelayedSubmission:
        """Return the same job: all that it knows is in the storage."""
        return submitit.helpers.DelayedSubmission(self, *command)


def main() -> None:
    """Make the study, submit the workers and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--storage", "--study-name", "--objective"):
        parser.add_argument(name, required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--cluster", choices=["slurm", "local"], help="default: slurm, if there")
    parser.add_argument("--logs", type=Path, default=Path("s2e-logs"))
    parser.add_argument("--minutes", type=int, default=240)
    args = parser.parse_args()

    optuna.create_study(
        storage=open_storage(args.storage),
        study_name=args.study_name,
        sampler=S2ESampler(),
        load_if_exists=True,
    )
    executor = submitit.AutoExecutor(folder=args.logs, cluster=args.cluster)
    executor.update_parameters(name="s2e", timeout_min=args.minutes, cpus_per_task=1, mem_gb=3)
    command = [
        "worker", "--storage", args.storage, "--study-name", args.study_name,
        "--objective", args.objective, "--trials", str(args.trials),
    ]  # fmt: skip
    with executor.batch():  # one job array
        jobs = [executor.submit(Worker(), *command) for _ in range(args.workers)]
    print("Jobs:", *(job.job_id for job in jobs), flush=True)
    codes = [job.result() for job in jobs]
    if any(codes):
        raise SystemExit(f"Workers ended with the exit codes {codes}; their logs: {args.logs}.")


if __name__ == "__main__":
    main()
