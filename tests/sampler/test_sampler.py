"""S2ESampler on one worker: draws, generations, what counts, resume, damaged records."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler

try:
    from optuna.storages import RetryHeartbeatStaleTrialCallback as RetryCallback
except ImportError:  # before Optuna 4.9
    from optuna.storages import RetryFailedTrialCallback as RetryCallback
from optuna.trial import TrialState
from scipy import stats

from optuna_s2e import S2ESampler, Schedule, ScheduleSpace, generations, replay, suggest_simplex
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.analysis import Snapshot, verify
from optuna_s2e.distributions._search_space import SearchSpace
from optuna_s2e.estimators.newton import update
from optuna_s2e.estimators.settings import UpdateSettings

K = 4


def quadratic(trial: optuna.Trial) -> float:
    return sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(3))


def mixed(trial: optuna.Trial) -> float:
    weights = suggest_simplex(trial, "w", 3)
    value = abs(math.log10(trial.suggest_float("lr", 1e-4, 1, log=True)) + 2)
    value += 0.1 * trial.suggest_int("depth", 1, 8) + float(weights[0])
    return value + (trial.suggest_categorical("act", ["relu", "tanh"]) == "tanh")


def make_study(**kwargs: Any) -> optuna.Study:
    settings = {"population_size": K, "seed": 0} | kwargs
    return optuna.create_study(sampler=S2ESampler(**settings))


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [t.params for t in study.trials]


def record(trial: optuna.trial.FrozenTrial) -> Any:
    return trial.system_attrs.get(DRAW_KEY)


def assert_replays(study: optuna.Study) -> None:
    told, computed = generations(study), replay(study)
    assert [g.index for g in told] == list(range(len(told)))
    assert len(told) == len(computed)
    for a, b in zip(told, computed, strict=True):
        assert np.array_equal(a.theta, b.theta)
        assert (a.opener, a.members, a.trials) == (b.opener, b.members, b.trials)
    members = [n for g in told for n in g.members]
    assert len(members) == len(set(members))


# --- generations ---------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [quadratic, mixed])
def test_one_worker_runs_algorithm_2(objective: Any) -> None:
    study = make_study(estimator="newton", reuse=0)
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


@pytest.mark.parametrize("estimator", ["newton", "gradient", "natural"])
def test_search_beats_random_over_seeds(estimator: str) -> None:
    def run(sampler: optuna.samplers.BaseSampler) -> float:
        study = optuna.create_study(sampler=sampler)
        study.optimize(quadratic, n_trials=60)
        return float(np.mean([t.value for t in study.trials[-12:]]))

    ours = [run(S2ESampler(estimator=estimator, seed=s)) for s in range(12)]
    theirs = [run(RandomSampler(seed=s)) for s in range(12)]
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
    settings = UpdateSettings(population_size=K, estimator="natural", step_size=3.0)
    expected = update(p, gs[3].theta, x, losses, mixture, settings)
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


# --- keyed randomness ----------------------------------------------------------------------


def run_in_spawned_process(hash_seed: str) -> list[dict[str, Any]]:
    code = (
        "import json, optuna, test_sampler as t; optuna.logging.set_verbosity(40)\n"
        "s = t.make_study(); s.optimize(t.mixed, n_trials=15); print(json.dumps(t.params(s)))"
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
    storage = f"sqlite:///{tmp_path}/s.db"
    for _ in range(11):
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
    study.optimize(quadratic, n_trials=60, n_jobs=4)
    assert len({tuple(p.values()) for p in params(study)}) == 60
    assert_replays(study)
    assert sum(len(g.members) for g in generations(study)) >= 60 - 2 * K - 4


# --- what counts ---------------------------------------------------------------------------


def failing_every_other(trial: optuna.Trial) -> float:
    value = quadratic(trial)
    outcome = trial.number % 5
    if outcome == 1:
        return math.nan
    if outcome == 2:
        raise RuntimeError("boom")
    if outcome == 3:
        trial.report(value, 0)
        raise optuna.TrialPruned
    return value


def test_failed_nan_and_pruned_trials_do_not_count() -> None:
    study = make_study()
    study.optimize(failing_every_other, n_trials=60, catch=RuntimeError)
    assert_replays(study)
    gs = generations(study)
    assert len(gs) == 1 + (60 * 2 // 5 - 1) // K
    for g in gs[1:]:
        assert all(study.trials[n].state == TrialState.COMPLETE for n in g.members)


def test_pruned_trials_count_on_request() -> None:
    study = make_study(consider_pruned_trials=True)
    study.optimize(failing_every_other, n_trials=60, catch=RuntimeError)
    assert_replays(study)
    states = {study.trials[n].state for g in generations(study) for n in g.members}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("bad", [math.inf, -math.inf, 1e308, -1e308, 0.0])
def test_extreme_losses_keep_theta_finite_and_in_its_box(bad: float) -> None:
    study = make_study()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study.optimize(
            lambda t: quadratic(t) if t.number % 3 == 0 else bad + 0 * quadratic(t), n_trials=30
        )
    assert len([w for w in caught if "infinite" in str(w.message)]) == math.isinf(bad)
    for g in generations(study):
        assert np.all((g.theta >= 1) & (g.theta <= 100))
    assert_replays(study)


def test_equal_losses_leave_theta_where_it_is() -> None:
    study = make_study()
    study.optimize(lambda trial: 0.0 * quadratic(trial), n_trials=3 * K + 1)
    assert all(np.all(g.theta == 1) for g in generations(study))


def test_nothing_but_failures_warns_once_and_goes_on() -> None:
    study = make_study()
    with pytest.warns(UserWarning, match="4 trials in a row have failed") as caught:
        study.optimize(lambda t: math.nan * quadratic(t), n_trials=12)
    assert len(caught) == 1
    study.optimize(quadratic, n_trials=K + 1)
    assert generations(study)[1].members == (12, 13, 14, 15)


def test_enqueued_trials_are_no_draws() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=1)
    full = {"x0": 0.3, "x1": 0.3, "x2": 0.3}
    for point in (full, {"x1": 0.3}, {"x0": 0.25, "x1": 0.5}):
        study.enqueue_trial(point)
    study.optimize(quadratic, n_trials=2 * K + 3)
    assert [record(t) is None for t in study.trials[:5]] == [False, True, True, True, False]
    members = [n for g in generations(study) for n in g.members]
    assert members == [0, 4, 5, 6, 7, 8, 9, 10]
    assert study.best_trial.params == full
    assert_replays(study)


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_enqueued_point_out_of_range_does_no_harm() -> None:
    study = make_study()
    study.enqueue_trial({"x0": 1.5, "x1": -1.0, "x2": 0.0})
    study.optimize(quadratic, n_trials=2 * K + 2)
    assert_replays(study)
    assert [g.members for g in generations(study)][1:] == [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_trials_of_other_samplers_are_no_draws() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=2)
    ours = study.sampler
    for other in (RandomSampler(seed=0), TPESampler(seed=0, n_startup_trials=1)):
        study.sampler = other
        study.optimize(quadratic, n_trials=K)
    study.sampler = ours
    study.add_trial(
        optuna.create_trial(
            params={"x0": 0.3}, distributions={"x0": FloatDistribution(0, 1)}, value=-1.0
        )
    )
    study.optimize(quadratic, n_trials=K)
    assert [g.members for g in generations(study)][1:] == [(0, 1, 11, 12)]
    assert study.best_value == -1.0


def test_copied_study_continues_and_foreign_copies_are_ignored() -> None:
    storage = optuna.storages.InMemoryStorage()
    sampler = S2ESampler(population_size=K, seed=0)
    study = optuna.create_study(study_name="a", storage=storage, sampler=sampler)
    study.optimize(quadratic, n_trials=2 * K)
    optuna.copy_study(
        from_study_name="a", from_storage=storage, to_storage=storage, to_study_name="b"
    )
    copied = optuna.load_study(study_name="b", storage=storage, sampler=sampler)
    copied.optimize(quadratic, n_trials=K + 1)
    study.optimize(quadratic, n_trials=K + 1)
    assert params(copied) == params(study)
    assert_replays(copied)

    shifted = make_study()
    shifted.optimize(quadratic, n_trials=1)
    shifted.add_trials(study.trials)  # every number is one too high: none is its own
    shifted.optimize(quadratic, n_trials=K)
    assert generations(shifted)[1].members == (0, 14, 15, 16)


def retry(study: optuna.Study, number: int) -> None:
    RetryCallback()(study, study.trials[number])


@pytest.mark.parametrize("n_before", [0, K])
@pytest.mark.parametrize("n_suggested", [1, 3])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_retried_trial_keeps_its_point_and_counts_once(n_before: int, n_suggested: int) -> None:
    whole = make_study()
    whole.optimize(quadratic, n_trials=n_before + 1)
    study = make_study()
    study.optimize(quadratic, n_trials=n_before)
    dying = study.ask()
    for i in range(n_suggested):  # killed after so many suggestions
        dying.suggest_float(f"x{i}", 0, 1)
    study.tell(dying, state=TrialState.FAIL)
    retry(study, n_before)
    study.optimize(quadratic, n_trials=1)
    assert study.trials[n_before + 1].params == whole.trials[n_before].params
    study.optimize(quadratic, n_trials=2 * K)
    assert_replays(study)
    members = [n for g in generations(study) for n in g.members]
    assert n_before + 1 in members
    assert n_before not in members


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_median_and_hyperband_pruners_work() -> None:
    def objective(trial: optuna.Trial) -> float:
        value = quadratic(trial)
        for step in range(9):
            trial.report(value + 1 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    for pruner in (optuna.pruners.MedianPruner(), optuna.pruners.HyperbandPruner(1, 9)):
        sampler = S2ESampler(population_size=K, seed=0)
        study = optuna.create_study(sampler=sampler, pruner=pruner)
        study.optimize(objective, n_trials=60)
        n_complete = sum(t.state == TrialState.COMPLETE for t in study.trials)
        assert len(generations(study)) - 1 in ((n_complete - 1) // K, n_complete // K)
        assert_replays(study)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_fixed_parameter_stays_outside_of_theta() -> None:
    study = make_study()
    study.sampler = PartialFixedSampler({"x1": 0.9}, study.sampler)
    study.optimize(quadratic, n_trials=3 * K)
    gs = generations(study)
    assert [g.members for g in gs][1:] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert gs[0].theta.shape == (4,)  # x0 and x2
    assert {t.params["x1"] for t in study.trials} == {0.9}


@pytest.mark.parametrize("estimator", ["surrogate", "natural"])
def test_theta_describes_the_parameters_of_all_branches_that_the_first_draws_took(
    estimator: str,
) -> None:
    def objective(trial: optuna.Trial) -> float:
        branch = trial.suggest_categorical("branch", ["flat", "deep"])
        if branch == "flat":
            return 0.3 + trial.suggest_float("x", 0, 1)
        n = trial.suggest_int("n", 1, 9)
        return abs(trial.suggest_float("y", 0, 1) - 0.8) + 0.1 * abs(n - 3)

    study = make_study(estimator=estimator)
    study.optimize(objective, n_trials=15 * K)
    assert generations(study)[0].theta.shape == (2 + 3 * 2,)
    assert generations(study)[-1].losses.mean() < 0.3  # no trial of the flat branch is as good
    assert_replays(study)


def test_parameters_that_none_of_the_first_draws_had_are_drawn_independently() -> None:
    def objective(trial: optuna.Trial) -> float:
        late = f"late {trial.number % 2}" if trial.number >= 2 * K else "early"
        return trial.suggest_float("x", 0, 1) + trial.suggest_float(late, 0, 1)

    study = make_study()
    with pytest.warns(UserWarning, match="drawn independently of theta") as caught:
        study.optimize(objective, n_trials=5 * K)
    assert len(caught) == 2  # one per parameter
    assert len(generations(study)) == 5
    assert generations(study)[0].theta.shape == (4,)
    silent = make_study(warn_independent_sampling=False)
    silent.optimize(objective, n_trials=5 * K)
    assert_replays(silent)


def test_draw_counts_though_the_objective_did_not_ask_for_all_of_it() -> None:
    """The branch that the first trials did not take can be learned."""

    def objective(trial: optuna.Trial) -> float:
        n = trial.suggest_int("n", 1, 8)
        for i in range(n if trial.number >= K else 8):  # the first K share u0 .. u7
            trial.suggest_float(f"u{i}", 0, 1)
        return float(n)

    study = make_study(estimator="natural")
    study.optimize(objective, n_trials=15 * K)
    gs = generations(study)
    assert gs[0].theta.shape == (2 * 9,)
    assert len(gs) == 15
    assert np.nanmean(gs[-1].losses) < 2
    assert_replays(study)


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
    with pytest.warns(UserWarning, match=f"(?s)stands still: of the last one, .*{message}") as w:
        study.optimize(objective, n_trials=3 * K)
    assert len(w) == 1
    assert "on_config_change" in str(w[0].message)


@pytest.mark.skipif(not hasattr(optuna.Trial, "set_constraint"), reason="new in Optuna 5")
def test_constraints_are_warned_about() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_constraint("c", 1.0)
        return quadratic(trial)

    with pytest.warns(UserWarning, match="does not use constraints"):
        make_study().optimize(objective, n_trials=2)


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
        study.optimize(quadratic, n_trials=2 * K + 1)
        assert len(generations(study)) == 3
        assert_replays(study)
        optuna.delete_study(study_name="s", storage=storage)


# --- resume with other settings --------------------------------------------------------------


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


def schedule_objective(n_epochs: int, kind: str) -> Any:
    space = ScheduleSpace(n_epochs, kind)
    return lambda trial: float(np.mean(space.suggest(trial).keep_rates))


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


# --- records -------------------------------------------------------------------------------


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers_in(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers_in(v)]
    return [value] if isinstance(value, int | float) else []


def test_record_is_one_small_finite_attribute() -> None:
    study = make_study(population_size=6)
    study.optimize(schedule_objective(200, "table1"), n_trials=20)
    for trial in study.trials:
        (own,) = (v for k, v in trial.system_attrs.items() if k.startswith("s2e:"))
        assert len(json.dumps(own)) < 2000
        assert all(map(math.isfinite, numbers_in(own)))
        assert own["v"] == 1
        assert own["trial"] == trial.number
    assert not study.user_attrs
    assert not any(k.startswith("s2e") for k in study._storage.get_study_system_attrs(0))


def deeply_nested() -> Any:
    value: Any = 1
    for _ in range(50):
        value = [value]
    return value


DAMAGE: dict[str, Any] = {
    "no dictionary": lambda r: "import os",
    "none": lambda r: None,
    "later version": lambda r: r | {"v": 2},
    "other trial": lambda r: r | {"trial": 1},
    "negative trial": lambda r: r | {"trial": -1},
    "true": lambda r: r | {"generation": True},
    "generation far ahead": lambda r: r | {"generation": 10**30},
    "x too short": lambda r: r | {"x": r["x"][:-1]},
    "x outside": lambda r: r | {"x": [5.0] * len(r["x"])},
    "x huge": lambda r: r | {"x": [0.5] * 200_000},
    "x NaN": lambda r: r | {"x": [math.nan] * len(r["x"])},
    "x nested": lambda r: r | {"x": deeply_nested()},
    "other x": lambda r: r | {"x": [0.123] * len(r["x"])},
    "opener unknown": lambda r: r | {"opener": 99999},
    "theta negative": lambda r: r | {"theta": [-1.0] * 6},
    "theta infinite": lambda r: r | {"theta": [math.inf] * 6},
    "theta too long": lambda r: r | {"theta": [1.0] * 7},
    "theta huge": lambda r: r | {"theta": [1e300] * 6},
    "theta empty": lambda r: r | {"theta": []},
    "members unknown": lambda r: r | {"members": [10**6]},
    "members doubled": lambda r: r | {"members": [0, 0, 1, 2]},
    "members a string": lambda r: r | {"members": "0123"},
    "parent itself": lambda r: r | {"parent": r["trial"]},
    "parent missing": lambda r: r | {"parent": None},
    "space another": lambda r: r | {"space": "0" * 16},
    "settings none": lambda r: r | {"settings": None},
    "settings empty": lambda r: r | {"settings": {}},
    "settings NaN": lambda r: r | {"settings": r["settings"] | {"step_size": math.nan}},
    "settings half": lambda r: r | {"settings": {"theta_bounds": [1.0, 100.0]}},
    "theta without end": lambda r: r | {"theta": [10**400] * 6},
    "x without end": lambda r: r | {"x": [10**400] * len(r["x"])},
    "members itself": lambda r: r | {"members": [r["trial"]]},
}


@pytest.mark.filterwarnings("ignore:.*later release")
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_record_is_ignored(case: str, m: int) -> None:
    """Damage the opener of generation m and go on."""
    study = make_study()
    study.optimize(quadratic, n_trials=m * K)
    trial = study.ask()
    value = quadratic(trial)
    study._storage.set_trial_system_attr(
        trial._trial_id, DRAW_KEY, DAMAGE[case](record(study.trials[-1]))
    )
    study.tell(trial, value)
    study.sampler = S2ESampler(population_size=K, seed=0)  # knows nothing of before
    study.optimize(quadratic, n_trials=3 * K)
    gs = generations(study)
    assert [g.members for g in gs][1 : m + 1] == [(0, 1, 2, 3), (4, 5, 6, 7)][:m]
    assert len(gs) >= 3 + m
    for g in gs:
        assert np.all((g.theta >= 1) & (g.theta <= 100))
    assert_replays(study)


@pytest.mark.parametrize("number", [1, 2 * K + 1])
def test_member_that_is_damaged_later_stops_no_search_but_fails_the_verification(
    number: int,
) -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=5 * K + 1)
    trials = study.trials
    trials[number].system_attrs[DRAW_KEY] = "x"
    copied = make_study()
    copied.add_trials(trials)
    assert not verify(Snapshot.of(copied)).sound
    assert [g.opener for g in generations(copied)] == [g.opener for g in generations(study)]
    copied.optimize(quadratic, n_trials=K)
    assert len(generations(copied)) == 7
    with pytest.raises(ValueError, match=rf"members \[{number}\] are no draws"):
        replay(copied)
    trials = study.trials
    trials[2 * K].system_attrs[DRAW_KEY] = "x"  # an opener: its draws cannot be followed
    copied = make_study()
    copied.add_trials(trials)
    assert not verify(Snapshot.of(copied)).sound


def test_study_of_a_later_release_is_refused_or_warned_about() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=K)
    trials = study.trials
    trials[2].system_attrs[DRAW_KEY] = record(trials[2]) | {"v": 2}
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
    study = make_study()
    study.optimize(quadratic, n_trials=10 * K)
    assert len(study.sampler.drawing.ledger(study)._chains) == 1  # type: ignore[attr-defined]


def test_values_that_storages_round_are_draws() -> None:
    """Integers beyond 2^53 come back as floats' neighbours; NaN is not equal to itself."""

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_int("i", 1, 2**60)
        return float(trial.suggest_categorical("c", ["a", math.nan]) == "a")

    study = make_study()
    study.optimize(objective, n_trials=4 * K)
    assert len(generations(study)) == 4
    assert generations(study)[0].theta.shape == (4,)
    assert_replays(study)


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
        study.optimize(lambda t, s=sign: s * quadratic(t), n_trials=3 * K)  # type: ignore[misc]
        assert_replays(study)
        optuna.delete_study(study_name="s", storage=storage)


