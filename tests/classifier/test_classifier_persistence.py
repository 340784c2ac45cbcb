"""Saved classifiers are the same when they are read again, and no file runs code."""

import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch import nn  # noqa: E402

from optuna_s2e import NoisyLabelClassifier  # noqa: E402

DATA = Path(__file__).parents[1] / "data"
RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, size=90)
X = RNG.normal(size=(90, 3)) + 2 * Y[:, None]
IMAGES = RNG.integers(0, 256, size=(30, 16, 16), dtype=np.uint8)


def fit(x, y, **arguments):
    given = {"n_epochs": 2, "batch_size": 32, "device": "cpu", "random_state": 0}
    return NoisyLabelClassifier(search=False, **{**given, **arguments}).fit(x, y)


def linear(shape, n_classes):
    return nn.Linear(shape[0], n_classes)


def test_everything_but_the_study_comes_back(tmp_path):
    model = fit(X, np.array(["a", "b", "c"])[Y], n_pairs=2)
    model.save(tmp_path / "model.npz")
    again = NoisyLabelClassifier.load(tmp_path / "model.npz")
    assert (again.predict_proba(X) == model.predict_proba(X)).all()
    assert again.predict(X).tolist() == model.predict(X).tolist()
    assert again.get_params() == {**model.get_params(), "random_state": None}
    assert (again.label_quality_ == model.label_quality_).all()
    assert (again.transition_matrix_ == model.transition_matrix_).all()
    assert again.noise_rate_ == model.noise_rate_
    low, high = again.noise_interval_
    assert (low, high) == model.noise_interval_
    assert 0 <= low <= model.noise_rate_ <= high <= 1
    assert again.schedule_ == model.schedule_
    assert (again.oof_proba_ == model.oof_proba_).all()
    assert again.find_label_errors(n=9).equals(model.find_label_errors(n=9))
    assert again.study_ is None
    with pytest.raises(ValueError, match="expecting 3 features"):
        again.predict(X[:, :2])
    again.save(tmp_path / "again.npz")


@pytest.mark.parametrize(
    ("x", "y"),
    [(IMAGES, Y[:30]), (RNG.normal(size=(30, 2, 3)), Y[:30] > 0), (X, Y + 0.0)],
    ids=["images", "signals", "float classes"],
)
def test_kinds_of_data(x, y, tmp_path):
    model = fit(x, y, noise_rate=0.1)
    model.save(tmp_path / "model.npz")
    again = NoisyLabelClassifier.load(tmp_path / "model.npz")
    assert (again.predict_proba(x) == model.predict_proba(x)).all()
    assert again.classes_.dtype == model.classes_.dtype
    assert again.classes_.tolist() == model.classes_.tolist()


def test_classes_that_are_objects(tmp_path):
    model = fit(X, np.array(["a", "b", "c"], dtype=object)[Y], noise_rate=0.1)
    model.save(tmp_path / "model.npz")
    assert NoisyLabelClassifier.load(tmp_path / "model.npz").classes_.tolist() == ["a", "b", "c"]


def test_a_file_without_out_of_fold_probabilities_is_read_as_it_was(tmp_path):
    """It was written before they were kept: the history and the matrix judge alone."""
    model = NoisyLabelClassifier.load(DATA / "classifier_v1.npz", network=linear)
    found = model.predict_proba([[0.0, 0.0], [4.0, 4.0]])
    np.testing.assert_allclose(
        found, [[0.230052, 0.374578, 0.39537], [0.184329, 0.464769, 0.350902]], atol=1e-5
    )
    quality = [0.41114028, 0.45713590, 0.43941217, 0.76022375]
    np.testing.assert_allclose(model.label_quality_[:4], quality, atol=1e-6)
    assert model.find_label_errors(n=3)["index"].tolist() == [9, 28, 29]
    assert model.oof_proba_ is None
    model.save(tmp_path / "again.npz")
    again = NoisyLabelClassifier.load(tmp_path / "again.npz", network=linear)
    assert (again.label_quality_ == model.label_quality_).all()


def test_names_of_columns_come_back(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    fit(frame, Y, noise_rate=0.1).save(tmp_path / "model.npz")
    again = NoisyLabelClassifier.load(tmp_path / "model.npz")
    assert again.feature_names_in_.tolist() == ["a", "b", "c"]
    assert len(again.find_label_errors(n=4)) == 4


def test_a_network_function_is_given_again(tmp_path):
    path = tmp_path / "model.npz"
    model = fit(X, Y, network=linear, noise_rate=0.1)
    model.save(path)
    again = NoisyLabelClassifier.load(path, network=linear)
    assert (again.predict_proba(X) == model.predict_proba(X)).all()
    with pytest.raises(ValueError, match=r"network must be the function '\S*linear'"):
        NoisyLabelClassifier.load(path)
    with pytest.raises(ValueError, match="saved weights do not fit"):
        NoisyLabelClassifier.load(path, network=lambda shape, c: nn.Sequential(linear(shape, c)))
    fit(X, Y, noise_rate=0.1).save(path)
    with pytest.raises(ValueError, match="network must be left out: it was fitted with 'table'"):
        NoisyLabelClassifier.load(path, network=linear)


class _Trap:
    def __reduce__(self):
        return (print, ("code of the file ran",))


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps(_Trap())], ids=range(3))
def test_other_files_are_refused_and_run_no_code(content, tmp_path, capsys):
    path = tmp_path / "model.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="must be a file that save\\(\\) wrote"):
        NoisyLabelClassifier.load(path)
    np.savez(path, document=np.array([_Trap()]))
    with pytest.raises(ValueError, match="must be a file that save\\(\\) wrote"):
        NoisyLabelClassifier.load(path)
    assert "code of the file ran" not in capsys.readouterr().out


def test_a_file_that_lacks_arrays_is_damaged(tmp_path):
    path = tmp_path / "model.npz"
    fit(X, Y, noise_rate=0.1).save(path)
    content = dict(np.load(path))
    for lost in ("labels", "samples 0 rival"):
        np.savez(path, **{name: array for name, array in content.items() if name != lost})
        with pytest.raises(ValueError, match=r"model.npz' is damaged"):
            NoisyLabelClassifier.load(path)


def test_others_may_read_a_saved_model(tmp_path):
    path = tmp_path / "model.npz"
    fit(X, Y, noise_rate=0.1).save(path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    fit(X, Y, noise_rate=0.1).save(path)
    before = path.read_bytes()
    broken = fit(X, Y, noise_rate=0.1)
    broken.budget = object()  # JSON cannot hold it
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    with pytest.raises(FileNotFoundError):
        NoisyLabelClassifier.load(tmp_path / "none.npz")


def test_places_where_no_file_can_be_are_told(tmp_path):
    model = fit(X, Y, noise_rate=0.1)
    with pytest.raises(IsADirectoryError, match=r"path must be a file, but '.*' is a folder"):
        model.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no folder '.*none'. Make it first"):
        model.save(tmp_path / "none" / "model.npz")
    assert list(tmp_path.iterdir()) == []
