"""`optimize_batch`: batches of K trials, which run in any order, anywhere."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NoReturn

import optuna
from optuna.study import Study
from tqdm import tqdm

from optuna_s2e import _optuna
from optuna_s2e._checks import check_int, check_number
from optuna_s2e.history import MAX_ATTEMPTS, MAX_MEMBERS
from optuna_s2e.parallel._detached import Objective, Task
from optuna_s2e.parallel._driver import Callback, Driver, Limits
from optuna_s2e.parallel._executors import Executor, Pool, Results, run_here, run_on, run_together
from optuna_s2e.parallel._lease import Lease
from optuna_s2e.parallel._sampler_change import warn_of_sampler_change
from optuna_s2e.parallel._signals import Orders, Stopped
from optuna_s2e.sampler import S2ESampler

_logger = optuna.logging.get_logger(f"optuna.{__name__}")  # obeys Optuna's verbosity


def optimize_batch(
    study: Study,
    objective: Objective,
    n_trials: int | None = None,
    *,
    batch_size: int | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
    timeout: float | None = None,
    catch: Iterable[type[Exception]] | type[Exception] = (Exception,),
    callbacks: Iterable[Callback] | None = None,
    max_attempts: int = 3,
    show_progress_bar: bool = False,
) -> None:
    """Optimise a study in batches of K trials, which run in any order, anywhere.

    With `S2ESampler` a batch is a generation. Every theta is then the same, bit for bit, for any
    executor, any number of workers and any order of completion, and also if workers or this
    process are killed at any moment and the call is made again. The objective must depend on its
    parameters and on `trial.user_attrs["seed"]` only. docs/parallel.md says what each death costs
    and what an objective may assume where it runs.

    Args:
        study: A study with any sampler, on any storage. It has one driver at a time: a second one
            is refused while this one lives.
        objective: As for `study.optimize`; it needs no access to the storage. If it has a method
            `batch(trials)` that returns a value or an exception for each trial, and there is no
            executor, the K trials run in one call of that method. A method `prepare_study(study)`
            is called first, in this process: all trials see what it writes to the study.
        n_trials: The number of trials that come to an end in this call, at least 1. None goes on
            until `timeout` or `study.stop()`.
        batch_size: The number of trials in a batch, in [1, 100000]. Samplers other than
            `S2ESampler` need it; `S2ESampler` knows its K.
        executor: Where the trials run. None runs them one after the other in this process. An
            executor has a method `submit(function, *args)` that returns a future: those of
            `concurrent.futures`, loky and submitit, `dask.distributed.Client`, `RayExecutor`. A
            function that makes an executor is called again if dead workers have broken it.
        timeout: Seconds after which no more trials begin, at least 0. None sets no limit.
        catch: Exceptions of the objective that fail one trial only. Any other exception ends the
            call when the batch is done. Unlike in `study.optimize`, the default is all.
        callbacks: Called in this process with (study, trial) after each trial.
        max_attempts: The number of points that a slot of S2E may fail with (an exception, NaN)
            before it counts as the worst of its generation, in [1, 1000]. K times as many
            failures in a row end the call, and so do as many batches in a row that return nothing.
        show_progress_bar: Whether to show a progress bar.

    Raises:
        ValueError: If an argument is out of range, or as `S2ESampler` when sampling.
        RuntimeError: If the study has another driver, if all trials fail, or if the objective
            raised an exception that `catch` does not name.
        KeyboardInterrupt: At Ctrl-C, in the main thread. The trials that were running are failed.
        SystemExit: At SIGTERM and SIGHUP (a closed terminal), the same.

    Example:
        >>> import optuna
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from optuna_s2e import S2ESampler, optimize_batch
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0))
        >>> def parabola(trial):
        ...     return trial.suggest_float("x", -1, 1) ** 2
        >>> with ThreadPoolExecutor(4) as pool:
        ...     optimize_batch(study, parabola, n_trials=20, executor=pool)
        >>> len(study.trials)
        20
    """
    caught = (catch,) if isinstance(catch, type) else tuple(catch)
    _check_arguments(study, n_trials, batch_size, timeout, max_attempts)
    warn_of_sampler_change(study)
    pool = None if executor is None else Pool(executor)
    orders = Orders()
    run: Callable[[Iterable[Task], Callable[[], bool]], Results]
    if pool is not None:
        run = partial(run_on, pool, objective, orders.interruptible)
    elif hasattr(objective, "batch"):
        run = partial(run_together, objective.batch, orders.interruptible)
    else:
        run = partial(run_here, objective, orders.interruptible)
    deadline = None if timeout is None else time.monotonic() + timeout
    driver = Driver(
        study,
        run,
        orders,
        Lease(study),
        Limits(n_trials, deadline, max_attempts, caught),
        batch_size=batch_size,
        seed_of_number=getattr(objective, "trial_seed", None),
        replaceable=pool is not None and pool.is_replaceable,
        bar=tqdm(total=n_trials, unit="trial", disable=not show_progress_bar),
        callbacks=tuple(callbacks or ()),
    )
    try:
        with (
            orders.obeyed(),
            driver.bar,
            pool or contextlib.nullcontext(),
            _optuna.optimize_loop(study),
            driver.lease,
        ):
            if hasattr(objective, "prepare_study"):
                with orders.interruptible():
                    objective.prepare_study(study)
            driver.run()
            orders.check()
    except Stopped as stopped:
        _end_as_asked(str(stopped), driver)


def _end_as_asked(signal_name: str, driver: Driver) -> NoReturn:
    """Raise what Python raises at this signal, and say what was saved."""
    running = (
        "those that were running are failed."
        if driver.leaves_none_running
        else "the storage did not answer in time, and the next call fails those that were running."
    )
    text = (
        f"{signal_name}: optimize_batch was stopped. {driver.n_told} trials of this call are "
        f"kept; {running} Call it again: it goes on with the same points."
    )
    if signal_name == "SIGINT":
        raise KeyboardInterrupt(text) from None
    _logger.warning(text)
    raise SystemExit(128 + signal.Signals[signal_name]) from None


def _check_arguments(
    study: Study,
    n_trials: int | None,
    batch_size: int | None,
    timeout: float | None,
    max_attempts: int,
) -> None:
    if n_trials is not None:
        check_int("n_trials", n_trials, 1)
    if timeout is not None and timeout != math.inf:
        check_number("timeout", timeout, 0)
    if batch_size is not None:
        check_int("batch_size", batch_size, 1, MAX_MEMBERS)
    check_int("max_attempts", max_attempts, 1, MAX_ATTEMPTS)
    if isinstance(study.sampler, S2ESampler):
        if batch_size not in (None, study.sampler.population_size):
            raise ValueError(
                f"batch_size must be the sampler's population_size, "
                f"{study.sampler.population_size}, but got {batch_size!r}. Leave it out."
            )
    elif batch_size is None:
        raise ValueError(
            f"batch_size must be given for {type(study.sampler).__name__}, which has no "
            "population of its own."
        )
