"""Label noise against literal loops, closed forms and binomial bounds."""

import os
import re

import numpy as np
import pytest

from optuna_s2e.label_noise import flip_labels, published_noise, transition_matrix


def test_symmetric_matrix_spreads_the_rate_over_the_other_classes():
    expected = [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4]]
    np.testing.assert_allclose(transition_matrix("symmetric", 0.6, 3), expected, atol=1e-15)


def test_pair_matrix_turns_each_class_into_the_next_and_the_last_into_the_first():
    expected = [[0.55, 0.45, 0], [0, 0.55, 0.45], [0.45, 0, 0.55]]
    np.testing.assert_allclose(transition_matrix("pair", 0.45, 3), expected, atol=1e-15)


def test_no_noise_is_the_identity_whatever_the_rate():
    np.testing.assert_array_equal(transition_matrix("none", 0.5, 4), np.eye(4))


@pytest.mark.parametrize("noise", ["symmetric", "pair"])
@pytest.mark.parametrize("noise_rate", [0.0, 0.2, 0.45, 0.8])
@pytest.mark.parametrize("n_classes", [2, 10, 100])
def test_rows_are_distributions_with_one_minus_the_rate_on_the_diagonal(
    noise, noise_rate, n_classes
):
    matrix = transition_matrix(noise, noise_rate, n_classes)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-13)
    np.testing.assert_array_equal(np.diag(matrix), 1 - noise_rate)


@pytest.mark.parametrize("noise", ["symmetric", "pair"])
def test_flips_have_the_frequencies_of_the_matrix(noise):
    n_classes, n = 5, 40_000
    matrix = transition_matrix(noise, 0.45, n_classes)
    labels = np.repeat(np.arange(n_classes), n)
    noisy = flip_labels(labels, matrix, np.random.default_rng(0))
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (labels, noisy), 1)
    # each cell is binomial(n, p): five standard deviations, 25 cells, 1e-5 chance of a miss
    assert (np.abs(counts - n * matrix) <= 5 * np.sqrt(n * matrix * (1 - matrix))).all()


def test_flips_never_reach_a_class_of_probability_zero():
    matrix = np.full((11, 11), 0.1)
    matrix[:, -1] = 0
    assert matrix[0].cumsum()[-1] < 1  # in binary, ten tenths are not one

    class Highest(np.random.Generator):
        def random(self, *args, **kwargs):
            return np.full(11, np.nextafter(1.0, 0.0))

    noisy = flip_labels(np.arange(11), matrix, Highest(np.random.PCG64(0)))
    np.testing.assert_array_equal(noisy, 9)


def test_flips_follow_the_generator_and_leave_the_labels_alone():
    labels = np.arange(1000) % 10
    matrix = transition_matrix("symmetric", 0.5, 10)
    first, again, other = (
        flip_labels(labels, matrix, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(labels, np.arange(1000) % 10)


def _as_published(labels, noise, noise_rate, n_classes):
    """Draw one multinomial per sample from one RandomState(0), from rows filled cell by cell."""
    stream = np.random.RandomState(0)
    noisy = []
    for label in labels:
        row = np.zeros(n_classes)
        for j in range(n_classes):
            if j == label:
                row[j] = 1.0 - noise_rate
            elif noise == "symmetric":
                row[j] = noise_rate / (n_classes - 1)
            elif j == (label + 1) % n_classes:
                row[j] = noise_rate
        noisy.append(int(np.where(stream.multinomial(1, row, 1)[0] == 1)[0][0]))
    return noisy


@pytest.mark.parametrize(("noise", "noise_rate"), [("symmetric", 0.5), ("pair", 0.45)])
@pytest.mark.parametrize("n_classes", [3, 10, 100])
def test_published_noise_is_one_multinomial_per_sample_of_one_stream(noise, noise_rate, n_classes):
    labels = np.random.default_rng(5).permutation(np.arange(3000) % n_classes)
    expected = _as_published(labels, noise, noise_rate, n_classes)
    np.testing.assert_array_equal(published_noise(labels, noise, noise_rate), expected)


@pytest.mark.parametrize(("noise", "noise_rate"), [("pair", 0.0), ("none", 0.5)])
def test_published_noise_without_noise_changes_nothing(noise, noise_rate):
    labels = np.random.default_rng(0).permutation(np.arange(100) % 3)
    np.testing.assert_array_equal(published_noise(labels, noise, noise_rate), labels)


@pytest.mark.parametrize(("noise", "noise_rate"), [("symmetric", 0.5), ("pair", 0.45)])
def test_published_noise_of_mnist_has_the_published_rate(noise, noise_rate):
    if "S2E_DATA_ROOT" not in os.environ:
        pytest.skip("needs MNIST: S2E_DATA_ROOT is not set")
    path = os.path.join(os.environ["S2E_DATA_ROOT"], "MNIST", "raw", "train-labels-idx1-ubyte")
    labels = np.fromfile(path, dtype=np.uint8)[8:]
    actual = (published_noise(labels, noise, noise_rate) != labels).mean()
    assert f"{actual:.2f}" == f"{noise_rate:.2f}"  # the "Actual noise" line of the public logs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: transition_matrix("asym", 0.1, 3),
            "noise must be one of 'none', 'symmetric', 'pair', but got 'asym'.",
        ),
        (
            lambda: transition_matrix("pair", 1.0, 3),
            "noise_rate must be a number in [0, 1), but got 1.0.",
        ),
        (lambda: transition_matrix("pair", -0.1, 3), "noise_rate must be a number in [0, 1)"),
        (lambda: transition_matrix("pair", float("nan"), 3), "noise_rate must be a number in [0"),
        (
            lambda: transition_matrix("pair", 0.1, 1),
            "n_classes must be an int of at least 2, but got 1.",
        ),
        (lambda: published_noise([0, 1], "pair", 0.1, 2.0), "n_classes must be an int of at"),
        (lambda: flip_labels([0, 2], np.eye(2), None), "labels must be in [0, 2), but got 2."),
        (lambda: flip_labels([0, -1], np.eye(2), None), "labels must be in [0, 2), but got -1."),
        (lambda: flip_labels([0.0, 1.0], np.eye(2), None), "labels must be integers"),
        (lambda: flip_labels([[0, 1]], np.eye(2), None), "labels must have shape (N,)"),
        (lambda: flip_labels([0], np.ones((2, 3)), None), "transition_matrix must have shape"),
        (
            lambda: flip_labels([0], np.ones((2, 2)), None),
            "that sum to 1, but got row 0: [1.0, 1.0].",
        ),
        (lambda: published_noise([0, 2], "pair", 0.1), "but class 1 is empty"),
        (lambda: published_noise([], "pair", 0.1), "but class 0 is empty"),
    ],
)
def test_errors_name_the_argument_and_the_value(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
