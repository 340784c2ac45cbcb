"""Columns of tables as features: expected values are written out by hand."""

import json

import numpy as np
import pytest

from optuna_s2e.classifier._table import TableEncoder, read_table


def encode(x, new=None):
    encoder = TableEncoder.learn(read_table(x))
    again = TableEncoder.from_state(json.loads(json.dumps(encoder.to_state())))
    np.testing.assert_array_equal(encoder.encode(read_table(x)), again.encode(read_table(x)))
    return encoder.encode(read_table(x if new is None else new))


def test_a_column_of_numbers_is_standardised_and_placed_among_its_quantiles():
    x = np.arange(8.0)[:, None]  # the eight quantiles are the values themselves
    features = encode(x, [[3.25], [-100.0], [100.0]] @ np.ones((1, 1)))
    assert features.shape == (3, 8)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[0], [-0.25 / np.std(x), 1, 1, 1, 0.25, 0, 0, 0], rtol=1e-6)
    assert features[1].tolist() == [-5] + [0] * 7
    assert features[2].tolist() == [5] + [1] * 7


def test_missing_numbers_become_the_median_and_are_flagged():
    x = np.array([[1.0], [1.0], [4.0], [np.nan]])
    mean, deviation = 7 / 4, np.std([1, 1, 4, 1])
    rows = ((1, 0), (1, 0), (4, 0), (1, 1))
    expected = [[(value - mean) / deviation, is_missing] for value, is_missing in rows]
    np.testing.assert_allclose(encode(x), expected, rtol=1e-6)


def test_a_value_that_is_missing_only_later_is_the_median():
    assert encode(np.array([[1.0], [2.0], [4.0]]), np.array([[np.nan]])).shape == (1, 3)
    later = encode(np.array([[1.0], [2.0], [4.0]]), np.array([[np.nan], [2.0]]))
    assert (later[0] == later[1]).all()


def test_categories_have_a_feature_each_and_rare_and_missing_ones_have_their_own():
    x = np.array([["b"], ["a"], ["b"], ["a"], ["rare"], [None]], dtype=object)
    expected = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]  # a, b, rare, missing
    new = np.array([["b"], ["a"], ["never seen"], [np.nan]], dtype=object)
    assert encode(x, new).tolist() == expected


def test_numbers_as_categories_are_the_same_as_ints_and_as_floats():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"zip": pd.Series([10, 20, 10, 20]).astype("category")})
    later = pd.DataFrame({"zip": pd.Series([20.0, np.nan, 10.0])})
    assert encode(frame, later).tolist() == [[0, 1], [0, 0], [1, 0]]


def test_columns_of_a_data_frame_keep_their_kinds():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({
        "flag": [True, False, True, False],
        "int": pd.array([1, None, 2, 1], dtype="Int64"),
        "text": ["x", "y", None, "x"],
    })  # fmt: skip
    features = encode(frame)
    # flag; int and whether it is missing; x, rare (y), missing
    assert features.shape == (4, 1 + 2 + 3)
    assert features[:, 2].tolist() == [0, 1, 0, 0]
    assert features[:, 3:].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_wide_tables_are_standardised_only():
    x = np.random.default_rng(0).normal(size=(20, 101))
    np.testing.assert_allclose(encode(x), (x - x.mean(0)) / x.std(0), atol=1e-5)


def test_constant_empty_and_huge_columns_are_harmless():
    x = np.column_stack([np.ones(4), np.full(4, np.nan), [1e200, -1e200, 1e200, 0]])
    assert np.isfinite(encode(x)).all()


def test_numbers_of_any_size_keep_their_order():
    largest = np.finfo(np.float64).max
    x = np.array([[-largest], [-1e200], [0.0], [1e9], [1e200], [largest]])
    features = encode(x)  # both ends count as 1e150, whose squares are finite
    deviation = np.std([-1, -1, 0, 0, 1, 1])
    np.testing.assert_allclose(features[:, 0] * deviation, [-1, -1, 0, 0, 1, 1], atol=1e-6)
    assert np.isfinite(features).all()
    assert (np.diff(features, axis=0) >= 0).all()
    assert not np.array_equal(features[2], features[3])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([f"review number {i}" for i in range(150)], "150 different strings in 150 rows"),
        ([f"{i}.5" for i in range(150)], "holds numbers as strings, such as '0.5'"),
        (np.arange(150).astype("datetime64[D]"), "dates or times"),
        ([1.0, np.inf] * 75, "infinity"),
        ([{"a": 1}, "b"] * 75, "numbers or strings"),
    ],
    ids=["text", "numbers as text", "dates", "infinity", "dicts"],
)
def test_columns_that_cannot_be_encoded_are_refused_with_the_remedy(values, message):
    array = np.array(values, dtype=getattr(values, "dtype", None) or object)
    if message == "infinity":
        array = array.astype(float)
    with pytest.raises(ValueError, match=message) as error:
        encode(array[:, None])
    assert "X[:, 0]" in str(error.value)
    assert any(word in str(error.value) for word in ("Turn", "turn", "Replace"))


def test_text_that_is_declared_a_category_is_taken():
    pd = pytest.importorskip("pandas")
    names = pd.Series([f"town {i % 150}" for i in range(450)])
    with pytest.raises(ValueError, match="Column 'town'"):
        encode(pd.DataFrame({"town": names}))
    assert encode(pd.DataFrame({"town": names.astype("category")})).shape == (450, 101)


def test_words_in_a_column_of_numbers_are_refused_later():
    with pytest.raises(ValueError, match="must hold numbers, as it did in fit"):
        encode(np.array([[1.0], [2.0], [3.0]]), np.array([["much"]], dtype=object))


def test_a_word_in_a_column_of_many_numbers_is_named():
    values = [str(i) for i in range(150)] * 2
    values[7] = values[9] = "n/k"
    message = r"holds numbers and words such as 'n/k', 2 of 300 values. Correct them, or mark"
    with pytest.raises(ValueError, match=message):
        encode(np.array(values, dtype=object)[:, None])
