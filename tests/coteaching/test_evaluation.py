"""Baselines and the evaluation on test data."""

import re

import numpy as np
import pytest

from optuna_s2e.coteaching import (
    NoisyData,
    TrainingConfig,
    evaluate_schedules,
    fixed_schedules,
    train_batch,
)

CONFIG = TrainingConfig(batch_size=8, learning_rate=0.01)


def test_baselines_are_standard_and_eq_1_with_the_noise_rate():
    schedules = fixed_schedules(20, 0.4)
    np.testing.assert_array_equal(schedules["standard"].keep_rates, 1.0)
    expected = [1 - 0.4 * min(t / 10, 1) for t in range(20)]
    np.testing.assert_allclose(schedules["coteaching"].keep_rates, expected, rtol=1e-14)
    assert list(fixed_schedules(20, None)) == ["standard"]  # the noise rate is unknown


def test_each_repeat_is_a_training_of_its_own_on_test_data(tiny):
    schedules = {"a": np.ones(10), "b": np.linspace(1, 0.4, 10)}
    done = []
    evaluations = evaluate_schedules(
        schedules,
        tiny,
        config=CONFIG,
        n_repeats=3,
        device="cpu",
        progress=lambda *counts: done.append(counts),
    )
    assert list(evaluations) == ["a", "b"]
    assert evaluations["a"].seeds == evaluations["b"].seeds  # paired
    assert len(set(evaluations["a"].seeds)) == 3
    for name, evaluation in evaluations.items():
        assert evaluation.test_accuracy.shape == evaluation.label_precision.shape == (3, 10)
        for r, seed in enumerate(evaluation.seeds):
            (alone,) = train_batch(
                [schedules[name]], [seed], data=tiny, config=CONFIG, evaluate_on="test"
            )
            np.testing.assert_allclose(
                evaluation.test_accuracy[r], 1 - alone.curves.error.mean(axis=1)
            )
            assert evaluation.final_accuracy[r] == pytest.approx(
                1 - alone.curves.error[-1:].mean()
            )
    assert done == [(i, 60) for i in range(1, 61)]


def test_seeds_follow_the_seed_and_are_never_those_of_trials(tiny):
    from optuna_s2e.coteaching import CoteachingObjective

    options = {"config": CONFIG, "n_repeats": 20, "device": "cpu"}
    first, other = (
        evaluate_schedules({"a": np.ones(2)}, tiny, seed=seed, **options)["a"] for seed in (0, 1)
    )
    trials = {CoteachingObjective(tiny, n_epochs=2).trial_seed(n) for n in range(1000)}
    assert not set(first.seeds) & (set(other.seeds) | trials)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedules": {}}, "schedules must have one shape (T,), but got {}"),
        (
            {"schedules": {"a": np.ones(3), "b": np.ones(4)}},
            "but got {'a': (3,), 'b': (4,)}",
        ),
        ({"n_repeats": 0}, "n_repeats must be an int of at least 1, but got 0"),
        ({"seed": -1}, "seed must be an int of at least 0, but got -1"),
    ],
)
def test_errors_name_the_argument_and_the_value(tiny, change, message):
    arguments = {"schedules": {"a": np.ones(3)}, "data": tiny, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate_schedules(**arguments)


def test_data_without_test_part_are_refused(tiny):
    without = NoisyData.from_arrays(tiny.x, tiny.noisy_labels, tiny.x_val, tiny.y_val)
    with pytest.raises(ValueError, match="needs test data"):
        evaluate_schedules({"a": np.ones(3)}, without)


def test_a_network_that_raises_is_an_error_and_not_a_row_of_nan(tiny):
    def network(input_shape, n_classes):
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        evaluate_schedules({"a": np.ones(3)}, tiny, network=network)
