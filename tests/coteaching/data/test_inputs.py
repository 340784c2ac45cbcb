"""Inputs: images, features and tokens, what networks see of them, and one clear error."""

import re

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from optuna_s2e.coteaching import (
    CoteachingObjective,
    NoisyData,
    TrainingConfig,
    make_network,
    train_batch,
)
from optuna_s2e.coteaching.data._inputs import read_inputs, to_input

N = 12
X = np.random.default_rng(0).normal(size=(N, 4))
Y = np.arange(N) % 3
IDS = np.random.default_rng(1).integers(0, 30, (N, 8))


class Frame:
    """What data frames have in common: they become arrays, of objects if columns differ."""

    def __init__(self, *columns):
        self.columns = columns

    def __array__(self, dtype=None, copy=None):
        return np.array([list(row) for row in zip(*self.columns, strict=True)], dtype=object)


def _read(x):
    return read_inputs({"x": x})["x"]


@pytest.mark.parametrize(
    "x",
    [
        X,
        X.astype(np.float32),
        X.astype(">f8"),
        X.astype(np.longdouble),
        X[::-1, ::-1][::-1, ::-1],
        X.tolist(),
        list(X),
        list(torch.tensor(X, requires_grad=True)),
        torch.tensor(X, requires_grad=True),
        np.ma.array(X),
        Frame(*X.T),
    ],
)
def test_features_are_taken_in_float32(x):
    read = _read(x)
    assert (read.dtype, read.requires_grad) == (torch.float32, False)
    np.testing.assert_array_equal(read, X.astype(np.float32))


