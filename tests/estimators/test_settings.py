"""Settings: what is refused, what survives JSON, and the defaults of every estimator."""

import json

import numpy as np
import pytest

from optuna_s2e.estimators import DEFAULT_ESTIMATOR, ESTIMATORS, UpdateSettings, resolve


def test_settings_survive_json():
    settings = UpdateSettings(
        population_size=8,
        estimator="natural",
        step_size=0.1,
        max_kl=0.3,
        curvature_bounds=(0.5, 2.5),
        theta_bounds=(0.7, 50.0),
        max_weight=3.0,
        reuse=2,
    )
    restored = resolve(json.loads(json.dumps(settings.to_dict())))
    assert restored == settings
    assert restored != resolve({})
    assert hash(restored) == hash(settings)


def test_equal_settings_have_equal_json_whatever_number_types():
    plain = resolve(
        {"step_size": 1.0, "max_kl": 2.0, "theta_bounds": (1.0, 50.0), "population_size": 4}
    )
    four, fifty = np.int64(4), np.int64(50)
    typed = resolve(
        {
            "step_size": 1,
            "max_kl": np.float32(2),
            "theta_bounds": [1, fifty],
            "population_size": four,
        }
    )
    assert json.dumps(plain.to_dict()) == json.dumps(typed.to_dict())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("population_size", 0, "population_size must be an int in [1, 100000], but got 0."),
        ("population_size", 100_001, "population_size must be an int in [1, 100000], but got"),
        ("population_size", True, "population_size must be an int in [1, 100000], but got True."),
        ("population_size", 6.0, "population_size must be an int in [1, 100000], but got 6.0."),
        (
            "estimator",
            "Newton",
            "estimator must be one of 'surrogate', 'natural', 'newton', 'cubic', 'gradient', "
            "'paper', but got 'Newton'.",
        ),
        ("estimator", ["newton"], "estimator must be one of "),
        ("step_size", 0.0, "step_size must be a finite number > 0, but got 0.0."),
        ("step_size", np.inf, "step_size must be a finite number > 0, but got inf."),
        ("step_size", np.nan, "step_size must be a finite number > 0, but got nan."),
        ("step_size", True, "step_size must be a finite number > 0, but got True."),
        ("step_size", "1", "step_size must be a finite number > 0, but got '1'."),
        ("max_kl", -1.0, "max_kl must be a finite number > 0, but got -1.0."),
        ("sign", "plus", "sign must be one of '-', '+', but got 'plus'."),
        ("max_weight", 0.5, "max_weight must be a finite number >= 1, but got 0.5."),
        ("reuse", -1, "reuse must be an int in [0, 1000], but got -1."),
        (
            "curvature_bounds",
            1.0,
            "curvature_bounds must be two numbers (low, high), but got 1.0.",
        ),
        ("curvature_bounds", (1.0,), "curvature_bounds must be two numbers (low, high), but got"),
        ("curvature_bounds", (0.0, 1.0), "curvature_bounds[0] must be a finite number > 0, but"),
        ("curvature_bounds", (2.0, 1.0), "curvature_bounds must be (low, high) with low <= high"),
        ("theta_bounds", (1.0, True), "theta_bounds[1] must be a finite number > 0, but got True"),
        ("theta_bounds", (2.0, 9.0), "theta_bounds must be (low, high) with low <= 1 <= high"),
        ("theta_bounds", (1.0, 1.0), "theta_bounds must be (low, high) with low <= 1 <= high"),
        ("theta_bounds", (1.0, 2e9), "theta_bounds[1] must be at most 1e+09, but got 2000000000."),
    ],
)
def test_settings_refuse_values_outside_their_range(name, value, message):
    with pytest.raises(ValueError) as caught:
        resolve({name: value})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "paper"])
def test_settings_with_which_theta_never_moves_are_refused(name):
    with pytest.raises(ValueError, match="population_size=1 and reuse=0 must not come together"):
        resolve({"estimator": name, "population_size": 1, "reuse": 0})
    assert resolve({"estimator": name, "population_size": 2, "reuse": 0}).population_size == 2
    assert resolve({"estimator": name, "population_size": 1, "reuse": 1}).population_size == 1
    UpdateSettings(estimator=name, population_size=1, step_size=1.0, reuse=0)  # as recorded before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"max_weight": 3.0}, ["max_weight"]),
        ({"estimator": "newton", "max_weight": 3.0}, []),
        ({"estimator": "newton", "max_weight": 3.0, "reuse": 0}, ["max_weight"]),
        ({"estimator": "cubic", "curvature_bounds": (1.0, 2.0)}, []),
        ({"estimator": "natural", "curvature_bounds": (1.0, 2.0)}, ["curvature_bounds"]),
        (
            {"estimator": "gradient", "curvature_bounds": (1, 2), "max_weight": 3, "reuse": 0},
            ["curvature_bounds", "max_weight"],
        ),
        ({"sign": "+"}, ["sign"]),
        ({"estimator": "paper", "sign": "+", "theta_bounds": (1, 50), "step_size": 0.5}, []),
        ({"estimator": "paper", "reuse": 2, "max_weight": 3.0}, []),
        (
            {"estimator": "paper", "max_kl": 2, "curvature_bounds": (1, 2), "max_weight": 3},
            ["max_kl", "curvature_bounds", "max_weight"],
        ),
    ],
)
def test_settings_that_no_update_reads_are_named(options, expected):
    assert resolve(options).without_effect == expected


def test_the_papers_step_takes_a_single_loss():
    settings = resolve({"estimator": "paper", "population_size": 1})
    assert (settings.population_size, settings.reuse) == (1, 0)


def test_only_the_paper_has_a_sign_in_its_record():
    assert [n for n in ESTIMATORS if "sign" in resolve({"estimator": n}).to_dict()] == ["paper"]
    plus = resolve({"estimator": "paper", "sign": "+"})
    assert resolve(json.loads(json.dumps(plus.to_dict()))) == plus
    assert plus.to_dict() == resolve({"estimator": "paper"}).to_dict() | {"sign": "+"}


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="rho"):
        resolve({"rho": 1.0})


def test_settings_without_the_values_that_depend_on_the_estimator_are_refused():
    full = resolve({}).to_dict()
    for name in ("estimator", "step_size", "reuse"):
        with pytest.raises(TypeError, match=name):
            UpdateSettings(**{k: v for k, v in full.items() if k != name})


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_estimator_has_defaults_and_given_values_win(name):
    full, estimator = resolve({"estimator": name}), ESTIMATORS[name]
    assert (full.step_size, full.reuse) == (estimator.step_size, estimator.reuse)
    assert full.theta_bounds == estimator.theta_bounds
    assert (full.direction, full.needs_hessian) == (estimator.direction, estimator.needs_hessian)
    given = resolve({"estimator": name, "step_size": 2, "reuse": 3})
    assert (given.step_size, given.reuse) == (2.0, 3)


def test_only_the_default_estimator_has_a_step_of_its_own():
    assert resolve({}).estimator == DEFAULT_ESTIMATOR == "surrogate"
    assert [name for name, e in ESTIMATORS.items() if e.direction is None] == ["surrogate"]


def test_summaries_fit_into_a_help_text():
    for estimator in ESTIMATORS.values():
        assert 10 < len(estimator.summary) < 80
        assert not estimator.summary.endswith(".")
