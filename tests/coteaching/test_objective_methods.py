"""The objective under every method: what is trained, and what a study remembers of it."""

import json
import re
import warnings

import numpy as np
import optuna
import pytest

from optuna_s2e import S2ESampler, optimize_batch
from optuna_s2e.coteaching import (
    METHODS,
    CoteachingObjective,
    Jocor,
    TrainingConfig,
    load_data,
    train_batch,
)
from optuna_s2e.schedules import Schedule


def _objective(data, method, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CoteachingObjective(
            data,
            n_epochs=6,
            device="cpu",
            config=TrainingConfig(8, 0.01),
            method=method,
            **options,
        )


@pytest.mark.parametrize("method", [*METHODS, Jocor(0.9)], ids=str)
def test_a_trial_is_a_training_by_the_method(tiny, method):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    objective = _objective(tiny, method)
    objective.check()
    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    (result,) = train_batch(
        [Schedule.from_params(trial.params).keep_rates], [trial.user_attrs["seed"]],
        data=tiny, config=TrainingConfig(8, 0.01), device="cpu", method=method,
    )  # fmt: skip
    assert trial.value == round(float(result.curves.error[-1:].mean()), 6)
    assert trial.user_attrs["validation_loss"] == round(float(result.curves.loss[-1].mean()), 6)


def test_methods_that_obey_the_schedule_are_searched_with_it(tiny):
    best = {}
    for method in ("coteaching", "mentornet", "coteaching+", "jocor"):
        study = optuna.create_study(sampler=S2ESampler(seed=0, population_size=3))
        optimize_batch(study, _objective(tiny, method), n_trials=6)
        losses = [t.user_attrs["validation_loss"] for t in study.trials]
        assert len(set(losses)) > 3
        best[method] = tuple(losses)
    assert len(set(best.values())) == 4


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.uses_schedule])
def test_a_method_without_schedule_warns_once(tiny, name):
    with pytest.warns(UserWarning, match="makes no use of R.t.: its trials differ by their seeds"):
        CoteachingObjective(tiny, method=name)


@pytest.mark.parametrize("method", [*METHODS, Jocor(0.9)], ids=str)
def test_settings_remember_the_method(method):
    digits = load_data("digits")
    objective = _objective(digits, method)
    settings = json.loads(json.dumps(objective.settings))
    assert ("method" in settings) == (method != "coteaching")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = CoteachingObjective.from_settings(settings, device="cpu")
    assert again.method == objective.method
    assert again.settings == objective.settings


def test_settings_without_a_method_are_those_of_coteaching(tiny):
    settings = _objective(load_data("digits"), "coteaching").settings
    assert CoteachingObjective.from_settings(settings).method.name == "coteaching"
    settings["method"] = "s2e"
    with pytest.raises(ValueError, match=r"method must be one of .*, but got 's2e'"):
        CoteachingObjective.from_settings(settings)
    settings["method"] = {"name": "jocor", "lambda": 0.1}
    with pytest.raises(ValueError, match="unknown options"):
        CoteachingObjective.from_settings(settings)


def test_wrong_methods_and_backends_are_refused_before_anything_is_trained(tiny):
    for options, message in (
        ({"method": "s2e"}, "method must be one of 'standard', 'coteaching',"),
        ({"method": "reweight", "backend": "fused"}, "backend 'fused' needs a method whose steps"),
        ({"method": "bare", "backend": "rows"}, "backend 'rows' needs a method that trains on"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            _objective(tiny, **options)


def test_a_retried_trial_keeps_its_numbers_under_any_method(tiny):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    objective = _objective(tiny, "jocor")
    study.optimize(objective, n_trials=1)
    assert objective(study.best_trial) == study.best_value
    assert np.isfinite(study.best_value)
