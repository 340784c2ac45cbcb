"""Labels: which are taken as classes, in which order, and one clear error for all others."""

import re
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
import torch

from optuna_s2e.coteaching import NoisyData
from optuna_s2e.coteaching.data._labels import encode_labels, show_classes

NUMBERS = np.array([2, 0, 1, 0, 2])
NAMES = np.array(["cat", "dog", "emu"])[NUMBERS]
CLASSES = ("cat", "dog", "emu")
NAN = float("nan")


class Column:
    """What a column of a data frame has in common with all of its kind: it becomes an array."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=object)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (NUMBERS, (0, 1, 2)),
        (NUMBERS.tolist(), (0, 1, 2)),
        (NUMBERS[:, None], (0, 1, 2)),
        (NUMBERS.astype(">i2"), (0, 1, 2)),
        (NUMBERS.astype(object), (0, 1, 2)),
        (NUMBERS.astype(float), (0, 1, 2)),
        (torch.tensor(NUMBERS, dtype=torch.uint8), (0, 1, 2)),
        (torch.tensor(NUMBERS, dtype=torch.bfloat16), (0, 1, 2)),
        (list(torch.tensor(NUMBERS)), (0, 1, 2)),
        (NUMBERS + 1, (1, 2, 3)),
        (NUMBERS * 10, (0, 10, 20)),
        (NUMBERS.astype(np.uint64) + 2**63, (2**63, 2**63 + 1, 2**63 + 2)),
        (NAMES, CLASSES),
        (NAMES.tolist(), CLASSES),
        (list(NAMES), CLASSES),
        (NAMES.astype(object), CLASSES),
        (NAMES.astype("S"), (b"cat", b"dog", b"emu")),
        (Column(NAMES), CLASSES),
        (Column([[name] for name in NAMES]), CLASSES),
        (np.ma.array(NAMES), CLASSES),
    ],
)
def test_classes_are_the_different_labels_in_order(labels, classes):
    encoded, found = encode_labels({"y": labels})
    np.testing.assert_array_equal(encoded["y"], NUMBERS)
    assert encoded["y"].dtype == np.int64
    assert found == classes
    assert [type(label) for label in found] == [type(label) for label in classes]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([True, False, True], (0, 1)),
        (np.array([True, False, True]), (0, 1)),
        (Column([np.bool_(True), np.bool_(False), np.bool_(True)]), (0, 1)),
        ([1, -1, 1], (-1, 1)),
        ([1.0, -1.0, 1.0], (-1, 1)),
    ],
)
def test_two_classes_may_be_truth_values_or_signs(labels, classes):
    encoded, found = encode_labels({"y": labels})
    assert encoded["y"].tolist() == [1, 0, 1]
    assert found == classes


def test_equal_numbers_of_several_types_are_one_class():
    encoded, found = encode_labels({"y": [True, False, 2], "y_val": [0.0, 1.0], "y_test": [2]})
    assert found == (0, 1, 2)
    assert [y.tolist() for y in encoded.values()] == [[1, 0, 2], [0, 1], [2]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, NAN, 1, NAN], "but 2 of 4 are missing, the first is y[1] = nan. Drop those samples."),
        (["a", NAN, "b"], "but 1 of 3 are missing, the first is y[1] = nan."),
        (Column(["a", "b", None]), "but 1 of 3 are missing, the first is y[2] = None."),
        (np.array(["a", "", "b"]), "y[1] = ''. Drop those samples, or rename the class if it is"),
        (np.array(["nan", "a", "b"]), "y[0] = 'nan'. Drop those samples, or rename the class"),
        (np.array(["a", "b", None]).astype("S"), "y[2] = b'None'. Drop those samples, or rename"),
        (np.ma.masked_equal([0, 1, 1], 1), "but 2 of 3 are missing, the first is y[1] = nan."),
        ([0, 0.5], "must hold class labels (whole numbers, strings or bytes), but y[1] is 0.5."),
        ([0, float("inf")], "but y[1] is inf."),
        ([0, 1j], "but y[1] is 1j."),
        ([date(2020, 1, 1), date(2021, 1, 1)], "but y[0] is datetime.date(2020, 1, 1)."),
        ([Decimal(1), Decimal(0)], "but y[0] is Decimal('1')."),
        ([[0], [1, 2]], "but y[0] is [0]."),
        ([0, "a"], "Labels must be of one type, but got"),
        (np.eye(3), "must have shape (N,), N > 0, but got (3, 3). Take y.argmax(axis=1) of one-"),
        ([], "y must have shape (N,), N > 0, but got (0,)."),
        ("cat", "y must have shape (N,), N > 0, but got ()."),
        (None, "y must have shape (N,), N > 0, but got ()."),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "y must have shape (N,), but got"),
        ([-1, 0, 1], "y must hold labels of at least 0, but got -1. Drop samples without a label"),
        ([-100, 1], "y must hold labels of at least 0, but got -100."),
        (["a", "a"], "y must hold at least 2 classes, but holds 'a' alone."),
    ],
)
def test_labels_of_no_clear_meaning_are_named(labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_labels({"y": labels})


def test_labels_of_two_types_are_named_with_their_places():
    message = "Labels must be of one type, but got 'a' in y and b'a' in y_val."
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_labels({"y": ["a"], "y_val": [b"a"]})


def test_a_class_that_training_never_sees_is_refused_unless_the_classes_are_counted():
    labels = {"y": ["a", "b"], "y_val": ["a", "B"]}
    message = "y must hold every class, but ['B'] are empty there and occur in y_val."
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_labels(labels)
    encoded, classes = encode_labels(labels, 3)
    assert classes == ("B", "a", "b")
    assert encoded["y"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("labels", "n_classes", "classes"),
    [([0, 1], 4, (0, 1, 2, 3)), ([1, 2], 3, (0, 1, 2)), ([1, 2, 3], 3, (1, 2, 3))],
)
def test_counted_classes_are_their_numbers_where_the_labels_fit(labels, n_classes, classes):
    encoded, found = encode_labels({"y": labels}, n_classes)
    assert found == classes
    assert [found[number] for number in encoded["y"]] == labels


@pytest.mark.parametrize(
    ("labels", "n_classes", "message"),
    [
        ([0, 1, 2], 2, "y must be in [0, n_classes) = [0, 2), but got 2. Leave n_classes out to"),
        (["a", "b"], 3, "y must be in [0, n_classes) = [0, 3), but got 'a'."),
        ([0, 1], 1, "n_classes must be an int of at least 2, but got 1"),
    ],
)
def test_a_count_of_classes_that_does_not_fit_is_refused(labels, n_classes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_labels({"y": labels}, n_classes)


def test_many_classes_are_shown_by_their_first():
    assert show_classes(("a", "b")) == "['a', 'b']"
    assert show_classes(range(7)) == "[0, 1, 2, 3, 4, ... (7)]"


def test_data_keep_the_classes_and_turn_numbers_back_into_labels():
    x = np.eye(5, dtype=np.float32)
    data = NoisyData.from_arrays(x, NAMES, x, NAMES, clean_labels=NAMES[::-1])
    assert (data.classes, data.n_classes) == (CLASSES, 3)
    np.testing.assert_array_equal(data.noisy_labels, NUMBERS)
    np.testing.assert_array_equal(data.clean_labels, NUMBERS[::-1])
    np.testing.assert_array_equal(data.decode(data.noisy_labels), NAMES)
    np.testing.assert_array_equal(data.to("cpu").decode([[0], [2]]), [["cat"], ["emu"]])
    for wrong in ([0, -1], [3], [0.5], ["cat"]):
        with pytest.raises(ValueError, match=re.escape("numbers must be ints in [0, 3), but got")):
            data.decode(wrong)


def test_columns_of_pandas_are_labels():
    pandas = pytest.importorskip("pandas")
    for column in (
        pandas.Series(NAMES),
        pandas.Series(NAMES, dtype="string"),
        pandas.Series(NAMES, dtype="category", index=range(9, 4, -1)),
        pandas.Categorical(NAMES, categories=["fox", "emu", "dog", "cat"]),
        pandas.DataFrame({"label": NAMES}),
    ):
        encoded, classes = encode_labels({"y": column})
        assert (encoded["y"].tolist(), classes) == (NUMBERS.tolist(), CLASSES)
    assert encode_labels({"y": pandas.Series(NUMBERS, dtype="Int64")})[1] == (0, 1, 2)
    for missing in (
        pandas.Series(["a", pandas.NA], dtype="string"),
        pandas.Series([1, None], dtype="Int64"),
        pandas.Series([True, None], dtype="boolean"),
        pandas.Series([pandas.NaT, pandas.NaT]),
        pandas.Series(["a", None], dtype="category"),
    ):
        with pytest.raises(ValueError, match="y must hold a label of every sample"):
            encode_labels({"y": missing})


@pytest.mark.parametrize("n", [2, 10])
def test_a_label_255_beside_few_others_is_named(n):
    labels = np.append(np.arange(n).repeat(3), 255).astype(np.uint8)
    with pytest.warns(UserWarning, match="The label 255 is taken as a class"):
        encoded, classes = encode_labels({"y": labels})
    assert classes == (*range(n), 255)
    assert encoded["y"][-1] == n


def test_a_label_255_that_is_a_class_is_fine(recwarn):
    encode_labels({"y": np.arange(256)})
    encode_labels({"y": [0, 1, 2]}, 256)
    encode_labels({"y": [0, 255]}, 256)
    encode_labels({"y": [0, 255]})  # black and white
    assert not recwarn.list


@pytest.mark.parametrize(
    ("labels", "same"),
    [
        (["cat", "dog", "cat "], "['cat', 'cat ']"),
        (["Cat", "dog", "cat"], "['Cat', 'cat']"),
        (["big cat", "dog", "big  cat"], "['big  cat', 'big cat']"),
        ([b"cat", b"dog", b"CAT"], "[b'CAT', b'cat']"),
    ],
)
def test_classes_that_look_alike_are_named_and_kept(labels, same):
    with pytest.warns(UserWarning, match=re.escape(f"The labels {same} differ in blanks")):
        _, classes = encode_labels({"y": labels})
    assert len(classes) == 3


def test_letters_and_their_capitals_are_classes_on_purpose(recwarn):
    _, classes = encode_labels({"y": ["a", "A", "b", "B"]})
    assert classes == ("A", "B", "a", "b")
    assert not recwarn.list
    with pytest.warns(UserWarning, match=re.escape("The labels ['a', 'a '] differ in blanks")):
        encode_labels({"y": ["a", "A", "a "]})
