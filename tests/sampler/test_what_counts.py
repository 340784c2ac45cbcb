"""Which trials count for an update: failures, prunings, copies, retries, branches."""

import math
import warnings

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from searches import K, assert_replays, make_study, params, quadratic, record

from optuna_s2e import S2ESampler, generations

try:
    from optuna.storages import RetryHeartbeatStaleTrialCallback as RetryCallback
except ImportError:  # before Optuna 4.9
    from optuna.storages import RetryFailedTrialCallback as RetryCallback


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


def test_nothing_but_pruned_trials_warns_once_and_goes_on() -> None:
    def pruned(trial: optuna.Trial) -> float:
        quadratic(trial)
        raise optuna.TrialPruned

    study = make_study()
    with pytest.warns(UserWarning, match=r"8 trials .* were pruned.*consider_pruned_trials") as w:
        study.optimize(pruned, n_trials=12)
    assert len(w) == 1
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


@pytest.mark.parametrize("n_enqueued", [1, 2, 5])
def test_the_default_estimator_learns_from_trials_that_are_no_draws(n_enqueued: int) -> None:
    study = make_study(estimator="surrogate")
    for i in range(n_enqueued):
        study.enqueue_trial({"x0": 0.3, "x1": 0.3, "x2": 0.1 * (i + 1)})
    counted = min(n_enqueued, K // 2)  # at least half of K are draws
    study.optimize(quadratic, n_trials=n_enqueued + K - counted + 1)
    opener = study.trials[-1]
    draws = list(range(n_enqueued, n_enqueued + K - counted))
    assert record(opener)["members"] == draws
    assert record(opener)["also"] == list(range(n_enqueued))
    assert record(opener)["model"] == 3
    assert generations(study)[1].members == (*draws, *range(n_enqueued))
    point = {"x0": 0.9, "x1": 0.9, "x2": 0.3}
    for _ in range(3):
        study.add_trial(
            optuna.create_trial(
                params=point, value=-1.0,
                distributions=dict.fromkeys(point, FloatDistribution(0, 1)),
            )
        )  # fmt: skip
    study.optimize(quadratic, n_trials=K)
    assert record(study.trials[-1])["also"] == [opener.number + i for i in (1, 2, 3)]
    assert_replays(study)


def test_an_enqueued_trial_that_was_pruned_counts_on_request() -> None:
    def pruned_at_first(trial: optuna.Trial) -> float:
        value = quadratic(trial)
        if trial.number == 0:
            trial.report(value, 0)
            raise optuna.TrialPruned
        return value

    study = make_study(estimator="surrogate", consider_pruned_trials=True)
    study.enqueue_trial({"x0": 0.3, "x1": 0.3, "x2": 0.1})
    study.optimize(pruned_at_first, n_trials=K + 1)
    assert record(study.trials[K])["also"] == [0]
    assert_replays(study)


def test_a_search_of_draws_alone_records_what_it_did_before() -> None:
    study = make_study(estimator="surrogate")
    study.optimize(quadratic, n_trials=K + 1)
    assert record(study.trials[K])["model"] == 2
    assert "also" not in record(study.trials[K])


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
    sampler = S2ESampler(population_size=K, estimator="natural", seed=0)
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
@pytest.mark.filterwarnings("ignore:8 trials in a row were pruned")
def test_median_and_hyperband_pruners_work() -> None:
    def objective(trial: optuna.Trial) -> float:
        value = quadratic(trial)
        for step in range(9):
            trial.report(value + 1 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    for pruner in (optuna.pruners.MedianPruner(), optuna.pruners.HyperbandPruner(1, 9)):
        sampler = S2ESampler(population_size=K, estimator="natural", seed=0)
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


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("log", [False, True])
def test_a_parameter_that_is_fixed_in_a_tiny_range_stays_outside_of_theta(log: bool) -> None:
    study = make_study()
    study.sampler = PartialFixedSampler({"tiny": 5e-14}, study.sampler)
    study.optimize(
        lambda t: quadratic(t) + t.suggest_float("tiny", 1e-14, 1e-13, log=log), n_trials=2 * K
    )
    assert generations(study)[1].theta.shape == (6,)  # x0, x1 and x2
    assert_replays(study)


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
