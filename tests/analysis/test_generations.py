"""The generations as recorded and as recomputed, and their table."""

import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from optuna_s2e import S2ESampler, generations, recommend, replay
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.analysis import Snapshot, closes_generation
from optuna_s2e.analysis._generations import (
    Generation,
    count_forks,
    generation_rows,
    member_lags,
    population_size,
)
from optuna_s2e.history import Ledger, Rules
from optuna_s2e.storages import open_storage

K = 4


def quadratic(trial: optuna.Trial) -> float:
    return (trial.suggest_float("x", 0, 1) - 0.3) ** 2


def searched(n_trials: int, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    study = optuna.create_study(sampler=sampler)
    study.optimize(quadratic, n_trials=n_trials)
    return study


def test_every_trial_belongs_to_one_generation_and_every_theta_replays() -> None:
    study = searched(3 * K + 2, S2ESampler(population_size=K, seed=0))
    recorded, replayed = generations(study), replay(study)
    assert [g.index for g in recorded] == [0, 1, 2, 3]
    assert [g.trials for g in recorded] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13)]
    assert [g.members for g in recorded] == [(), (0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    for a, b in zip(recorded, replayed, strict=True):
        np.testing.assert_array_equal(a.theta, b.theta)
        np.testing.assert_array_equal(a.losses, [study.trials[n].value for n in a.trials])


def test_two_openers_at_once_are_one_fork() -> None:
    """Both workers ask before either has told: each opens generation 1."""
    study = searched(K, S2ESampler(population_size=K, seed=0))
    trials = [study.ask(), study.ask()]
    others = [t for t in study.trials if t.number != trials[0].number]
    assert Snapshot.of(study).n_forks == 0
    # the second worker did not see the first one's record when it drew
    blind = optuna.create_study(
        study_name=study.study_name, sampler=S2ESampler(population_size=K, seed=0)
    )
    blind.add_trials(others[:K])
    blind.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    second = blind.ask()
    second.suggest_float("x", 0, 1)
    trials[0].suggest_float("x", 0, 1)
    for trial in trials:
        study.tell(trial, 0.5)
    merged = optuna.create_study(study_name=study.study_name)
    merged.add_trials(study.trials[: K + 1])
    merged.add_trials(blind.trials[K + 1 :])
    snapshot = Snapshot.of(merged)
    assert snapshot.n_forks == 1
    assert [g.opener for g in snapshot.generations] == [None, K]
    assert snapshot.generations[1].trials == (K, K + 1)  # twins are shown together


def make_generation(index: int, losses: list[float]) -> Generation:
    trials = tuple(range(10 * index, 10 * index + len(losses)))
    return Generation(index, np.ones(2), index or None, (), trials, np.array(losses))


@pytest.mark.parametrize(("maximize", "best", "mean"), [(False, 1.0, 2.0), (True, -1.0, -2.0)])
def test_rows_count_completed_trials_in_units_of_the_value(
    maximize: bool, best: float, mean: float
) -> None:
    full, empty = generation_rows(
        [
            make_generation(0, [3.0, np.nan, 1.0, np.inf, -9.0]),
            make_generation(1, [np.nan]),
        ],
        complete={0, 2},  # the last one was pruned
        maximize=maximize,
    )
    assert (full.index, full.opener, full.n_trials, full.n_complete) == (0, None, 5, 2)
    assert (full.best, full.mean) == (best, mean)
    assert (empty.opener, empty.n_trials, empty.n_complete) == (1, 1, 0)
    assert empty.best is empty.mean is None


def test_the_mean_of_the_largest_losses_is_a_number() -> None:
    (row,) = generation_rows([make_generation(0, [1.7e308, 1.6e308])], {0, 1})
    assert row.mean == pytest.approx(1.65e308)


def closers(study: optuna.Study) -> list[int]:
    trials = study.trials
    ledger = Ledger(Rules.of(study)).read(trials)
    return [t.number for t in trials if closes_generation(t, trials, ledger)]


def test_a_generation_is_closed_by_its_last_trial_only() -> None:
    study = searched(20, S2ESampler(population_size=K, seed=0))
    assert closers(study) == [3, 7, 11, 15, 19]
    assert closers(searched(13, RandomSampler(seed=0))) == [5, 11]  # of six


def test_a_ledger_that_follows_the_study_gives_the_same_answers() -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=K, seed=0))
    ledger = Ledger(Rules.of(study))
    closed = []

    def look(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        trials = study.get_trials(deepcopy=False)
        if closes_generation(trial, trials, ledger.read(trials)):
            closed.append(trial.number)

    study.optimize(quadratic, n_trials=13, callbacks=[look])
    assert closed == [3, 7, 11]


def test_without_draws_there_are_no_forks_lags_or_population_size() -> None:
    snapshot = Snapshot.of(searched(2, RandomSampler(seed=0)))
    assert snapshot.n_forks == 0
    assert count_forks(None, snapshot.ledger) == 0
    assert member_lags(None, snapshot.ledger) == ()
    assert population_size(None, snapshot.ledger) is None


def test_lags_count_the_updates_since_a_member_was_drawn() -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=2, seed=0, estimator="natural"))
    late = study.ask()
    late.suggest_float("x", 0, 1)
    study.optimize(quadratic, n_trials=2 + 2 + 1)  # opens 1 and 2
    study.tell(late, 0.5)
    study.optimize(quadratic, n_trials=2)
    snapshot = Snapshot.of(study)
    assert [g.members for g in snapshot.generations] == [(), (1, 2), (3, 4), (5, 0)]
    assert member_lags(snapshot.chain, snapshot.ledger) == (0, 0, 0, 0, 0, 2)
    assert population_size(snapshot.chain, snapshot.ledger) == 2


