"""The objective inside and outside of studies."""

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FixedTrial, TrialState

from optuna_s2e import S2ESampler, generations, optimize_batch
from optuna_s2e._attributes import curves_to_json
from optuna_s2e.coteaching import (
    CoteachingObjective,
    Metrics,
    NoisyData,
    TrainingConfig,
    last_epochs_mean,
    load_data,
    train_batch,
)
from optuna_s2e.schedules import Schedule

NUMBERS = ("validation_error", "validation_loss", "label_precision", "train_accuracy")


def _objective(data, **options):
    options = {"n_epochs": 6, "device": "cpu", "config": TrainingConfig(8, 0.01), **options}
    return CoteachingObjective(data, **options)


def _study(sampler=None, **options):
    sampler = sampler or optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(sampler=sampler, **options)


def test_a_trial_is_a_training_of_its_schedule_with_its_recorded_seed(tiny):
    study = _study()
    study.optimize(_objective(tiny, n_epochs=20), n_trials=2)
    for trial in study.trials:
        (result,) = train_batch(
            [Schedule.from_params(trial.params).keep_rates],
            [trial.user_attrs["seed"]],
            data=tiny,
            config=TrainingConfig(8, 0.01),
            device="cpu",
        )
        curves = result.curves
        assert trial.value == round(float(curves.error[-2:].mean()), 6)
        expected = [curves.error, curves.loss, curves.label_precision, curves.train_accuracy]
        for name, curve in zip(NUMBERS, expected, strict=True):
            assert trial.user_attrs[name] == round(last_epochs_mean(curve), 6)
        recorded = json.loads(trial.system_attrs["coteaching:curves"])
        assert recorded["epochs"] == list(range(20))
        for name, curve in curves._asdict().items():
            np.testing.assert_allclose(recorded[name], curve.T, atol=5.1e-5)
        assert set(trial.user_attrs) == {"seed", "training_seconds", *NUMBERS}
        assert all(isinstance(value, int | float) for value in trial.user_attrs.values())


def test_seeds_follow_objective_and_number_under_any_sampler(tiny):
    seeds = []
    for sampler in (optuna.samplers.RandomSampler(seed=1), optuna.samplers.TPESampler(seed=2)):
        study = _study(sampler)
        study.optimize(_objective(tiny, n_epochs=2), n_trials=3)
        seeds.append([trial.user_attrs["seed"] for trial in study.trials])
    assert seeds[0] == seeds[1] == [_objective(tiny).trial_seed(n) for n in range(3)]
    assert len(set(seeds[0])) == 3
    assert _objective(tiny, seed=1).trial_seed(0) != seeds[0][0]


@pytest.mark.parametrize("died_before_recording", [True, False])
def test_a_retry_keeps_the_seed_of_the_first_try(tiny, died_before_recording):
    study = _study()
    objective = _objective(tiny, n_epochs=2)
    study.optimize(objective, n_trials=1)
    first = study.trials[0]
    # the trial that RetryHeartbeatStaleTrialCallback adds when a worker has died
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=first.params,
            distributions=first.distributions,
            user_attrs={} if died_before_recording else first.user_attrs,
            system_attrs={"failed_trial": 0, "retry_history": [0]},
        )
    )
    study.optimize(objective, n_trials=1)
    retried = study.trials[1]
    assert (retried.number, retried.params) == (1, first.params)
    assert retried.user_attrs["seed"] == first.user_attrs["seed"] == objective.trial_seed(0)
    assert retried.value == first.value


def test_a_finished_trial_run_again_alone_gives_the_same_value(tiny):
    study = _study()
    objective = _objective(tiny)
    study.optimize(objective, n_trials=3)
    other_seed = _objective(tiny, seed=9)
    for trial in study.get_trials():
        assert objective(trial) == other_seed(trial) == trial.value


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_give_the_numbers_of_one_worker(tiny, workers):
    """A batch is trained in one call, or on threads."""
    alone, together = (_study(S2ESampler(population_size=3, seed=0)) for _ in range(2))
    alone.optimize(_objective(tiny), n_trials=7)
    if workers:
        with ThreadPoolExecutor(workers) as executor:
            optimize_batch(together, _objective(tiny), 7, executor=executor)
    else:
        optimize_batch(together, _objective(tiny), 7)
    for a, b in zip(alone.trials, sorted(together.trials, key=lambda t: t.number), strict=True):
        assert a.params == b.params
        assert a.value == b.value
        assert a.intermediate_values == b.intermediate_values
        assert a.user_attrs["seed"] == b.user_attrs["seed"]
        assert a.system_attrs["coteaching:curves"] == b.system_attrs["coteaching:curves"]
    for a, b in zip(generations(alone), generations(together), strict=True):
        assert np.array_equal(a.theta, b.theta)


