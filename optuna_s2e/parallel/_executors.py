"""Where the trials of a batch run: in this process, together in one call, or on an executor.

`run_here`, `run_together` and `run_on` are generators with the same contract: they take tasks and
yield each task with its outcome, in any order. `Lost` says that a machine failed, not the
objective.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from optuna_s2e.parallel import _detached
from optuna_s2e.parallel._detached import Objective, Outcome, Task, Together

_POLL = 0.5  # seconds between two looks at the clock, and at futures that cannot be waited for


class Executor(Protocol):
    """What runs trials elsewhere.

    Executors of `concurrent.futures`, loky and submitit, `dask.distributed.Client` and
    `RayExecutor` do.
    """

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Start a call; return a future with `result()` and, if possible, `done()`."""


@dataclass(frozen=True)
class Lost:
    """A trial of which nothing came back. Its draw is run again.

    Attributes:
        error: What happened to it; None if it was not begun.
    """

    error: BaseException | None

    @property
    def reason(self) -> str:
        """What happened, as text."""
        if self.error is None:
            return "It was not begun: the search was stopped."
        return f"It did not come back: {type(self.error).__name__}: {self.error}"

    @property
    def is_fatal(self) -> bool:
        """Whether the executor that lost it can run nothing more."""
        return isinstance(self.error, concurrent.futures.BrokenExecutor)


Results = Generator[tuple[Task, Outcome | Lost], None, None]
Stopped = Callable[[], bool]  # whether no more trials are to be begun
Interruptible = Callable[[], AbstractContextManager[None]]  # inside, signals may raise


def run_here(
    objective: Objective, interruptible: Interruptible, tasks: Iterable[Task], stopped: Stopped
) -> Results:
    """Run one trial after the other in this process."""
    for task in list(tasks):
        result: Outcome | Lost = Lost(None)
        if not stopped():
            with interruptible():
                result = _detached.run(objective, task)
        yield task, result


def run_together(
    batch: Together, interruptible: Interruptible, tasks: Iterable[Task], stopped: Stopped
) -> Results:
    """Run all trials in one call in this process."""
    asked = list(tasks)
    with interruptible():
        outcomes = _detached.run_together(batch, asked)
    yield from zip(asked, outcomes, strict=True)


def run_on(
    pool: Pool,
    objective: Objective,
    interruptible: Interruptible,
    tasks: Iterable[Task],
    stopped: Stopped,
) -> Results:
    """Run the trials on an executor; the objective travels with each of them."""
    executor = pool.executor()
    running: dict[Any, Task] = {}
    refused: list[tuple[Task, Lost]] = []
    try:
        for task in tasks:
            try:
                running[executor.submit(_detached.run, objective, task)] = task
            except Exception as error:
                refused.append((task, Lost(error)))
        yield from refused
        broken = any(lost.is_fatal for _, lost in refused)
        while running:
            if stopped():
                _cancel(running, concurrent.futures.Future)
            with interruptible():
                done = [(future, _result(future)) for future in _some_done(list(running))]
            for future, result in done:
                broken = broken or (isinstance(result, Lost) and result.is_fatal)
                yield running.pop(future), result
        if broken:
            pool.shut_down(wait=True)
    finally:
        _cancel(running, object)


class Pool:
    """An executor that was given, or one that a given function makes and makes anew.

    Args:
        executor: An executor, or a function that makes one. An executor that the function made is
            made anew when it breaks, and shut down when the pool is left.

    Raises:
        ValueError: If it is neither.
    """

    def __init__(self, executor: Executor | Callable[[], Executor]) -> None:
        self._executor: Any = executor if hasattr(executor, "submit") else None
        self._make: Callable[[], Executor] | None = None
        if self._executor is None and callable(executor):
            self._make = executor
        elif self._executor is None:
            raise ValueError(
                "executor must have a method submit(function, *args), or be a function that makes "
                f"such an object, but got {executor!r}."
            )

    @property
    def is_replaceable(self) -> bool:
        """Whether a broken executor is made anew."""
        return self._make is not None

    def executor(self) -> Executor:
        """Return the executor; make one, if there is none."""
        if self._executor is None:
            assert self._make is not None
            self._executor = self._make()
        executor: Executor = self._executor
        return executor

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shut_down(wait=kind is None)  # Ctrl-C does not wait for what still runs

    def shut_down(self, *, wait: bool) -> None:
        """Shut down the executor, if it was made here. Without waiting, its processes end now."""
        if self._make is not None:
            shutdown = getattr(self._executor, "shutdown", None)
            processes = dict(getattr(self._executor, "_processes", None) or {})
            self._executor = None
            if shutdown is not None:
                shutdown(wait=wait)
            if not wait:  # else this process would wait for their trials when it ends
                _end_processes(list(processes.values()))


def _end_processes(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    end = time.monotonic() + _POLL
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()


def _cancel(futures: Iterable[Any], kind: type) -> None:
    for future in futures:
        if isinstance(future, kind) and hasattr(future, "cancel"):
            future.cancel()


def _some_done(futures: Sequence[Any]) -> list[Any]:
    """Wait until some are done or it is time to look at the clock."""
    if all(isinstance(f, concurrent.futures.Future) for f in futures):
        return list(
            concurrent.futures.wait(
                futures, timeout=_POLL, return_when=concurrent.futures.FIRST_COMPLETED
            ).done
        )
    if not all(hasattr(f, "done") for f in futures):
        return [futures[0]]  # its result is waited for
    done = [f for f in futures if f.done()]
    if not done:
        time.sleep(_POLL / 10)
    return done


def _result(future: Any) -> Outcome | Lost:
    try:
        result = future.result()
    except (Exception, asyncio.CancelledError) as error:
        return Lost(None if isinstance(error, concurrent.futures.CancelledError) else error)
    if not isinstance(result, Outcome):
        return Lost(TypeError(f"the executor returned {type(result).__name__}"))
    return result


class RayExecutor:
    """Run trials as Ray tasks, on all nodes of the cluster that `ray.init` has joined.

    A task whose node or worker dies is started again by Ray elsewhere, up to `max_retries` times;
    after that it counts as lost, and the batch runs its draw again.

    Args:
        options: Of `ray.remote`: `num_cpus`, `num_gpus`, `max_retries`, `runtime_env`, ...

    Raises:
        ImportError: If Ray is missing.

    Example:
        >>> import ray  # doctest: +SKIP
        >>> ray.init(address="auto")  # doctest: +SKIP
        >>> optimize_batch(study, f, 60, executor=RayExecutor(num_gpus=1))  # doctest: +SKIP
    """

    def __init__(self, **options: Any) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError('Ray is missing: pip install "optuna-s2e[ray]"') from error
        self._ray = ray
        self._options = options
        self._remote: tuple[Any, Any] = (None, None)  # the last function, as Ray has it
        self._stored: tuple[Any, Any] = (None, None)  # the last objective, and where Ray has it

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Start a call; return a `concurrent.futures.Future`.

        The first argument, the objective of all trials, is sent to each node once.
        """
        if self._remote[0] is not function:
            remote = self._ray.remote(function)
            self._remote = (function, remote.options(**self._options) if self._options else remote)
        if args:
            if self._stored[0] is not args[0]:
                self._stored = (args[0], self._ray.put(args[0]))
            args = (self._stored[1], *args[1:])
        return self._remote[1].remote(*args).future()
