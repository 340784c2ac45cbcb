"""The figures: what they show, of which studies, and how large they become."""

import json
import sys

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler

from optuna_s2e import S2ESampler, Schedule, ScheduleSpace, generations, recommend, suggest_simplex
from optuna_s2e.analysis import Snapshot
from optuna_s2e.schedules._formulas import SPACES
from optuna_s2e.visualization import (
    figures,
    plot_basis_functions,
    plot_generations,
    plot_learning_curves,
    plot_schedules,
    plot_theta,
)
from optuna_s2e.visualization._plotly import MAX_GENERATIONS
from optuna_s2e.visualization._schedule_figures import MAX_CURVES

STUDY_PLOTS = (plot_schedules, plot_theta, plot_generations, plot_learning_curves)
DRAWN = (figures.schedules, figures.theta, figures.generations, figures.learning_curves)


def schedule_objective(n_epochs=20, kind="eq1"):
    space = ScheduleSpace(n_epochs, kind)
    target = np.linspace(1, 0.5, n_epochs)

    def objective(trial):
        rates = space.suggest(trial).keep_rates
        for epoch in range(0, n_epochs, 5):
            trial.report(float(abs(rates[epoch] - target[epoch])), epoch)
        return float(((rates - target) ** 2).mean())

    return objective


def searched(objective, n_trials=20, sampler=None, **options):
    sampler = sampler or S2ESampler(seed=0)
    study = optuna.create_study(sampler=sampler, **options)
    study.optimize(objective, n_trials=n_trials)
    return study


@pytest.fixture(scope="module")
def studies():
    return {kind: searched(schedule_objective(kind=kind)) for kind in SPACES}


def traces(figure, text):
    return [t for t in figure.data if t.name is not None and text in t.name]


@pytest.mark.parametrize("kind", SPACES)
def test_every_space_of_schedules_has_all_figures(studies, kind):
    for plot in (*STUDY_PLOTS, plot_basis_functions):
        figure = plot(studies[kind])
        assert len(figure.data) > 0
        assert figure.layout.title.text
        json.loads(figure.to_json())


@pytest.mark.parametrize("kind", SPACES)
def test_schedules_shows_each_trial_the_best_bold_and_the_mean_of_theta(studies, kind):
    study = studies[kind]
    figure = plot_schedules(study)
    shown = [t for t in figure.data if t.hovertemplate and t.hovertemplate.startswith("trial ")]
    assert len(shown) == 20
    for trace in shown:
        trial = study.trials[int(trace.hovertemplate.split(",")[0].split(":")[0].split()[1])]
        rates = Schedule.from_trial(trial).keep_rates
        np.testing.assert_allclose(trace.y, rates, atol=6e-4)
        assert (trace.x0, trace.dx) == (0, 1)
    (best,) = traces(figure, f": #{study.best_trial.number}")[:1]
    np.testing.assert_allclose(best.y, Schedule.from_trial(study.best_trial).keep_rates, atol=6e-4)
    assert best.line.width > shown[0].line.width
    picked = recommend(study)
    (recommended,) = traces(figure, f"recommended: mean of {len(picked.mean_of)}")
    np.testing.assert_allclose(recommended.y, picked.schedule.keep_rates, atol=6e-4)
    (mean,) = traces(figure, "mean, 90 %")
    assert mean.y[0] == 1


def test_theta_rows_are_the_means_of_the_recorded_thetas(studies):
    study = studies["eq1"]
    figure = plot_theta(study)
    thetas = np.array([g.theta for g in generations(study)])
    lines = [t for t in figure.data if t.fill is None]
    assert len(lines) == 3  # one per searched number
    names = ["R.c", "R.tau", "R.tk"]  # the order of theta: by name, a and b of each Beta
    for row, (line, name) in enumerate(zip(lines, names, strict=True)):
        a, b = thetas[:, 2 * row], thetas[:, 2 * row + 1]
        shares = (np.array(line.y) - (2 - row) - 0.1) / 0.8
        np.testing.assert_allclose(shares, a / (a + b), atol=1e-3)
        assert line.hovertemplate.startswith(name)


def test_theta_says_what_its_numbers_are(studies):
    figure = plot_theta(studies["eq1"])
    labels = figure.layout.yaxis.ticktext
    meanings = ("exponent", "drop", "epoch of full drop")
    assert [label.partition("<br>")[2] for label in labels] == [
        f"<span style='font-size:10px'>{what}</span>" for what in meanings
    ]
    assert figure.layout.margin.b < plot_theta(studies["table1"]).layout.margin.b  # no legend
    table1 = plot_theta(studies["table1"])
    assert len(table1.layout.yaxis2.ticktext) == 16  # one column, whose labels are in the margin
    assert "yaxis3" not in table1.layout
    hovers = [t.hovertemplate for t in table1.data if t.hovertemplate]
    assert "R.f1.a3 (rise, height): %{customdata}<extra></extra>" in hovers


