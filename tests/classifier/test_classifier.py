"""`NoisyLabelClassifier`: what it learns, what it takes and refuses, inside scikit-learn."""

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pd = pytest.importorskip("pandas")

from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

from optuna_s2e import NoisyLabelClassifier, suggested_schedule  # noqa: E402


def make_data(n=400, seed=0, rate=0.25):
    """Return rows, given and true labels: two clusters, which a line divides in 98 % of rows."""
    rng = np.random.default_rng(seed)
    is_yes = rng.random(n) < 0.5
    x = rng.normal(size=(n, 4))
    x[:, :2] += np.where(is_yes, 1.5, -1.5)[:, None]
    true = np.where(is_yes, "yes", "no")
    flipped = np.where(true == "yes", "no", "yes")
    return x, np.where(rng.random(n) < rate, flipped, true), true


def quick(**arguments):
    given = {"search": False, "n_epochs": 6, "batch_size": 32, "learning_rate": 5e-3}
    return NoisyLabelClassifier(**{"device": "cpu", "random_state": 0, **given, **arguments})


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def fitted(data):
    return quick().fit(data[0], data[1])


def test_it_predicts_true_labels_and_lists_the_wrong_ones(data, fitted):
    x, y, true = data
    assert fitted.classes_.tolist() == ["no", "yes"]
    assert fitted.score(x, true) > 0.92
    wrong = y != true
    assert wrong[fitted.label_quality_.argsort()[: wrong.sum()]].mean() > 0.8
    assert abs(fitted.noise_rate_ - 0.25) < 0.12
    np.testing.assert_allclose(fitted.transition_matrix_.sum(axis=1), 1)


def test_networks_that_have_not_seen_a_sample_predict_it(data, fitted):
    _, y, true = data
    assert fitted.oof_proba_.shape == (400, 2)
    np.testing.assert_allclose(fitted.oof_proba_.sum(axis=1), 1)
    named = fitted.classes_[fitted.oof_proba_.argmax(axis=1)]
    assert (named == true).mean() > 0.9
    assert (named == y).mean() < 0.85  # nothing of the wrong labels is learned by heart


def test_of_classes_too_rare_for_folds_nothing_is_known_out_of_fold(data):
    x, y, _ = data
    y = np.where(np.arange(400) < 2, "maybe", y)
    model = quick().fit(x, y)
    assert np.isnan(model.oof_proba_[:2]).all()
    assert np.isfinite(model.oof_proba_[2:]).all()
    assert np.isfinite(model.label_quality_).all()


def test_without_a_search_the_suggested_schedule_is_trained(fitted):
    expected = suggested_schedule(6, fitted.noise_rate_)
    assert fitted.schedule_ == expected
    assert fitted.study_ is None


def test_a_given_noise_rate_is_not_estimated(data):
    model = quick(noise_rate=0.2, n_epochs=2).fit(data[0], data[1])
    assert model.noise_rate_ == 0.2
    assert model.transition_matrix_ is None
    assert model.oof_proba_ is None


def test_a_search_trains_budget_schedules_and_recommends_one(data):
    model = quick(search=True, budget=4, n_epochs=3).fit(data[0], data[1])
    assert len(model.study_.trials) == 4
    assert model.schedule_.n_epochs == 3
    for trial in model.study_.trials:  # 320 of 400 samples, 80 are held out
        assert trial.value == pytest.approx(round(trial.value * 160) / 160, abs=1e-5)


def test_numbers_repeat_bit_for_bit(data):
    x, y, _ = data
    first, second = (quick(search=True, budget=3, n_epochs=2).fit(x, y) for _ in range(2))
    assert (first.predict_proba(x) == second.predict_proba(x)).all()
    assert (first.label_quality_ == second.label_quality_).all()
    other = quick(search=True, budget=3, n_epochs=2).set_params(random_state=1).fit(x, y)
    assert (first.predict_proba(x) != other.predict_proba(x)).any()


