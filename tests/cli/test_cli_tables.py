"""Tables as users have them: separators, encodings, headers, and files that are none."""

import bz2
import gzip
import io
import lzma
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from optuna_s2e.cli._tables import TableFile, describe_words, numbers_the_rows, refuse_dates

CONTENT = "size,colour,kind\n1.5,red,cat\n,blue,NA\n2,,dog\n"


def read(content: str | bytes, label: str = "kind", **options: bool) -> pd.DataFrame:
    content = content if isinstance(content, bytes) else content.encode()
    file = TableFile(Path("a.csv"), content, **options)
    return file.read(label=file.find_column("--label", label))


@pytest.mark.parametrize(
    "content",
    [
        CONTENT.encode(),
        b"\xef\xbb\xbf" + CONTENT.encode(),
        CONTENT.replace("\n", "\r\n").encode(),
        CONTENT.replace(",", ";").encode(),
        CONTENT.replace(",", ";").replace("1.5", "1,5").encode(),
        CONTENT.replace(",", "\t").encode(),
        CONTENT.replace(",", "|").encode(),
        CONTENT.replace(",", ", ").encode(),
        CONTENT.replace(",b", "?,b").replace(",,", ",NA,").encode(),
        CONTENT.encode("utf-16"),
        b"sep=;\r\n" + CONTENT.replace(",", ";").encode(),
        CONTENT.replace("size,", "size ,").replace("kind", "kind ").encode(),
        gzip.compress(CONTENT.encode(), mtime=0),
        bz2.compress(CONTENT.encode()),
        lzma.compress(CONTENT.encode()),
        CONTENT.replace("\n", ",\n").replace("kind,", "kind").encode(),  # lines end with a comma
        CONTENT.replace("\n", ",\n").encode(),
        (b'"size" "colour" "kind"\n"a" 1.5 "red" "cat"\n"b" NA "blue" "NA"\n'  # as R writes it
         b'"c" 2 "" "dog"\n'),
        b",size,colour,kind\n0,1.5,red,cat\n1,,blue,NA\n2,2,,dog\n",  # as pandas writes it
    ],
)  # fmt: skip
def test_one_table_in_many_forms(content: bytes) -> None:
    frame = read(content)
    assert list(frame.columns) == ["size", "colour", "kind"]
    assert frame["size"].dtype == np.float64
    np.testing.assert_array_equal(frame["size"], [1.5, np.nan, 2.0])
    assert [c for c in frame["colour"] if isinstance(c, str)] == ["red", "blue"]
    assert frame["kind"].tolist() == ["cat", "NA", "dog"]  # a label is text, whatever it says
    assert frame.index.tolist() == [0, 1, 2]


def test_latin_1_is_read_and_told() -> None:
    file = TableFile(Path("a.csv"), "größe,kind\n1,süß\n".encode("latin-1"))
    assert file.columns == ["größe", "kind"]
    assert file.read(label="kind")["kind"].tolist() == ["süß"]
    assert file.remarks == ["a.csv is not in UTF-8 and was read as Latin-1."]


def test_columns_are_found_by_name_and_by_number() -> None:
    file = TableFile(Path("a.csv"), b"a,2,b\n1,2,3\n")
    found = [file.find_column("--label", name) for name in ("b", "2", "1", "-1", "3")]
    assert found == ["b", "2", "a", "b", "b"]  # a name comes before a number
    with pytest.raises(
        ValueError, match=r"--label must be .* got 'aa'\. Its columns are 'a', '2'"
    ):
        file.find_column("--label", "aa")


def test_a_table_without_header() -> None:
    content = b"5.1,3.5,x\n4.9,3,y\n4.7,3,x\n"
    frame = read(content, "3", header=False)
    assert frame["3"].tolist() == ["x", "y", "x"]
    (remark,) = TableFile(Path("a.csv"), content).remarks
    assert "If it is data, say --no-header" in remark


def test_text_is_asked_for_where_it_looks_like_numbers() -> None:
    file = TableFile(Path("a.csv"), b"code,x\n01,2\n02,\n")
    frame = file.read(label=None, as_text=["code"])
    assert frame["code"].tolist() == ["01", "02"]
    assert frame["x"].isna().tolist() == [False, True]


