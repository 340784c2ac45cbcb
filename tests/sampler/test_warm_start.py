"""Searches that learn from earlier studies: what they gain, and what a study keeps of them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from searches import assert_replays, schedule_objective

from optuna_s2e import S2ESampler, generations, open_storage, recommend
from optuna_s2e._attributes import SOURCES_KEY
from optuna_s2e.history import Sources, read_sources

N_PARAMETERS = 6
CENTRE = np.linspace(0.2, 0.8, N_PARAMETERS)


def bowl(shift: float, offset: float = 0.0, scale: float = 1.0) -> Any:
    def objective(trial: optuna.Trial) -> float:
        x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(N_PARAMETERS)])
        return offset + scale * float(((x - CENTRE - shift) ** 2).sum())

    return objective


def searched(
    objective: Any, n_trials: int, seed: int, name: str = "study", **options: Any
) -> optuna.Study:
    study = optuna.create_study(study_name=name, sampler=S2ESampler(seed=seed, **options))
    study.optimize(objective, n_trials=n_trials)
    return study


def test_a_similar_task_saves_trainings_and_a_contrary_one_costs_none() -> None:
    gains, harms = [], []
    for seed in range(3):
        earlier = searched(bowl(0.0, offset=5.0, scale=3.0), 24, seed, "earlier")
        contrary = searched(bowl(0.0, scale=-1.0), 24, seed, "contrary")
        cold, warm, misled = (
            searched(bowl(0.05), 18, 100 + seed, source_studies=sources)
            for sources in (None, [earlier], [contrary])
        )
        assert [t.params for t in warm.trials[:6]] == [t.params for t in cold.trials[:6]]
        assert_replays(warm)
        gains.append(warm.best_value / cold.best_value)
        harms.append(misled.best_value / cold.best_value)
    assert np.median(gains) < 0.5
    assert np.median(harms) < 1.5


def test_the_study_keeps_what_it_learns_from(tmp_path: Path) -> None:
    """Neither the earlier study nor the argument is needed any more, and theta goes on alike."""
    objective, url = bowl(0.05), f"journal:///{tmp_path / 'a.log'}"
    earlier = searched(bowl(0.0), 20, 0, "earlier")
    whole = searched(objective, 14, 1, source_studies=[earlier])
    sampler = pickle.loads(pickle.dumps(S2ESampler(seed=1, source_studies=[earlier])))
    study = optuna.create_study(storage=open_storage(url), study_name="study", sampler=sampler)
    study.optimize(objective, n_trials=9)
    resumed = optuna.load_study(
        storage=open_storage(url), study_name="study", sampler=S2ESampler(seed=1)
    )
    resumed.optimize(objective, n_trials=5)
    assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]
    assert_replays(resumed)
    optuna.copy_study(
        from_study_name="study",
        from_storage=open_storage(url),
        to_storage=(to := open_storage(f"{url}2")),
    )
    assert_replays(optuna.load_study(study_name="study", storage=to))


@pytest.mark.parametrize("n_trials", [0, 7])
def test_a_study_made_anew_under_the_same_identifier_keeps_them_too(
    tmp_path: Path, n_trials: int
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    sampler = S2ESampler(seed=1, source_studies=[searched(bowl(0.0), 8, 0, "earlier")])
    first = optuna.create_study(study_name="s", storage=storage, sampler=sampler)
    first.optimize(bowl(0.05), n_trials=n_trials)
    first.ask()
    optuna.delete_study(study_name="s", storage=storage)
    study = optuna.create_study(study_name="s", storage=storage, sampler=sampler)
    assert study._study_id == first._study_id
    study.optimize(bowl(0.05), n_trials=7)
    assert read_sources(storage.get_study_system_attrs(study._study_id)) is not None
    assert_replays(study)


def test_workers_that_record_at_once_learn_from_the_same() -> None:
    """Some storages cannot compare and write in one step: the last one who writes counts."""
    earlier, other = (searched(bowl(0.0), 8, seed, "earlier") for seed in (0, 1))
    study = searched(bowl(0.05), 3, 1, source_studies=[earlier])
    attr = Sources.of([other]).to_attr()
    study._storage.set_study_system_attr(study._study_id, SOURCES_KEY, attr)
    study.optimize(bowl(0.05), n_trials=10)
    assert len(generations(study)) == 3
    assert_replays(study)


def test_theta_that_moved_without_them_takes_on_none() -> None:
    earlier = searched(bowl(0.0), 8, 0, "earlier")
    study = searched(bowl(0.05), 8, 1)
    study.sampler = S2ESampler(seed=1, source_studies=[earlier])
    with pytest.raises(ValueError, match="'study' was searched without source_studies"):
        study.optimize(bowl(0.05), n_trials=1)
    assert_replays(study)


def test_other_sources_are_named_and_not_used() -> None:
    earlier, other = (searched(bowl(0.0), 8, 0, name) for name in ("earlier", "other"))
    study = searched(bowl(0.05), 3, 1, source_studies=[earlier])
    study.sampler = S2ESampler(seed=1, source_studies=[other])
    with pytest.warns(UserWarning, match=r"goes on with .* \['earlier'\]; \['other'\] are not"):
        study.optimize(bowl(0.05), n_trials=6)
    assert_replays(study)


def test_sources_of_another_space_are_named() -> None:
    fits = searched(schedule_objective(20, "eq1"), 8, 0, "fits")
    other = searched(schedule_objective(20, "table1"), 8, 0, "table1")
    beyond = searched(lambda trial: trial.suggest_float("x", 2, 3), 8, 0, "beyond")
    for sources, named in [([other], ["table1"]), ([fits, beyond, other], ["beyond", "table1"])]:
        with pytest.warns(UserWarning, match="learns nothing from") as caught:
            searched(schedule_objective(20, "eq1"), 14, 1, source_studies=sources)
        assert [str(w.message).partition(": ")[0] for w in caught] == [
            f"Study 'study' learns nothing from the source studies {named}"
        ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searched(schedule_objective(20, "eq1"), 8, 1, source_studies=[fits])


def test_they_do_nothing_for_estimators_without_a_model() -> None:
    earlier = searched(bowl(0.0), 8, 0, "earlier")
    with pytest.warns(UserWarning, match="source_studies has no effect with estimator='natural'"):
        sampler = S2ESampler(seed=1, estimator="natural", source_studies=[earlier])
    study = optuna.create_study(sampler=sampler)
    study.optimize(bowl(0.05), n_trials=8)
    plain = searched(bowl(0.05), 8, 1, estimator="natural")
    assert [t.params for t in study.trials] == [t.params for t in plain.trials]


def test_the_recommendation_learns_from_them_and_picks_among_own_trials() -> None:
    objective = schedule_objective(20, "eq1")
    earlier = searched(objective, 30, 0, "earlier")
    study = searched(objective, 9, 1, source_studies=[earlier])
    assert len(generations(study)) == 2
    for rule in ("mean", "smoothed"):
        picked = recommend(study, rule)
        assert picked.schedule is not None
        trained = [t.value for t in study.trials if t.value is not None]
        assert min(trained) - 1e-9 <= picked.schedule.keep_rates.mean() <= np.median(trained)
        assert picked.trial is None or picked.trial < len(study.trials)
