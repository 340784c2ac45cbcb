"""Data: which labels get noise, how data are split, and one clear error for unusable data."""

import json
import os
import pickle
import re
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from optuna_s2e.coteaching import NoisyData, load_data, make_network
from optuna_s2e.coteaching.data import to_input
from optuna_s2e.label_noise import published_noise

X = np.linspace(0, 1, 24, dtype=np.float32).reshape(12, 2)
Y = np.arange(12) % 3


def _rows(x):
    return [row.tobytes() for row in x.numpy()]


def test_digits_parts_are_disjoint_and_complete():
    data = load_data("digits")
    parts = (data.x, data.x_val, data.x_test)
    assert [len(part) for part in parts] == [997, 300, 500]
    rows = [row for part in parts for row in _rows(part)]
    assert len(set(rows)) == len(rows) == 1797
    assert data.x.dtype == torch.float32
    assert (data.x.min(), data.x.max()) == (0, 1)


def test_noise_is_on_the_training_labels_alone():
    data = load_data("digits", noise="pair", noise_rate=0.45)
    wrong = data.noisy_labels != data.clean_labels
    assert 0.40 < wrong.double().mean() < 0.50  # 997 flips: standard deviation .016
    assert torch.equal(data.noisy_labels[wrong], (data.clean_labels[wrong] + 1) % 10)
    clean = load_data("digits", noise="none")
    assert torch.equal(clean.noisy_labels, clean.clean_labels)
    for name in ("x", "clean_labels", "x_val", "y_val", "x_test", "y_test"):
        assert torch.equal(getattr(data, name), getattr(clean, name))


def test_noisy_validation_carries_the_noise_and_clean_validation_does_not():
    clean = load_data("digits", validation="clean")
    noisy = load_data("digits", validation="noisy")
    assert torch.equal(clean.x_val, noisy.x_val)
    assert 0.35 < (clean.y_val != noisy.y_val).double().mean() < 0.65  # standard deviation .029
    assert torch.equal(clean.noisy_labels, noisy.noisy_labels)


def test_noise_of_a_sample_does_not_depend_on_the_split():
    few, many = (load_data("digits", n_validation=n) for n in (100, 400))
    label_of = dict(zip(_rows(few.x), few.noisy_labels.tolist(), strict=True))
    for row, label in zip(_rows(many.x), many.noisy_labels.tolist(), strict=True):
        assert label_of.get(row, label) == label


def test_the_same_seed_gives_the_same_data():
    first, again = (load_data("digits", seed=1) for _ in range(2))
    for name, value in vars(first).items():
        same = getattr(again, name)
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same


def test_another_seed_gives_other_noise_and_other_splits(tmp_path):
    x, y = np.arange(300, dtype=np.float32)[:, None], np.arange(300) % 3
    np.savez(tmp_path / "a.npz", train_x=x, train_y=y, test_x=x[:20], test_y=y[:20])
    first, other = (
        load_data("a.npz", root=tmp_path, noise="symmetric", seed=seed) for seed in (1, 2)
    )
    assert not torch.equal(first.x_val, other.x_val)
    labels = dict(zip(_rows(first.x), first.noisy_labels.tolist(), strict=True))
    assert any(
        labels.get(row, label) != label
        for row, label in zip(_rows(other.x), other.noisy_labels.tolist(), strict=True)
    )
    digits = [load_data("digits", seed=seed) for seed in (1, 2)]
    assert set(_rows(digits[0].x_test)) != set(_rows(digits[1].x_test))


def test_published_noise_covers_the_whole_training_part_in_its_order(tmp_path):
    y = np.random.default_rng(0).permutation(np.arange(300) % 10)
    x = np.arange(300, dtype=np.float32)[:, None]
    np.savez(tmp_path / "a.npz", train_x=x, train_y=y, test_x=x[:20], test_y=y[:20])
    data = load_data(str(tmp_path / "a.npz"), noise="pair", noise_rate=0.45, published_noise=True)
    expected = published_noise(y, "pair", 0.45)
    samples = data.x[:, 0].long().numpy()
    assert len(samples) == 270
    np.testing.assert_array_equal(data.noisy_labels, expected[samples])
    np.testing.assert_array_equal(data.clean_labels, y[samples])