def test_a_theta_whose_member_was_changed_does_not_follow_and_names_it() -> None:
    trials = searched(2 * K + 1, S2ESampler(population_size=K, seed=0)).trials
    trials[5].params = {"x": 0.125}
    changed = optuna.create_study(sampler=S2ESampler(population_size=K, seed=0))
    changed.add_trials(trials)
    assert len(generations(changed)) == 3
    message = rf"generation 2 \(trial {2 * K}\) does not follow: its members \[5\] are no draws"
    with pytest.raises(ValueError, match=message):
        replay(changed)


def test_a_theta_whose_model_knew_a_trial_that_was_changed_does_not_follow() -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=K, seed=0))
    study.enqueue_trial({"x": 0.5})
    study.optimize(quadratic, n_trials=K + 1)
    trials = study.trials
    assert np.array_equal(replay(study)[1].theta, generations(study)[1].theta)
    trials[0].params, trials[0].distributions = {}, {}
    changed = optuna.create_study(sampler=S2ESampler(population_size=K, seed=0))
    changed.add_trials(trials)
    with pytest.raises(ValueError, match=rf"trial {K}\) does not follow: trials \[0\]"):
        replay(changed)


def test_running_and_failed_trials_belong_to_their_generation_and_have_no_loss() -> None:
    study = searched(K + 1, S2ESampler(population_size=K, seed=0))
    value = study.trials[-1].value
    for state in (None, TrialState.FAIL, TrialState.PRUNED):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(7.0, 0)
        if state is not None:
            study.tell(trial, state=state)
    generation = generations(study)[1]
    assert generation.trials == (K, K + 1, K + 2, K + 3)
    np.testing.assert_array_equal(generation.losses, [value, np.nan, np.nan, 7.0])


def test_the_openers_of_a_space_that_was_left_are_no_forks() -> None:
    def wider(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0, 3)

    options = {"population_size": 2, "seed": 0, "warn_independent_sampling": False}
    study = searched(5, S2ESampler(**options, estimator="natural", on_config_change="adopt"))
    study.optimize(wider, n_trials=6)
    snapshot = Snapshot.of(study)
    openers = [g.opener for g in snapshot.generations]
    assert len(snapshot.ledger.openers) > len(openers) - 1 > 0
    assert all(n >= 5 for n in openers if n is not None)
    assert snapshot.n_forks == 0
    assert all(
        np.array_equal(a.theta, b.theta)
        for a, b in zip(generations(study), replay(study), strict=True)
    )


def recorded_study(name: str, path: Path) -> optuna.Study:
    """Load a copy of a study of tests/data."""
    shutil.copy(Path(__file__).parents[1] / "data" / f"{name}.log", path / "s.log")
    storage = open_storage(f"journal:///{path}/s.log")
    return optuna.load_study(
        study_name="mixed", storage=storage, sampler=S2ESampler(population_size=4, seed=0)
    )


def mixed(trial: optuna.Trial) -> float:
    x, n = trial.suggest_float("x", 0, 1), trial.suggest_int("n", 1, 4)
    return (x - 0.3) ** 2 + 0.1 * n + (trial.suggest_categorical("c", ["a", "b"]) == "b")


def test_a_theta_of_the_first_model_is_taken_as_recorded_and_searched_on(tmp_path: Path) -> None:
    study = recorded_study("model-1", tmp_path)
    thetas = [g.theta for g in generations(study)]
    assert [len(t) for t in thetas] == [6, 6, 6, 6]
    study.optimize(mixed, n_trials=4)
    snapshot = Snapshot.of(study)
    assert snapshot.as_recorded == [1, 2, 3]
    assert [len(g.members) for g in snapshot.generations] == [0, 4, 4, 4, 4]
    np.testing.assert_array_equal([g.theta for g in snapshot.replayed[:4]], thetas)
    np.testing.assert_array_equal(snapshot.replayed[4].theta, snapshot.generations[4].theta)
    models = [study.trials[n].system_attrs[DRAW_KEY].get("model") for n in (4, 8, 12, 16)]
    assert models == [None, None, None, 2]
    assert recommend(study).expected_loss < 0.3
    assert [row.n_complete for row in snapshot.generation_rows] == [4, 4, 4, 4, 1]


def test_a_study_of_the_second_model_replays(tmp_path: Path) -> None:
    study = recorded_study("model-2", tmp_path)
    snapshot = Snapshot.of(study)
    assert snapshot.as_recorded == []
    for told, computed in zip(snapshot.generations, snapshot.replayed, strict=True):
        np.testing.assert_allclose(computed.theta, told.theta, rtol=1e-9)
    assert len(snapshot.generations) == 4
    assert np.ptp(snapshot.generations[3].theta) > 1.0


def test_the_version_of_the_model_matters_to_no_other_estimator() -> None:
    study = searched(2 * K + 1, S2ESampler(population_size=K, seed=0, estimator="natural"))
    assert all("model" not in t.system_attrs[DRAW_KEY] for t in study.trials)
    assert Snapshot.of(study).as_recorded == []


def test_a_theta_that_was_changed_shows_in_the_generation_after_the_first_model(
    tmp_path: Path,
) -> None:
    """What follows a recorded theta is recomputed from it."""
    study = recorded_study("model-1", tmp_path)
    study.optimize(mixed, n_trials=4)
    trials = study.trials
    attr = trials[12].system_attrs[DRAW_KEY]
    trials[12].system_attrs[DRAW_KEY] = attr | {
        "theta": [1.0 + 0.9 * (t - 1.0) for t in attr["theta"]]
    }
    changed = optuna.create_study()
    changed.add_trials(trials)
    told, computed = generations(changed), replay(changed)
    np.testing.assert_array_equal(told[3].theta, computed[3].theta)
    assert not np.array_equal(told[4].theta, computed[4].theta)