def test_several_pairs_are_averaged(data):
    x, y, _ = data
    model = quick(n_pairs=2, n_epochs=2, noise_rate=0.2).fit(x, y)
    one = quick(n_epochs=2, noise_rate=0.2).fit(x, y)
    nets = model._networks
    assert len(nets) == 4
    inputs = model._encoder.encode(x).double()
    with torch.no_grad():
        expected = sum(net(inputs).softmax(dim=1) for net in nets) / 4
        of_one = sum(net(inputs).softmax(dim=1) for net in nets[:2]) / 2
    np.testing.assert_allclose(model.predict_proba(x), expected.numpy(), atol=1e-12)
    np.testing.assert_allclose(one.predict_proba(x), of_one.numpy(), atol=1e-12)


def test_it_works_in_pipelines_grids_and_cross_validation(data):
    x, y, _ = data
    model = quick(noise_rate=0.2, n_epochs=2)
    pipeline = make_pipeline(StandardScaler(), model)
    assert cross_val_score(pipeline, x, y, cv=2).shape == (2,)
    grid = GridSearchCV(model, {"batch_size": [32, 64]}, cv=2).fit(x, y)
    assert grid.best_params_["batch_size"] in (32, 64)
    assert clone(model).get_params() == model.get_params()


def test_a_fitted_model_travels_to_processes(data, fitted):
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.predict_proba(data[0]) == fitted.predict_proba(data[0])).all()


def test_data_frames_with_categories_and_holes(data):
    pd = pytest.importorskip("pandas")
    x, y, true = data
    side = (
        pd.Series(np.where(x[:, 0] > 0, "right", "left")).where(x[:, 2] < 1.5).astype("category")
    )
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "side": side, "flag": x[:, 3] > 0})
    model = quick().fit(frame, pd.Series(y))
    assert model.feature_names_in_.tolist() == ["a", "b", "side", "flag"]
    assert model.score(frame, true) > 0.9
    errors = model.find_label_errors(n=20)
    assert [*errors] == ["index", "given_label", "suggested_label", "quality", "evidence"]
    assert errors["given_label"].tolist() == y[errors["index"]].tolist()
    assert (y != true)[errors["index"]].mean() > 0.8
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"a": "z"}))


def test_the_list_is_as_long_as_the_noise_says(data, fitted):
    pytest.importorskip("pandas")
    assert len(fitted.find_label_errors()) == round(400 * fitted.noise_rate_)
    assert (fitted.find_label_errors(threshold=0.1)["quality"] < 0.1).all()


def test_images_of_any_layout_are_the_same_to_it():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    images = (rng.integers(0, 60, size=(60, 3, 16, 18)) + 150 * y[:, None, None, None]).astype(
        "u1"
    )
    first = quick(noise_rate=0.1, n_epochs=3).fit(images, y)
    last = quick(noise_rate=0.1, n_epochs=3).fit(images.transpose(0, 2, 3, 1), y)
    assert first._network == "cnn2"
    assert (first.predict_proba(images) == last.predict_proba(images.transpose(0, 2, 3, 1))).all()


def test_data_sets_hold_inputs_and_labels(data):
    x, y, _ = data
    numbers = (y == "yes").astype(int)
    items = TensorDataset(torch.tensor(x), torch.tensor(numbers))
    model = quick(n_epochs=2, noise_rate=0.2).fit(items)
    assert model.classes_.tolist() == [0, 1]
    same = quick(n_epochs=2, noise_rate=0.2).fit(x, numbers)
    assert (model.predict(items) == same.predict(x)).all()


def test_a_network_of_ones_own(data):
    x, y, true = data
    seen = []

    def make(shape, n_classes):
        seen.append((shape, n_classes))
        return nn.Linear(shape[0], n_classes)

    assert quick(network=make, noise_rate=0.2).fit(x, y).score(x, true) > 0.9
    assert set(seen) == {((32,), 2)}


def test_tokens_need_a_network_that_begins_with_an_embedding():
    ids, y = torch.arange(120).view(40, 3) % 7, np.arange(40) % 2
    with pytest.raises(ValueError, match="begins with an embedding"):
        quick(noise_rate=0.1).fit(ids, y)

    def make(shape, n_classes):
        return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(4 * shape[0], n_classes))

    assert quick(network=make, noise_rate=0.1, n_epochs=2).fit(ids, y).predict(ids).shape == (40,)


