"""The engine: refused and adopted changes, forks, several studies."""

import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import searches
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.trial import TrialState
from processes import Process
from searches import K, assert_replays, mixed, params, quadratic, record, schedule_objective

from optuna_s2e import S2ESampler, generations, optimize_batch
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.history import Slot
from optuna_s2e.parallel import sampler_for
from optuna_s2e.sampler import engine_of

make_study = partial(searches.make_study, estimator="surrogate")


def drop_parameters(trial: optuna.Trial) -> float:
    return trial.suggest_float("other", 0, 1)


def widen(trial: optuna.Trial) -> float:
    return sum(trial.suggest_float(f"x{i}", 0, 3) for i in range(3))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("objective", "fixed", "message"),
    [
        (widen, {}, "parameter 'x0' is FloatDistribution.*high=3.*theta describes.*high=1"),
        (drop_parameters, {}, "has none of the parameters"),
        (quadratic, {"x1": 0.9}, "parameter 'x1' was set by someone else"),
    ],
)
def test_search_that_stands_still_says_why(objective: Any, fixed: Any, message: str) -> None:
    study = make_study(warn_independent_sampling=False)
    study.optimize(quadratic, n_trials=2 * K + 1)
    if fixed:
        study.sampler = PartialFixedSampler(fixed, study.sampler)
    with pytest.warns(
        UserWarning, match=f"(?s)stands still. The last one does not count because .*{message}"
    ) as w:
        study.optimize(objective, n_trials=3 * K)
    assert len(w) == 1
    assert "on_config_change" in str(w[0].message)


def test_one_sampler_serves_two_studies_of_one_storage() -> None:
    storage, sampler = optuna.storages.InMemoryStorage(), S2ESampler(population_size=K, seed=0)
    studies = [optuna.create_study(storage=storage, sampler=sampler) for _ in range(2)]
    for _ in range(2 * K + 1):
        for study in studies:
            study.optimize(quadratic, n_trials=1)
    assert params(studies[0]) == params(studies[1])
    for study in studies:
        assert_replays(study)


def test_study_made_anew_under_the_same_identifier_is_read_anew(tmp_path: Path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/s.db")
    sampler = S2ESampler(population_size=K, seed=0)
    for _ in range(2):
        study = optuna.create_study(study_name="s", storage=storage, sampler=sampler)
        study.optimize(quadratic, n_trials=K + 1)
        assert len(generations(study)) == 2
        assert_replays(study)
        optuna.delete_study(study_name="s", storage=storage)


def die_amid_suggestions(study: optuna.Study) -> None:
    dead = study.ask()
    assert dead.relative_params is not None  # it is drawn now
    dead.suggest_int("R.eq1", 1, 1)  # R.n_epochs would come next
    study.tell(dead, state=TrialState.FAIL)


@pytest.mark.parametrize("n_before", [2, 2 * K + 1])
def test_a_trial_that_died_amid_its_suggestions_does_not_stop_a_batch(n_before: int) -> None:
    objective = schedule_objective(20, "eq1")
    study = make_study()
    study.optimize(objective, n_trials=n_before)
    die_amid_suggestions(study)
    optimize_batch(study, objective, 2 * K)
    assert len(generations(study)) > 1
    assert_replays(study)


def test_a_trial_that_died_amid_its_suggestions_sends_nobody_back_to_generation_0() -> None:
    objective = schedule_objective(20, "eq1")
    study = make_study()
    study.optimize(objective, n_trials=2 * K + 1)
    die_amid_suggestions(study)
    study.optimize(objective, n_trials=1)
    assert record(study.trials[-1])["generation"] == 2


@pytest.mark.parametrize("n_before", [2, 2 * K + 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population_size": 5}, "population_size is 5, was 4"),
        ({"estimator": "newton"}, "estimator is 'newton', was 'surrogate'"),
        ({"step_size": 0.5}, "step_size is 0.5, was 1.0"),
        ({"reuse": 0}, "reuse is 0, was 1000"),
        ({"max_kl": 2.0}, "max_kl is 2.0, was 1.0"),
        ({"theta_bounds": (1.0, 50.0)}, r"theta_bounds is \[1.0, 50.0\], was \[1.0, 100.0\]"),
        ({"consider_pruned_trials": True}, "consider_pruned_trials is True, was False"),
    ],
)
def test_other_settings_are_refused(n_before: int, change: dict[str, Any], message: str) -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=n_before)
    study.sampler = S2ESampler(**({"population_size": K, "seed": 0} | change))
    with pytest.raises(ValueError, match=message) as caught:
        study.optimize(quadratic, n_trials=1)
    assert 'on_config_change="adopt"' in str(caught.value)
    assert "\n" not in str(caught.value)
    study.sampler = S2ESampler(population_size=K, seed=99)  # another seed is no change
    study.optimize(quadratic, n_trials=2 * K)
    assert_replays(study)