def test_noise_rate_is_the_asked_one_or_the_measured_one():
    assert load_data("digits", noise_rate=0.3).noise_rate == 0.3
    assert load_data("digits", noise="none").noise_rate == 0
    assert NoisyData.from_arrays(X, Y, X, Y).noise_rate is None
    wrong = NoisyData.from_arrays(X, Y, X, Y, clean_labels=np.where(np.arange(12) < 3, 0, Y))
    assert wrong.noise_rate == 2 / 12


def test_npz_with_its_own_validation_is_taken_as_it_is(tmp_path):
    np.savez(tmp_path / "b.npz", x=X, y=Y, x_val=X[:6], y_val=Y[:6], clean_labels=Y[::-1])
    data = load_data("b.npz", root=tmp_path, noise="none")
    assert torch.equal(data.noisy_labels, torch.from_numpy(Y))
    assert torch.equal(data.clean_labels, torch.from_numpy(Y[::-1].copy()))
    assert (len(data.x_val), data.x_test, data.name) == (6, None, "b.npz")


def test_npz_labels_of_unknown_quality_have_no_clean_labels(tmp_path):
    np.savez(tmp_path / "c.npz", x=X, y=Y, x_val=X, y_val=Y, x_test=X, y_test=Y)
    assert load_data("c.npz", root=tmp_path, noise="none").clean_labels is None
    known = load_data("c.npz", root=tmp_path, noise="pair", noise_rate=0.3)
    assert torch.equal(known.clean_labels, torch.from_numpy(Y))