def test_names_of_equal_checksum_are_drawn_apart() -> None:
    study = make_study()  # crc32 of the two names is the same
    study.optimize(lambda t: t.suggest_float("plumless", 0, 1) - t.suggest_float("buckeroo", 0, 1),
                   n_trials=2)  # fmt: skip
    assert all(t.value != 0 for t in study.trials)


def test_tampering_shows_in_the_replay() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=2 * K + 1)
    opener = study.trials[2 * K]
    changed = record(opener) | {"theta": [t + 0.5 for t in record(opener)["theta"]]}
    clean = optuna.create_study()
    trials = study.trials
    trials[2 * K].system_attrs[DRAW_KEY] = changed
    clean.add_trials(trials)
    told, computed = generations(clean), replay(clean)
    assert np.array_equal(told[1].theta, computed[1].theta)
    assert not np.array_equal(told[2].theta, computed[2].theta)


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
    assert generations(a)[1].opener == K
    assert_replays(a)
    members = [n for g in generations(a) for n in g.members]
    assert {K, K + 1} <= set(members)  # the fork's draw counts, too


def statements_of_one_trial(study: optuna.Study) -> list[str]:
    """Run one trial; return its SQL statements, and COMMIT for each commit."""
    statements: list[str] = []
    engine = study._storage._backend.engine  # type: ignore[attr-defined]

    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    def committed(connection: Any) -> None:
        statements.append("COMMIT")

    sqlalchemy.event.listen(engine, "before_cursor_execute", executed)
    sqlalchemy.event.listen(engine, "commit", committed)
    study.optimize(quadratic, n_trials=1)
    sqlalchemy.event.remove(engine, "before_cursor_execute", executed)
    sqlalchemy.event.remove(engine, "commit", committed)
    return statements


