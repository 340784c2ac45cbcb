"""Images, signals, tokens and data sets as tensors."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import TensorDataset  # noqa: E402

from optuna_s2e.classifier._inputs import InputEncoder, read_dataset  # noqa: E402

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, size=(6, 3, 5, 4), dtype=np.uint8)


def learn(x):
    encoder = InputEncoder.learn(x)
    assert InputEncoder.from_state(json.loads(json.dumps(encoder.to_state()))) == encoder
    return encoder


@pytest.mark.parametrize("given", [PIXELS, PIXELS.transpose(0, 2, 3, 1), torch.tensor(PIXELS)])
def test_images_have_their_channels_first(given):
    encoder = learn(given)
    assert encoder.kind == "images"
    assert np.array_equal(encoder.encode(given).numpy(), PIXELS)


def test_grey_images_get_a_channel():
    assert learn(PIXELS[:, 0]).encode(PIXELS[:, 0]).shape == (6, 1, 5, 4)


def test_signals_are_standardised_by_the_training_signals():
    x = RNG.normal(3, 2, size=(50, 7, 2))
    encoder = learn(x)
    np.testing.assert_allclose(
        encoder.encode(x[:3]).numpy(), (x[:3] - x.mean()) / x.std(), atol=1e-5
    )


def test_signals_of_any_size_can_be_saved():
    x = np.array([-1e300, 1e300]).reshape(2, 1, 1)
    assert learn(x).encode(x).flatten().tolist() == [-1, 1]


def test_integers_of_a_tensor_are_tokens_and_those_of_an_array_a_table():
    ids = torch.arange(12).view(4, 3)
    assert learn(ids).encode(ids).tolist() == ids.tolist()
    assert learn(ids.numpy()).kind == "table"


def test_a_float_tensor_of_two_axes_is_a_table():
    assert learn(torch.randn(9, 2)).kind == "table"


@pytest.mark.parametrize(
    ("fitted", "given", "message"),
    [
        (PIXELS, PIXELS[:, :, :4], r"shape \(3, 5, 4\), as in fit, but got \(3, 4, 4\)"),
        (PIXELS, PIXELS / 255, "uint8 images, as in fit, but got float64"),
        (RNG.normal(size=(4, 2, 2)), np.full((4, 2, 2), np.nan), "must be finite"),
        (RNG.normal(size=(4, 2)), PIXELS, "must be a table as in fit"),
    ],
)
def test_other_inputs_than_in_fit_are_refused(fitted, given, message):
    with pytest.raises(ValueError, match=message):
        InputEncoder.learn(fitted).encode(given)


def test_a_data_set_is_read_with_and_without_labels():
    x, y = torch.randn(7, 2), torch.arange(7)
    inputs, labels = read_dataset("X", TensorDataset(x, y))
    assert torch.equal(inputs, x)
    assert labels == list(range(7))
    items = [x[i] for i in range(7)]
    inputs, labels = read_dataset("X", items)
    assert torch.equal(inputs, x)
    assert labels is None


def test_a_data_set_of_pictures_names_the_remedy():
    with pytest.raises(ValueError, match="PILToTensor"):
        read_dataset("X", [(object(), 1)])