def _save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"train_x": X, "train_y": Y}, {}, "but got train_x, train_y: test_x, test_y missing."),
        ({"x": X, "y": Y, "x_val": X}, {}, "but got x, x_val, y: y_val missing."),
        ({}, {}, "but got nothing: train_x, train_y, test_x, test_y missing."),
        (
            {"x": X, "y": np.array([{}] * 12), "x_val": X, "y_val": Y},
            {},
            "is not a .npz file of plain arrays: Object arrays cannot be loaded",
        ),
        (
            {"x": X, "y": Y[:5], "x_val": X, "y_val": Y},
            {},
            "must have the same length above 0, but got 12 and 5.",
        ),
        (
            {"x": X, "y": Y, "x_val": X, "y_val": Y},
            {"n_validation": 3},
            "n_validation must be None for",
        ),
        (
            {"x": X, "y": Y, "x_val": X, "y_val": Y, "clean_labels": Y},
            {"noise": "pair"},
            "noise must be 'none' for",
        ),
        (
            {"x": X, "y": Y + 0.5, "x_val": X, "y_val": Y},
            {},
            "y must hold class labels (whole numbers, strings or bytes), but y[0] is 0.5.",
        ),
    ],
)
def test_unusable_npz_files_are_named(tmp_path, arrays, options, message):
    path = _save(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_data(path, **options)


def test_damaged_and_missing_npz_files_are_named(tmp_path):
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match=r"e\.npz' is not a \.npz file"):
        load_data(str(tmp_path / "e.npz"))
    with (tmp_path / "g.npz").open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(ValueError, match=r"g\.npz' is not a \.npz file of plain arrays"):
        load_data(str(tmp_path / "g.npz"))
    np.savez_compressed(tmp_path / "h.npz", x=X, y=Y, x_val=X, y_val=Y, names=np.array([{}]))
    assert load_data(str(tmp_path / "h.npz")).n_classes == 3  # what is not needed is not read
    raw = bytearray((tmp_path / "h.npz").read_bytes())
    raw[100:110] = bytes(10)
    (tmp_path / "h.npz").write_bytes(raw)
    with pytest.raises(ValueError, match=r"h\.npz' is not a \.npz file of plain arrays"):
        load_data(str(tmp_path / "h.npz"))
    with pytest.raises(FileNotFoundError, match=r"There is no file .*f\.npz"):
        load_data(str(tmp_path / "f.npz"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "imagenet"}, "must be one of ['digits', 'mnist', 'cifar10', 'cifar100'] or a"),
        ({"noise": "asym"}, "noise must be one of"),
        ({"noise_rate": 1.2}, "noise_rate must be a number in [0, 1), but got 1.2"),
        ({"validation": "dirty"}, "validation must be one of 'clean', 'noisy', but got 'dirty'"),
        ({"n_validation": 1297}, "n_validation must be an int in [1, 1296], but got 1297"),
        ({"n_validation": 0}, "n_validation must be an int in [1, 1296], but got 0"),
        ({"seed": -1}, "seed must be an int of at least 0, but got -1"),
        ({"seed": 0.5}, "seed must be an int of at least 0, but got 0.5"),
        ({"name": "mnist"}, "root must be a folder that holds (or will hold) mnist, but got None"),
    ],
)
def test_load_errors_name_the_argument_and_the_value(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_data(**{"name": "digits", **options})


def _broken(**changes):
    parts = {"x": X, "y": Y, "x_val": X, "y_val": Y, **changes}
    return NoisyData.from_arrays(
        parts.pop("x"), parts.pop("y"), parts.pop("x_val"), parts.pop("y_val"), **parts
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x": np.where(X > 0.9, np.nan, X)},
            "x must be finite in float32, but 2 of 12 samples hold NaN or infinity, the first is "
            "x[10].",
        ),
        ({"x_val": X + np.inf}, "x_val must be finite in float32"),
        (
            {"x": X.astype(int)},
            "x and x_val must hold inputs of one shape and dtype, but got (2,)",
        ),
        ({"x": X[:, 0]}, "x must have shape (N, ...), but got (12,)"),
        ({"x": X[:5]}, "x and y must have the same length, but got 5 and 12"),
        ({"x_val": X[:, :1]}, "must hold inputs of one shape and dtype"),
        ({"x_val": (X * 255).astype(np.uint8)}, "must hold inputs of one shape and dtype"),
        ({"y": Y - 1}, "y must hold labels of at least 0, but got -1."),
        ({"y_val": Y + 1, "n_classes": 3}, "y_val must be in [0, n_classes) = [0, 3), but got 3"),
        ({"y": Y[None]}, "y must have shape (N,), N > 0, but got (1, 12)"),
        ({"y": np.where(Y == 1, 0, Y)}, "y must hold every class, but [1] are empty"),
        ({"y": Y * 0, "y_val": Y * 0}, "y must hold at least 2 classes, but holds 0 alone."),
        ({"n_classes": 1}, "n_classes must be an int of at least 2, but got 1"),
        ({"y": None}, "y must have shape (N,), N > 0, but got ()."),
        ({"clean_labels": Y[:4]}, "x and clean_labels must have the same length"),
        ({"x_test": X}, "x_test and y_test must be given together, but got x_test alone."),
        ({"x_test": X, "y_test": Y + 9, "n_classes": 3}, "y_test must be in"),
    ],
)
def test_unusable_arrays_are_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _broken(**changes)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"y_val": np.where(Y == 2, 0, Y)},
            ["y_val of 'arrays' holds no sample of the classes [2]: the validation error knows"],
        ),
        (
            {"y": np.where(Y == 2, 0, Y), "n_classes": 3},
            ["y of 'arrays' holds no sample of the classes [2]: networks cannot learn them."],
        ),
        (
            {"n_classes": 5, "name": "mine"},
            [
                "y of 'mine' holds no sample of the classes [3, 4]: networks",
                "y_val of 'mine' holds no sample of the classes [3, 4]: the validation",
            ],
        ),
    ],
)
def test_classes_without_samples_are_reported_once(changes, messages):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = _broken(**changes)
    assert data.n_classes == changes.get("n_classes", 3)
    assert data.classes == tuple(range(data.n_classes))
    for warning, message in zip(caught, messages, strict=True):
        assert message in str(warning.message)
        assert warning.filename == __file__


def test_arrays_are_copied_and_uint8_stays_uint8():
    images = np.arange(48, dtype=np.uint8).reshape(12, 2, 2)
    images.setflags(write=False)
    data = NoisyData.from_arrays(images, Y, images, Y)
    assert data.x.dtype == torch.uint8
    inputs = to_input(data.x, torch.float32)
    expected = images.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(inputs, expected)
    assert data.x.max() == 47  # the data themselves are not scaled


def test_to_moves_every_tensor():
    data = NoisyData.from_arrays(X, Y, X, Y, x_test=X, y_test=Y, clean_labels=Y)
    assert data.to("cpu") is data
    devices = {v.device.type for v in vars(data.to("meta")).values() if torch.is_tensor(v)}
    assert devices == {"meta"}


