"""The evaluation of methods: each is trained as `train_batch` does, and nothing twice."""

import numpy as np
import pytest

from optuna_s2e.coteaching import (
    METHODS,
    Jocor,
    TrainingConfig,
    evaluate_schedules,
    train_batch,
)

CONFIG = TrainingConfig(batch_size=8, learning_rate=0.05)
RATES = np.linspace(1, 0.4, 10)


def _evaluate(data, methods, **options):
    schedules = options.pop("schedules", None) or dict.fromkeys(methods, RATES)
    return evaluate_schedules(
        schedules, data, config=CONFIG, device="cpu", methods=methods,
        **{"n_repeats": 2, **options},
    )  # fmt: skip


def test_each_method_is_trained_on_its_schedule(tiny):
    methods = {**{name: name for name in METHODS}, "own": Jocor(0.9)}
    evaluations = _evaluate(tiny, methods)
    assert list(evaluations) == list(methods)
    for name, method in methods.items():
        evaluation = evaluations[name]
        for r, seed in enumerate(evaluation.seeds):
            (alone,) = train_batch(
                [RATES], [seed], data=tiny, config=CONFIG, evaluate_on="test", method=method
            )
            expected = 1 - alone.curves.error.mean(axis=1)
            np.testing.assert_allclose(evaluation.test_accuracy[r], expected, err_msg=name)
            precision = alone.curves.label_precision.mean(axis=1)
            np.testing.assert_allclose(evaluation.label_precision[r], precision, rtol=1e-6)


def test_schedules_without_a_method_are_those_of_coteaching(tiny):
    schedules = {"a": RATES, "b": RATES}
    found = _evaluate(tiny, {"b": "mentornet"}, schedules=schedules)
    plain = evaluate_schedules(schedules, tiny, config=CONFIG, device="cpu", n_repeats=2)
    np.testing.assert_array_equal(found["a"].test_accuracy, plain["a"].test_accuracy)
    assert (found["b"].test_accuracy != plain["b"].test_accuracy).any()


def test_early_stopping_takes_each_network_from_its_best_validation_epoch(tiny):
    found = _evaluate(tiny, {"early": "early-stopping", "standard": "standard"})
    for r, seed in enumerate(found["early"].seeds):
        test, validation = (
            train_batch(
                np.ones((1, 10)), [seed], data=tiny, config=CONFIG, evaluate_on=on
            )[0].curves.error
            for on in ("test", "validation")
        )  # fmt: skip
        for t in range(10):
            errors = []
            for i in (0, 1):
                epochs = sorted(range(t + 1), key=lambda e, i=i: (validation[e, i], e))
                errors.append(test[epochs[0], i])
            assert found["early"].test_accuracy[r, t] == pytest.approx(1 - np.mean(errors))
    assert (found["early"].test_accuracy != found["standard"].test_accuracy).any()


def test_nothing_is_trained_twice(tiny, tmp_path):
    done = []
    methods = {"standard": "standard", "early": "early-stopping", "one": "coteaching",
               "two": "coteaching", "f": "f-correction", "bare": "bare"}  # fmt: skip
    options = {"keep": tmp_path / "rows.jsonl", "progress": lambda *counts: done.append(counts)}
    schedules = dict.fromkeys(methods, RATES) | {"one": np.ones(10)}
    first = _evaluate(tiny, methods, schedules=schedules, **options)
    # standard, which is "one" and a half of "early"; the other half; "two"; f; bare
    assert done == [(i, 100) for i in range(1, 101)]
    done.clear()
    again = _evaluate(tiny, methods, schedules=schedules, **options)
    assert done == [(100, 100)]
    for name in methods:
        np.testing.assert_array_equal(first[name].test_accuracy, again[name].test_accuracy)
    np.testing.assert_array_equal(first["one"].test_accuracy, first["standard"].test_accuracy)


def test_unknown_methods_and_names_are_refused(tiny):
    with pytest.raises(ValueError, match="method must be one of 'standard'"):
        _evaluate(tiny, {"a": "s2e"})
    with pytest.raises(ValueError, match=r"methods must be given for schedules among \['a'\]"):
        _evaluate(tiny, {"b": "jocor"}, schedules={"a": RATES})
