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
from optuna_s2e.schedules import coteaching_schedule, standard_schedule


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


def _estimate(noise_rate, matrix, deviations, probabilities=None):
    if probabilities is None:
        probabilities = np.full((4, len(matrix)), np.nan)
    known = {
        "noise_rate": noise_rate, "transition_matrix": np.array(matrix), "deviations": deviations,
        "probabilities": np.array(probabilities),
    }  # fmt: skip
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
    # the matrix is 0.2 off the even one in six entries; the errors of all nine have twice the
    # variance of the deviations, and with these that is half of the whole
    half = label_quality(seen, GIVEN, noise=(pair + even) / 2)
    np.testing.assert_allclose(quality(np.sqrt(0.5 * 6 * 0.04 / 9 / 2)), half)


def test_noise_rates_of_classes_that_differ_by_chance_are_alike():
    matrix = np.array([[0.7, 0.15, 0.15], [0.25, 0.5, 0.25], [0.2, 0.2, 0.6]])
    found = label_quality(STATISTICS, GIVEN, noise=_estimate(0.4, matrix, np.full((3, 3), 0.1)))
    even = transition_matrix("symmetric", 0.4, 3)
    np.testing.assert_allclose(found, label_quality(STATISTICS, GIVEN, noise=even))


Q = np.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.3, 0.2, 0.5]])
MATRIX = np.array([[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.4, 0.0, 0.6]])


def test_without_a_history_the_quality_is_that_out_of_fold():
    """By Bayes: q_y P[y, y] / sum_i q_i P[i, y]."""
    quality = label_quality([], GIVEN, noise=_estimate(0.4, MATRIX, np.zeros((3, 3)), Q))
    p = 0.98 * MATRIX + 0.02 / 3
    expected = [
        q[y] * p[y, y] / sum(q[i] * p[i, y] for i in range(3))
        for q, y in zip(Q, GIVEN, strict=True)
    ]
    np.testing.assert_allclose(quality, expected)


def test_each_sample_is_judged_by_what_is_known_of_it():
    half_known = np.where([[True], [False], [True], [False]], Q, np.nan)
    estimate = _estimate(0.4, MATRIX, np.zeros((3, 3)), half_known)
    seen = replace(STATISTICS, mean_margin=STATISTICS.mean_margin.copy(), rival=STATISTICS.rival)
    seen.mean_margin[2:] = np.nan
    quality = label_quality(seen, GIVEN, noise=estimate)
    assert quality[1] == label_quality(STATISTICS, GIVEN, noise=MATRIX)[1]
    assert quality[2] == label_quality([], GIVEN, noise=estimate)[2]
    assert quality[3] == 1.0
    pytest.importorskip("pandas")
    assert 3 not in list_label_errors(seen, GIVEN, noise=estimate, n=4)["index"].tolist()


def _two_classes(scale, n=20_000):
    """Return labels, f and h of two witnesses whose errors are independent, and what is right.

    Both are normal around +2 and -2 with variance 4, so their log-odds are 1 times their value.
    """
    rng = np.random.default_rng(0)
    right = rng.random(n) < 0.6
    f, h = np.where(right, 2.0, -2.0) + 2.0 * rng.normal(size=(2, n))
    return right, expit(f + np.log(0.6 / 0.4)), scale * h


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_history_is_scaled_to_half_of_its_log_odds(scale):
    right, f, h = _two_classes(scale)
    labels = np.zeros(len(right), dtype=int)
    seen = _statistics(np.stack([h, h], axis=1), [[0, 0]] * len(h), [[1, 1]] * len(h))
    estimate = _estimate(0.4, np.full((2, 2), 0.5), np.zeros((2, 2)), np.stack([f, 1 - f], axis=1))
    quality = label_quality(seen, labels, noise=estimate)
    np.testing.assert_allclose(quality, expit(np.log(f / (1 - f)) + 0.5 * h / scale), atol=0.02)
    alone = average_precision_score(~right, -f)
    assert average_precision_score(~right, -quality) > alone + 0.02


