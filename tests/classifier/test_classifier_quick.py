"""`NoisyLabelClassifier(n_pairs=0)`: the networks of the estimate are the model."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pd = pytest.importorskip("pandas")

from sklearn.base import clone  # noqa: E402

from optuna_s2e import NoisyLabelClassifier  # noqa: E402
from optuna_s2e.classifier._defaults import quick_epochs, training_config  # noqa: E402


def make_data(n=400, rate=0.25):
    """Return rows, given and true labels: two clusters, which a line divides in 98 % of rows."""
    rng = np.random.default_rng(0)
    is_yes = rng.random(n) < 0.5
    x = rng.normal(size=(n, 4))
    x[:, :2] += np.where(is_yes, 1.5, -1.5)[:, None]
    true = np.where(is_yes, "yes", "no")
    flipped = np.where(is_yes, "no", "yes")
    return x, np.where(rng.random(n) < rate, flipped, true), true


X, Y, TRUE = make_data()


def quick(**arguments):
    given = {"n_pairs": 0, "search": False, "device": "cpu", "random_state": 0, **arguments}
    return NoisyLabelClassifier(**given)


@pytest.fixture(scope="module")
def fitted():
    return quick().fit(X, Y)


def test_it_predicts_true_labels_and_lists_the_wrong_ones(fitted):
    assert fitted.score(X, TRUE) > 0.92
    wrong = fitted.find_label_errors(n=60)
    assert (Y != TRUE)[wrong["index"]].mean() > 0.85
    assert wrong["evidence"].str.startswith("networks that were not trained on it give").all()
    assert abs(fitted.noise_rate_ - 0.25) < 0.12
    assert fitted.study_ is None


def test_the_model_is_the_mean_of_the_networks_of_the_estimate(fitted):
    """Each row's out-of-fold probabilities are those of one of the three pairs of the model."""
    assert len(fitted._networks) == 6
    x = fitted._encoder.encode(X).double()
    with torch.no_grad():
        every = torch.stack([net(x).log_softmax(dim=1) for net in fitted._networks])
    pairs = every.view(3, 2, len(X), 2).mean(dim=1).softmax(dim=2).numpy()
    own = np.abs(pairs - fitted.oof_proba_).max(axis=2).min(axis=0)
    assert own.max() < 1e-5
    expected = every.exp().mean(dim=0).numpy()
    np.testing.assert_allclose(fitted.predict_proba(X), expected, rtol=1e-9)


def test_its_epochs_are_those_of_the_estimate(fitted):
    assert fitted.schedule_.keep_rates.tolist() == [1.0] * 5
    assert quick().fit(X[:80], Y[:80]).schedule_.n_epochs == 20
    longer = quick(n_epochs=7).fit(X, Y)
    assert longer.schedule_.n_epochs == 7
    assert not np.array_equal(longer.oof_proba_, fitted.oof_proba_)


def test_it_repeats_and_survives_a_file(fitted, tmp_path):
    again = clone(fitted).fit(X, Y)
    fitted.save(tmp_path / "model.npz")
    loaded = NoisyLabelClassifier.load(tmp_path / "model.npz")
    for other in (again, loaded):
        np.testing.assert_array_equal(other.predict_proba(X), fitted.predict_proba(X))
        np.testing.assert_array_equal(other.label_quality_, fitted.label_quality_)
        assert other.find_label_errors().equals(fitted.find_label_errors())


def test_clean_labels_calibrate_it():
    model = quick().fit(X[:300], Y[:300], X[300:], TRUE[300:])
    assert model.temperature_ != 1.0
    assert model.score(X, TRUE) > 0.92


def test_a_class_of_one_sample_is_known_and_its_label_is_trusted():
    y = Y.astype(object)
    y[0] = "maybe"
    model = quick().fit(X, y)
    assert model.predict_proba(X).shape == (400, 3)
    assert model.label_quality_[0] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search": True}, "search must be False if n_pairs is 0, but got True"),
        ({"noise_rate": 0.2}, "noise_rate must be None if n_pairs is 0, but got 0.2"),
        ({"n_pairs": -1}, "n_pairs must be an int of at least 0, but got -1"),
    ],
)
def test_what_has_no_meaning_without_a_pair_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quick(**arguments).fit(X, Y)


def test_a_pair_is_trained_if_there_are_too_few_samples_for_the_estimate():
    with pytest.warns(UserWarning, match="cannot be estimated from 20 samples.* n_pairs of at"):
        model = quick().fit(X[:20], TRUE[:20])
    assert (len(model._networks), model.noise_rate_, model.oof_proba_) == (2, 0.0, None)
    assert model.score(X, TRUE) > 0.9
    assert np.isfinite(model.label_quality_).all()


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(10_000, 256, 5), (400, 8, 5), (200, 8, 9), (30, 8, 20), (2, 8, 20)],
)
def test_few_samples_get_as_many_steps_as_many(n, size, expected):
    assert quick_epochs("table", n, size) == expected  # 130 steps, of two thirds of the samples


def test_larger_mini_batches_of_tables_have_a_larger_learning_rate():
    config = training_config("table", 10_000, None, None, is_quick=True)
    assert config.batch_size == 256
    assert config.learning_rate == pytest.approx(2e-3 * 2**0.5)
    for network, n, size in (("table", 5_000, 128), ("cnn2", 10_000, 128)):
        config = training_config(network, n, None, None, is_quick=True)
        assert config == training_config(network, n, None, None)
        assert config.batch_size == size
    assert training_config("table", 10_000, 512, None).learning_rate == 2e-3
    assert training_config("table", 10_000, None, 0.1, is_quick=True).learning_rate == 0.1


@pytest.mark.parametrize("n_pairs", [0, 1])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 1e30}, r"^The training failed: .* A smaller learning_rate than 1e\+30"),
        ({"network": "resnet99"}, "^network must be one of .* but got 'resnet99'"),
        ({"network": lambda shape, n: torch.nn.Linear(4, 9)}, "A training failed: "),
    ],
)
def test_a_training_that_fails_in_the_estimate_is_explained(arguments, message, n_pairs):
    with pytest.raises(ValueError, match=message) as caught:
        quick(n_pairs=n_pairs, **arguments).fit(X, Y)
    error, behind = caught.value, []
    while error is not None and error not in behind:
        behind.append(error)
        error = error.__cause__ or error.__context__
    assert error is None  # nothing is its own cause


def test_columns_of_one_name_are_refused():
    frame = pd.DataFrame(X, columns=["a", "b", "a", "c"])
    with pytest.raises(
        ValueError, match=r"^X must have another name for each column, but 2 are called 'a'"
    ):
        quick().fit(frame, Y)
