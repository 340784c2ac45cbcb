"""Labels as class numbers: what is taken, what is refused with which remedy, whose they are."""

import warnings
from datetime import date
from decimal import Decimal

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pd = pytest.importorskip("pandas")

from optuna_s2e import NoisyLabelClassifier  # noqa: E402
from optuna_s2e.classifier._labels import read_classes, warn_of_other_order  # noqa: E402


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["no", "yes"], "U"), ([-1, 0], "i"), ([np.int64(3), 7], "i"), ([False, True], "b"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [None, object])
def test_labels_become_numbers_of_sorted_classes(labels, kind, dtype):
    classes, numbers = read_classes(np.array(labels * 2 + labels[1:], dtype=dtype))
    assert classes.tolist() == labels
    assert classes.dtype.kind == (kind if kind != "U" or dtype is None else "O")
    assert numbers.tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", "b", None, "a"], r"1 of 4 are missing \(NaN or None\), the first is y\[2\]"),
        ([0.5, 1.5], "continuous"),
        (["a", 1], "one type"),
        ([1, "a"], "one type"),  # the first is no string
        (["a", "a"], "at least 2 classes, but holds one class alone: 'a'"),
    ],
)
def test_labels_that_are_no_classes_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        read_classes(np.array(y, dtype=object))


@pytest.mark.parametrize("label", [date(2026, 1, 1), np.datetime64("2026-01-01"), Decimal(1)])
def test_labels_of_other_types_are_refused_with_the_remedy(label):
    with pytest.raises(ValueError, match=r"y\[0\] is .*Take y.astype\(str\)"):
        read_classes(np.array([label] * 20))


def test_labels_of_the_same_rows_in_another_order_warn():
    frame, labels = pd.DataFrame(np.eye(40)), pd.Series(["yes", "no"] * 20)
    quick = NoisyLabelClassifier(search=False, n_epochs=2, noise_rate=0.2, device="cpu")
    with pytest.warns(UserWarning, match=r"row 0 of X \(0\) gets the label of row 0 of y \(39\)"):
        quick.fit(frame, labels[::-1])
    turned = frame.loc[[7, *range(7), *range(8, 40)]]  # its index is no range
    with pytest.warns(UserWarning, match=r"row 0 of X \(7\) gets the label of row 0 of y \(0\)"):
        warn_of_other_order(turned, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_order(frame[::-1], labels[::-1])
        warn_of_other_order(frame.set_index(frame.index + 100), labels)  # by position
        warn_of_other_order(frame, labels[:20])
        warn_of_other_order(frame.to_numpy(), labels[::-1])