def test_the_backend_is_handed_on_and_is_no_setting(tiny):
    trial = FixedTrial({"R.eq1": 1, "R.n_epochs": 6, "R.tau": 0.5, "R.tk": 2.0, "R.c": 1.0})
    loop, fused, graphs = (
        _objective(tiny, config=TrainingConfig(8, 0.01, dtype="float64"), backend=name)
        for name in ("loop", "fused", "graphs")
    )
    assert loop(trial) == fused(trial)
    with pytest.raises(ValueError, match="'graphs' needs a CUDA device"):
        graphs(trial)
    digits = load_data("digits", noise="symmetric", noise_rate=0.5, seed=0)
    settings = [_objective(digits, backend=name).settings for name in ("loop", "auto")]
    assert settings[0] == settings[1] is not None


def test_one_trial_of_a_batch_may_fail_without_the_others(tiny):
    """Of five trials one is pruned, one cannot report, one runs out of memory, one diverges."""
    objective = _objective(tiny, prune=True)

    def first_network_of(number):
        states = np.random.SeedSequence(objective.trial_seed(number)).generate_state(3, np.uint64)
        return int(states[0])

    def network(input_shape, n_classes):
        layer = torch.nn.Linear(5, n_classes)
        if torch.initial_seed() == first_network_of(2):
            raise torch.OutOfMemoryError("no memory left")
        if torch.initial_seed() == first_network_of(3):
            layer.weight.data.fill_(torch.nan)
        return layer

    class Full(optuna.trial.FixedTrial):
        def report(self, value, step):
            raise OSError("disk full")

    class Slow(optuna.trial.FixedTrial):
        def should_prune(self):
            return True

    objective.network = network
    study = _study()
    study.optimize(_objective(tiny), n_trials=1)
    kinds = (Slow, Full, *[optuna.trial.FixedTrial] * 3)
    trials = [kind(study.best_params, number=n) for n, kind in enumerate(kinds)]
    results = objective.batch(trials)
    assert [type(r) for r in results] == [
        optuna.TrialPruned,
        OSError,
        torch.OutOfMemoryError,
        FloatingPointError,
        float,
    ]
    assert results[-1] == objective(trials[-1])


def test_fixed_trials_need_no_study(tiny):
    params = {"R.eq1": 1, "R.n_epochs": 6, "R.tau": 0.5, "R.tk": 2.0, "R.c": 1.0}
    trial = FixedTrial(params, number=3)
    objective = _objective(tiny, kind="eq1")
    value = objective(trial)
    assert trial.user_attrs["seed"] == objective.trial_seed(3)
    assert trial.user_attrs["validation_error"] == value


@pytest.mark.parametrize("metric", ["validation_error", "validation_loss"])
def test_the_metric_is_the_value_and_what_is_reported(tiny, metric):
    study = _study()
    study.optimize(_objective(tiny, metric=metric), n_trials=1)
    (trial,) = study.trials
    assert trial.value == trial.user_attrs[metric]
    reported = trial.intermediate_values[5]  # last 10 %: one epoch
    assert round(reported, 6) == trial.value


@pytest.mark.parametrize("n_epochs", [2, 9, 10, 19, 40, 101])
def test_at_most_ten_epochs_are_reported_the_last_one_among_them(tiny, n_epochs):
    study = _study()
    study.optimize(_objective(tiny, n_epochs=n_epochs), n_trials=1)
    reported = sorted(study.trials[0].intermediate_values)
    assert reported[-1] == n_epochs - 1
    assert min(n_epochs, 5) <= len(reported) <= 10


