"""Searches by batches under random interleavings of deaths, losses and what users do.

S2E_EXAMPLES sets how many random lives are tried (make faults: more).
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cache
from typing import Any

import optuna
import pytest
from batches import Dead, DyingStorage, assert_sound
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from optuna.trial import Trial, TrialState

from optuna_s2e import S2ESampler, generations, optimize_batch
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.history._record import Record, failed_by_objective
from optuna_s2e.parallel import _lease as lease

K, MAX_ATTEMPTS, NEVER = 3, 2, 10**9
EXAMPLES = int(os.environ.get("S2E_EXAMPLES", "30"))


def objective(trial: Trial) -> float:
    x, kind = trial.suggest_float("x", 0, 1), trial.suggest_categorical("kind", ["a", "b"])
    if not 0.1 < x < 0.8:  # the loss falls towards it
        raise ValueError("out of range")
    if x < 0.2:
        trial.report(x, 0)
        raise optuna.TrialPruned
    return float("nan") if kind == "b" and x > 0.7 else x + (kind == "b")


class Lossy:
    """An executor that loses trials, as one does whose machines die."""

    def __init__(self, lost: list[bool]) -> None:
        self.lost = list(lost)

    def submit(self, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if self.lost and self.lost.pop():
            future.set_exception(ConnectionError("the machine is gone"))
        else:
            future.set_result(function(*args))
        return future


def new_study(storage: Any, name: str, estimator: str) -> optuna.Study:
    sampler = S2ESampler(
        population_size=K, seed=0, estimator=estimator, consider_pruned_trials=True
    )
    return optuna.create_study(
        study_name=name, storage=storage, sampler=sampler, load_if_exists=True
    )


def thetas(study: optuna.Study) -> list[bytes]:
    return [g.theta.tobytes() for g in generations(study)]


def drive(study: optuna.Study, n: int, lost: list[bool] | None = None) -> None:
    try:
        optimize_batch(study, objective, n, executor=Lossy(lost or []), max_attempts=MAX_ATTEMPTS)
    except RuntimeError as error:  # it gives up, with one error
        if not re.match(r"2 batches in a row returned nothing|\d+ trials in a row", str(error)):
            raise


@cache
def calm_study(estimator: str) -> optuna.Study:
    return new_study(None, "calm", estimator)


def undisturbed(estimator: str, n: int) -> list[bytes]:
    """Return the first n thetas of a search that nothing disturbs, as far as it has to go."""
    study = calm_study(estimator)
    while len(found := thetas(study)) < n:
        drive(study, K)
    return found[:n]


@pytest.fixture(autouse=True, scope="module")
def dead_drivers_are_known_at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "_lives", lambda *_: False)  # their process is this one
        yield


class BatchLife(RuleBasedStateMachine):
    """One search, one driver after the other."""

    @initialize(estimator=st.sampled_from(["natural", "surrogate"]))
    def begin(self, estimator: str) -> None:
        self.estimator = estimator
        self.n_studies, self.taught = 0, False
        self.storage = DyingStorage(NEVER, after=False)
        self.name = "s0"

    @property
    def study(self) -> optuna.Study:
        return new_study(self.storage, self.name, self.estimator)

    @rule(n=st.integers(1, 2 * K), lost=st.lists(st.booleans(), max_size=K))
    def drive_and_lose(self, n: int, lost: list[bool]) -> None:
        drive(self.study, n, lost)
        assert TrialState.RUNNING not in {t.state for t in self.study.trials}

    @rule(n=st.integers(1, 2 * K), writes=st.integers(1, 40), after=st.booleans())
    def drive_and_die(self, n: int, writes: int, after: bool) -> None:
        study = self.study
        self.storage.left, self.storage.after = writes, after
        try:
            optimize_batch(study, objective, n, max_attempts=MAX_ATTEMPTS)
        except (Dead, RuntimeError):
            pass
        finally:
            self.storage.left = NEVER

    @rule(x=st.sampled_from([0.0, 0.5, 1.0]))
    def enqueue(self, x: float) -> None:
        self.study.enqueue_trial({"x": x, "kind": "a"})
        self.taught = self.estimator == "surrogate"  # it learns from what is no draw

    @rule(value=st.floats(-1, 1))
    def add(self, value: float) -> None:
        d = {"x": optuna.distributions.FloatDistribution(0, 1)}
        self.study.add_trial(
            optuna.trial.create_trial(params={"x": 0.5}, distributions=d, value=value)
        )

    @rule(which=st.integers(0, 7))
    def take_for_dead(self, which: int) -> None:
        """Someone fails a trial that a dead driver left."""
        running = self.study.get_trials(states=(TrialState.RUNNING,))
        if running:
            trial = running[which % len(running)]
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    @rule()
    def rename(self) -> None:
        """As the dashboard does: a new study gets the trials, the old one goes."""
        if self.n_studies < 2:
            self.n_studies += 1
            trials, old, self.name = self.study.get_trials(), self.name, f"s{self.n_studies}"
            self.study.add_trials(trials)
            optuna.delete_study(study_name=old, storage=self.storage)

    @rule()
    def look(self) -> None:
        found = thetas(self.study)
        if len(found) > 1 and not self.taught:
            assert found == undisturbed(self.estimator, len(found))
        self.attempts_are_bounded_and_settled_once()

    def attempts_are_bounded_and_settled_once(self) -> None:
        settled: Counter[tuple[int, int]] = Counter()
        for trial in self.study.trials:
            record = Record.from_attr(trial.system_attrs.get(DRAW_KEY))
            if record is None or record.trial != trial.number or record.slot is None:
                continue
            done = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            settled[record.slot, record.attempt] += done or failed_by_objective(trial)
        assert all(n <= 1 for n in settled.values())
        per_slot = Counter(slot for slot, _ in settled.elements())
        assert all(n <= 2 * MAX_ATTEMPTS for n in per_slot.values())  # 2: if all K failed

    def teardown(self) -> None:
        """Whatever happened, the next driver goes on where the last one stood."""
        if hasattr(self, "storage"):
            n = len(generations(self.study))
            while len(generations(self.study)) < n + 2:
                drive(self.study, K)
            self.look()
            assert_sound(self.study)


BatchLife.TestCase.settings = settings(
    max_examples=max(1, EXAMPLES // 2),
    stateful_step_count=20,
    deadline=None,
    derandomize=EXAMPLES <= 30,
    database=None,
    phases=(Phase.generate, Phase.shrink),
)
TestBatchLife = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::optuna.exceptions.ExperimentalWarning"
)(BatchLife.TestCase)
