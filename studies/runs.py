"""What the studies share: resumable runs in parallel processes, and means with their errors."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from scipy import stats
from tqdm import tqdm

Job = tuple[str | int, ...]
Results = dict[str, Any]


def key_of(job: Job) -> str:
    """Return the name of a job in the file of results."""
    return "|".join(map(str, job))


def read(path: Path) -> dict[str, Any]:
    """Return a study's file of results; an empty one if there is none."""
    if path.exists():
        return dict(json.loads(path.read_text()))
    return {"results": {}, "seconds": 0.0}


def run_missing(
    path: Path,
    jobs: Iterable[Job],
    run: Callable[[Job], Any],
    *,
    n_processes: int,
    minutes: float,
    apart: Callable[[Job], Job] = lambda job: job,
) -> None:
    """Run the jobs that the file lacks, in order, and save after each.

    Args:
        path: The file of results.
        jobs: What there is to run.
        run: Called in another process; its result is JSON.
        n_processes: How many run at a time.
        minutes: Start no job after that time.
        apart: Jobs for which it is the same do not run at the same time.
    """
    document = read(path)
    results: Results = document["results"]
    missing = [job for job in jobs if key_of(job) not in results]
    deadline = time.monotonic() + 60 * minutes
    start = time.perf_counter()
    with (
        ProcessPoolExecutor(n_processes, initializer=_begin_process) as pool,
        tqdm(total=len(missing), unit="run", smoothing=0) as bar,
    ):
        running: dict[Future[Any], Job] = {}
        while True:
            while len(running) < n_processes and time.monotonic() < deadline:
                busy = set(map(apart, running.values()))
                job = next((job for job in missing if apart(job) not in busy), None)
                if job is None:
                    break
                missing.remove(job)
                running[pool.submit(run, job)] = job
            if not running:
                break
            future = next(as_completed(running))
            results[key_of(running.pop(future))] = future.result()
            bar.update()
            document["seconds"] += time.perf_counter() - start
            start = time.perf_counter()
            document["versions"] = {
                "python": platform.python_version(), "optuna": optuna.__version__,
                "torch": torch.__version__, "numpy": np.__version__,
            }  # fmt: skip
            part = path.with_suffix(".part")
            part.write_text(json.dumps(document) + "\n")
            os.replace(part, path)


def _begin_process() -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process, whatever it is doing, when the study was killed: another may go on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def parser(doc: str | None, *, seeds: int) -> argparse.ArgumentParser:
    """Return the options that every study has."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--seeds", type=int, default=seeds, help="searches per cell")
    made.add_argument("--jobs", type=int, default=1, help="processes")
    made.add_argument("--minutes", type=float, default=1e9, help="start nothing after that time")
    made.add_argument("--report", action="store_true", help="only print the tables")
    return made


def figure_parser(
    doc: str | None, *, seeds: int, epochs: int, results: Path | None
) -> argparse.ArgumentParser:
    """Return the options that the figures of the paper have."""
    made = parser(doc, seeds=seeds)
    made.add_argument("--epochs", type=int, default=epochs, help="of each training")
    made.add_argument("--budget", action="store_true", help="only print what the run takes")
    made.add_argument("--smoke", action="store_true", help="everything in small; keeps nothing")
    made.add_argument("--picture", type=Path, help="file to draw the results into")
    made.add_argument("--page", type=Path, help="page of the docs to write the tables into")
    made.add_argument("--results", type=Path, default=results, help="file of results")
    return made


def keep_nothing(args: argparse.Namespace) -> None:
    """Let a run in small write its results, and its picture if no other is named, aside."""
    args.results = Path(tempfile.mkdtemp()) / "smoke.json"
    args.picture = args.picture or args.results.with_suffix(".png")


def note_setup(path: Path, setup: dict[str, Any], **notes: Any) -> None:
    """Write into a file of results what its runs share, and notes for those who read it.

    What a file with results does not say is None.

    Raises:
        SystemExit: If it holds runs of another setup.
    """
    document = read(path)
    kept = {name: document.get(name) for name in setup} if document["results"] else setup
    if kept != setup:
        raise SystemExit(f"{path} holds runs of {kept}. Name another with --results.")
    path.write_text(json.dumps(document | setup | notes) + "\n")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of a page; numbers are to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill_page(page: Path, name: str, text: str) -> None:
    """Put a text between the two comments of a page that bear its name."""
    page.write_text(filled(page.read_text(), name, text))


def filled(page: str, name: str, text: str) -> str:
    """Return a page with a text between the two comments that bear its name.

    Raises:
        ValueError: If the page lacks one of them.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"The page must have the lines {begin!r} and {end!r}.")
    return f"{before}{begin}\n{text}\n\n{end}{after}"


def mean_and_error(values: Sequence[float] | np.ndarray, scale: float = 100.0) -> str:
    """Return 'mean (standard error)', in percent by default."""
    v = scale * np.asarray(values, dtype=np.float64)
    error = v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else np.nan
    return f"{v.mean():.2f} ({error:.2f})"


def pooled(differences: Sequence[np.ndarray], scale: float = 100.0) -> tuple[float, float, float]:
    """Return mean over tasks of paired differences, and its 95 % interval.

    Args:
        differences: Per task, one difference per seed.
        scale: Multiplies the result.
    """
    means = np.array([d.mean() for d in differences])
    variances = np.array([d.var(ddof=1) / len(d) for d in differences])
    mean, error = means.mean(), np.sqrt(variances.sum()) / len(means)
    return scale * mean, scale * (mean - 1.96 * error), scale * (mean + 1.96 * error)


def over_tasks(
    differences: Sequence[np.ndarray], scale: float = 100.0
) -> tuple[float, float, float]:
    """Return the same where tasks have one or two seeds: the interval for another such task.

    From the spread of the tasks' means (Student's t), which holds that of the seeds; infinite for
    a single task.
    """
    means = np.array([d.mean() for d in differences])
    mean, reach = means.mean(), np.inf
    if len(means) > 1:
        reach = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    return scale * mean, scale * (mean - reach), scale * (mean + reach)