class _AlwaysPrune(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return True


def test_pruners_are_obeyed_only_on_request(tiny):
    study = _study(pruner=_AlwaysPrune())
    study.optimize(_objective(tiny), n_trials=1)
    study.optimize(_objective(tiny, prune=True), n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert list(study.trials[1].intermediate_values) == [0]


def test_curves_of_long_trainings_are_thinned_to_at_most_400_epochs():
    x = np.eye(2, dtype=np.float32)
    data = NoisyData.from_arrays(x, [0, 1], x, [0, 1], clean_labels=[0, 1])
    study = _study()
    network = _linear  # a cheap one: only the number of epochs matters
    study.optimize(_objective(data, n_epochs=401, network=network), n_trials=1)
    epochs = json.loads(study.trials[0].system_attrs["coteaching:curves"])["epochs"]
    assert epochs[-1] == 400
    assert set(np.diff(epochs)) == {2}


def _linear(input_shape, n_classes):
    return torch.nn.Linear(input_shape[0], n_classes)


@pytest.mark.parametrize("n_epochs", [400, 801, 100_000])
def test_curves_stay_below_60_kb(n_epochs):
    curves = {name: np.full((n_epochs, 2), -123.4567) for name in Metrics._fields}
    text = curves_to_json(curves)
    assert 10_000 < len(text) < 60_000
    epochs = json.loads(text)["epochs"]
    assert (len(set(np.diff(epochs))), epochs[-1]) == (1, n_epochs - 1)
    assert len(epochs) <= 400


def test_a_loss_that_becomes_nan_fails_the_trial_with_one_warning(tiny):
    objective = _objective(tiny, learning_rate=1e30)
    study = _study()
    with pytest.warns(RuntimeWarning, match=r"Trial 0 returns NaN.*became non-finite in epoch"):
        study.optimize(objective, n_trials=1)
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[0].user_attrs["seed"] == objective.trial_seed(0)
    fixed = FixedTrial({"R.eq1": 1, "R.n_epochs": 6, "R.tau": 0.5, "R.tk": 2.0, "R.c": 1.0})
    with pytest.warns(RuntimeWarning, match="Trial 0 returns NaN"):
        assert math.isnan(objective(fixed))


def test_an_error_in_the_network_reaches_the_user(tiny):
    def network(input_shape, n_classes):
        return torch.nn.Linear(input_shape[0] + 1, n_classes)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        _study().optimize(_objective(tiny, network=network), n_trials=1)


def test_check_finds_an_unfit_network_before_there_is_a_study(tiny):
    def too_wide(input_shape, n_classes):
        return torch.nn.Linear(input_shape[0] + 1, n_classes)

    def infinite(input_shape, n_classes):
        layer = torch.nn.Linear(input_shape[0], n_classes)
        layer.weight.data.fill_(torch.inf)
        return layer

    def wrong_logits(input_shape, n_classes):
        return torch.nn.Linear(input_shape[0], n_classes + 1)

    part = torch.nn.Linear(5, 4)

    def shared(input_shape, n_classes):
        return torch.nn.Sequential(part, torch.nn.Tanh(), torch.nn.Linear(4, n_classes))

    def check(network, **options):
        with pytest.raises(ValueError, match=r".") as caught:
            _objective(tiny, network=network, **options).check()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    inputs = "network must train on inputs of shape (5,) and 3 classes, but a first step on "
    found = check(too_wide)
    assert found.startswith(f"{inputs}8 samples failed: RuntimeError: mat1 and mat2 shapes cannot")
    assert f"{inputs}4 samples failed: Fl" in check(infinite, batch_size=4)
    assert "logits of shape (B, C) = (8, 3), but got (8, 4)" in check(wrong_logits)
    assert "new weights at each call, but '0.weight' is the same memory" in check(shared)
    assert "backend 'graphs' needs a CUDA device" in check("mlp", backend="graphs")


def test_check_changes_nothing(tiny):
    objective, checked = _objective(tiny), _objective(tiny)
    before = torch.get_rng_state()
    checked.check()
    assert torch.equal(torch.get_rng_state(), before)
    params = {"R.eq1": 1, "R.n_epochs": 6, "R.tau": 0.5, "R.tk": 2.0, "R.c": 1.0}
    assert checked(FixedTrial(params)) == objective(FixedTrial(params))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_an_impossible_seed_of_one_trial_fails_that_trial_alone(tiny, seed):
    params = {"R.eq1": 1, "R.n_epochs": 6, "R.tau": 0.5, "R.tk": 2.0, "R.c": 1.0}
    trials = [FixedTrial(params, number=n) for n in range(3)]
    trials[0].set_user_attr("seed", seed)
    trials[1].set_user_attr("seed", np.int64(5))
    failed, seeded, last = _objective(tiny).batch(trials)
    assert "'seed' of trial 0 must be an int in [0, 18446744073709551615]" in str(failed)
    assert (type(seeded), type(last)) == (float, float)
    assert trials[1].user_attrs["seed"] == 5


def test_own_arrays_and_network_in_ten_lines():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    data = NoisyData.from_arrays(x[:30], y[:30], x[30:], y[30:])

    def network(input_shape, n_classes):
        return torch.nn.Linear(input_shape[0], n_classes)

    objective = CoteachingObjective(data, network=network, n_epochs=3)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)

    assert 0 <= study.best_value <= 1
    assert "label_precision" not in study.best_trial.user_attrs  # unknown, not NaN


def test_settings_make_the_same_objective_again():
    data = load_data("digits", noise="pair", noise_rate=0.3, seed=4, validation="noisy")
    objective = CoteachingObjective(
        data, n_epochs=2, seed=5, kind="table1", batch_size=256, metric="validation_loss"
    )
    settings = json.loads(json.dumps(objective.settings))
    again = CoteachingObjective.from_settings(settings, device="cpu")
    assert again.settings == objective.settings
    values = []
    for made in (objective, again):
        study = _study()
        study.optimize(made, n_trials=1)
        values.append(study.trials[0].value)
    assert values[0] == values[1]


def test_settings_of_earlier_releases_mean_what_they_meant():
    settings = _digits_settings()
    for name in ("optimizer", "momentum", "weight_decay"):
        del settings["config"][name]
    objective = CoteachingObjective.from_settings(settings)
    assert objective.config == TrainingConfig(64, 1e-2)


def test_presets_hold_unless_something_else_is_asked():
    data = load_data("digits")
    assert CoteachingObjective(data).config == TrainingConfig(64, 1e-2)
    changed = CoteachingObjective(data, batch_size=16).config
    assert changed == TrainingConfig(16, 1e-2)
    arrays = NoisyData.from_arrays(data.x, data.noisy_labels, data.x_val, data.y_val)
    assert CoteachingObjective(arrays).config == TrainingConfig(128, 1e-3)


def test_own_data_and_own_networks_have_no_settings(tiny):
    assert CoteachingObjective(tiny).settings is None
    digits = load_data("digits")
    assert CoteachingObjective(digits, network=lambda shape, c: None).settings is None
    assert CoteachingObjective(digits).settings is not None


def _digits_settings(**changes):
    settings = CoteachingObjective(load_data("digits"), n_epochs=2).settings
    for key, value in changes.items():
        if value is None:
            del settings[key]
        else:
            settings[key] = value
    return settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: None, "the objective has data or a network of its own"),
        (lambda: {"version": 2}, "settings must be of version 1, but got 2"),
        (lambda: _digits_settings(seed=None), "settings must have the keys"),
        (lambda: _digits_settings(extra=1), "settings must have the keys"),
        (lambda: _digits_settings(config={"betas": 1}), "settings are damaged"),
        (lambda: _digits_settings(data={"noise": "pair"}), "settings are damaged: 'name'"),
        (lambda: _digits_settings(network="vgg"), "network must be one of"),
        (lambda: _digits_settings(data={"name": "tomatoes"}), "data set must be one of"),
    ],
)
def test_damaged_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CoteachingObjective.from_settings(settings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "vgg"}, "network must be one of ['cnn2', 'cnn7', "),
        ({"network": "cnn2"}, "network 'cnn2' needs inputs (channels, height, width) of at least"),
        (
            {"backend": "gpu"},
            "backend must be one of 'auto', 'loop', 'rows', 'fused', 'unfolded', ",
        ),
        ({"metric": "accuracy"}, "metric must be one of 'validation_error', 'validation_loss'"),
        ({"seed": -1}, "seed must be an int of at least 0, but got -1"),
        ({"n_epochs": 1}, "n_epochs must be an int in [2,"),
        ({"kind": "rbf"}, "kind must be one of"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, but got 0.0"),
    ],
)
def test_errors_name_the_argument_and_the_value(tiny, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _objective(tiny, **options)
