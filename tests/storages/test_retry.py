"""Operations while the database is unavailable, and when it forgets to answer."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_s2e import S2ESampler, open_storage
from optuna_s2e.storages._connection import StorageUnavailableError

D = FloatDistribution(0, 1)


@pytest.fixture(scope="module")
def database(_postgres_server_url: str) -> str:
    from servers import new_database

    return new_database(_postgres_server_url)


@pytest.fixture(scope="module")
def proxy(database: str) -> Iterator[Any]:
    from servers import ForgetfulProxy

    proxy = ForgetfulProxy(database)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def storage(proxy: Any) -> Any:
    """Return the storage whose acknowledgements get lost. Each test makes its own study."""
    return open_storage(proxy.url)


@pytest.fixture(scope="module")
def direct(database: str) -> Any:
    """Return the same database without losses."""
    return open_storage(database)


def new_study(storage: Any, name: str | None = None) -> int:
    study_id: int = storage.create_new_study([StudyDirection.MINIMIZE], name)
    return study_id


def finish(s: Any, t: int) -> None:
    assert s.set_trial_state_values(t, TrialState.COMPLETE, [0.25]) is True


def claim(s: Any, t: int) -> None:
    assert s.set_trial_state_values(t, TrialState.RUNNING) is True


WAITING = optuna.trial.create_trial(
    state=TrialState.WAITING, system_attrs={"fixed_params": {"x": 0.5}}
)
DONE = optuna.trial.create_trial(params={"x": 0.5}, distributions={"x": D}, value=math.inf)

# name: (what is done to a study and its trial, and how many trials there are then)
WRITES: dict[str, tuple[Callable[[Any, int, int], Any], int]] = {
    "ask": (lambda s, study, t: s.create_new_trial(study), 2),
    "enqueue": (lambda s, study, t: s.create_new_trial(study, WAITING), 2),
    "add": (lambda s, study, t: s.create_new_trial(study, DONE), 2),
    "parameter": (lambda s, study, t: s.set_trial_param(t, "x", 0.5, D), 1),
    "system attribute": (lambda s, study, t: s.set_trial_system_attr(t, "a", [1]), 1),
    "user attribute": (lambda s, study, t: s.set_trial_user_attr(t, "a", [1]), 1),
    "report": (lambda s, study, t: s.set_trial_intermediate_value(t, 3, 0.5), 1),
    "tell": (lambda s, study, t: finish(s, t), 1),
    "fail": (lambda s, study, t: s.set_trial_state_values(t, TrialState.FAIL), 1),
    "study attribute": (lambda s, study, t: s.set_study_user_attr(study, "a", "b"), 1),
}


@pytest.mark.postgres
@pytest.mark.parametrize("case", WRITES)
def test_write_whose_acknowledgement_is_lost_is_done_once(
    case: str, proxy: Any, storage: Any, direct: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write, n_trials = WRITES[case]
    study = new_study(storage)
    trial = storage.create_new_trial(study)
    before = proxy.swallowed
    proxy.forget_commit()
    with caplog.at_level(logging.WARNING):
        result = write(storage, study, trial)
    assert proxy.swallowed == before + 1
    trials = direct.get_all_trials(study)
    assert len(trials) == n_trials
    if n_trials == 2:
        assert result == trials[1]._trial_id
    if case == "tell":
        assert trials[0].value == 0.25
    messages = [r.message for r in caplog.records if r.name == "optuna_s2e.storages._attempts"]
    assert len(messages) == 2
    assert "is unavailable" in messages[0]
    assert "is available again" in messages[1]


@pytest.mark.postgres
def test_claim_of_an_enqueued_trial_whose_acknowledgement_is_lost(
    proxy: Any, storage: Any
) -> None:
    trial = storage.create_new_trial(new_study(storage), WAITING)
    before = proxy.swallowed
    proxy.forget_commit()
    claim(storage, trial)
    assert proxy.swallowed == before + 1
    assert storage.set_trial_state_values(trial, TrialState.RUNNING) is False  # now it is taken


@pytest.mark.postgres
def test_replacement_whose_acknowledgement_is_lost_succeeds_once(proxy: Any, storage: Any) -> None:
    study = new_study(storage)
    for old, new in ((None, 1), (1, 2), (2, None)):
        before = proxy.swallowed
        proxy.forget_commit()
        assert storage.replace_study_system_attr(study, "a", old, new) is True
        assert proxy.swallowed == before + 1
        assert storage.replace_study_system_attr(study, "a", old, new) is False


@pytest.mark.postgres
def test_study_whose_acknowledgement_is_lost_is_created_and_deleted_once(
    proxy: Any, storage: Any
) -> None:
    before = proxy.swallowed
    proxy.forget_commit()
    study = new_study(storage, "once")
    assert proxy.swallowed == before + 1
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        new_study(storage, "once")
    storage.create_new_trial(study)
    proxy.forget_commit()
    storage.delete_study(study)
    assert proxy.swallowed == before + 2
    assert "once" not in [s.study_name for s in storage.get_all_studies()]
    with pytest.raises(KeyError):
        storage.delete_study(study)


@pytest.mark.postgres
def test_what_another_worker_finished_is_not_taken_for_ones_own(
    proxy: Any, storage: Any, direct: Any
) -> None:
    trial = storage.create_new_trial(new_study(storage))
    direct.set_trial_state_values(trial, TrialState.FAIL)
    proxy.forget_commit()
    with pytest.raises(UpdateFinishedTrialError):
        finish(storage, trial)


@pytest.mark.postgres
def test_lost_acknowledgements_all_over_a_search_change_nothing(proxy: Any, storage: Any) -> None:
    def objective(trial: optuna.Trial) -> float:
        return sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(2))

    def disturbing(trial: optuna.Trial) -> float:
        proxy.forget_commit(after=trial.number % 5)  # somewhere in the next asks and tells
        return objective(trial)

    def run(storage: Any, objective: Any) -> optuna.Study:
        sampler = S2ESampler(population_size=4, estimator="natural", seed=0)
        study = optuna.create_study(storage=storage, sampler=sampler)
        study.optimize(objective, n_trials=14)
        return study

    calm, before = run(None, objective), proxy.swallowed
    disturbed = run(storage, disturbing)
    assert proxy.swallowed >= before + 10
    assert [t.params for t in disturbed.trials] == [t.params for t in calm.trials]
    assert [t.state for t in disturbed.trials] == [TrialState.COMPLETE] * 14


@pytest.mark.postgres
def test_an_outage_does_not_end_the_heartbeat(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    from servers import ForgetfulProxy

    proxy = ForgetfulProxy(database)
    storage: Any = open_storage(proxy.url, patience=0, heartbeat_interval=60)
    trial = storage.create_new_trial(new_study(storage))
    proxy.forget_commit()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            storage.record_heartbeat(trial)
    assert proxy.swallowed == 1
    assert ["again" in r.message for r in caplog.records if "storage" in r.message][1:] == [True]
    proxy.close()


@pytest.mark.postgres
def test_patience_ends_with_one_clear_error(postgres_url: str) -> None:
    from servers import ForgetfulProxy, end_connections

    proxy = ForgetfulProxy(postgres_url)
    study = optuna.create_study(storage=open_storage(proxy.url, patience=0.3))
    proxy.close()
    end_connections(postgres_url)
    start = time.monotonic()
    with pytest.raises(StorageInternalError, match=r"was unavailable for 0.3 s: .*refused") as e:
        study.ask()
    assert 0.3 <= time.monotonic() - start < 20
    assert isinstance(e.value.__cause__, StorageUnavailableError)


@pytest.mark.postgres
def test_connections_that_the_server_ends_are_made_again(postgres_url: str) -> None:
    from servers import end_connections

    storage = open_storage(postgres_url)
    study = optuna.create_study(storage=storage)
    ended = 0

    def end_once(connection: Any) -> None:
        nonlocal ended
        ended += 1
        if ended == 1:
            end_connections(postgres_url)

    # after the pool has looked whether its connection is alive
    sqlalchemy.event.listen(storage._backend._backend.engine, "begin", end_once)  # type: ignore[attr-defined]
    study.tell(study.ask(), 0.5)
    assert ended > 1
    assert [t.value for t in study.trials] == [0.5]


@pytest.mark.postgres
def test_server_that_is_starting_is_waited_for(postgres_url: str) -> None:
    from servers import ForgetfulProxy

    proxy = ForgetfulProxy(postgres_url)
    proxy.n_starting = 1
    with pytest.raises(ConnectionError, match=r"cannot be opened: .*system is starting up"):
        open_storage(proxy.url, patience=0)
    proxy.n_starting = 2
    optuna.create_study(storage=open_storage(proxy.url)).ask()
    assert proxy.n_starting == 0
    proxy.close()