def test_theta_says_in_short_lines_what_it_leaves_out():
    def objective(trial):
        total = sum(trial.suggest_float(f"a_rather_long_name_{k:02d}", 0, 1) for k in range(20))
        suggest_simplex(trial, "w", 3)
        return total + (trial.suggest_categorical("kind", ["a", "b"]) == "a")

    figure = plot_theta(searched(objective))
    lines = figure.layout.title.subtitle.text.split("<br>")
    assert lines[1] == "not shown: the 8 parameters that moved least"
    assert max(map(len, lines)) <= 60  # half a page of 1,024 pixels
    assert len(figure.layout.yaxis3.ticktext) == 12  # below two areas
    assert all(len(label) <= 35 for label in figure.layout.yaxis3.ticktext)


def test_theta_stacks_the_expected_weights_to_one(studies):
    figure = plot_theta(studies["table1"])
    areas = [t for t in figure.data if t.stackgroup]
    assert len(areas) == 4
    np.testing.assert_allclose(sum(np.array(t.y) for t in areas), 1, atol=1e-3)
    bands = [t for t in figure.data if t.fill == "toself"]
    assert len(bands) == 16


def test_generations_shows_every_loss_and_the_best_so_far(studies):
    study = studies["eq1"]
    figure = plot_generations(study)
    (points,) = traces(figure, "trials")
    assert sorted(points.customdata) == list(range(20))
    generation_of = {n: g.index for g in generations(study) for n in g.trials}
    assert [generation_of[n] for n in points.customdata] == list(points.x)
    (best,) = traces(figure, "best so far")
    assert list(best.y) == sorted(best.y, reverse=True)
    assert best.y[-1] == pytest.approx(study.best_value, abs=1e-5)


def test_best_is_largest_where_the_study_maximises():
    study = searched(lambda t: t.suggest_float("x", 0, 1), direction="maximize")
    (best,) = traces(plot_generations(study), "best so far")
    assert list(best.y) == sorted(best.y)
    assert best.y[-1] == pytest.approx(study.best_value, abs=1e-5)


def test_any_objective_has_theta_and_generations():
    def objective(trial):
        weights = suggest_simplex(trial, "w", 3)
        kind = trial.suggest_categorical("kind", ["<b>bold</b>", "plain"])
        return float(weights[0]) + trial.suggest_float("lr", 1e-5, 1, log=True) + (kind != "plain")

    study = searched(objective)
    figure = plot_theta(study)
    names = {t.name for t in figure.data if t.stackgroup}
    assert names == {"w 1", "w 2", "w 3", "kind = &lt;b&gt;bold&lt;/b&gt;", "kind = plain"}
    assert len(plot_generations(study).data) >= 3
    with pytest.raises(ValueError, match=r"holds no schedules.*ScheduleSpace"):
        plot_schedules(study)
    with pytest.raises(ValueError, match="no completed trial that holds a schedule"):
        plot_basis_functions(study)
    assert (
        plot_learning_curves(study).layout.annotations[0].text == "the trials recorded no curves"
    )


def test_studies_of_other_samplers_have_schedules_and_curves():
    study = searched(schedule_objective(), sampler=RandomSampler(seed=0))
    assert not traces(plot_schedules(study), "mean, 90 %")
    assert len(plot_learning_curves(study).data) >= 3
    for plot in (plot_theta, plot_generations):
        with pytest.raises(ValueError, match="S2ESampler drew none"):
            plot(study)


def test_a_study_that_has_just_begun_says_so():
    study = optuna.create_study(sampler=S2ESampler(seed=0))
    with pytest.raises(ValueError, match="holds no schedules"):
        plot_schedules(study)
    ScheduleSpace(5).suggest(study.ask())
    for plot, message in (
        (plot_schedules, "no schedule is trained yet"),
        (plot_theta, "uniform"),
        (plot_generations, "no trial is complete yet"),
        (plot_learning_curves, "no trial is complete yet"),
    ):
        assert message in plot(study).layout.annotations[0].text


def test_several_objectives_are_refused():
    study = optuna.create_study(directions=["minimize", "minimize"])
    for plot in STUDY_PLOTS:
        with pytest.raises(ValueError, match="one objective"):
            plot(study)