def test_clean_validation_data_are_used(data):
    x, y, _ = data
    x_val, _, y_val = make_data(seed=5)
    model = quick(search=True, budget=2, n_epochs=2).fit(x, y, x_val, y_val)
    held_out = quick(search=True, budget=2, n_epochs=2).fit(x, y)
    assert model.study_.trials[0].value != held_out.study_.trials[0].value
    with pytest.raises(ValueError, match="y_val must hold classes of y, but holds 'maybe'"):
        quick().fit(x, y, x_val[:2], ["yes", "maybe"])
    with pytest.raises(ValueError, match="y_val is missing"):
        quick().fit(x, y, x_val)


def test_rare_classes_do_not_stop_a_fit(data):
    x, y, _ = data
    y = y.astype(object)
    y[0] = "once"
    model = quick(search=True, budget=2, n_epochs=2).fit(x, y)
    assert model.classes_.tolist() == ["no", "once", "yes"]


def test_too_few_samples_for_an_estimate_warn_and_count_as_clean():
    x, y, _ = make_data(20)
    with pytest.warns(UserWarning, match="cannot be estimated from 20 samples"):
        model = quick(n_epochs=2).fit(x, y)
    assert model.noise_rate_ == 0.0
    assert (model.schedule_.keep_rates == 1).all()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", "b", None, "a"] * 5, "5 of 20 are missing"),
        (["a", "b"], "inconsistent numbers of samples"),
    ],
)
def test_labels_that_are_no_classes_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(np.random.default_rng(0).normal(size=(20, 2)), np.array(y, dtype=object))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": "12"}, "budget must be a number of trainings or a time"),
        ({"budget": 0}, "budget must be an int of at least 1"),
        ({"n_epochs": 1}, "n_epochs must be an int of at least 2"),
        ({"noise_rate": 1.0}, "noise_rate must be a number in"),
        ({"validation_fraction": 1.0}, "validation_fraction must be a number in"),
        ({"n_pairs": -1}, "n_pairs must be an int of at least 0"),
        ({"network": "mpl"}, "network must be one of"),
        ({"device": "gpu"}, "device must be one that torch knows"),
        ({"batch_size": 0}, "batch_size must be an int of at least 1"),
        ({"learning_rate": 0}, "learning_rate must be"),
        ({"storage": "s2e.db", "search": True}, "url"),
    ],
)
def test_arguments_out_of_range_are_refused(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        quick(**arguments).fit(data[0], data[1])


def test_a_training_that_diverges_says_what_may_help(data):
    with pytest.raises(ValueError, match="smaller learning_rate than 1e\\+30"):
        quick(learning_rate=1e30, noise_rate=0.2).fit(data[0], data[1])


def test_a_network_that_does_not_suit_the_data_is_told_as_it_is(data):
    for network, message in {
        "mpl": r"network must be one of .*, but got 'mpl'\.\n",
        "cnn2": r"network 'cnn2' needs inputs .*, but got \(32,\)\. Take 'mlp' or a network ",
    }.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            quick(network=network, noise_rate=0.2).fit(*data[:2])

    def broken(shape, n_classes):
        return nn.Linear(shape[0] + 1, n_classes)

    with pytest.raises(RuntimeError, match=r"^mat1 and mat2 shapes cannot be multiplied"):
        quick(network=broken, noise_rate=0.2).fit(*data[:2])


def test_masked_entries_are_missing_ones():
    x, y, _ = make_data(60)
    model = quick(n_epochs=2, noise_rate=0.2).fit(x, y)
    masked = np.ma.masked_array(x, mask=np.abs(x) > 1)
    of_missing = model.predict_proba(masked.filled(np.nan))
    assert np.array_equal(model.predict_proba(masked), of_missing)
    assert not np.array_equal(of_missing, model.predict_proba(x))
    whole = np.ma.masked_array(x, mask=False)
    assert np.array_equal(model.predict_proba(whole), model.predict_proba(x))
    for labels in (y, (y == "yes").astype(int)):
        with pytest.raises(ValueError, match="15 of 60 are missing"):
            quick().fit(x, np.ma.masked_array(labels, mask=[True, False, False, False] * 15))
