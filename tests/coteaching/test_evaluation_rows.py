"""The file of trained networks: what it keeps, under which key, and what damage it survives."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from optuna_s2e.coteaching import METHODS, Jocor, TrainingConfig, evaluate_schedules
from optuna_s2e.coteaching._evaluation_rows import Row, RowFile, Training

CONFIG = TrainingConfig(batch_size=8, learning_rate=0.01)
RATES = np.linspace(1, 0.4, 4)
ROW = Row(np.array([[1 / 3, 0.5], [0.25, 0.1], [0, 1], [np.nan, 1e-17]]), np.full((4, 2), np.nan))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "networks.jsonl"


def _file(path, data, network="mlp", config=CONFIG):
    return RowFile(path, data, network, config)


def test_a_row_is_found_again_bit_for_bit(path, tiny):
    _file(path, tiny).add(Training(RATES, 5), ROW)
    found = _file(path, tiny).find(Training(RATES, 5))
    assert [curve.tobytes() for curve in found] == [curve.tobytes() for curve in ROW]


def test_what_the_numbers_depend_on_is_in_the_key(path, tiny):
    _file(path, tiny).add(Training(RATES, 5), ROW)
    file = _file(path, tiny)
    assert file.find(Training(RATES, 6)) is None
    assert file.find(Training(RATES * (1 - 1e-15), 5)) is None
    assert file.find(Training(RATES[:3], 5)) is None
    assert _file(path, tiny, network="cnn2").find(Training(RATES, 5)) is None
    assert _file(path, tiny, config=replace(CONFIG, batch_size=9)).find(Training(RATES, 5)) is None
    for name in ("x", "noisy_labels", "x_test", "y_test"):
        changed = getattr(tiny, name).clone()
        changed[0] = changed[0] + 1 if changed.is_floating_point() else (changed[0] + 1) % 3
        assert _file(path, replace(tiny, **{name: changed})).find(Training(RATES, 5)) is None


def test_cut_and_foreign_lines_are_ignored(path, tiny):
    _file(path, tiny).add(Training(RATES, 5), ROW)
    whole = path.read_text()
    for damage in (whole[: len(whole) // 2], "[]\n", "7\n", '{"key": 1}\n', "null", "\x00\n"):
        path.write_text(damage)
        assert _file(path, tiny).find(Training(RATES, 5)) is None
        _file(path, tiny).add(Training(RATES, 5), ROW)  # after a cut line
        assert _file(path, tiny).find(Training(RATES, 5)) is not None


def test_a_file_that_cannot_be_written_fails_at_once(tmp_path, tiny):
    with pytest.raises(OSError, match="No such file"):
        evaluate_schedules({"a": RATES}, tiny, keep=tmp_path / "no" / "file")
    with pytest.raises(ValueError, match="keep must be None for a network that is a function"):
        evaluate_schedules({"a": RATES}, tiny, network=lambda *_: None, keep=tmp_path / "file")


class _Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 5, 12, 13, 23])
def test_an_interrupted_evaluation_trains_only_what_is_missing(path, tiny, stop):
    options = {"config": CONFIG, "n_repeats": 3, "device": "cpu"}
    schedules = {"a": np.ones(4), "b": RATES}  # 2 * 3 * 4 = 24 epochs
    alone = evaluate_schedules(schedules, tiny, **options)

    def interrupt(done, total):
        assert total == 24
        if done == stop:
            raise _Stop

    with pytest.raises(_Stop):
        evaluate_schedules(schedules, tiny, progress=interrupt, keep=path, **options)
    kept = path.read_text().count('"key"')
    # side by side: both networks of a repeat end with their last epochs
    assert kept == {1: 0, 5: 0, 12: 2, 13: 2, 23: 5}[stop]

    calls = []
    again = evaluate_schedules(
        schedules, tiny, progress=lambda *counts: calls.append(counts), keep=path, **options
    )
    first = [(4 * kept, 24)] if kept else []
    assert calls == first + [(n, 24) for n in range(4 * kept + 1, 25)]
    for name in schedules:
        assert again[name].seeds == alone[name].seeds
        for value in ("test_accuracy", "label_precision", "final_accuracy"):
            np.testing.assert_array_equal(getattr(again[name], value), getattr(alone[name], value))

    calls.clear()
    evaluate_schedules(
        schedules, tiny, progress=lambda *counts: calls.append(counts), keep=path, **options
    )
    assert calls == [(24, 24)]


def test_a_training_that_became_non_finite_is_kept_as_well(path, tiny):
    options = {"config": replace(CONFIG, learning_rate=1e30), "n_repeats": 1, "device": "cpu"}
    first = evaluate_schedules({"a": RATES}, tiny, keep=path, **options)["a"]
    calls = []
    again = evaluate_schedules(
        {"a": RATES}, tiny, keep=path, progress=lambda *c: calls.append(c), **options
    )["a"]
    assert calls == [(4, 4)]
    assert np.isnan(first.final_accuracy).all()
    np.testing.assert_array_equal(first.test_accuracy, again.test_accuracy)


def test_keys_tell_methods_and_evaluation_data_apart(tmp_path, tiny):
    path = tmp_path / "rows.jsonl"
    trainings = [
        Training(RATES, 5), Training(RATES, 5, METHODS["jocor"]), Training(RATES, 5, Jocor(0.9)),
        Training(RATES, 5, METHODS["reweight"]), Training(RATES, 5, evaluate_on="validation"),
    ]  # fmt: skip
    for i, training in enumerate(trainings):
        assert _file(path, tiny).find(training) is None
        _file(path, tiny).add(training, Row(ROW.error + i, ROW.label_precision))
    for i, training in enumerate(trainings):
        np.testing.assert_array_equal(_file(path, tiny).find(training).error, ROW.error + i)


def test_only_what_depends_on_the_validation_data_is_trained_again_with_others(tmp_path, tiny):
    path = tmp_path / "rows.jsonl"
    others = replace(tiny, y_val=(tiny.y_val + 1) % 3)
    for training, is_found in (
        (Training(RATES, 5), True), (Training(RATES, 5, METHODS["bare"]), True),
        (Training(RATES, 5, METHODS["reweight"]), False),
        (Training(RATES, 5, evaluate_on="validation"), False),
    ):  # fmt: skip
        _file(path, tiny).add(training, ROW)
        assert (_file(path, others).find(training) is not None) == is_found


def test_rows_of_earlier_releases_are_found(tmp_path, tiny):
    file = _file(tmp_path / "rows.jsonl", tiny)
    # the key of a row before there were methods
    what = {**file._setup, "keep_rates": RATES.tolist(), "seed": 5}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    file.add(Training(RATES, 5), ROW)
    assert f'"{key}"' in (tmp_path / "rows.jsonl").read_text()
