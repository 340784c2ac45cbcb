"""The bookkeeping under random interleavings of everything that can happen to a study.

S2E_EXAMPLES sets how many random lives are tried (make faults: more), S2E_STORAGE a storage URL
to try them on instead of memory.
"""

import copy
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from optuna_s2e import Generation, S2ESampler, generations, open_storage, replay
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.history._record import own_record

try:
    from optuna.storages import RetryHeartbeatStaleTrialCallback as RetryCallback
except ImportError:  # before Optuna 4.9
    from optuna.storages import RetryFailedTrialCallback as RetryCallback

K, N_WORKERS, MAX_RETRIES = 2, 3, 2
EXAMPLES = int(os.environ.get("S2E_EXAMPLES", "30"))
URL = os.environ.get("S2E_STORAGE")  # of an empty database, such as sqlite:///:memory:
workers = st.integers(0, N_WORKERS - 1)
which = st.integers(0, 7)


def suggest(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    if trial.suggest_categorical("c", ["a", "b"]) == "a":
        return x + 1
    return x + 0.1 * trial.suggest_int("n", 1, 9)


def members(
    study: optuna.Study, generation: Generation
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the draws and the other trials that the opener of a generation names."""
    if generation.opener is None:
        return (), ()
    trial = study.get_trials(deepcopy=False)[generation.opener]
    record = own_record(trial.system_attrs, trial)
    assert record is not None
    return record.members, record.also


class Worker:
    """A process: a study object and a sampler of its own, and what it is doing."""

    def __init__(self, storage: Any, name: str, estimator: str) -> None:
        sampler = S2ESampler(population_size=K, seed=0, estimator=estimator)
        self.study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
        self.reading: tuple[optuna.Trial, Any, Any] | None = None


class Life(RuleBasedStateMachine):
    """One study, three workers."""

    @initialize(
        direction=st.sampled_from(["minimize", "maximize"]),
        estimator=st.sampled_from(["natural", "surrogate"]),
    )
    def begin(self, direction: str, estimator: str) -> None:
        self.estimator = estimator
        self.n_studies = 0
        self.storage: Any = optuna.storages.InMemoryStorage() if URL is None else open_storage(URL)
        self.direction = direction
        optuna.create_study(study_name="s0", storage=self.storage, direction=direction)
        self.enter("s0")

    def enter(self, name: str) -> None:
        self.name = name
        self.workers = [Worker(self.storage, name, self.estimator) for _ in range(N_WORKERS)]
        self.training: list[tuple[optuna.Study, optuna.Trial, float]] = []

    @property
    def study(self) -> optuna.Study:
        return self.workers[0].study

    # --- asks -----------------------------------------------------------------------------

    @rule(i=workers)
    def ask(self, i: int) -> None:
        study = self.workers[i].study
        trial = study.ask()
        self.training.append((study, trial, suggest(trial)))

    @rule(i=workers, n=st.integers(1, 3 * K))
    def work(self, i: int, n: int) -> None:
        """Trials one after the other, as `study.optimize` runs them."""
        for _ in range(n):
            self.ask(i)
            self.complete(len(self.training) - 1)

    @rule()
    def all_workers_ask_at_once(self) -> None:
        for i in range(N_WORKERS):
            self.read_the_study(i)
        for i in reversed(range(N_WORKERS)):
            self.draw(i)

    @rule()
    def all_trials_complete_at_once(self) -> None:
        while self.training:
            self.complete(0)

    @precondition(lambda self: any(w.reading is None for w in self.workers))
    @rule(i=workers)
    def read_the_study(self, i: int) -> None:
        """Half an ask: what other workers write from now on is not seen."""
        worker = self.workers[i]
        if worker.reading is None:
            trial = worker.study.ask()
            frozen = self.storage.get_trial(trial._trial_id)
            space = worker.study.sampler.infer_relative_search_space(worker.study, frozen)
            worker.reading = (trial, frozen, space)

    @precondition(lambda self: any(w.reading is not None for w in self.workers))
    @rule(i=workers)
    def draw(self, i: int) -> None:
        """The other half."""
        worker = self.workers[i]
        if worker.reading is not None:
            (trial, frozen, space), worker.reading = worker.reading, None
            if self.storage.get_trial(trial._trial_id).state.is_finished():
                if not frozen.params:  # a retry comes with them
                    with pytest.raises(UpdateFinishedTrialError):  # was taken for dead
                        suggest(trial)
                return
            trial.relative_search_space = space
            trial._relative_params = worker.study.sampler.sample_relative(
                worker.study, frozen, space
            )
            self.training.append((worker.study, trial, suggest(trial)))

    # --- ends ------------------------------------------------------------------------------

    def end(self, which: int, tell: Callable[[optuna.Study, optuna.Trial, float], Any]) -> None:
        if self.training:
            study, trial, value = self.training.pop(which % len(self.training))
            state = self.storage.get_trial(trial._trial_id).state
            if state.is_finished():  # a suspended worker comes back
                with pytest.raises(ValueError, match="Cannot tell"):
                    tell(study, trial, value)
            else:
                tell(study, trial, value)

    @rule(which=which)
    def complete(self, which: int) -> None:
        self.end(which, lambda study, trial, value: study.tell(trial, value))

    @rule(which=which, value=st.sampled_from([math.inf, -math.inf, 1e308, 0.0]))
    def complete_oddly(self, which: int, value: float) -> None:
        self.end(which, lambda study, trial, _: study.tell(trial, value))

    @rule(which=which)
    def fail(self, which: int) -> None:
        self.end(which, lambda study, trial, _: study.tell(trial, state=TrialState.FAIL))

    @rule(which=which)
    def prune(self, which: int) -> None:
        def tell(study: optuna.Study, trial: optuna.Trial, value: float) -> None:
            if not self.storage.get_trial(trial._trial_id).state.is_finished():
                trial.report(value, 0)
            study.tell(trial, state=TrialState.PRUNED)

        self.end(which, tell)

    @rule(i=workers, which=which)
    def kill(self, i: int, which: int) -> None:
        """A process dies: its trial stays RUNNING, another process takes its place."""
        if self.training:
            self.training.pop(which % len(self.training))
        self.workers[i] = Worker(self.storage, self.name, self.estimator)

    @rule(which=which, retry=st.booleans())
    def take_for_dead(self, which: int, retry: bool) -> None:
        """A heartbeat has stopped, rightly or not: the trial is failed, and maybe queued again."""
        running = self.study.get_trials(states=(TrialState.RUNNING,))
        if running:
            trial = running[which % len(running)]
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            if retry:
                RetryCallback(max_retry=MAX_RETRIES)(self.study, self.study.trials[trial.number])

    # --- the user ----------------------------------------------------------------------------

    @rule(partly=st.booleans(), x=st.sampled_from([0.0, 0.5, 1.0]))
    def enqueue(self, partly: bool, x: float) -> None:
        self.study.enqueue_trial({"x": x} if partly else {"x": x, "n": 5, "c": "a"})

    @rule(value=st.floats(-1, 1))
    def add(self, value: float) -> None:
        d = {"x": FloatDistribution(0, 1)}
        trial = optuna.trial.create_trial(params={"x": 0.5}, distributions=d, value=value)
        self.study.add_trial(trial)

    @precondition(lambda self: self.n_studies < 3)
    @rule()
    def rename(self) -> None:
        """As the dashboard does: a new study gets the trials, the old one goes."""
        self.n_studies += 1
        name = f"s{self.n_studies}"
        renamed = optuna.create_study(
            study_name=name, storage=self.storage, direction=self.direction
        )
        renamed.add_trials(self.study.get_trials())
        optuna.delete_study(study_name=self.name, storage=self.storage)
        self.enter(name)

    @rule(which=which, other=which)
    def add_copies(self, which: int, other: int) -> None:
        """Copy a trial behind the others: its record names another number."""
        trials = self.study.get_trials(states=(TrialState.COMPLETE,))
        if trials and len(self.study.trials) < 60:
            self.study.add_trial(copy.deepcopy(trials[which % len(trials)]))

    # --- what always holds ---------------------------------------------------------------------

    @rule()
    def look(self) -> None:
        self.replays_bit_for_bit()
        self.members_are_completed_and_used_once()
        self.no_point_is_drawn_twice()
        self.retries_are_bounded()

    def replays_bit_for_bit(self) -> None:
        told, computed = generations(self.study), replay(self.study)
        assert len(told) == len(computed)
        for m, (a, b) in enumerate(zip(told, computed, strict=True)):
            assert a.index == m
            assert np.array_equal(a.theta, b.theta)
            assert np.all((a.theta >= 1) & (a.theta <= 100))
            draws, others = members(self.study, a)
            assert a.members == (*draws, *others)
            given = min(len(others), K // 2) if m == 1 else 0  # others stand for the first draws
            assert len(draws) == (K - given if m else 0)

    def members_are_completed_and_used_once(self) -> None:
        found = [members(self.study, g) for g in generations(self.study)]
        draws, others = ({n for pair in found for n in pair[i]} for i in range(2))
        assert len(draws) + len(others) == sum(len(d) + len(o) for d, o in found)
        assert not draws & others
        trials = self.study.get_trials(deepcopy=False)
        assert all(trials[n].state == TrialState.COMPLETE for n in draws | others)
        for n in draws:
            assert "fixed_params" not in trials[n].system_attrs
            assert DRAW_KEY in trials[n].system_attrs

    def no_point_is_drawn_twice(self) -> None:
        draws: dict[Any, int] = {}
        for trial in self.study.get_trials(deepcopy=False):
            record = trial.system_attrs.get(DRAW_KEY)
            if record is None or len(trial.params) < 3:
                continue
            first = draws.setdefault((trial.params["x"], trial.params["n"]), record["trial"])
            assert first == record["trial"]  # a retry or a copy, not another draw

    def retries_are_bounded(self) -> None:
        for trial in self.study.get_trials(deepcopy=False):
            assert len(trial.system_attrs.get("retry_history", [])) <= MAX_RETRIES

    def teardown(self) -> None:
        """Ask until the pool is drained: no completed draw may be left behind."""
        if not hasattr(self, "workers"):
            return
        calm = Worker(self.storage, self.name, self.estimator)
        for _ in range(len(calm.study.get_trials(states=(TrialState.WAITING,)))):
            calm.study.tell(calm.study.ask(), state=TrialState.FAIL)
        for _ in range(len(calm.study.trials) // K + 2):
            suggest(calm.study.ask())
        used = {n for g in generations(calm.study) for n in g.members}
        assert len(self._draws(calm.study) - used) < K
        self.look()

    @staticmethod
    def _draws(study: optuna.Study) -> set[int]:
        """Return the completed draws; of copies and retries of one draw the first one."""
        found: dict[int, Any] = {}
        for trial in study.get_trials(states=(TrialState.COMPLETE,)):
            attrs = trial.system_attrs
            record = attrs.get(DRAW_KEY)
            if record is None or "fixed_params" in attrs:
                continue
            own = record["trial"] == trial.number or record["trial"] in attrs.get(
                "retry_history", []
            )
            if own:
                found.setdefault(record["trial"], trial)
        return {trial.number for trial in found.values()}


Life.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    derandomize=EXAMPLES <= 30,
    database=None,
    phases=(Phase.generate, Phase.shrink),
)
TestLife = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::optuna.exceptions.ExperimentalWarning"
)(Life.TestCase)