@pytest.mark.parametrize("n_before", [2, 2 * K + 1])
def test_other_settings_are_adopted_from_the_next_generation_on(n_before: int) -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=n_before)
    before = [g.members for g in generations(study)]
    change = {"population_size": 6, "estimator": "newton", "on_config_change": "adopt"}
    study.sampler = S2ESampler(seed=0, **change)  # type: ignore[arg-type]
    study.optimize(quadratic, n_trials=14)
    after = [g.members for g in generations(study)]
    assert after[: len(before)] == before
    assert [len(m) for m in after[len(before) :]] == [6, 6]
    assert_replays(study)
    study.sampler = S2ESampler(population_size=6, estimator="newton", seed=0)
    study.optimize(quadratic, n_trials=1)  # in force now


@pytest.mark.parametrize("estimator", ["surrogate", "natural", "paper"])
def test_a_theta_outside_of_an_adopted_box_goes_on_from_the_nearest_one_inside(
    estimator: str,
) -> None:
    study = make_study(estimator="gradient", step_size=50.0, max_kl=1e9, theta_bounds=(0.1, 1000))
    study.optimize(mixed, n_trials=4 * K)
    wide = generations(study)[-1].theta
    assert wide.min() < 0.5
    assert wide.max() > 900.0
    study.sampler = S2ESampler(
        population_size=K, estimator=estimator, theta_bounds=(1, 100), seed=0,
        on_config_change="adopt",
    )  # fmt: skip
    study.optimize(mixed, n_trials=3 * K)
    after = generations(study)[4:]
    assert [len(g.trials) for g in after] == [K] * 3
    assert all(g.theta.min() >= 1.0 and g.theta.max() <= 100.0 for g in after)
    assert_replays(study)


def test_the_sign_of_the_papers_step_is_a_setting_of_the_study() -> None:
    study = make_study(estimator="paper", sign="+")
    study.optimize(quadratic, n_trials=2 * K + 1)
    study.sampler = S2ESampler(population_size=K, estimator="paper", seed=0)
    with pytest.raises(ValueError, match="have changed: sign is '-', was '\\+'"):
        study.optimize(quadratic, n_trials=1)
    study.sampler = sampler_for(study)
    study.optimize(quadratic, n_trials=K)
    assert len(generations(study)) == 4
    assert_replays(study)


@pytest.mark.parametrize("other", [(9, "table1"), (8, "eq1")])
@pytest.mark.parametrize("n_before", [1, 2 * K + 1])
def test_other_schedule_space_is_refused_or_starts_anew(other: Any, n_before: int) -> None:
    study = make_study()
    study.optimize(schedule_objective(8, "table1"), n_trials=n_before)
    with pytest.raises(ValueError, match=r"R\.n_epochs.*but study.*R\.table1': 1"):
        study.optimize(schedule_objective(*other), n_trials=1)
    study.sampler = S2ESampler(population_size=K, seed=0, on_config_change="adopt")
    study.optimize(schedule_objective(*other), n_trials=2 * K + 1)
    study.sampler = S2ESampler(population_size=K, seed=0)
    study.optimize(schedule_objective(*other), n_trials=1)  # in force now
    gs = generations(study)
    first = len(study.trials) - 2 * K - 2
    assert [g.members for g in gs][1:] == [
        tuple(range(first, first + K)),
        tuple(range(first + K, first + 2 * K)),
    ]
    assert gs[0].theta.shape == ((36,) if other[1] == "table1" else (6,))
    assert_replays(study)


def test_other_range_starts_anew_when_adopted() -> None:
    def objective(high: float) -> Any:
        return lambda trial: trial.suggest_float("x", 0, high)

    study = make_study(on_config_change="adopt", warn_independent_sampling=False)
    study.optimize(objective(1), n_trials=2 * K + 1)
    study.optimize(objective(3), n_trials=4 * K)
    assert_replays(study)
    last = generations(study)
    assert len(last) >= 3
    assert min(last[1].members) > 2 * K
    assert all(study.trials[n].distributions["x"].high == 3 for n in last[-1].trials)  # type: ignore[attr-defined]


def test_study_of_a_later_release_is_refused_or_warned_about() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=K)
    trials = study.trials
    trials[2].system_attrs[DRAW_KEY] = record(trials[2]) | {"v": 3}
    later = optuna.create_study(study_name="later")
    later.add_trials(trials)
    later.sampler = S2ESampler(population_size=K, seed=0)
    message = r"Study 'later' was searched by a later release of optuna_s2e \(trial 2\)"
    with pytest.raises(ValueError, match=message):
        later.sampler.check(later)
    with pytest.warns(UserWarning, match=message) as caught:
        later.optimize(quadratic, n_trials=3)
    assert len(caught) == 1


def test_ledger_keeps_one_chain_of_a_space() -> None:
    study = make_study(estimator="natural")
    study.optimize(quadratic, n_trials=10 * K)
    assert len(engine_of(study.sampler)._known(study).ledger._chains) == 1  # type: ignore[attr-defined]


