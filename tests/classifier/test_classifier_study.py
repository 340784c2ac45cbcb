"""A search in a storage: killed fits go on, other data are refused, budgets."""

import signal

import numpy as np
import optuna
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from optuna.trial import TrialState
from processes import Process, wait_until

from optuna_s2e import NoisyLabelClassifier, ScheduleSpace, open_storage
from optuna_s2e._attributes import CLASSIFIER_KEY, read_noise
from optuna_s2e.classifier._study import Budget

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, size=120)
X = RNG.normal(size=(120, 3)) + 2 * Y[:, None]


def fit(x=X, y=Y, **arguments):
    given = {"budget": 3, "n_epochs": 2, "batch_size": 32, "device": "cpu", "random_state": 0}
    return NoisyLabelClassifier(**{**given, **arguments}).fit(x, y)


@pytest.fixture
def url(tmp_path):
    return f"journal:///{tmp_path}/s2e.log"  # in a database, a fit takes three times as long


def test_a_fit_is_found_again_and_its_budget_extended(url):
    first = fit(storage=url)
    again = fit(storage=url)
    assert again.study_.study_name == first.study_.study_name
    assert len(again.study_.trials) == 3
    assert again.noise_interval_ == first.noise_interval_ == fit().noise_interval_
    assert fit(noise_rate=0.1).noise_interval_ is None
    assert (again.predict_proba(X) == first.predict_proba(X)).all()
    params = [trial.params for trial in first.study_.trials]
    longer = fit(storage=url, budget=5).study_.trials
    assert len(longer) == 5
    assert [trial.params for trial in longer[:3]] == params


def fit_for_long(url):
    fit(storage=url, study_name="s", budget=1000)


def test_a_killed_fit_goes_on_to_the_same_numbers(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = Process(fit_for_long, url)

    def n_complete():
        try:
            storage = open_storage(url, create=False)
            study = optuna.load_study(study_name="s", storage=storage)
        except (ConnectionError, KeyError):
            return 0
        return len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))

    wait_until(lambda: n_complete() >= 6, process)
    assert process.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    budget = n_complete() + 3
    resumed, straight = fit(storage=url, study_name="s", budget=budget), fit(budget=budget)
    complete = resumed.study_.get_trials(states=[TrialState.COMPLETE])
    assert [(t.params, t.value) for t in complete] == [
        (t.params, t.value) for t in straight.study_.trials
    ]
    assert (resumed.predict_proba(X) == straight.predict_proba(X)).all()


def test_other_data_and_other_arguments_are_refused_under_the_same_name(url):
    fit(storage=url, study_name="s")
    with pytest.raises(ValueError, match="'s' was searched on other data"):
        fit(X + 1e-3 * np.arange(120)[:, None], storage=url, study_name="s")
    with pytest.raises(ValueError, match="'s' was searched on other data"):
        fit(y=1 - Y, storage=url, study_name="s")
    with pytest.raises(ValueError, match="another n_epochs \\(2, now 3\\)"):
        fit(storage=url, study_name="s", n_epochs=3)
    with pytest.raises(ValueError, match="another random_state"):
        fit(storage=url, study_name="s", random_state=1)
    assert len(fit(storage=url, n_epochs=3).study_.trials) == 3  # a study of its own


def test_the_study_records_the_noise_as_every_search_does(url):
    model = fit(storage=url)
    noise = read_noise(model.study_.user_attrs)
    assert noise.noise_rate == round(model.noise_rate_, 4)
    assert noise.transition_matrix == np.round(model.transition_matrix_, 4).tolist()
    assert not noise.used_clean_labels
    space = ScheduleSpace(2, noise_rate=noise.noise_rate)
    assert model.study_.trials[0].distributions["R.tau"] == space.distributions["R.tau"]
    again = fit(storage=url)
    assert (again.label_quality_ == model.label_quality_).all()
    assert (again.oof_proba_ == model.oof_proba_).all()
    assert "s2e:noise" not in fit(noise_rate=0.2).study_.user_attrs  # nothing was estimated


def test_a_study_of_another_release_is_refused(url):
    model = fit(storage=url, study_name="s")
    held = model.study_.user_attrs[CLASSIFIER_KEY]
    model.study_.set_user_attr(CLASSIFIER_KEY, {**held, "v": 1, "noise": {"rate": 0.3}})
    with pytest.raises(ValueError, match="'s' was written by another release of optuna_s2e"):
        fit(storage=url, study_name="s")


def test_a_fit_without_a_seed_goes_on_with_that_of_its_study(url):
    first = fit(storage=url, random_state=None)
    again = fit(storage=url, random_state=None)
    assert len(again.study_.trials) == 3
    assert (again.predict_proba(X) == first.predict_proba(X)).all()


def test_trials_of_others_are_left_alone(url):
    study = optuna.create_study(storage=open_storage(url), study_name="mine")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match="'mine' holds trials that no classifier made"):
        fit(storage=url, study_name="mine")


def test_a_search_prints_no_line_per_trial(caplog):
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    try:
        fit()
        assert caplog.records == []
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        optuna.create_study()
        assert caplog.records  # it would have been seen
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(before)


def test_a_budget_of_time_ends_the_search():
    model = fit(budget="0.3 s")
    assert len(model.study_.trials) >= 1
    assert model.schedule_.n_epochs == 2


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(12, (12, None)), ("90 s", (None, 90)), ("1.5min", (None, 90)), ("2 h", (None, 7200))],
)
def test_budgets(budget, expected):
    assert Budget.read(budget) == expected


@pytest.mark.parametrize(
    "budget", ["", "12", "min", "-1 s", "nan s", "1 d", None, 0, 1.5, "inf h"]
)
def test_budgets_that_are_none(budget):
    with pytest.raises(ValueError, match="budget must be"):
        Budget.read(budget)
