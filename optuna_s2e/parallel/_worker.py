"""A worker: runs trials until the search is complete, and stops cleanly at a signal."""

from __future__ import annotations

import importlib
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import STOPPED_BY_KEY, WORKER_KEY
from optuna_s2e._chain import chain
from optuna_s2e._checks import check_int, check_number
from optuna_s2e.history import Ledger, Rules, Search, split_settings
from optuna_s2e.parallel._detached import read_values
from optuna_s2e.parallel._sampler_change import sampler_mark, warn_of_sampler_change
from optuna_s2e.parallel._signals import Orders, Stopped
from optuna_s2e.sampler import S2ESampler

Objective = Callable[[optuna.Trial], float]
Callback = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]

MAX_FAILURES = 10  # trials in a row, after which a worker gives up
DEFAULT_GRACE = 20.0  # seconds; Slurm and Kubernetes kill 30 s after SIGTERM

_logger = optuna.logging.get_logger(__name__)


def sampler_for(study: optuna.Study, seed: int | None = None) -> S2ESampler:
    """Make a sampler with the settings that a study is searched with.

    Args:
        study: A study. Its records decide; without records, what it tells workers; without that,
            the defaults.
        seed: The seed of the draws. None takes the seed of the search.
    """
    search = Search.read(study)
    ledger = Ledger(Rules.of(study)).read(_optuna.all_trials(study))
    recorded = ledger.settings_in_force(ledger.state(1).chain) or search.settings
    seed = search.seed if seed is None else seed
    if recorded is None:
        return S2ESampler(seed=seed)
    settings, consider_pruned = split_settings(recorded)
    return S2ESampler(**settings.to_dict(), consider_pruned_trials=consider_pruned, seed=seed)


def load_objective(name: str) -> Objective:
    """Import an objective that the command line names.

    Args:
        name: `module:function`. The module may also be in the working directory.

    Raises:
        ValueError: If there is no such function.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise ValueError(f"objective must be module:function, but got {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"objective {name!r} cannot be imported: {error}.") from error
    if not callable(found):
        raise ValueError(f"objective {name!r} must be callable, but is {type(found).__name__}.")
    objective: Objective = found
    return objective


@contextmanager
def _recorded(trial: optuna.Trial) -> Iterator[None]:
    """Record on the trial that a signal interrupted it."""
    try:
        yield
    except Stopped as stopped:
        trial.set_user_attr(STOPPED_BY_KEY, str(stopped))
        raise


def work(
    study: optuna.Study,
    objective: Objective,
    n_trials: int | None,
    *,
    grace: float = DEFAULT_GRACE,
    catch: tuple[type[Exception], ...] = (),
    callbacks: Sequence[Callback] = (),
) -> str | None:
    """Run trials until n are complete in the study, other workers' included.

    With W workers, up to W - 1 more trials may complete. Call it in the main thread.

    After SIGTERM and SIGHUP (a closed terminal) the running trial has `grace` seconds to end.
    After that, at SIGINT (Ctrl-C) and at a second signal, it is interrupted and told as failed,
    with the user attribute `stopped_by`. No trial is left RUNNING, unless the storage is away. A
    trial that another worker failed while this one was suspended does no harm.

    Args:
        study: A study with its sampler.
        objective: An objective as `study.optimize` takes it.
        n_trials: The number of completed trials in the study, at least 1. None goes on until a
            signal.
        grace: Seconds that a running trial has after SIGTERM and SIGHUP, at least 0.
        catch: Exceptions of the objective that fail one trial only.
        callbacks: Called with (study, trial) after each trial.

    Returns:
        The name of the signal that stopped the worker; None if the trials are complete.

    Raises:
        ValueError: If an argument is out of range, MAX_FAILURES trials in a row failed, or the
            study was deleted.
        ConnectionError: If the storage was away for longer than its patience.
    """
    n_trials = None if n_trials is None else check_int("n_trials", n_trials, 1)
    orders, failed_in_a_row = Orders(check_number("grace", grace, 0)), 0
    running: optuna.Trial | None = None
    me = {"v": 1, "host": socket.gethostname()[:200], "pid": os.getpid()}
    marks = {WORKER_KEY: me, **sampler_mark(study.sampler)}

    def run(trial: optuna.Trial) -> float | Sequence[float]:
        nonlocal running
        running = trial
        for key, value in marks.items():
            _optuna.set_running_trial_attr(trial, key, value)
        with _recorded(trial), orders.interruptible():
            orders.check_begin()
            result = objective(trial)
        try:
            return read_values(result, len(study.directions))
        except ValueError as error:
            _logger.warning(f"Trial {trial.number} failed. {error}")
            return math.nan  # with which Optuna fails the trial, and it alone

    def after_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal failed_in_a_row
        failed_in_a_row = failed_in_a_row + 1 if trial.state == TrialState.FAIL else 0

    warn_of_sampler_change(study)
    with orders.obeyed(), _optuna.failures_unlogged(lambda: orders.interrupted):
        while orders.stop is None:
            if failed_in_a_row >= MAX_FAILURES:
                raise ValueError(
                    f"{MAX_FAILURES} trials in a row have failed; see the warnings above."
                )
            try:
                if is_complete(study, n_trials):
                    break
                study.optimize(run, n_trials=1, catch=catch, callbacks=[after_trial, *callbacks])
            except Stopped as stopped:
                return str(stopped)
            except Exception as error:
                if orders.interrupted:  # amid an operation that did not end
                    _logger.warning(
                        f"{orders.stop}: the storage did not answer in time. A trial that is left "
                        "RUNNING holds up nothing, and is failed when its heartbeat is missed."
                    )
                    return orders.stop
                lost = _storage_error(error)
                if lost is not None:
                    raise ConnectionError(str(lost)) from error
                if _is_deleted(study):
                    raise ValueError(
                        f"Study {study.study_name!r} was deleted or renamed meanwhile. If "
                        "renamed, its trials are kept: go on with --study-name NEW-NAME."
                    ) from error
                if running is None or not _finished_by_another(study, running, error):
                    raise
    return orders.stop


def is_complete(study: optuna.Study, n_trials: int | None) -> bool:
    """Say whether n trials of a study are complete."""
    if n_trials is None:
        return False
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) >= n_trials


def _is_deleted(study: optuna.Study) -> bool:
    try:
        found = _optuna.storage_of(study).get_study_id_from_name(study.study_name)
    except KeyError:
        return True
    return found != _optuna.study_id(study)


def _storage_error(error: BaseException | None) -> StorageInternalError | None:
    """Return the storage's error behind an exception of `study.optimize`, if any."""
    return next((link for link in chain(error) if isinstance(link, StorageInternalError)), None)


def _finished_by_another(study: optuna.Study, trial: optuna.Trial, error: Exception) -> bool:
    """Say whether a trial was finished by another worker while this process was suspended."""
    if not isinstance(error, AssertionError | ValueError):
        return False
    context: BaseException | None = error
    while context is not None and "Cannot tell a" not in str(context):
        context = context.__context__
    if context is None:
        return False
    state = study.get_trials(deepcopy=False)[trial.number].state
    _logger.warning(
        f"Trial {trial.number} was set to {state.name} while this worker was suspended; its "
        "result is dropped, and the worker goes on."
    )
    return True
