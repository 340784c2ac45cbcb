"""Tables as numbers: columns of any kind become float32 features that a network takes well.

A column of numbers becomes its standardised value, its place among the quantiles (a piecewise
linear encoding) and, if values are missing, a flag. Missing values become the median. A column of
categories becomes one feature per frequent category, one for all rare ones, and one for missing
values. All that is learned is numbers and strings, so that it can be saved without pickle, which
scikit-learn's own transformers cannot.

References:
    Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS
    2022: the piecewise linear encoding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from optuna_s2e._checks import is_number
from optuna_s2e._typing import FloatArray

N_BINS = 7  # between quantiles, of each column of numbers
MAX_BINNED = 100  # columns of numbers; a table with more of them is standardised only
HUGE = 1e150  # numbers beyond it count as that: the squares of larger ones are infinite
MAX_STANDARD = 5.0  # standard deviations; values farther away count as that far
MAX_CATEGORIES = 100  # of one column; the rarer ones are one feature
MIN_COUNT = 2  # samples of a category with a feature of its own
TEXT_COUNT, TEXT_SHARE = 100, 0.2  # strings: more different ones, in number and per row, are text

Values = npt.NDArray[Any]


class Column(NamedTuple):
    """A column as the user gave it.

    Attributes:
        name: Its name for messages.
        values: Its values, (N,).
        is_category: Whether the user declared its values to be categories.
    """

    name: str
    values: Values
    is_category: bool


@dataclass(frozen=True)
class NumberColumn:
    """How a column of numbers is encoded.

    Attributes:
        median: What missing values become.
        mean: Mean, to be subtracted.
        scale: Standard deviation, to be divided by.
        knots: Quantiles between which the values are placed, increasing; none if there are fewer
            than three.
        flags_missing: Whether a feature says that the value is missing.
    """

    median: float
    mean: float
    scale: float
    knots: tuple[float, ...]
    flags_missing: bool

    @classmethod
    def learn(cls, column: Column, *, binned: bool) -> NumberColumn:
        """Learn the encoding from the training values."""
        values = _numbers(column)
        missing = np.isnan(values)
        if missing.all():
            return cls(0.0, 0.0, 1.0, (), False)
        median = float(np.median(values[~missing]))
        filled = np.where(missing, median, values)
        mean, scale = float(filled.mean()), float(filled.std())
        knots: list[float] = []
        if binned:
            levels = np.linspace(0.0, 1.0, N_BINS + 1)
            knots = np.unique(np.quantile(values[~missing], levels, method="nearest")).tolist()
        if len(knots) < 3:  # one piece says no more than the standardised value
            knots = []
        return cls(median, mean, scale or 1.0, tuple(knots), bool(missing.any()))

    def encode(self, column: Column) -> list[Values]:
        """Return the features of a column, (N,) each."""
        values = _numbers(column)
        missing = np.isnan(values)
        values = np.where(missing, self.median, values)
        with np.errstate(over="ignore"):  # far beyond the training values
            standard = (values - self.mean) / self.scale
        features = [np.clip(standard, -MAX_STANDARD, MAX_STANDARD)]
        for low, high in zip(self.knots, self.knots[1:], strict=False):
            features.append((np.clip(values, low, high) - low) / (high - low))
        return [*features, missing] if self.flags_missing else features


@dataclass(frozen=True)
class CategoryColumn:
    """How a column of categories is encoded.

    Attributes:
        categories: The categories that have a feature of their own.
        flags_rare: Whether a feature stands for all others, also for those that are new.
        flags_missing: Whether a feature says that the value is missing.
    """

    categories: tuple[str, ...]
    flags_rare: bool
    flags_missing: bool

    @classmethod
    def learn(cls, column: Column) -> CategoryColumn:
        """Learn the encoding from the training values."""
        texts = _texts(column)
        counts = Counter(text for text in texts if text is not None)
        if not column.is_category:
            _refuse_text(column.name, counts, len(texts))
        frequent = [text for text, n in counts.most_common(MAX_CATEGORIES) if n >= MIN_COUNT]
        return cls(tuple(sorted(frequent)), len(frequent) < len(counts), None in texts)

    def encode(self, column: Column) -> list[Values]:
        """Return the features of a column, (N,) each."""
        number = {text: i for i, text in enumerate(self.categories)}
        texts = _texts(column)
        rare, missing = len(number), len(number) + 1
        found = np.array([missing if t is None else number.get(t, rare) for t in texts])
        shown = [*range(rare), *[rare] * self.flags_rare, *[missing] * self.flags_missing]
        return [found == i for i in shown]


@dataclass(frozen=True)
class TableEncoder:
    """Turns tables into float32 features, as it was learned from the training table."""

    columns: tuple[NumberColumn | CategoryColumn, ...]

    @classmethod
    def learn(cls, table: Sequence[Column]) -> TableEncoder:
        """Learn the encoding of each column.

        Raises:
            ValueError: If a column holds text, dates, infinity or anything else that is neither a
                number nor a category.
        """
        numeric = [_is_numeric(column) for column in table]
        binned = sum(numeric) <= MAX_BINNED
        return cls(
            tuple(
                NumberColumn.learn(column, binned=binned) if is_number
                else CategoryColumn.learn(column)
                for column, is_number in zip(table, numeric, strict=True)
            )
        )  # fmt: skip

    def encode(self, table: Sequence[Column]) -> npt.NDArray[np.float32]:
        """Return the features of a table, (N, n_features).

        Raises:
            ValueError: If a column of numbers holds something else.
        """
        pairs = zip(self.columns, table, strict=True)
        features = [feature for own, column in pairs for feature in own.encode(column)]
        if not features:  # only columns of one rare or missing category
            features = [np.zeros(len(table[0].values))]
        return np.column_stack(features).astype(np.float32)

    def to_state(self) -> list[dict[str, Any]]:
        """Return what was learned in JSON's types."""
        return [asdict(column) for column in self.columns]

    @classmethod
    def from_state(cls, state: Sequence[Mapping[str, Any]]) -> TableEncoder:
        """Make the encoder again of what `to_state` returned."""
        columns: list[NumberColumn | CategoryColumn] = []
        for own in state:
            if "categories" in own:
                columns.append(CategoryColumn(**{**own, "categories": tuple(own["categories"])}))
            else:
                columns.append(NumberColumn(**{**own, "knots": tuple(own["knots"])}))
        return cls(tuple(columns))


