"""Where the trials of a batch run: in this process, together in one call, or on an executor.

All three are generators over the same thing: places in, each with what came of it out, in any
order. `Lost` says that a machine failed, not the objective.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from optuna_s2e.parallel import _detached as offline
from optuna_s2e.parallel._detached import Objective, Outcome, Task, Together

_POLL = 0.5  # seconds between two looks at the clock, and at futures that cannot be waited for


class Executor(Protocol):
    """What runs trials elsewhere.

    `concurrent.futures` executors, loky's, `dask.distributed.Client`, submitit's executors and
    `RayExecutor` are such.
    """

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Start a call; return a future: `result()`, and `done()` where there is one."""


class _HasTask(Protocol):
    @property
    def task(self) -> Task: ...


P = TypeVar("P", bound=_HasTask)


@dataclass(frozen=True)
class Lost:
    """A trial of which nothing came back; its draw is run again.

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


class Runner(Protocol, Generic[P]):
    """Runs the trials of a batch."""

    def __call__(
        self, places: Iterable[P], stopped: Callable[[], bool]
    ) -> Generator[tuple[P, Outcome | Lost], None, None]:
        """Run the trials; yield each with what came of it.

        Args:
            places: What to run; consumed before the first one is yielded.
            stopped: Whether to begin no more of them.
        """


@dataclass(frozen=True)
class Here(Generic[P]):
    """Run one trial after the other in this process."""

    objective: Objective

    def __call__(
        self, places: Iterable[P], stopped: Callable[[], bool]
    ) -> Generator[tuple[P, Outcome | Lost], None, None]:
        """See `Runner`."""
        for place in list(places):
            yield place, Lost(None) if stopped() else offline.run(self.objective, place.task)


@dataclass(frozen=True)
class AllTogether(Generic[P]):
    """Run all trials in one call in this process."""

    batch: Together

    def __call__(
        self, places: Iterable[P], stopped: Callable[[], bool]
    ) -> Generator[tuple[P, Outcome | Lost], None, None]:
        """See `Runner`."""
        asked = list(places)
        outcomes = offline.run_together(self.batch, [place.task for place in asked])
        yield from zip(asked, outcomes, strict=True)


class Elsewhere(Generic[P]):
    """Run the trials on an executor.

    Args:
        objective: Travels to the executor with each trial.
        executor: One to use, or a function that makes one: that one is made anew when it breaks,
            and shut down at the end.
    """

    def __init__(self, objective: Objective, executor: Executor | Callable[[], Executor]) -> None:
        self._objective = objective
        self._executor: Any = executor if hasattr(executor, "submit") else None
        self._make: Callable[[], Executor] | None = None
        if self._executor is None and callable(executor):
            self._make = executor
        elif self._executor is None:
            raise ValueError(
                "executor must have a method submit(function, *args), or be a function that makes "
                f"such a one, but got {executor!r}."
            )

    @property
    def is_replaceable(self) -> bool:
        """Whether a broken executor is made anew."""
        return self._make is not None

    def __call__(
        self, places: Iterable[P], stopped: Callable[[], bool]
    ) -> Generator[tuple[P, Outcome | Lost], None, None]:
        """See `Runner`."""
        executor = self._executor
        if executor is None:
            assert self._make is not None
            executor = self._executor = self._make()
        running: dict[Any, P] = {}
        refused: list[tuple[P, Lost]] = []
        try:
            for place in places:
                try:
                    running[executor.submit(offline.run, self._objective, place.task)] = place
                except Exception as error:
                    refused.append((place, Lost(error)))
            yield from refused
            broken = any(lost.is_fatal for _, lost in refused)
            while running:
                if stopped():
                    _cancel(running, concurrent.futures.Future)
                for future in _some_done(list(running)):
                    result = _result(future)
                    broken = broken or (isinstance(result, Lost) and result.is_fatal)
                    yield running.pop(future), result
            if broken and self._make is not None:
                self._shut_down(wait=True)
        finally:
            _cancel(running, object)

    def __enter__(self) -> Elsewhere[P]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._shut_down(wait=kind is None)  # Ctrl-C does not wait for what still runs

    def _shut_down(self, *, wait: bool) -> None:
        """Shut down the executor, if it was made here."""
        shutdown = getattr(self._executor, "shutdown", None)
        if self._make is not None:
            self._executor = None
            if shutdown is not None:
                shutdown(wait=wait)


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
