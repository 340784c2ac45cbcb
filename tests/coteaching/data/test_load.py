"""load_data: noise that is asked for by name, and splits that leave no class out."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from optuna_s2e.coteaching import CoteachingObjective, load_data
from optuna_s2e.label_noise import flip_labels, transition_matrix

N = 120
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4)).astype(np.float32)
Y = np.arange(N) % 3
NAMES = np.array(["cat", "dog", "emu"])[Y]
TEST = {"test_x": X[:12], "test_y": NAMES[:12]}


def _save(folder, **arrays):
    path = folder / "mine.npz"
    np.savez(path, **arrays)
    return str(path)


def _labels(data):
    """Return the labels of the samples of `X` by their inputs, as the data hold them."""
    x = torch.cat([data.x, data.x_val]).numpy()
    labels = data.decode(torch.cat([data.noisy_labels, data.y_val]))
    return dict(zip((row.tobytes() for row in x), labels.tolist(), strict=True))


GIVEN = dict(zip((row.tobytes() for row in X), NAMES.tolist(), strict=True))


# --- noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"noise": "none"}, {"validation": "noisy"}])
def test_own_labels_are_never_changed_unless_a_noise_is_named(tmp_path, options):
    path = _save(tmp_path, train_x=X, train_y=NAMES, **TEST)
    data = load_data(path, **options)
    assert _labels(data) == GIVEN
    assert (data.noise_rate, data.clean_labels) == (None, None)
    assert (data.settings["noise"], data.settings["noise_rate"]) == ("none", 0)
    assert (
        data.describe_noise() == f"{path}; the labels are as they were given, no noise is added."
    )


def test_own_labels_of_a_file_with_its_own_validation_are_not_changed(tmp_path):
    path = _save(tmp_path, x=X[:90], y=NAMES[:90], x_val=X[90:], y_val=NAMES[90:])
    assert _labels(load_data(path)) == GIVEN


def test_own_noisy_labels_beside_clean_ones_need_no_option(tmp_path):
    noisy = np.where(np.arange(N) < 30, "cat", NAMES)
    data = load_data(_save(tmp_path, train_x=X, train_y=noisy, clean_labels=NAMES, **TEST))
    is_first = np.isin([row.tobytes() for row in data.x.numpy()], [r.tobytes() for r in X[:30]])
    wrong = (data.noisy_labels != data.clean_labels).numpy()
    assert 0 < wrong.sum() < is_first.sum()
    assert not wrong[~is_first].any()
    assert data.noise_rate == wrong.mean()


def test_a_named_noise_is_drawn_for_the_classes_in_order(tmp_path):
    path = _save(tmp_path, train_x=X, train_y=NAMES, **TEST)
    data = load_data(path, noise="pair", seed=3)
    stream = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(0,)))
    noisy = flip_labels(Y, transition_matrix("pair", 0.5, 3), stream)
    expected = dict(zip((row.tobytes() for row in X), noisy, strict=True))
    found = [expected[row.tobytes()] for row in data.x.numpy()]
    assert data.noisy_labels.tolist() == found
    assert data.decode(data.clean_labels).tolist() == [GIVEN[r.tobytes()] for r in data.x.numpy()]
    assert data.noise_rate == data.settings["noise_rate"] == 0.5
    assert data.describe_noise() == f"{path}; 50 % pair noise is added to the training labels."


@pytest.mark.parametrize("options", [{"noise_rate": 0.3}, {"published_noise": True}])
def test_a_noise_without_its_name_is_refused_for_own_data(tmp_path, options):
    path = _save(tmp_path, train_x=X, train_y=NAMES, **TEST)
    with pytest.raises(ValueError, match="noise must be 'symmetric' or 'pair' if"):
        load_data(path, **options)


def test_named_data_sets_have_symmetric_noise_by_default():
    data = load_data("digits")
    explicit = load_data("digits", noise="symmetric", noise_rate=0.5)
    assert torch.equal(data.noisy_labels, explicit.noisy_labels)
    assert data.settings == explicit.settings
    assert data.describe_noise() == "digits; 50 % symmetric noise is added to the training labels."
    assert load_data("digits", noise_rate=0.3).settings["noise"] == "symmetric"
    published = load_data("digits", published_noise=True).describe_noise()
    assert published == (
        "digits; the published 50 % symmetric noise is added to the training labels."
    )


@pytest.mark.parametrize("noise", ["symmetric", "none"])
def test_studies_of_earlier_releases_get_the_data_that_they_recorded(tmp_path, noise):
    """They recorded the kind of noise and 0.5 even where nobody had asked for it."""
    path = _save(tmp_path, train_x=X, train_y=Y, **{**TEST, "test_y": Y[:12]})
    settings = CoteachingObjective(load_data(path), n_epochs=2, device="cpu").settings
    recorded = json.loads(json.dumps(settings))
    recorded["data"] |= {"noise": noise, "noise_rate": 0.5}
    content = recorded["data"].pop("content")  # they did not record it
    again = CoteachingObjective.from_settings(recorded, device="cpu")
    recorded["data"]["content"] = content
    assert again.settings == recorded
    wrong = np.mean([_labels(again.data)[row.tobytes()] != y for row, y in zip(X, Y, strict=True)])
    assert (0.3 < wrong < 0.6) if noise == "symmetric" else (wrong == 0)


def test_a_file_that_has_changed_is_not_taken_for_that_of_the_settings(tmp_path):
    arrays = {"x": X, "y": Y, "x_val": X[:30], "y_val": Y[:30]}
    path = _save(tmp_path, **arrays)
    settings = CoteachingObjective(load_data(path), n_epochs=2, device="cpu").settings
    np.savez_compressed(path, **arrays, x_test=X[:9], y_test=Y[:9])  # test data may be added
    again = CoteachingObjective.from_settings(settings, device="cpu")
    assert again.settings == settings
    assert len(again.data.x_test) == 9
    for name in arrays:
        changed = {**arrays, name: np.roll(arrays[name], 1, axis=0)}
        np.savez(path, **changed)
        with pytest.raises(ValueError, match=r"\.npz' has changed: its training and validation"):
            CoteachingObjective.from_settings(settings, device="cpu")
        assert load_data(path).settings["content"] != settings["data"]["content"]


def test_noisy_validation_says_that_it_cannot_change_that_of_the_file(tmp_path):
    path = _save(tmp_path, x=X, y=NAMES, x_val=X[:30], y_val=NAMES[:30])
    message = f"validation 'noisy' changes nothing for {path!r}, which holds x_val"
    with pytest.warns(UserWarning, match=re.escape(message)):
        data = load_data(path, noise="pair", noise_rate=0.3, validation="noisy")
    assert data.decode(data.y_val).tolist() == NAMES[:30].tolist()


# --- splits ----------------------------------------------------------------------------------


def _plain_split(seed, n_validation):
    """Return which samples a random split holds out, computed beside the code."""
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    return np.sort(stream.permutation(N)[:n_validation])


def _held_out(data):
    position = {row.tobytes(): i for i, row in enumerate(X)}
    return np.array([position[row.tobytes()] for row in data.x_val.numpy()])


def test_a_random_split_that_leaves_no_class_out_is_kept(tmp_path):
    path = _save(tmp_path, train_x=X, train_y=NAMES, **TEST)
    kept = 0
    for seed in range(10):
        plain = _plain_split(seed, 12)
        held_out = _held_out(load_data(path, seed=seed))
        is_whole = len({*Y[plain]}) == 3
        assert np.array_equal(held_out, plain) == is_whole
        kept += is_whole
    assert kept > 5


@pytest.mark.parametrize("options", [{}, {"noise": "pair", "noise_rate": 0.4}])
def test_a_rare_class_is_on_both_sides_whatever_the_seed(tmp_path, options):
    names = NAMES.copy()
    names[[7, 50]] = "yak"
    path = _save(tmp_path, train_x=X, train_y=names, **TEST)
    n_plain = 0
    for seed in range(20):
        with warnings.catch_warnings():  # noise may take the only one of the training labels
            warnings.filterwarnings("ignore", "y of .* holds no sample")
            data = load_data(path, seed=seed, **options)
        held_out = _held_out(data)
        assert len(held_out) == 12
        assert len({7, 50} & {*held_out.tolist()}) == 1
        if np.array_equal(held_out, _plain_split(seed, 12)):
            n_plain += 1
        else:
            assert np.bincount(data.y_val, minlength=4)[:3].min() >= 3  # 11 of three equal classes
    assert 0 < n_plain < 20


def test_a_split_without_room_for_every_class_holds_as_many_as_it_can(tmp_path):
    path = _save(tmp_path, train_x=X, train_y=np.arange(N) // 2, test_x=X[:2], test_y=[0, 1])
    with pytest.warns(UserWarning, match=r"y_val of .*mine\.npz' holds no sample of the classes"):
        data = load_data(path)
    assert len(set(data.y_val.tolist())) == len(data.y_val) == 12
    assert len(set(data.noisy_labels.tolist())) == 60


@pytest.mark.parametrize("seed", range(8))
def test_the_only_sample_of_a_class_is_trained_on(tmp_path, seed):
    names = NAMES.copy()
    names[7] = "yak"
    path = _save(tmp_path, train_x=X, train_y=names, **TEST)
    message = "holds no sample of the classes ['yak']: the validation error knows nothing of them."
    with pytest.warns(UserWarning, match=re.escape(message)):
        data = load_data(path, seed=seed)
    assert data.decode(data.noisy_labels).tolist().count("yak") == 1


def test_a_class_that_the_file_itself_does_not_validate_is_reported(tmp_path):
    path = _save(tmp_path, x=X, y=NAMES, x_val=X[Y < 2], y_val=NAMES[Y < 2])
    with pytest.warns(UserWarning, match=re.escape("the classes ['emu']: the validation error")):
        data = load_data(path)
    assert data.classes == ("cat", "dog", "emu")


def test_a_class_that_the_file_does_not_train_on_is_refused(tmp_path):
    path = _save(tmp_path, x=X[Y < 2], y=NAMES[Y < 2], x_val=X, y_val=NAMES)
    with pytest.raises(ValueError, match=re.escape("y must hold every class, but ['emu'] are")):
        load_data(path)


def test_a_few_samples_leave_one_for_validation(tmp_path):
    path = _save(tmp_path, train_x=X[:6], train_y=[0, 1] * 3, test_x=X[:2], test_y=[0, 1])
    with pytest.warns(UserWarning, match="y_val of"):
        data = load_data(Path(path).name, root=tmp_path)
    assert (len(data.x), len(data.x_val)) == (5, 1)


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (NAMES, ("cat", "dog", "emu")),
        (NAMES.astype("S"), (b"cat", b"dog", b"emu")),
        (Y + 1, (1, 2, 3)),
        (Y[:, None].astype(float), (0, 1, 2)),
    ],
)
def test_labels_of_a_file_may_be_of_any_kind(tmp_path, labels, classes):
    data = load_data(_save(tmp_path, train_x=X, train_y=labels, test_x=X, test_y=labels))
    assert data.classes == classes
    np.testing.assert_array_equal(data.y_test, Y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_y": NAMES.astype(object)}, "=False. Save names as array.astype(str)."),
        ({"train_y": np.int64(3)}, "must have the same length above 0, but got 120 and 0."),
        ({"clean_labels": NAMES[:7]}, "train_y and clean_labels in"),
        ({"train_y": np.where(Y, Y, np.nan)}, "but 40 of 120 are missing, the first is y[0]"),
        ({"test_y": Y[:12]}, "Labels must be of one type, but got"),
        ({"train_x": X.astype(str)}, "x must hold numbers, but x[0, 0] is"),
    ],
)
def test_files_of_no_clear_meaning_are_named(tmp_path, changes, message):
    path = _save(tmp_path, **{"train_x": X, "train_y": NAMES, **TEST, **changes})
    with pytest.raises(ValueError, match=re.escape(message)):
        load_data(path)