def test_a_history_that_knows_nothing_changes_little():
    right, f, h = _two_classes(1.0)
    h = np.random.default_rng(1).permutation(h)
    labels = np.zeros(len(right), dtype=int)
    seen = _statistics(np.stack([h, h], axis=1), [[0, 0]] * len(h), [[1, 1]] * len(h))
    estimate = _estimate(0.4, np.full((2, 2), 0.5), np.zeros((2, 2)), np.stack([f, 1 - f], axis=1))
    np.testing.assert_allclose(label_quality(seen, labels, noise=estimate), f, atol=0.02)


def test_the_list_tells_what_networks_say_out_of_fold():
    pytest.importorskip("pandas")
    estimate = _estimate(0.4, np.full((3, 3), 1 / 3), np.zeros((3, 3)), Q)
    errors = list_label_errors([], GIVEN, noise=estimate, classes=["cat", "dog", "owl"], n=2)
    assert errors["index"].tolist() == [2, 0]
    assert errors["suggested_label"].tolist() == ["owl", "dog"]
    out_of_fold = "networks that were not trained on it give the label {} %"
    assert errors["evidence"].tolist() == [out_of_fold.format(n) for n in (10, 20)]
    errors = list_label_errors(STATISTICS, GIVEN, noise=estimate, n=1)
    assert errors["evidence"].tolist() == [
        "both networks say 1 from epoch 7 on; trained on in 25 % of the epochs; "
        + out_of_fold.format(20)
    ]


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
            {"noise": _estimate(0.4, MATRIX, np.zeros((3, 3)), Q[:3]), "n": 1},
            "probabilities must have shape (N, C) = (4, 3), but got (3, 3)",
        ),
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
    errors = find_label_errors(data, n_epochs=20, device="cpu")
    estimate = estimate_noise(data, n_epochs=7, device="cpu")  # three eighths of the training's
    assert len(errors) == round(estimate.noise_rate * len(wrong))
    assert 0.8 * wrong.sum() < len(errors) < 1.2 * wrong.sum()
    assert wrong[errors["index"]].mean() > 0.85
    right = errors["suggested_label"] == data.clean_labels.numpy()[errors["index"]]
    assert right.mean() > 0.85
    again = find_label_errors(data, noise=estimate, n_epochs=20, device="cpu")
    assert errors.equals(again)


def test_find_label_errors_selects_only_where_no_clean_label_tells_the_noise():
    pytest.importorskip("pandas")
    data = load_data("digits", noise="pair", noise_rate=0.45, seed=1)
    given = data.noisy_labels.numpy()
    for clean in (True, False):
        estimate = estimate_noise(data, n_epochs=2, clean_validation=clean, device="cpu")
        found = find_label_errors(data, noise=estimate, n_epochs=6, n=len(given), device="cpu")
        schedule = standard_schedule(6)
        if not clean:
            schedule = coteaching_schedule(6, min(0.95, 1.2 * estimate.noise_rate), 3, 1.5)
        (result,) = train_batch(
            [schedule.keep_rates], [0], data=data, device="cpu", watch_samples=True
        )
        expected = list_label_errors(result.samples, given, noise=estimate, n=len(given))
        assert found.equals(expected)


def test_pair_noise_of_nearly_half_is_found_with_clean_labels():
    pytest.importorskip("pandas")
    data = load_data("digits", noise="pair", noise_rate=0.45, seed=1)
    wrong = (data.noisy_labels != data.clean_labels).numpy()
    options = {"noise": estimate_noise(data, device="cpu"), "n": int(wrong.sum())}
    for n_pairs in (0, 1):
        errors = find_label_errors(data, n_pairs=n_pairs, n_epochs=20, device="cpu", **options)
        assert wrong[errors["index"]].mean() > 0.95  # 0.69 by the history of a pair that selects


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
        ({"n_pairs": -1}, "n_pairs must be an int of at least 0, but got -1"),
        ({"n_pairs": 0, "noise": 0.3}, "n_pairs must be at least 1 if noise is a number"),
        ({"n_epochs": 1}, "n_epochs must be an int of at least 2, but got 1"),
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