def read_table(x: Any) -> list[Column]:
    """Return the columns of a data frame (pandas, polars) or of an array (N, d)."""
    if not hasattr(x, "columns"):
        return [Column(f"X[:, {j}]", x[:, j], False) for j in range(x.shape[1])]
    categorical = ("category", "categorical", "enum")
    return [
        Column(
            repr(str(name)),
            np.asarray(x[name]),
            str(x[name].dtype).lower().startswith(categorical),
        )
        for name in x.columns
    ]


def check_names(what: str, names: Sequence[object]) -> None:
    """Refuse a data frame two of whose columns have one name.

    Raises:
        ValueError: If there are any.
    """
    name, n = Counter(names).most_common(1)[0]
    if n > 1:
        raise ValueError(
            f"{what} must have another name for each column, but {n} are called {name!r}. Rename "
            "them, or drop all but one."
        )


def _is_numeric(column: Column) -> bool:
    if column.is_category or column.values.dtype.kind in "US":
        return False
    if column.values.dtype.kind == "O":
        return all(is_missing(value) or isinstance(value, Real) for value in column.values)
    if column.values.dtype.kind in "mM":
        raise ValueError(
            f"Column {column.name} must hold numbers or categories, but holds dates or times. "
            "Turn them into numbers first, such as the year, the month and the day of the week."
        )
    return True


def _numbers(column: Column) -> FloatArray:
    """Return the values of a column of numbers, NaN where they are missing."""
    values = column.values
    if values.dtype.kind == "O":
        values = np.array([np.nan if is_missing(value) else value for value in values])
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Column {column.name} must hold numbers, as it did in fit, but got other values "
            f"({error}). Convert them, or mark them as missing (NaN)."
        ) from error
    if np.isinf(numbers).any():
        raise ValueError(
            f"Column {column.name} must be finite, but contains infinity. Replace it by NaN "
            "(missing) or by a large number."
        )
    return np.clip(numbers, -HUGE, HUGE)


def _texts(column: Column) -> list[str | None]:
    """Return the values of a column of categories as strings, None where they are missing."""
    values = column.values.tolist()
    objects = {id(value): value for value in values}  # a category is one object in many rows
    texts = {key: _text(column.name, value) for key, value in objects.items()}
    return [texts[id(value)] for value in values]


def _text(name: str, value: object) -> str | None:
    if isinstance(value, str):
        return value
    if is_missing(value):
        return None
    if isinstance(value, Real):
        number = float(value)
        return str(int(number)) if number.is_integer() else str(number)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    raise ValueError(
        f"Column {name} must hold numbers or strings, but holds {value!r}. Turn such values into "
        "numbers or categories first."
    )


def is_missing(value: object) -> bool:
    """Whether a value stands for a missing one: None, NaN, pandas' NA and NaT."""
    if isinstance(value, float | np.floating):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")  # pandas' own


def _refuse_text(name: str, counts: Mapping[str, int], n_rows: int) -> None:
    if len(counts) > max(TEXT_COUNT, TEXT_SHARE * n_rows):
        words = [text for text in counts if not is_number(text)]
        if not words:
            raise ValueError(
                f"Column {name} must hold numbers or categories, but holds numbers as strings, "
                f"such as {next(iter(counts))!r}. Turn them into numbers with astype(float), or "
                'declare it with astype("category") if it is one.'
            )
        if 2 * len(words) < len(counts):
            raise ValueError(
                f"Column {name} must hold numbers or categories, but holds numbers and words such "
                f"as {words[0]!r}, {sum(counts[word] for word in words)} of {n_rows} values. "
                "Correct them, or mark them as missing (NaN)."
            )
        raise ValueError(
            f"Column {name} must hold categories, but holds {len(counts)} different strings in "
            f"{n_rows} rows, which is text or a name. Drop it, turn it into numbers (for example "
            'with TfidfVectorizer), or declare it with astype("category") if it is one.'
        )
