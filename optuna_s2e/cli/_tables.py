"""Tables as users have them: text with any separator and encoding, parquet and feather.

A file is only read. Columns of numbers stay numbers, everything else becomes categories, and the
labels stay the text that the file holds.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna_s2e._checks import is_number
from optuna_s2e._pandas import import_pandas

if TYPE_CHECKING:
    import pandas as pd

BINARY = (".parquet", ".pq", ".feather")  # that pandas reads with pyarrow
NEEDING = "Tables need"
MAX_NAMES = 20  # of columns that a message lists

_SAMPLE = 2**16  # characters that the separator is found by
_SEPARATORS = "\t;|,"
_NOT_TEXT = {
    b"PK\x03\x04": "an Excel file or another archive. Save the table as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel file. Save the table as CSV",
    b"%PDF": "a PDF. Save the table as CSV",
    b"SQLite": "a database. Save the table as CSV",
    b"\x89PNG": "an image. Name a folder that holds a folder of images per class",
    b"\xff\xd8\xff": "an image. Name a folder that holds a folder of images per class",
    b"\x28\xb5\x2f\xfd": "compressed by zstd. Unpack it first",
    b"<!": "HTML or XML. Save the table as CSV",
    b"<html": "HTML. Save the table as CSV",
    b"<?xml": "XML. Save the table as CSV",
}
_JSON = re.compile(rb'\{\s*"|\[\s*\{')
_UNPACK = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress}
_MISSING = (
    "", "?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "-", "."
)  # fmt: skip
_DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ].*)?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+|[-+]?\d+")


class TableFile:
    """A file that holds a table; it is read once.

    Attributes:
        path: The file.
        columns: Names of its columns, as pandas makes them unique.
        remarks: What a user should know of how it was read.
    """

    def __init__(self, path: Path, content: bytes, *, header: bool = True) -> None:
        """Find out how the file is to be read, and the names of its columns.

        Args:
            path: The file, for messages and its ending.
            content: What it holds.
            header: Whether the first line holds names. If not, columns are called 1, 2, ...

        Raises:
            ValueError: If it holds no table.
        """
        self.path, self.columns, self.remarks = path, list[str](), list[str]()
        self._header, self._content = header, content
        if path.suffix.lower() in BINARY:
            self._frame = self._read_binary()
            self.columns = [str(name) for name in self._frame.columns]
            return
        self._frame = None
        self._text = self._decode(content)
        told = re.match(r"sep=(.)\r?\n", self._text)  # Excel's hint
        if told:
            self._text = self._text[told.end() :]
        self._separator = told[1] if told else _find_separator(self._text)
        if not header:
            self.columns = [str(number + 1) for number in range(self._parse(nrows=1).shape[1])]
            return
        names = [str(name) for name in self._parse(nrows=0).columns]
        bare = [name.strip() for name in names]
        self.columns = bare if len({*bare}) == len(bare) else names
        if 2 * sum(map(is_number, self.columns)) >= len(self.columns):
            self.remarks.append(
                f"The first line of {path.name} was taken for the names of the columns "
                f"({', '.join(self.columns[:4])}, ...). If it is data, say --no-header."
            )

    def read(self, *, label: str | None, as_text: Collection[str] = ()) -> pd.DataFrame:
        """Return the table.

        Args:
            label: The column whose text is taken as it is, whatever it means; None for none.
            as_text: Columns that hold categories, even if they look like numbers here.

        Raises:
            ValueError: If lines have different lengths, or there are none.
        """
        if self._frame is not None:
            frame = self._frame.copy()
            frame.columns = self.columns
        else:
            texts = {name: str for name in (label, *as_text) if name in self.columns}
            missing = {name: _MISSING for name in self.columns if name != label}
            options = {"dtype": texts, "na_values": missing, "keep_default_na": False}
            frame = self._without_row_names(self._parse(**options), options)
            if self._separator != ",":
                frame = _with_decimal_commas(frame, texts)
        if len(frame) == 0:
            raise ValueError(f"{str(self.path)!r} holds no rows.")
        return frame.reset_index(drop=True)

    def find_column(self, option: str, name: str) -> str:
        """Return the column of a name, or else of a number from 1 (-1 is the last one).

        Raises:
            ValueError: If there is no such column. The message names those that there are.
        """
        if name in self.columns:
            return name
        n = len(self.columns)
        if re.fullmatch(r"-?\d+", name) and int(name) != 0 and -n <= int(name) <= n:
            return self.columns[int(name) - (int(name) > 0)]
        close = get_close_matches(name, self.columns, n=3)
        listed = [*close, *(c for c in self.columns if c not in close)]
        more = f" and {n - MAX_NAMES} more" if n > MAX_NAMES else ""
        raise ValueError(
            f"{option} must be a column of {self.path.name}, but got {name!r}. Its columns are "
            f"{', '.join(map(repr, listed[:MAX_NAMES]))}{more}."
        )

    def _decode(self, content: bytes) -> str:
        for start, unpack in _UNPACK.items():
            if content.startswith(start):
                with self._as_value_error():
                    content = unpack(content)
        found = [what for start, what in _NOT_TEXT.items() if content.startswith(start)]
        if _JSON.match(content):
            found.append("JSON. Save the table as CSV")
        if found:
            raise ValueError(f"{str(self.path)!r} must be a table as text, but is {found[0]}.")
        if not content.strip():
            raise ValueError(f"{str(self.path)!r} is empty.")
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            with self._as_value_error():
                return content.decode("utf-16")
        if b"\0" in content:
            raise ValueError(
                f"{str(self.path)!r} must be a table as text, but is none. Save the table as CSV."
            )
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.remarks.append(f"{self.path.name} is not in UTF-8 and was read as Latin-1.")
            return content.decode("cp1252", errors="replace")

    def _parse(self, **options: Any) -> pd.DataFrame:
        pandas = import_pandas(NEEDING)
        given: dict[str, Any] = {
            "sep": self._separator,
            "header": 0 if self._header else None,
            "skipinitialspace": True,
            "low_memory": False,  # else a column may be numbers here and text there
        }
        if self.columns:
            given["names"] = self.columns
        with self._as_value_error():
            return pandas.read_csv(io.StringIO(self._text), **given, **options)

    def _without_row_names(self, frame: pd.DataFrame, options: dict[str, Any]) -> pd.DataFrame:
        """Leave out names or numbers of rows, and empty columns, if their column has no name."""
        if frame.index.nlevels > 1:
            n = len(self.columns)
            raise ValueError(
                f"{str(self.path)!r} cannot be read as a table: its first line names {n} columns, "
                f"and the others hold {n + frame.index.nlevels}."
            )
        if not frame.index.equals(import_pandas(NEEDING).RangeIndex(len(frame))):
            if (frame.iloc[:, -1].isin(_MISSING) | frame.iloc[:, -1].isna()).all():
                with warnings.catch_warnings(action="ignore"):  # lines end with a separator
                    return self._parse(index_col=False, **options)
            self.remarks.append("The first column has no name and is left out: it names the rows.")
            frame = frame.reset_index(drop=True)
        for name in [c for c in frame.columns if re.fullmatch(r"Unnamed: \d+", c)]:
            if frame[name].isna().all() or numbers_the_rows(frame[name]):
                frame = frame.drop(columns=name)
        return frame

    def _read_binary(self) -> pd.DataFrame:
        pandas = import_pandas(NEEDING)
        read = pandas.read_feather if self.path.suffix == ".feather" else pandas.read_parquet
        try:
            with self._as_value_error():
                return read(io.BytesIO(self._content))
        except ImportError as error:
            raise ImportError(
                f"{str(self.path)!r} needs pyarrow, which cannot be imported. Install it with: "
                "pip install pyarrow, or save the table as CSV."
            ) from error

    @contextmanager
    def _as_value_error(self) -> Iterator[None]:
        """Turn the many errors of damaged files into one line that names the file."""
        try:
            yield
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # pandas, pyarrow and gzip have many kinds
            why = " ".join(str(error).replace("Error tokenizing data. C error: ", "").split())
            raise ValueError(f"{str(self.path)!r} cannot be read as a table: {why}.") from error


def refuse_dates(frame: pd.DataFrame) -> None:
    """Refuse columns of dates.

    Raises:
        ValueError: If there is one. The message names it and the remedy.
    """
    for name in frame.columns:
        values = frame[name].dropna()
        is_date = values.dtype.kind in "mM"
        if not is_date and len(values) and isinstance(values.iloc[0], str):
            is_date = all(isinstance(v, str) and _DATE.fullmatch(v) for v in values)
        if is_date:
            raise ValueError(
                f"Column {name!r} must hold numbers or categories, but holds dates such as "
                f"{str(values.iloc[0])!r}. Leave it out with --drop {name!r}, or turn it into "
                "numbers such as the year and the month."
            )


def describe_words(name: str, values: pd.Series) -> str | None:
    """Return a remark on a column of categories that was probably meant as one of numbers.

    Args:
        name: Its name.
        values: Its values.
    """
    texts = [value for value in values.tolist() if isinstance(value, str)]
    words = [text for text in texts if not is_number(text)]
    written = sum(is_number(re.sub(r"[,%$€£\s]", "", text)) for text in words)
    if not words or 2 * (len(words) - written) > len(texts):
        return None
    return (
        f"Column {name!r} is taken for categories, since {len(words)} of its {len(values)} cells "
        f"are no numbers, such as {words[0]!r}. Is it a column of numbers? Then correct or empty "
        "them."
    )


def numbers_the_rows(values: pd.Series) -> bool:
    """Return whether a column counts the rows, from any number on."""
    if values.dtype.kind not in "iu" or len(values) < 3:
        return False
    return bool((values.diff().iloc[1:] == 1).all())


def _find_separator(text: str) -> str:
    r"""Return the separator that most of the first lines agree on, a comma if there is none."""
    lines = text[:_SAMPLE].splitlines()
    if len(text) > _SAMPLE:
        lines = lines[:-1]  # it is cut
    lines = [line for line in lines if line.strip()][:50]
    best: tuple[int, int] = (0, 0)
    found = None
    for separator in [*_SEPARATORS, r"\s+"]:
        if separator == r"\s+":
            if found is not None:
                break
            widths = [len(line.split()) for line in lines]
        else:
            try:
                widths = [len(row) for row in csv.reader(lines, delimiter=separator)]
            except csv.Error:
                continue
        width, count = Counter(widths).most_common(1)[0] if widths else (0, 0)
        if width > 1 and (count, width) > best:
            best, found = (count, width), separator
    return found or ","


def _with_decimal_commas(frame: pd.DataFrame, kept: Collection[str | None]) -> pd.DataFrame:
    """Turn columns of numbers such as 1,5 into numbers."""
    for name in [c for c in frame.columns if c not in kept and frame[c].dtype.kind not in "biufc"]:
        texts = frame[name].dropna()
        if len(texts) and all(_DECIMAL_COMMA.fullmatch(str(text).strip()) for text in texts):
            as_points = frame[name].astype("str").str.replace(",", ".")
            frame[name] = import_pandas(NEEDING).to_numeric(as_points.where(frame[name].notna()))
    return frame