def test_truth_values_and_mixed_columns_become_features():
    np.testing.assert_array_equal(_read(X > 0), (X > 0).astype(np.float32))
    np.testing.assert_array_equal(_read(torch.tensor(X > 0)), (X > 0).astype(np.float32))
    mixed = _read(Frame(X[:, 0], Y, X[:, 1] > 0))
    expected = np.column_stack([X[:, 0], Y, X[:, 1] > 0])
    np.testing.assert_array_equal(mixed, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", [">i2", "i4", "u2", "i8", "u8"])
def test_integers_are_tokens_that_networks_see_as_they_are(dtype):
    read = _read(IDS.astype(dtype))
    assert read.dtype == torch.int64
    np.testing.assert_array_equal(read, IDS)
    assert to_input(read, torch.float32) is read


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_whole_floats_that_float32_would_merge_stay_distinct(kind):
    ids = np.arange(2**24, 2**24 + 8 * N).reshape(N, 8)
    parts = read_inputs({"x": kind(ids.astype(float)), "x_val": kind(np.ones((2, 8)))})
    assert {part.dtype for part in parts.values()} == {torch.int64}
    np.testing.assert_array_equal(parts["x"], ids)


def test_floats_that_float32_merges_are_reported():
    x = np.column_stack([X, 1.7e9 + Y])
    with pytest.warns(UserWarning, match=r"x holds numbers beyond 2\^24"):
        assert _read(x).dtype == torch.float32
    assert _read(np.full((2, 2), 2.0**24)).dtype == torch.float32  # exact, and no warning
    assert _read(np.full((2, 2), 3e4)).dtype == torch.float32


def test_images_with_channels_last_are_turned():
    images = np.random.default_rng(0).integers(0, 256, (N, 18, 17, 3), dtype=np.uint8)
    data = NoisyData.from_arrays(images, Y, torch.from_numpy(images), Y)
    assert data.input_shape == (3, 18, 17)
    for part in (data.x, data.x_val):
        assert part.is_contiguous()
        np.testing.assert_array_equal(part, images.transpose(0, 3, 1, 2))
    first = images.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(_read(first), first)
    floats = images / 255  # may be anything: a network for images says what to do
    assert _read(floats).shape == (N, 18, 17, 3)
    with pytest.raises(ValueError, match=re.escape("with x.transpose(0, 3, 1, 2).")):
        make_network("cnn2", (18, 17, 3), 2, seed=0)
    with pytest.raises(ValueError, match=re.escape("one by x[:, None], or take 'mlp'.")):
        make_network("cnn2", (18, 17), 2, seed=0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.where(X > 1, np.nan, X), "x must be finite in float32, but 6 of 12 samples hold NaN"),
        (np.full((2, 2), 1e39), "x must be finite in float32, but 2 of 2 samples hold NaN or inf"),
        (X[:, 0], "x must have shape (N, ...), but got (12,). Take x[:, None]."),
        (X[:, :0], "x must have shape (N, ...), but got (12, 0)."),
        (None, "x must have shape (N, ...), but got NoneType."),
        ({"a": X}, "x must have shape (N, ...), but got dict."),
        (X + 0j, "x must hold real numbers, but got torch.complex128."),
        (X.astype(str), f"x must hold numbers, but x[0, 0] is {str(X[0, 0])!r}. Encode text as"),
        (Frame(X[:, 0], ["a"] * N), "x must hold numbers, but x[0, 1] is 'a'. Encode text as"),
        (Frame(X[:, 0], [0.0, None] * 6), "x must hold numbers, but x[1, 1] is None."),
        (X.astype("datetime64[s]"), "x must hold numbers, but x[0, 0] is datetime.datetime("),
        (np.ma.masked_less(X, 0), "x must hold all values, but some are masked."),
        ([[1.0], [1.0, 2.0]], "x must hold samples of one shape, but they differ. Pad or"),
        ([torch.zeros(2), torch.zeros(3)], "x must hold samples of one shape, but they differ."),
        (scipy.sparse.csr_matrix(X), "x must be dense, but is sparse. Take x.toarray()."),
        (torch.tensor(X).to_sparse(), "x must be dense, but is sparse. Take x.to_dense()."),
        (np.full((2, 2), 2**64 - 1, dtype=np.uint64), "x must hold ints below 2^63, but got 1844"),
    ],
)
def test_inputs_of_no_clear_meaning_are_named(x, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _read(x)


def test_ragged_tensors_are_named():
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    message = "x must hold samples of one shape, but they differ. Pad or resize them."
    with pytest.raises(ValueError, match=message):
        _read(ragged)


class Embedded(nn.Module):
    """Means of embedded tokens; it reads integers, and floats as integers."""

    def __init__(self, input_shape, n_classes):
        super().__init__()
        self.embedding, self.last = nn.Embedding(30, 6), nn.Linear(6, n_classes)

    def forward(self, x):
        return self.last(self.embedding(x.long()).mean(dim=1))


class OnlyIntegers(Embedded):
    def forward(self, x):
        assert x.dtype == torch.int64
        return super().forward(x)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("backend", ["auto", "loop", "fused"])
def test_tokens_train_as_small_floats_that_the_network_turns_into_tokens(backend, dtype):
    def train(x, network):
        data = NoisyData.from_arrays(x, Y, x, Y, clean_labels=Y)
        return train_batch(
            [[1.0, 0.5], [0.5, 1.0]], [0, 1], data=data, network=network, backend=backend,
            config=TrainingConfig(4, dtype=dtype), device="cpu",
        )  # fmt: skip

    tokens = train(IDS, OnlyIntegers)
    floats = train(IDS.astype(np.float32), Embedded)
    for one, other in zip(tokens, floats, strict=True):
        assert one.failure is None
        for name, curve in one.curves._asdict().items():
            np.testing.assert_array_equal(curve, getattr(other.curves, name))


@pytest.mark.parametrize("network", ["mlp", "cnn2"])
def test_networks_of_the_papers_refuse_tokens(network):
    data = NoisyData.from_arrays(IDS, Y, IDS, Y)
    message = f"network {network!r} needs images (uint8) or floats, but the data hold integers."
    for use in (
        lambda: CoteachingObjective(data, network=network, device="cpu"),
        lambda: train_batch([[1.0]], [0], data=data, network=network, device="cpu"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            use()


def test_frames_of_pandas_are_inputs():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    for x in (frame, frame.astype("Float64"), frame.astype(object)):
        np.testing.assert_array_equal(_read(x), X.astype(np.float32))
    with pytest.raises(ValueError, match=re.escape("but x[0, 4] is 'a'")):
        _read(frame.assign(e="a"))
    with pytest.raises(ValueError, match=re.escape("is <NA>. Encode text as numbers")):
        _read(frame.astype("Float64").mask(frame > 1))