def test_quoted_cells_hold_separators_and_lines() -> None:
    frame = read('a,kind\n"x, y",cat\n"x\ny",dog\n')
    assert frame["a"].tolist() == ["x, y", "x\ny"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'a.csv' is empty"),
        (b" \n\n", "'a.csv' is empty"),
        (b"a,kind\n", "'a.csv' holds no rows"),
        (b"PK\x03\x04...", "must be a table as text, but is an Excel file"),
        (b"\x89PNG...", "but is an image. Name a folder"),
        (b"a\x00b", "must be a table as text, but is none. Save the table as CSV"),
        (b"\x28\xb5\x2f\xfd...", "is compressed by zstd. Unpack it first"),
        (b"<!DOCTYPE html><html>", "is HTML or XML. Save the table as CSV"),
        (b'[{"a":1,"kind":"x"},{"a":2,"kind":"y"}]', "is JSON. Save the table as CSV"),
        (b'{"a":1,"kind":"x"}\n{"a":2,"kind":"y"}\n', "is JSON. Save the table as CSV"),
        (b'[\r\n  {\r\n    "a":1\r\n  }\r\n]', "is JSON. Save the table as CSV"),
        (b'{\n "a": [1, 2]\n}', "is JSON. Save the table as CSV"),
        (b"BZh9nothing", "cannot be read as a table"),
        (b"a,kind\n1,x\n1,2,3,4\n", "cannot be read as a table: Expected 2 fields in line 3"),
        (b"a,kind\n1,2,3,x\n4,5,6,y\n", "its first line names 2 columns, and the others hold 4"),
        (b"\x1f\x8bnothing", "cannot be read as a table"),
        (b"only words\nin lines", "--label must be a column of a.csv, but got 'kind'"),
    ],
)
def test_files_that_hold_no_table(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(content)


def test_parquet_needs_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow.* or save the table as CSV"):
        TableFile(Path("a.parquet"), b"PAR1")


def test_parquet_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    frame, file = pd.DataFrame({"a": [1, 2], "kind": ["x", "y"]}), io.BytesIO()
    frame.to_parquet(file)
    found = TableFile(Path("a.parquet"), file.getvalue()).read(label="kind")
    pd.testing.assert_frame_equal(found, frame)


@pytest.mark.parametrize(
    "values",
    [["2024-01-05", None], ["5.1.2024", "6.1.2024"], ["2024-01-05 10:00", "2024-1-6"]],
)
def test_dates_are_refused_by_name(values: list[str | None]) -> None:
    message = f"Column 'day' must hold .* such as '{values[0]}'. Leave it out with --drop 'day'"
    with pytest.raises(ValueError, match=message):
        refuse_dates(pd.DataFrame({"a": ["1-2-3", "x"], "day": values}))
    with pytest.raises(ValueError, match="holds dates such as '2024-01-05 00:00:00'"):
        refuse_dates(pd.DataFrame({"day": pd.to_datetime(["2024-01-05"])}))


def test_columns_that_were_meant_as_numbers_are_told() -> None:
    for texts, told in [
        (["1", "2.5", "n/k", None], "1 of its 4 cells are no numbers, such as 'n/k'"),
        (["1,200.50", "80", "3,000"], "2 of its 3 cells are no numbers, such as '1,200.50'"),
        (["5%", "80 %"], "2 of its 2 cells are no numbers, such as '5%'"),
        (["$5", "7 €"], "2 of its 2 cells are no numbers, such as '$5'"),
    ]:
        remark = describe_words("age", pd.Series(texts, dtype=object))
        assert remark is not None
        assert remark.startswith(f"Column 'age' is taken for categories, since {told}. ")
    for texts in (["red", "blue", "3"], ["01", "02"], ["12:30", "1:05"], [None, None]):
        assert describe_words("age", pd.Series(texts, dtype=object)) is None


def test_rows_are_numbered_by_steps_of_one() -> None:
    assert numbers_the_rows(pd.Series([7, 8, 9]))
    assert not any(numbers_the_rows(pd.Series(v)) for v in ([1, 2], [1, 3, 4], [1.0, 2.0, 3.0]))


def test_without_pandas_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "optuna-s2e\[coteaching\]"'):
        TableFile(Path("a.csv"), b"a,b\n1,2\n")
