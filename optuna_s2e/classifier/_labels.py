"""Labels of any type as class numbers, and whether they belong to the rows beside them."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from optuna_s2e._typing import IntArray
from optuna_s2e.classifier._table import is_missing


def read_classes(y: Any) -> tuple[npt.NDArray[Any], IntArray]:
    """Return the classes, (C,), and the class number of each label, (N,).

    Raises:
        ValueError: If labels are missing or no classes, or there is only one class.
    """
    labels = column_or_1d(y, warn=True)
    if labels.dtype == object and all(isinstance(label, Integral) for label in labels):
        labels = np.array(labels.tolist())
    missing = [i for i, label in enumerate(labels.tolist()) if is_missing(label)]
    if missing:
        raise ValueError(
            f"y must hold a label of every sample, but {len(missing)} of {len(labels)} are "
            f"missing (NaN or None), the first is y[{missing[0]}]. Drop those samples."
        )
    assert_all_finite(labels, input_name="y")
    try:
        if len({isinstance(label, str) for label in labels.tolist()}) > 1:
            raise TypeError("strings and other types")
        if labels.dtype.kind in "OmM" and not isinstance(labels[0], str | Real):
            raise ValueError(
                "y must hold class labels (whole numbers, booleans or strings), but y[0] is "
                f"{labels[0]!r}. Take y.astype(str)."
            )
        check_classification_targets(labels)
        classes, numbers = np.unique(labels, return_inverse=True)
    except TypeError as error:  # such labels cannot be sorted
        raise ValueError(
            "y must hold labels of one type, but holds several. Take y.astype(str)."
        ) from error
    if len(classes) < 2:
        raise ValueError(
            f"y must hold at least 2 classes, but holds one class alone: {classes.tolist()[0]!r}."
        )
    return classes, numbers.astype(np.int64)


def warn_of_other_order(X: Any, y: Any) -> None:
    """Warn if X and y are of pandas, and their rows are the same but in another order."""
    if not all(hasattr(getattr(values, "index", None), "equals") for values in (X, y)):
        return
    rows, labels = X.index, y.index
    if rows.equals(labels):
        return
    if rows.is_unique and len(rows) == len(labels) == len(rows.intersection(labels)):
        first, of_first = rows[:1].tolist()[0], labels[:1].tolist()[0]
        warnings.warn(
            "X and y have the same index, but in another order. Labels go by position: row 0 of X "
            f"({first!r}) gets the label of row 0 of y ({of_first!r}). If that is wrong, pass "
            "y.loc[X.index].",
            stacklevel=3,
        )