def test_torch_data_sets_are_read_once_and_leave_the_global_generator_alone():
    class Squares(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return torch.from_numpy(X[i]) ** 2, int(Y[i])

    state = torch.get_rng_state()
    plain = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    data = NoisyData.from_datasets(Squares(), plain, plain, name="squares")
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_allclose(data.x, X**2, rtol=1e-6)
    assert torch.equal(data.noisy_labels, torch.from_numpy(Y))
    assert (len(data.x_test), data.name) == (12, "squares")


def test_labels_of_torch_data_sets_may_be_names():
    items = [(torch.from_numpy(x), ["cat", "dog", "emu"][y]) for x, y in zip(X, Y, strict=True)]
    data = NoisyData.from_datasets(items, items[:6])
    assert data.classes == ("cat", "dog", "emu")
    np.testing.assert_array_equal(data.noisy_labels, Y)
    np.testing.assert_array_equal(data.x, X)


def test_data_sets_of_other_items_are_named():
    plain = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    ragged = [(torch.zeros(2 + i % 2), 0) for i in range(4)]
    with pytest.raises(ValueError, match=r"items of one shape \(stack expects"):
        NoisyData.from_datasets(ragged, plain)
    with pytest.raises(ValueError, match="train must be a data set of"):
        NoisyData.from_datasets([(object(), 0)] * 3, plain)
    with pytest.raises(ValueError, match="val must be a data set of"):
        NoisyData.from_datasets(plain, TensorDataset(torch.from_numpy(X)))


def _write_idx(path, array):
    """Write the file format of MNIST: magic number, sizes, bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_mnist_is_read_through_torchvision_in_its_order(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = {"train": 60, "t10k": 20}
    images = {part: rng.integers(0, 256, (n, 28, 28)) for part, n in sizes.items()}
    labels = {part: np.arange(n) % 3 for part, n in sizes.items()}
    for part in sizes:
        _write_idx(raw / f"{part}-images-idx3-ubyte", images[part])
        _write_idx(raw / f"{part}-labels-idx1-ubyte", labels[part])
    data = load_data(
        "mnist", root=tmp_path, n_validation=15, noise="pair", noise_rate=0.3, download=False
    )
    assert (data.x.dtype, tuple(data.x.shape)) == (torch.uint8, (45, 1, 28, 28))
    position = {image.astype(np.uint8).tobytes(): i for i, image in enumerate(images["train"])}
    samples = [position[row] for row in _rows(data.x)]
    assert samples == sorted(samples)
    np.testing.assert_array_equal(data.clean_labels, labels["train"][samples])
    np.testing.assert_array_equal(data.x_test[:, 0], images["t10k"])


def test_missing_files_are_one_clear_error(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="or allow the download"):
        load_data("mnist", root=tmp_path, download=False)
    from optuna_s2e.coteaching._torchvision import import_datasets

    closed = ["http://127.0.0.1:9/"]  # the discard port: no server listens there
    monkeypatch.setattr(import_datasets().MNIST, "mirrors", closed)
    with pytest.raises(FileNotFoundError, match=r"was not found .* and cannot be downloaded"):
        load_data("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        ("mnist", (1, 28, 28), (55_000, 5_000, 10_000)),
        ("cifar10", (3, 32, 32), (45_000, 5_000, 10_000)),
    ],
)
def test_real_images_are_found_in_the_data_root(name, shape, sizes):
    if "S2E_DATA_ROOT" not in os.environ:
        pytest.skip("needs image data sets: S2E_DATA_ROOT is not set")
    data = load_data(name, root=os.environ["S2E_DATA_ROOT"], download=False)
    assert tuple(len(part) for part in (data.x, data.x_val, data.x_test)) == sizes
    assert (data.input_shape, data.n_classes, data.x.dtype) == (shape, 10, torch.uint8)


def test_cifar100_is_read_as_torchvision_keeps_it(tmp_path, monkeypatch):
    from optuna_s2e.coteaching._torchvision import import_datasets

    cifar100 = import_datasets().CIFAR100
    folder = tmp_path / cifar100.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2000, 3 * 32 * 32), dtype=np.uint8)
    fine = [i % 100 for i in range(2000)]
    for name in ("train", "test"):
        entry = {"data": pixels, "fine_labels": fine, "coarse_labels": [0] * 2000}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(cifar100, files, [[getattr(cifar100, files)[0][0], None]])
    monkeypatch.setattr(cifar100, "meta", {**cifar100.meta, "md5": None})
    data = load_data("cifar100", noise="none", root=tmp_path, n_validation=1000, download=False)
    assert (data.input_shape, data.n_classes, data.x.dtype) == ((3, 32, 32), 100, torch.uint8)
    np.testing.assert_array_equal(data.x_test.flatten(1), pixels)
    assert data.y_test.tolist() == fine


def _make_resnet():
    return make_network("resnet18", (3, 32, 32), 10, seed=0)


@pytest.mark.parametrize("use", [lambda: load_data("mnist", root="."), _make_resnet])
def test_missing_torchvision_is_an_import_error_with_the_command(use, monkeypatch):
    for name in ("torchvision", "torchvision.datasets", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)
    message = 'need torchvision. Install it with: pip install "optuna-s2e[coteaching]"'
    with pytest.raises(ImportError, match=re.escape(message)):
        use()


def test_missing_scikit_learn_is_an_import_error_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    message = 'need scikit-learn. Install it with: pip install "optuna-s2e[coteaching]"'
    with pytest.raises(ImportError, match=re.escape(message)):
        load_data("digits")


def test_npz_images_with_channels_last_are_turned(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (30, 8, 9, 3), dtype=np.uint8)
    y = np.arange(30, dtype=np.uint8) % 3
    np.savez(tmp_path / "colour.npz", train_x=x, train_y=y, test_x=x, test_y=y, classes=["a"])
    data = load_data("colour.npz", root=tmp_path, noise="none", n_validation=6)
    assert data.input_shape == (3, 8, 9)
    np.testing.assert_array_equal(data.x_test, x.transpose(0, 3, 1, 2))


def test_numbers_of_numpy_become_numbers_of_python(tmp_path):
    options = {"seed": np.int64(3), "n_validation": np.int32(50), "noise_rate": np.float32(0.25)}
    data = load_data("digits", noise="pair", **options)
    same = load_data("digits", noise="pair", seed=3, n_validation=50, noise_rate=0.25)
    assert json.loads(json.dumps(data.settings)) == data.settings == same.settings
    assert torch.equal(data.noisy_labels, same.noisy_labels)
    arrays = NoisyData.from_arrays(X, Y, X, Y, n_classes=np.int64(3))
    assert (arrays.n_classes, type(arrays.n_classes)) == (3, int)


def _parts(n_val, x_of_val, relabel=0):
    """Return 300 training samples and validation samples of which some are among them."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)).astype(np.float32), np.arange(300) % 3
    x_val, y_val = x[:n_val].copy(), y[:n_val].copy()
    x_val[x_of_val:] += 1
    y_val[:relabel] = (y_val[:relabel] + 1) % 3
    return x, y, x_val, y_val


@pytest.mark.parametrize(("n_val", "n_same"), [(200, 200), (200, 180), (300, 300)])
def test_validation_samples_that_are_trained_on_are_named(n_val, n_same):
    words = f"{n_same} of {n_val} validation samples of 'arrays' are training samples"
    with pytest.warns(UserWarning, match=words):
        NoisyData.from_arrays(*_parts(n_val, n_same))


@pytest.mark.parametrize(
    ("n_val", "n_same", "relabel"), [(200, 179, 0), (200, 200, 50), (9, 9, 0)]
)
def test_a_few_equal_samples_or_other_labels_are_fine(n_val, n_same, relabel, recwarn):
    NoisyData.from_arrays(*_parts(n_val, n_same, relabel))
    assert not recwarn.list


def test_equal_samples_are_fine_where_there_are_few_kinds_of_them(recwarn):
    x = np.array([[i & 1, i >> 1] for i in np.arange(400) % 4], dtype=np.float32)
    y = np.arange(400) % 4 // 2
    NoisyData.from_arrays(x[:300], y[:300], x[300:], y[300:])
    assert not recwarn.list


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"x": torch.zeros(2), "y": 1}], "an item is a dict of 2"),
        ([(torch.zeros(2), 1, 0)], "an item is a tuple of 3"),
        ([torch.zeros(2)], "an item is a Tensor of 2"),
        ([], "it is empty"),
    ],
)
def test_items_that_are_no_pairs_are_named(items, words):
    with pytest.raises(ValueError, match=f"train must be .*{words}"):
        NoisyData.from_datasets(items, [(torch.zeros(2), 1)])


def test_a_loader_in_place_of_a_data_set_is_named():
    items = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    with pytest.raises(ValueError, match=r"val must be .* a DataLoader\. Take val\.dataset"):
        NoisyData.from_datasets(items, DataLoader(items))
