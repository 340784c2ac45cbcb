"""Which labels are wrong: the quality of each, and the list of the worst."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score

from optuna_s2e.coteaching import (
    NoiseEstimate,
    SampleStatistics,
    estimate_noise,
    find_label_errors,
    label_quality,
    list_label_errors,
    load_data,
    train_batch,
)
from optuna_s2e.label_noise import transition_matrix
from optuna_s2e.schedules import coteaching_schedule


def _statistics(margin, predicted, rival, since=3, trained=0.25):
    """Make statistics of samples from (network 0, network 1) each."""
    margin = np.array(margin, dtype=np.float64)
    nothing = np.full(margin.shape, np.nan)
    return SampleStatistics(
        n_seen=np.full(len(margin), 10), trained_share=np.full(margin.shape, trained),
        mean_loss=nothing, last_loss=nothing, mean_margin=margin,
        agreement=nothing[:, 0], predicted=np.array(predicted),
        predicted_since=np.broadcast_to(since, margin.shape).astype(np.float64),
        rival=np.array(rival),
    )  # fmt: skip


def _estimate(noise_rate, matrix, deviations):
    known = {"noise_rate": noise_rate, "transition_matrix": matrix, "deviations": deviations}
    return NoiseEstimate(**dict.fromkeys(f.name for f in fields(NoiseEstimate)) | known)


GIVEN = np.array([0, 0, 1, 2])
STATISTICS = _statistics(
    [[-3.0, -5.0], [2.0, 4.0], [-1.5, 0.5], [0.6, 0.6]],
    [[1, 1], [0, 0], [2, 1], [2, 2]],
    [[1, 1], [2, 1], [2, 0], [0, 1]],
    since=[[4, 7], [0, 0], [9, 2], [5, 5]],
)


def test_quality_is_the_odds_of_the_mean_margin():
    expected = expit([-4.0, 3.0, -0.5, 0.6])
    np.testing.assert_allclose(label_quality(STATISTICS, GIVEN), expected)
    other = _statistics([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [np.nan] * 2], *[[[0, 0]] * 4] * 2)
    together = label_quality([STATISTICS, other], GIVEN)
    np.testing.assert_allclose(together, expit([-2.0, 2.0, 0.25, 0.6]))  # the other saw three


def test_quality_is_in_the_unit_interval_and_one_for_what_was_never_seen():
    margins = [[1e9, 1e9], [-1e9, -1e9], [np.nan, np.nan]]
    seen = _statistics(margins, [[0, 0], [1, 1], [-1, -1]], [[1, 1], [1, 1], [-1, -1]])
    for matrix in (None, np.eye(2)):
        quality = label_quality(seen, [0, 0, 0], noise=matrix)
        assert quality.tolist() == [1.0, 0.0, 1.0]


def test_a_label_that_noise_does_not_make_of_its_rival_is_right():
    """Under pair noise, 0 becomes 1, 1 becomes 2 and 2 becomes 0."""
    pair = transition_matrix("pair", 0.4, 3)
    margins, given = [[-1.0, -1.0]] * 3, [1, 1, 1]
    seen = _statistics(margins, [[0, 0], [2, 2], [0, 2]], [[0, 0], [2, 2], [0, 2]])
    alike = label_quality(seen, given)
    quality = label_quality(seen, given, noise=pair)
    p = 0.98 * pair + 0.02 / 3
    odds = np.log([p[1, 1] / p[0, 1], p[1, 1] / p[2, 1]])
    np.testing.assert_allclose(quality, expit([-1 + odds[0], -1 + odds[1], -1 + odds.mean()]))
    assert (alike == alike[0]).all()
    assert quality[0] < 0.5 < quality[1]


def test_what_may_be_chance_in_an_estimate_is_left_out():
    pair = transition_matrix("pair", 0.4, 3)
    seen = replace(STATISTICS, rival=np.repeat((GIVEN[:, None] + 1) % 3, 2, axis=1))

    def quality(deviation):
        deviations = np.full((3, 3), deviation)
        return label_quality(seen, GIVEN, noise=_estimate(0.4, pair, deviations))

    np.testing.assert_allclose(quality(0.0), label_quality(seen, GIVEN, noise=pair))
    even = transition_matrix("symmetric", 0.4, 3)
    np.testing.assert_allclose(quality(0.3), label_quality(seen, GIVEN, noise=even))
    # off the diagonal, the matrix is 0.2 off the even one: half of that variance is chance
    half = label_quality(seen, GIVEN, noise=(pair + even) / 2)
    np.testing.assert_allclose(quality(np.sqrt(0.5) * 0.2), half)


def test_an_estimate_says_how_many_are_listed():
    pytest.importorskip("pandas")
    estimate = _estimate(0.5, np.eye(3), np.zeros((3, 3)))
    assert len(list_label_errors(STATISTICS, GIVEN, noise=estimate)) == 2
    assert len(list_label_errors(STATISTICS, GIVEN, noise=estimate, n=3)) == 3


def test_a_symmetric_matrix_changes_no_order():
    rng = np.random.default_rng(0)
    rival = (GIVEN[:, None] + rng.integers(1, 3, (4, 2))) % 3
    seen = replace(STATISTICS, rival=rival)
    with_matrix = label_quality(seen, GIVEN, noise=transition_matrix("symmetric", 0.3, 3))
    assert np.array_equal(np.argsort(with_matrix), np.argsort(label_quality(seen, GIVEN)))


def test_the_list_names_labels_suggestions_and_reasons():
    pytest.importorskip("pandas")
    errors = list_label_errors(STATISTICS, GIVEN, classes=["cat", "dog", "owl"], n=4)
    assert errors.columns.tolist() == [
        "index", "given_label", "suggested_label", "quality", "evidence"
    ]  # fmt: skip
    assert errors["index"].tolist() == [0, 2, 3, 1]
    assert errors["given_label"].tolist() == ["cat", "dog", "owl", "cat"]
    assert errors["suggested_label"].tolist() == ["dog", "owl", "cat", "dog"]
    assert errors["quality"].tolist() == sorted(label_quality(STATISTICS, GIVEN))
    trained = "; trained on in 25 % of the epochs"
    assert errors["evidence"].tolist() == [
        "both networks say 'dog' from epoch 7 on" + trained,
        "1 of 2 networks says 'owl' from epoch 9 on" + trained,
        "both networks say the given label, after doubts; 'cat' comes next" + trained,
        "both networks say the given label, after doubts; 'dog' comes next" + trained,
    ]


def test_several_trainings_vote():
    pytest.importorskip("pandas")
    one = _statistics([[1.0, 1.0]], [[0, 2]], [[1, 2]])
    two = _statistics([[1.0, 1.0]], [[1, 1]], [[1, 1]], since=6)
    (row,) = list_label_errors([one, two, one], [0], n=1).itertuples()
    # class 1 is predicted by two networks and next for two; class 2 is predicted by two
    assert row.suggested_label == 1
    assert row.evidence.startswith("2 of 6 networks say 1 from epoch 6 on")
    (row,) = list_label_errors([two, two], [0], n=1).itertuples()
    assert row.evidence.startswith("all 4 networks say 1 from epoch 6 on")


@pytest.mark.parametrize(
    ("how_many", "expected"),
    [({"n": 0}, 0), ({"n": 3}, 3), ({"noise_rate": 0.5}, 2), ({"noise_rate": 0.0}, 0),
     ({"threshold": 0.5}, 2), ({"threshold": 1.0}, 4), ({"noise_rate": 1}, 4)],
)  # fmt: skip
def test_the_length_follows_a_number_a_rate_or_a_threshold(how_many, expected):
    pytest.importorskip("pandas")
    assert len(list_label_errors(STATISTICS, GIVEN, **how_many)) == expected


def test_samples_that_were_never_seen_are_not_listed():
    pytest.importorskip("pandas")
    unseen = _statistics([[np.nan] * 2, [1.0, 2.0]], [[-1, -1], [1, 1]], [[-1, -1], [1, 1]])
    assert list_label_errors(unseen, [0, 0], n=2)["index"].tolist() == [1]
    seen_later = _statistics([[1.0, 1.0]] * 2, [[1, 1]] * 2, [[1, 1]] * 2)
    both = list_label_errors([unseen, seen_later], [0, 0], classes=["a", "b", "c"], n=2)
    assert both["suggested_label"].tolist() == ["b", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 5}, "n must be an int in [0, 4], but got 5"),
        ({"noise_rate": 1.5}, "noise_rate must be a number in [0, 1], but got 1.5"),
        ({}, "exactly one of n, noise_rate and threshold must be given, but got none"),
        (
            {"n": 1, "threshold": 0.5},
            "exactly one of n, noise_rate and threshold must be given, but got n=1, threshold=0.5",
        ),
        ({"labels": [0, 1], "n": 1}, "labels must have shape (N,) = (4,), but got (2,)"),
        (
            {"labels": [0.0] * 4, "n": 1},
            "labels must be class numbers, ints of at least 0, but got 0.0",
        ),
        (
            {"labels": ["a"] * 4, "n": 1},
            "labels must be class numbers, ints of at least 0, but got 'a'",
        ),
        ({"classes": ["a"], "n": 1}, "classes must name all 3 classes of the labels, but got 1"),
        ({"statistics": [], "n": 1}, "statistics must hold those of at least one training"),
        (
            {"statistics": [STATISTICS, _statistics([[1.0, 1]], [[0, 0]], [[1, 1]])], "n": 1},
            "mean_margin must have shape (N, 2) = (4, 2), but got (1, 2)",
        ),
        (
            {"noise": np.eye(2), "n": 1},
            "transition_matrix must have shape (C, C) = (3, 3), but got (2, 2)",
        ),
        (
            {"noise": np.ones((3, 3)), "n": 1},
            "transition_matrix must have non-negative rows that sum to 1, but got rows that sum",
        ),
    ],
)
def test_errors_name_the_argument_and_the_value(change, message):
    arguments = {"statistics": STATISTICS, "labels": GIVEN, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        list_label_errors(arguments.pop("statistics"), arguments.pop("labels"), **arguments)


@pytest.mark.parametrize("noise", ["symmetric", "pair"])
def test_the_quality_finds_wrong_digits(noise):
    data = load_data("digits", noise=noise, noise_rate=0.4, seed=1)
    wrong = (data.noisy_labels != data.clean_labels).numpy()
    (result,) = train_batch(
        coteaching_schedule(30, 0.48, 15, 1.5).keep_rates[None], [0], data=data, device="cpu",
        watch_samples=True,
    )  # fmt: skip
    given = data.noisy_labels.numpy()
    alike = average_precision_score(wrong, -label_quality(result.samples, given))
    assert alike > 0.8  # 0.4 by chance
    quality = label_quality(result.samples, given, noise=transition_matrix(noise, 0.4, 10))
    assert average_precision_score(wrong, -quality) >= alike


def test_find_label_errors_trains_estimates_and_lists():
    pytest.importorskip("pandas")
    data = load_data("digits", noise="symmetric", noise_rate=0.3, seed=1)
    wrong = (data.noisy_labels != data.clean_labels).numpy()
    errors = find_label_errors(data, n_epochs=40, device="cpu")
    estimate = estimate_noise(data, device="cpu")
    assert len(errors) == round(estimate.noise_rate * len(wrong))
    assert 0.8 * wrong.sum() < len(errors) < 1.2 * wrong.sum()
    assert wrong[errors["index"]].mean() > 0.85
    right = errors["suggested_label"] == data.clean_labels.numpy()[errors["index"]]
    assert right.mean() > 0.85
    again = find_label_errors(data, noise=estimate, n_epochs=40, device="cpu")
    assert errors.equals(again)


def test_find_label_errors_takes_a_schedule_a_number_and_several_pairs():
    pytest.importorskip("pandas")
    data = load_data("digits", noise="pair", noise_rate=0.3, seed=1)
    schedule = coteaching_schedule(6, 0.3, 3)
    errors = find_label_errors(data, schedule, noise=0.3, n=50, n_pairs=2, device="cpu", seed=4)
    trained = train_batch(
        [schedule.keep_rates] * 2, [4, 5], data=data, device="cpu", watch_samples=True
    )
    expected = list_label_errors([r.samples for r in trained], data.noisy_labels.numpy(), n=50)
    assert errors.equals(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_pairs": 0}, "n_pairs must be an int of at least 1, but got 0"),
        ({"n": 1, "threshold": 0.1}, "exactly one of n, noise_rate and threshold must be given"),
        ({"n": 10_000}, "n must be an int in [0, 997], but got 10000"),
        ({"noise": -0.1}, "noise must be a number in [0, 1], but got -0.1"),
        ({"seed": -1}, "seed must be an int of at least 0, but got -1"),
    ],
)
def test_find_label_errors_refuses_before_it_trains(arguments, message):
    pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=re.escape(message)):
        find_label_errors(load_data("digits"), **arguments)