def test_sql_per_trial_is_bounded_and_does_not_grow(tmp_path: Path) -> None:
    counts: dict[str, list[tuple[int, int]]] = {}
    for sampler in (RandomSampler(seed=0), S2ESampler(population_size=K, seed=0)):
        name = type(sampler).__name__
        study = optuna.create_study(storage=f"sqlite:///{tmp_path}/{name}.db", sampler=sampler)
        for n_before in (2 * K + 1, 10 * K + 1):
            study.optimize(quadratic, n_trials=n_before - len(study.trials))
            statements = statements_of_one_trial(study)
            counts.setdefault(name, []).append((len(statements), statements.count("COMMIT")))
    (random, _), (early, late) = counts["RandomSampler"], counts["S2ESampler"]
    assert early == late
    assert early[0] - early[1] <= random[0] - random[1] + 18  # statements
    assert early[1] <= random[1] + 4  # commits


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
    study.optimize(schedule_objective(20, kind), n_trials=8)
    rates = np.array([Schedule.from_trial(t).keep_rates for t in study.trials])
    np.testing.assert_allclose(rates.mean(axis=1), [t.value for t in study.trials])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"population_size": 0}, "population_size must be"),
        ({"population_size": 10**9}, "population_size must be"),
        ({"estimator": "magic"}, "estimator must be one of"),
        ({"step_size": math.nan}, "step_size must be"),
        ({"on_config_change": "ignore"}, 'on_config_change must be "refuse" or "adopt"'),
        ({"seed": -1}, "seed must be a non-negative int"),
        ({"seed": 1.5}, "seed must be a non-negative int"),
        ({"theta_bounds": (1.0, 1e10)}, r"theta_bounds\[1\] must be at most 1e\+09"),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S2ESampler(**kwargs)


def test_first_generation_is_uniform_under_many_seeds() -> None:
    draws = []
    for seed in range(150):
        study = make_study(seed=seed)
        study.optimize(mixed, n_trials=2)
        draws += [[t.params["w.simplex3.1"], t.params["w.simplex3.2"]] for t in study.trials]
    for column in np.array(draws).T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