@pytest.mark.parametrize("kind", SPACES)
def test_long_searches_stay_small_and_finite(kind):
    space = ScheduleSpace(200, kind)
    sampler = S2ESampler(population_size=2, estimator="natural", seed=0)  # the fastest
    study = searched(lambda t: space.suggest(t).keep_rates.mean(), 130, sampler)
    assert len(generations(study)) > MAX_GENERATIONS
    assert len(study.trials) > MAX_CURVES
    snapshot = Snapshot.of(study)
    sizes = [len(json.dumps(draw(snapshot), allow_nan=False)) for draw in DRAWN]
    assert sum(sizes) < 90_000


@pytest.mark.filterwarnings("ignore:A trial returned an infinite value")
def test_infinite_and_failed_trials_are_left_out():
    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        return float("inf") if x > 0.8 else float("nan") if trial.number % 5 == 4 else x

    study = searched(objective, n_trials=40)
    for draw in (figures.theta, figures.generations):
        json.dumps(draw(Snapshot.of(study)), allow_nan=False)


@pytest.mark.parametrize("scale", [1.7e308, 1.0, 1e-200])
def test_losses_of_any_size_are_drawn(scale):
    def objective(trial):
        loss = scale if trial.suggest_float("x", 0, 1) > 0.5 else -scale
        for epoch in range(3):
            trial.report(loss, epoch)
        return loss

    study = searched(objective, n_trials=12, sampler=S2ESampler(population_size=3, seed=0))
    figure = plot_generations(study)
    (mean,), (best,) = traces(figure, "mean"), traces(figure, "best so far")
    expected = [sum(study.trials[n].value / 3 for n in g.trials) for g in generations(study)]
    np.testing.assert_allclose(mean.y, expected, rtol=1e-4)
    np.testing.assert_allclose(best.y, -scale, rtol=1e-4)
    (curve,) = traces(plot_learning_curves(study), "best")
    np.testing.assert_allclose(curve.y, -scale, rtol=1e-4)
    for draw in (figures.generations, figures.learning_curves):
        json.dumps(draw(Snapshot.of(study)), allow_nan=False)


def test_names_of_a_study_are_inert_text():
    name = "x<a href='http://evil'>y</a>\n‮" + "z" * 100
    study = searched(lambda t: t.suggest_float(name, 0, 1))
    text = plot_theta(study).to_json()
    assert "<a href" not in text
    assert "‮" not in text


def test_zoom_survives_and_backgrounds_are_transparent(studies):
    for plot in (*STUDY_PLOTS, plot_basis_functions):
        layout = plot(studies["table1"]).layout
        assert layout.uirevision == "s2e"
        assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_basis_functions_of_a_mixture_are_its_corners():
    space = ScheduleSpace(30, "table1")
    study = searched(schedule_objective(30, "table1"), n_trials=1, sampler=RandomSampler(seed=1))
    schedule = Schedule.from_trial(study.trials[0])
    figure = plot_basis_functions(schedule)
    *bases, whole = figure.data
    weights = [float(t.name.split("weight ")[1]) for t in bases]
    assert sum(weights) == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(whole.y, schedule.keep_rates, atol=6e-4)
    mixed = sum(w * np.array(t.y) for w, t in zip(weights, bases, strict=True))
    unclipped = (np.array([t.y for t in bases]) < 1).all(axis=0)
    np.testing.assert_allclose(mixed[unclipped], schedule.keep_rates[unclipped], atol=0.03)
    assert space.n_epochs == len(whole.y)
    with pytest.raises(ValueError, match="comes from an array"):
        plot_basis_functions(Schedule([1.0, 0.5]))


@pytest.mark.parametrize("kind", SPACES)
def test_a_recommended_mean_is_in_the_figures(studies, kind):
    study = studies[kind]
    picked = recommend(study)
    (star,) = traces(plot_generations(study), "recommended")
    assert star.name == f"recommended: mean of {len(picked.mean_of)}, expected (95 %)"
    assert star.x == (generations(study)[-1].index,)
    assert star.y[0] == pytest.approx(picked.expected_loss, rel=1e-3)
    *_, whole = plot_basis_functions(study).data  # it has no parts itself: the nearest
    assert whole.name == f"R(t) nearest to the mean of {len(picked.mean_of)}"
    nearest = Schedule.from_params(picked.params).keep_rates
    np.testing.assert_allclose(whole.y, nearest, atol=6e-4)


def test_a_recommended_trial_is_in_the_figures():
    study = searched(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2)
    (star,) = traces(plot_generations(study), "recommended")
    assert star.name == f"recommended: #{recommend(study).trial}, expected (95 %)"


def test_without_plotly_the_error_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r'pip install "optuna-s2e\['):
        plot_learning_curves(optuna.create_study())
