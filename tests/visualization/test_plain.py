"""What Optuna's own plots see of a study: weights, and nothing that is constant."""

import gc
import json
import weakref

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler

from optuna_s2e import S2ESampler, Schedule, ScheduleSpace, open_storage, suggest_simplex
from optuna_s2e.visualization import PlainStorage, for_optuna_plots

EQ1 = {"R.tau", "R.tk", "R.c"}
PLOTS = ("contour", "parallel_coordinate", "rank", "slice")


def searched(objective, n_trials=12, **options):
    options = {"sampler": S2ESampler(population_size=4, seed=0), **options}
    study = optuna.create_study(study_name="s", **options)
    study.optimize(objective, n_trials=n_trials)
    return study


def schedule_objective(kind):
    return lambda trial: float(ScheduleSpace(20, kind).suggest(trial).keep_rates.mean())


@pytest.fixture(scope="module")
def eq1():
    return searched(schedule_objective("eq1"))


def names_in(figure):
    """Return all strings of a figure that name a parameter."""
    return {s for s in json.dumps(json.loads(figure.to_json())).split('"') if s.startswith("R.")}


@pytest.mark.parametrize("plot", PLOTS)
def test_constants_are_in_no_plot_of_optuna(eq1, plot):
    draw = getattr(optuna.visualization, f"plot_{plot}")
    assert {"R.eq1", "R.n_epochs"} < names_in(draw(eq1))
    assert names_in(draw(for_optuna_plots(eq1))) == EQ1


def test_constants_have_no_importance(eq1):
    for evaluator in (
        None,
        optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0),
        optuna.importance.PedAnovaImportanceEvaluator(),
    ):
        found = optuna.importance.get_param_importances(for_optuna_plots(eq1), evaluator=evaluator)
        assert set(found) == EQ1
    drawn = optuna.visualization.plot_param_importances(for_optuna_plots(eq1)).data[0]
    assert set(drawn.y) == EQ1


def test_weights_are_seen_as_weights():
    told = []

    def objective(trial):
        weights = suggest_simplex(trial, "mix", 3)
        told.append(weights)
        return float(weights @ [3, 2, 1]) + trial.suggest_float("x", 0, 1)

    study = searched(objective)
    names = ["mix 1", "mix 2", "mix 3"]
    for trial, stored, weights in zip(
        for_optuna_plots(study).trials, study.trials, told, strict=True
    ):
        assert list(trial.params) == list(trial.distributions) == [*names, "x"]
        np.testing.assert_array_equal([trial.params[n] for n in names], weights)
        assert trial.params["x"] == stored.params["x"]
        assert (trial.number, trial.value) == (stored.number, stored.value)
        assert trial.datetime_complete == stored.datetime_complete
    importances = optuna.importance.get_param_importances(for_optuna_plots(study))
    assert set(importances) == {*names, "x"}
    shown = optuna.visualization.plot_slice(for_optuna_plots(study), params=["mix 2"]).data[0]
    np.testing.assert_array_equal(sorted(shown.x), sorted(w[1] for w in told))


def test_all_weights_of_table_1_are_there():
    study = searched(schedule_objective("table1"), 3)
    for trial, stored in zip(for_optuna_plots(study).trials, study.trials, strict=True):
        weights = [v for name, v in trial.params.items() if name.startswith("R.mix ")]
        assert len(weights) == 4
        assert sum(weights) == pytest.approx(1)
        assert len(trial.params) == 20  # 4 weights and 16 basis parameters
        assert Schedule.from_trial(stored).params  # the study itself is as it was


def test_names_of_ten_weights_sort():
    study = searched(lambda t: float(suggest_simplex(t, "w", 10)[0]), 1)
    names = list(for_optuna_plots(study).trials[0].params)
    assert (names[0], names[-1], len(names)) == ("w 01", "w 10", 10)
    assert names == sorted(names)


