"""S2ESampler on one worker: draws, generations, what counts, resume, damaged records."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import searches
from optuna.samplers import RandomSampler, TPESampler
from scipy import stats
from searches import (
    K,
    assert_replays,
    mixed,
    params,
    quadratic,
    record,
    schedule_objective,
)

from optuna_s2e import S2ESampler, Schedule, generations, open_storage
from optuna_s2e.distributions._search_space import SearchSpace
from optuna_s2e.estimators import ESTIMATORS
from optuna_s2e.estimators.newton import update
from optuna_s2e.estimators.settings import UpdateSettings

make_study = partial(searches.make_study, estimator="surrogate")


@pytest.mark.parametrize("objective", [quadratic, mixed])
def test_one_worker_runs_algorithm_2(objective: Any) -> None:
    study = make_study(estimator="paper")
    study.optimize(objective, n_trials=5 * K + 1)
    gs = generations(study)
    assert [g.index for g in gs] == [0, 1, 2, 3, 4, 5]
    for m in range(1, 6):  # K trials from theta_m; theta_m from the K trials before
        assert gs[m].opener == m * K
        assert gs[m].members == tuple(range((m - 1) * K, m * K)) == gs[m - 1].trials
        losses = [study.trials[n].value for n in gs[m].members]
        assert np.array_equal(gs[m - 1].losses, losses)
    assert np.all(gs[0].theta == 1)
    assert not np.array_equal(gs[1].theta, gs[0].theta)
    assert_replays(study)


def test_no_argument_is_needed() -> None:
    study = optuna.create_study(sampler=S2ESampler())
    study.optimize(mixed, n_trials=13)
    assert len(generations(study)) == 3


def late_mean(sampler: optuna.samplers.BaseSampler) -> float:
    study = optuna.create_study(sampler=sampler)
    study.optimize(quadratic, n_trials=42)
    return float(np.mean([t.value for t in study.trials[-12:]]))


@cache
def late_mean_of_random_search(seed: int) -> float:
    return late_mean(RandomSampler(seed=seed))


@pytest.mark.parametrize("estimator", ["newton", "gradient", "natural"])
def test_search_beats_random_over_seeds(estimator: str) -> None:
    ours = [late_mean(S2ESampler(estimator=estimator, seed=s)) for s in range(9)]
    theirs = [late_mean_of_random_search(seed) for seed in range(9)]
    assert stats.wilcoxon(ours, theirs, alternative="less").pvalue < 0.01


def test_reused_draws_are_weighed_by_the_mixture_that_they_came_from() -> None:
    study = make_study(reuse=2, estimator="natural")
    study.optimize(quadratic, n_trials=4 * K + 1)
    gs = generations(study)
    draws = [n for g in gs[2:5] for n in g.members]  # the new ones and two updates before
    assert len(draws) == 3 * K
    space = SearchSpace.of(study.trials[0].distributions)
    x = np.array([space.encode(study.trials[n].params) for n in draws])
    p = space.distribution
    sources = [gs[1].theta, gs[2].theta, gs[3].theta]  # members of m came from m - 1
    mixture = np.log(np.mean([np.exp(p.log_density(t, x)) for t in sources], axis=0))
    losses = [study.trials[n].value for n in draws]
    settings = UpdateSettings(population_size=K, estimator="natural", step_size=3.0, reuse=2)
    expected = update(
        p, gs[3].theta, x, losses=losses, log_density_drawn=mixture, settings=settings
    )
    np.testing.assert_allclose(gs[4].theta, expected.theta, rtol=1e-9)


def test_maximize_mirrors_minimize() -> None:
    down, up = make_study(), optuna.create_study(
        direction="maximize", sampler=S2ESampler(population_size=K, seed=0)
    )  # fmt: skip
    down.optimize(mixed, n_trials=14)
    up.optimize(lambda trial: -mixed(trial), n_trials=14)
    assert params(down) == params(up)
    assert np.array_equal(generations(down)[1].losses, generations(up)[1].losses)


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=S2ESampler())
    with pytest.raises(ValueError, match="multi-objective"):
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 0.0), n_trials=1)
    with pytest.raises(ValueError, match="multi-objective"):
        generations(study)


def test_study_without_draws_has_generation_0_only() -> None:
    study = optuna.create_study(sampler=RandomSampler())
    study.optimize(quadratic, n_trials=3)
    (only,) = generations(study)
    assert (only.index, only.opener, only.members, only.trials) == (0, None, (), ())


def run_in_spawned_process(hash_seed: str) -> list[dict[str, Any]]:
    code = (
        "import json, optuna, searches as t; optuna.logging.set_verbosity(40)\n"
        "s = t.make_study(estimator='surrogate'); s.optimize(t.mixed, n_trials=15)\n"
        "print(json.dumps(t.params(s)))"
    )
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    result: list[dict[str, Any]] = json.loads(out.stdout)
    return result


@pytest.mark.parametrize("objective", [mixed, lambda trial: 0.0 * mixed(trial)])
def test_same_seed_same_trials(objective: Any) -> None:
    studies = [make_study(), make_study(), make_study(seed=1)]
    for study in studies:
        study.optimize(objective, n_trials=15)
    assert params(studies[0]) == params(studies[1])
    assert all(a != b for a, b in zip(params(studies[0]), params(studies[2]), strict=True))


def test_spawned_process_agrees() -> None:
    study = make_study()
    study.optimize(mixed, n_trials=15)
    assert run_in_spawned_process("77") == params(study)


def test_seed_none_takes_the_key_from_the_study_name() -> None:
    studies = [optuna.create_study(study_name=n, sampler=S2ESampler()) for n in ("a", "a", "b")]
    for study in studies:
        study.optimize(quadratic, n_trials=2)
    assert params(studies[0]) == params(studies[1])
    assert params(studies[0]) != params(studies[2])
    anonymous = [optuna.create_study(sampler=S2ESampler()) for _ in range(2)]
    for study in anonymous:
        study.optimize(quadratic, n_trials=1)
    assert params(anonymous[0]) != params(anonymous[1])


def test_process_per_trial_gives_the_same_sequence(tmp_path: Path) -> None:
    whole = make_study()
    whole.optimize(mixed, n_trials=11)
    for _ in range(11):
        storage = open_storage(f"journal:///{tmp_path}/s.log")
        study = optuna.create_study(
            study_name="s", storage=storage, load_if_exists=True,
            sampler=S2ESampler(population_size=K, seed=0),
        )  # fmt: skip
        study.optimize(mixed, n_trials=1)
    assert params(study) == params(whole)


@pytest.mark.parametrize("clone", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy])
def test_pickled_or_copied_study_continues_identically(clone: Any) -> None:
    study = make_study()
    study.optimize(mixed, n_trials=K + 1)
    other = clone(study)
    for s in (study, other):
        s.sampler.reseed_rng()  # keyed draws do not care
        s.optimize(mixed, n_trials=K)
    assert params(study) == params(other)


def test_asking_k_times_before_any_suggestion_gives_k_distinct_draws() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=K)
    asked = [study.ask() for _ in range(K)]
    values = [quadratic(trial) for trial in asked]
    for trial, value in zip(asked, values, strict=True):
        study.tell(trial, value)
    assert len(set(values)) == K
    assert [g.trials for g in generations(study)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert sum("theta" in record(t) for t in study.trials) == 1


def test_interleaved_suggestions_keep_their_keys() -> None:
    def suggest(order: list[tuple[int, str]]) -> list[dict[str, Any]]:
        study = make_study()
        asked = [study.ask() for _ in range(2)]
        for i, name in order:
            asked[i].suggest_float(name, 0, 1)
        return [t.params for t in asked]

    one_by_one = suggest([(0, "x"), (0, "y"), (1, "x"), (1, "y")])
    assert one_by_one == suggest([(0, "x"), (1, "x"), (0, "y"), (1, "y")])


def test_threads_share_one_sampler() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=30, n_jobs=4)
    assert len({tuple(p.values()) for p in params(study)}) == 30
    assert_replays(study)
    assert sum(len(g.members) for g in generations(study)) >= 30 - 2 * K - 4


@pytest.mark.skipif(not hasattr(optuna.Trial, "set_constraint"), reason="new in Optuna 5")
def test_constraints_are_warned_about() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_constraint("c", 1.0)
        return quadratic(trial)

    with pytest.warns(UserWarning, match="does not use constraints"):
        make_study().optimize(objective, n_trials=2)


SAMPLERS = {
    "random": lambda: RandomSampler(seed=0),
    "tpe": lambda: TPESampler(seed=0, n_startup_trials=3),
    "cma-es": lambda: optuna.samplers.CmaEsSampler(seed=0, n_startup_trials=3),
    "nsga-ii": lambda: optuna.samplers.NSGAIISampler(seed=0, population_size=4),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=0),
    "gp": lambda: optuna.samplers.GPSampler(seed=0, n_startup_trials=3),
    "s2e": lambda: S2ESampler(seed=0, population_size=K),
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", ["eq1", "table1"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_schedules_can_be_searched_with_every_sampler(name: str, kind: str) -> None:
    study = optuna.create_study(sampler=SAMPLERS[name]())
    study.optimize(schedule_objective(20, kind), n_trials=6)
    rates = np.array([Schedule.from_trial(t).keep_rates for t in study.trials])
    np.testing.assert_allclose(rates.mean(axis=1), [t.value for t in study.trials])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"population_size": 0}, "population_size must be"),
        ({"population_size": 10**9}, "population_size must be"),
        ({"estimator": "magic"}, "estimator must be one of"),
        ({"step_size": math.nan}, "step_size must be"),
        (
            {"on_config_change": "ignore"},
            "on_config_change must be one of 'refuse', 'adopt', but got 'ignore'",
        ),
        ({"population_size": 1, "reuse": 0}, "population_size=1 and reuse=0 must not"),
        ({"seed": -1}, "seed must be an int of at least 0"),
        ({"seed": 1.5}, "seed must be an int of at least 0"),
        ({"theta_bounds": (1.0, 1e10)}, r"theta_bounds\[1\] must be at most 1e\+09"),
        ({"estimator": "paper", "sign": -1}, "sign must be one of '-', '\\+', but got -1"),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S2ESampler(**kwargs)


def test_an_argument_without_effect_is_named() -> None:
    with pytest.warns(UserWarning, match="max_weight has no effect with estimator='surrogate'"):
        S2ESampler(max_weight=3.0)
    with pytest.warns(UserWarning, match="sign has no effect with estimator='newton'"):
        S2ESampler(estimator="newton", sign="+")
    with pytest.warns(UserWarning, match="max_kl has no effect with estimator='paper'"):
        S2ESampler(estimator="paper", max_kl=2.0)


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize("options", [{"population_size": 1}, {"population_size": 2, "reuse": 0}])
def test_small_populations_move_theta(estimator: str, options: dict[str, Any]) -> None:
    study = make_study(estimator=estimator, **options)
    study.optimize(quadratic, n_trials=9)
    assert np.ptp(generations(study)[-1].theta) > 0


def test_first_generation_is_uniform_under_many_seeds() -> None:
    draws = []
    for seed in range(150):
        study = make_study(seed=seed)
        study.optimize(mixed, n_trials=2)
        draws += [[t.params["w.simplex3.1"], t.params["w.simplex3.2"]] for t in study.trials]
    for column in np.array(draws).T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