def test_trial_that_began_in_generation_0_ends_in_it() -> None:
    study = make_study(independent_sampler=RandomSampler(seed=5))
    early = study.ask()
    early.suggest_float("x0", 0, 1)
    study.optimize(quadratic, n_trials=K + 1)  # opens generation 1 in between
    value = sum((early.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(3))
    study.tell(early, value)
    study.optimize(quadratic, n_trials=K)
    assert 0 in generations(study)[2].members
    assert_replays(study)


def test_study_made_anew_with_the_other_direction(tmp_path: Path) -> None:
    storage = optuna.storages.get_storage(f"sqlite:///{tmp_path}/s.db")
    sampler = S2ESampler(population_size=K, seed=0)
    for direction, sign in (("minimize", 1), ("maximize", -1)):
        study = optuna.create_study(
            study_name="s", storage=storage, sampler=sampler, direction=direction
        )
        study.optimize(lambda t, s=sign: s * quadratic(t), n_trials=K + 1)  # type: ignore[misc]
        assert_replays(study)
        optuna.delete_study(study_name="s", storage=storage)


def test_two_workers_that_open_at_once_make_a_harmless_fork() -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage)
    a, b = (
        optuna.load_study(
            study_name="s", storage=storage, sampler=S2ESampler(population_size=K, seed=0)
        )
        for _ in range(2)
    )
    a.optimize(quadratic, n_trials=K)
    first, second = a.ask(), b.ask()
    for study, trial in ((a, first), (b, second)):  # both read before either writes
        frozen = study._storage.get_trial(trial._trial_id)
        trial.relative_search_space = study.sampler.infer_relative_search_space(study, frozen)
    for study, trial in ((b, second), (a, first)):
        frozen = study._storage.get_trial(trial._trial_id)
        assert trial.relative_search_space is not None
        trial._relative_params = study.sampler.sample_relative(
            study, frozen, trial.relative_search_space
        )
    for study, trial in ((b, second), (a, first)):
        study.tell(trial, quadratic(trial))
    a.optimize(quadratic, n_trials=2 * K)
    openers = [t.number for t in a.trials if "theta" in (record(t) or {})]
    assert openers[:2] == [K, K + 1]
    told = generations(a)
    assert told[1].opener == K
    assert set(told[1].trials) >= {K, K + 1}  # twins are shown together
    assert sorted(n for g in told for n in g.trials) == list(range(3 * K + 2))
    assert_replays(a)
    members = [n for g in generations(a) for n in g.members]
    assert {K, K + 1} <= set(members)  # the fork's draw counts, too


def draw_in_a_fork_while_a_thread_reads() -> None:
    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0, 1)

    study = make_study()
    study.optimize(objective, n_trials=2 * K + 1)
    inside, over = threading.Event(), threading.Event()

    def read() -> None:
        with engine_of(study.sampler).reading(study):  # type: ignore[arg-type]
            inside.set()
            over.wait()

    thread = threading.Thread(target=read)
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a deadlock ends so
        study.optimize(objective, n_trials=1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    over.set()
    thread.join()
    print(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_that_is_forked_while_another_thread_reads_can_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process = Process(draw_in_a_fork_while_a_thread_reads)
    assert process.wait() == 0, process.errors
    assert process.printed.strip() == "0"


def test_keys_and_seeds_are_those_of_every_release() -> None:
    study = optuna.create_study(study_name="s", sampler=S2ESampler(population_size=K))
    engine = engine_of(study.sampler)
    trial = study._storage.get_trial(study.ask()._trial_id)
    assert engine.key(study, trial) == (304680751394550461, 0)  # SHA-256 of "s", 8 bytes
    slots = [Slot(0, 0), Slot(1, 0), Slot(1, 1), Slot(7, 0)]
    seeds = [engine.seed_of_slot(study, slot) for slot in slots]
    assert seeds == [4264078616, 1544707501, 1242204224, 4078579201]
    engine = engine_of(S2ESampler(population_size=K, seed=0))
    assert engine.key(study, trial) == (0, 0)
    assert [engine.seed_of_slot(study, slot) for slot in slots[:2]] == [58139447, 4019517397]


def test_the_first_generation_keeps_the_settings_it_began_with() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=2)
    study.sampler = S2ESampler(population_size=K, seed=0, step_size=0.5, on_config_change="adopt")
    study.optimize(quadratic, n_trials=K - 1)
    sizes = [record(t)["settings"]["step_size"] for t in study.trials]
    assert sizes == [1.0] * K + [0.5]  # the last one opens generation 1


def test_the_model_of_a_generation_is_fitted_once() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=K + 1)
    known = engine_of(study.sampler)._known(study)  # type: ignore[arg-type]
    first = known.model
    assert known.model_of == K
    assert first is not None
    study.optimize(quadratic, n_trials=K - 1)
    assert known.model is first
    study.optimize(quadratic, n_trials=1)
    assert known.model_of == 2 * K
    assert known.model is not first