def test_a_parameter_of_ones_own_is_never_hidden():
    """Neither behind a weight of its name, nor because it is called like a constant."""

    def objective(trial):
        suggest_simplex(trial, "w", 3)
        trial.suggest_int("n_layers", 3, 3)
        return trial.suggest_float("w 1", 0, 1) + trial.suggest_int("R.eq1", 1, 5)

    study = searched(objective, 3, sampler=RandomSampler(seed=0))
    assert [t.params for t in for_optuna_plots(study).trials] == [t.params for t in study.trials]


def test_branches_keep_their_own_parameters():
    def objective(trial):
        if trial.suggest_categorical("arm", ["eq1", "none"]) == "none":
            return 1.0
        return schedule_objective("eq1")(trial)

    study = searched(objective, 12)
    for trial in for_optuna_plots(study).trials:
        assert set(trial.params) == {"arm"} | (EQ1 if trial.params["arm"] == "eq1" else set())


@pytest.mark.parametrize("url", ["sqlite:///{}/s2e.db", "journal:///{}/s2e.log"])
def test_the_view_follows_the_study_in_its_storage(tmp_path, url):
    storage = open_storage(url.format(tmp_path))
    study = searched(schedule_objective("eq1"), 2, storage=storage)
    study.set_user_attr("who", "me")
    view = for_optuna_plots(study)
    assert (view.study_name, view.user_attrs, len(view.trials)) == ("s", {"who": "me"}, 2)
    running = study.ask()
    ScheduleSpace(20).suggest(running)
    assert set(view.trials[2].params) == EQ1
    assert view.trials[2].state == optuna.trial.TrialState.RUNNING
    study.tell(running, 0.0)
    assert view.best_trial.number == 2
    assert set(view.best_params) == EQ1
    assert view.trials[2].params == {n: study.best_params[n] for n in EQ1}
    study.add_trial(
        optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING)
    )  # has no parameters
    assert view.trials[3].params == {}


def test_the_view_of_several_objectives_has_their_directions_and_names():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=RandomSampler(seed=0))
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["error", "speed"])
    study.optimize(lambda t: (schedule_objective("eq1")(t), 1.0), n_trials=4)
    view = for_optuna_plots(study)
    assert view.directions == study.directions
    assert view.metric_names == ["error", "speed"]
    assert [t.number for t in view.best_trials] == [t.number for t in study.best_trials]
    figure = optuna.visualization.plot_slice(view, target=lambda t: t.values[0], target_name="e")
    assert names_in(figure) == EQ1


def test_nothing_is_written_through_the_view(eq1):
    before = [t.params for t in eq1.trials]
    view = for_optuna_plots(eq1)
    for change in (
        lambda: view.optimize(lambda t: 0.0, n_trials=1),
        lambda: view.enqueue_trial({"R.c": 1.0}),
        lambda: view.set_user_attr("a", 1),
        lambda: view.add_trial(eq1.trials[0]),
    ):
        with pytest.raises(RuntimeError, match="a view for plots"):
            change()
    assert [t.params for t in eq1.trials] == before
    view.trials[0].params.clear()  # Optuna gives copies, and so does the view
    assert set(view.trials[0].params) == EQ1


def test_the_view_keeps_the_trials_of_the_study_that_was_read_last_only():
    storage = optuna.storages.InMemoryStorage()
    studies = [optuna.create_study(storage=storage) for _ in range(3)]
    for study in studies:
        study.optimize(schedule_objective("eq1"), n_trials=4)
    view = PlainStorage(storage)
    kept = []
    for study in studies:
        first = view.get_all_trials(study._study_id, deepcopy=False)
        again = view.get_all_trials(study._study_id, deepcopy=False)
        assert all(a is b for a, b in zip(first, again, strict=True))  # not made anew
        kept.append(weakref.ref(first[0]))
    del first, again
    gc.collect()
    assert [of() is not None for of in kept] == [False, False, True]
