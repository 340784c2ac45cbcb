"""Estimates of the noise against labels whose noise is known."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, make_gaussian_quantiles
from torch import nn

from optuna_s2e.coteaching import NoisyData, TrainingConfig, estimate_noise, load_data
from optuna_s2e.coteaching._noise_estimate import (
    _by_anchors,
    _by_clean_labels,
    _maximize_likelihood,
)
from optuna_s2e.coteaching.data import to_input
from optuna_s2e.label_noise import flip_labels, transition_matrix

CLASS_DEPENDENT = np.array([[0.9, 0.1, 0.0], [0.0, 0.6, 0.4], [0.25, 0.25, 0.5]])


def _predictions(
    rng: np.random.Generator, n: int, sharpness: float = 2.0, n_classes: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Draw true classes (n,) and log-odds (n, C) that name class 0 too often."""
    z = rng.integers(0, n_classes, n)
    odds = sharpness * np.eye(n_classes)[z] + rng.normal(size=(n, n_classes))
    odds[:, 0] += 1.0
    return z, odds - odds.mean(axis=1, keepdims=True)


def test_em_finds_the_matrix_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    q = rng.dirichlet([0.3, 0.3, 0.3], size=40_000)
    z = (q.cumsum(axis=1) < rng.random(len(q))[:, None]).sum(axis=1)
    y = flip_labels(z, CLASS_DEPENDENT, rng)
    order = np.argsort(y, kind="stable")
    found = _maximize_likelihood(q[order], y[order], np.ones(len(y)))
    np.testing.assert_allclose(found.matrix, CLASS_DEPENDENT, atol=0.02)
    np.testing.assert_allclose(found.shares, np.bincount(z) / len(z), atol=0.01)
    assert found.noise_rate == pytest.approx((y != z).mean(), abs=0.01)


def test_weights_count_like_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    q = rng.dirichlet([0.3, 0.3, 0.3], size=200)
    y, weights = np.sort(rng.integers(0, 3, 200)), rng.integers(0, 3, 200)
    weighted = _maximize_likelihood(q, y, weights.astype(float))
    repeated = _maximize_likelihood(
        q.repeat(weights, axis=0), y.repeat(weights), np.ones(sum(weights))
    )
    np.testing.assert_allclose(weighted.matrix, repeated.matrix, atol=1e-9)
    np.testing.assert_allclose(weighted.shares, repeated.shares, atol=1e-9)


def test_errors_of_the_networks_do_not_count_as_wrong_labels() -> None:
    rng = np.random.default_rng(2)
    z, odds = _predictions(rng, 3000)
    y = flip_labels(z, CLASS_DEPENDENT, rng)
    z_val, odds_val = _predictions(rng, 600)
    found = _by_clean_labels([odds[None]], y, [odds_val[None]], z_val, rng)
    rate = (y != z).mean()
    assert (odds.argmax(axis=1) != z).mean() > 0.15
    assert (odds.argmax(axis=1) != y).mean() > rate + 0.07
    assert found.noise_rate == pytest.approx(rate, abs=0.03)
    np.testing.assert_allclose(found.transition_matrix.sum(axis=1), 1.0)
    assert (np.abs(found.transition_matrix - CLASS_DEPENDENT) < 4 * found.deviations + 0.01).all()
    assert found.used_clean_labels


def test_labels_are_explained_by_networks_as_the_regression_has_seen_them() -> None:
    rng = np.random.default_rng(5)
    z, z_val = rng.integers(0, 3, 6000), rng.integers(0, 3, 1500)
    y = flip_labels(z, CLASS_DEPENDENT, rng)
    each = np.eye(3)[z] + rng.normal(size=(3, 6000, 3))  # weak networks: a mean is sharper
    of_fold = np.eye(3)[z_val] + rng.normal(size=(1500, 3))
    odds_val = np.broadcast_to(of_fold, (3, 1500, 3))
    found = _by_clean_labels([each], y, [odds_val], z_val, rng)
    mean = np.broadcast_to(each.mean(axis=0), each.shape)
    by_mean = _by_clean_labels([mean], y, [odds_val], z_val, rng)
    rate = (y != z).mean()
    assert found.noise_rate == pytest.approx(rate, abs=0.04)
    assert by_mean.noise_rate < found.noise_rate - 0.05  # what three at once would say
    assert (found.probabilities.argmax(axis=1) == z).mean() > 0.7  # the mean of all three


def test_intervals_hold_the_rate_as_often_as_they_say() -> None:
    held, widths = 0, []
    for seed in range(20):
        rng = np.random.default_rng([3, seed])
        z, odds = _predictions(rng, 1000)
        y = flip_labels(z, CLASS_DEPENDENT, rng)
        z_val, odds_val = _predictions(rng, 200)
        low, high = _by_clean_labels([odds[None]], y, [odds_val[None]], z_val, rng).interval
        held += low <= (y != z).mean() <= high
        widths.append(high - low)
    assert held >= 16  # 19 on average, if 95 % hold it
    assert np.median(widths) < 0.25


def test_anchor_points_give_the_matrix_or_an_upper_bound() -> None:
    rng = np.random.default_rng(4)
    z, sharp = _predictions(rng, 5000, sharpness=6.0)
    y = flip_labels(z, CLASS_DEPENDENT, rng)
    rate = (y != z).mean()
    found = _by_anchors(sharp, y, rng)
    assert found.noise_rate == pytest.approx(rate, abs=0.03)
    np.testing.assert_allclose(found.transition_matrix, CLASS_DEPENDENT, atol=0.06)
    assert not found.used_clean_labels
    z, blunt = _predictions(rng, 5000, sharpness=1.0)
    y = flip_labels(z, transition_matrix("symmetric", 0.3, 3), rng)
    assert _by_anchors(blunt, y, rng).noise_rate > 0.35


@pytest.mark.parametrize(
    ("noise", "rate", "n_epochs"), [("none", 0.0, 6), ("symmetric", 0.5, 12), ("pair", 0.4, 12)]
)
def test_the_noise_of_the_digits_is_found(noise: str, rate: float, n_epochs: int) -> None:
    data = load_data("digits", noise=noise, noise_rate=rate, seed=1)
    assert data.clean_labels is not None
    true = (data.noisy_labels != data.clean_labels).double().mean().item()
    found = estimate_noise(data, n_epochs=n_epochs, device="cpu")
    assert found.noise_rate == pytest.approx(true, abs=0.03)
    assert found.interval[0] - 0.01 <= true <= found.interval[1] + 0.01
    matrix = transition_matrix(noise, rate, 10)
    assert np.abs(found.transition_matrix - matrix).mean() < 0.03
    unaided = estimate_noise(data, n_epochs=6, device="cpu", clean_validation=False)
    assert unaided.noise_rate == pytest.approx(true, abs=0.12)
    assert str(unaided).endswith("estimated without clean labels)")


def test_noisy_validation_labels_are_noticed() -> None:
    data = load_data("digits", noise="symmetric", noise_rate=0.4, seed=0, validation="noisy")
    with pytest.warns(UserWarning, match="or the validation labels are as wrong as"):
        estimate_noise(data, n_epochs=6, device="cpu", clean_validation=True)
    assert not estimate_noise(data, n_epochs=2, device="cpu").used_clean_labels  # data know it


def _breast_cancer(rate: float, seed: int) -> NoisyData:
    x, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    x, y = ((x - x.mean(axis=0)) / x.std(axis=0))[order], y[order]
    noisy = flip_labels(y[150:], transition_matrix("symmetric", rate, 2), rng)
    return NoisyData.from_arrays(x[150:], noisy, x[:150], y[:150], clean_labels=y[150:])


def test_the_same_seed_gives_the_same_numbers() -> None:
    data = _breast_cancer(0.3, seed=0)
    first, again, other = (
        estimate_noise(data, n_epochs=3, device="cpu", seed=seed) for seed in (0, 0, 1)
    )
    assert (first.noise_rate, first.interval) == (again.noise_rate, again.interval)
    np.testing.assert_array_equal(first.transition_matrix, again.transition_matrix)
    assert first.noise_rate != other.noise_rate


def test_weak_networks_on_classes_around_each_other_do_not_hide_wrong_labels() -> None:
    x, y = make_gaussian_quantiles(n_samples=2000, n_features=6, n_classes=4, random_state=41)
    y, rng = y.astype(np.int64), np.random.default_rng(0)
    noisy = flip_labels(y[400:], transition_matrix("pair", 0.4, 4), rng)
    data = NoisyData.from_arrays(
        x[400:].astype(np.float32), noisy, x[:400].astype(np.float32), y[:400]
    )
    found = estimate_noise(data, config=TrainingConfig(batch_size=64), device="cpu")
    true = (noisy != y[400:]).mean()
    assert found.noise_rate == pytest.approx(true, abs=0.05)
    assert found.interval[0] <= true <= found.interval[1]


def test_two_classes_with_half_of_their_labels_wrong_are_told_by_the_clean_ones() -> None:
    data = _breast_cancer(0.49, seed=1)
    assert data.clean_labels is not None
    true = (data.noisy_labels != data.clean_labels).double().mean().item()
    found = estimate_noise(data, config=TrainingConfig(batch_size=64), device="cpu")
    assert found.noise_rate == pytest.approx(true, abs=0.05)
    assert found.interval[0] <= true <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.2


def test_without_clean_labels_the_interval_begins_where_doubts_explain_all() -> None:
    rng = np.random.default_rng(4)
    q = rng.dirichlet([1.0, 1.0, 1.0], size=5000)
    z = (q.cumsum(axis=1) < rng.random(len(q))[:, None]).sum(axis=1)
    y = flip_labels(z, transition_matrix("symmetric", 0.3, 3), rng)
    log_q = np.log(q)
    found = _by_anchors(log_q - log_q.mean(axis=1, keepdims=True), y, rng)
    assert found.noise_rate > 0.32  # the networks' errors count as wrong labels
    assert found.interval[0] == pytest.approx((y != z).mean(), abs=0.03)  # the doubts are right


@pytest.mark.parametrize("clean_validation", [True, False])
def test_classes_of_one_or_two_samples_do_no_harm(clean_validation: bool) -> None:
    digits = load_data("digits", noise="pair", noise_rate=0.3, seed=0)
    y = digits.noisy_labels.numpy().copy()
    y[:3] = 10, 10, 11
    with pytest.warns(UserWarning, match=r"no sample of the classes \[10, 11\]"):
        data = NoisyData.from_arrays(digits.x, y, digits.x_val, digits.y_val, n_classes=12)
    found = estimate_noise(data, n_epochs=6, device="cpu", clean_validation=clean_validation)
    assert found.noise_rate == pytest.approx(0.3, abs=0.1)
    np.testing.assert_allclose(found.transition_matrix.sum(axis=1), 1.0)


def test_probabilities_are_of_networks_that_have_not_seen_the_sample() -> None:
    data = load_data("digits", noise="symmetric", noise_rate=0.3, seed=0)
    assert data.clean_labels is not None
    found = estimate_noise(data, n_epochs=6, device="cpu", config=TrainingConfig(64, 1e-2))
    assert found.probabilities.shape == (len(data.x), 10)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0)
    named = found.probabilities.argmax(axis=1)
    assert (named == data.clean_labels.numpy()).mean() > 0.8
    assert (named == data.noisy_labels.numpy()).mean() < 0.7


def test_clean_labels_calibrate_the_probabilities() -> None:
    """They name the true class as often as they say."""
    data = load_data("digits", noise="symmetric", noise_rate=0.4, seed=0)
    assert data.clean_labels is not None
    true, surely = data.clean_labels.numpy(), {}
    for clean in (True, False):
        found = estimate_noise(data, n_epochs=6, device="cpu", clean_validation=clean)
        p = found.probabilities
        surely[clean] = p.max(axis=1).mean() - (p.argmax(axis=1) == true).mean()
    assert abs(surely[True]) < 0.05
    assert surely[False] < -0.2  # networks that learn wrong labels doubt too much


class _Counting(nn.Module):
    """A linear network that counts the samples that it is evaluated on."""

    n_evaluated = 0

    def __init__(self, n_inputs: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _Counting.n_evaluated += 0 if self.training else len(x)
        out: torch.Tensor = self.linear(x)
        return out


@pytest.mark.filterwarnings("ignore:Where they are surest")
def test_trainings_are_not_measured_on_data_that_nobody_looks_at() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    data = NoisyData.from_arrays(x[:200], y[:200], x[200:], y[200:])
    _Counting.n_evaluated = 0
    estimate_noise(data, network=lambda shape, n: _Counting(shape[0], n), n_epochs=6, device="cpu")
    # each of 12 networks predicts one part and a third of the other
    predictions = 12 * (200 + 200 / 3)
    assert predictions <= _Counting.n_evaluated < 2 * predictions


def test_too_few_samples_for_the_folds_are_refused() -> None:
    x, y = np.eye(4, dtype=np.float32), np.array([0, 1])
    data = NoisyData.from_arrays(x[:2], y, x[2:], y)
    with pytest.raises(ValueError, match="data must hold at least 3 samples, but got 2"):
        estimate_noise(data, device="cpu")


def test_an_unknown_network_is_refused_before_anything_is_trained(tiny: NoisyData) -> None:
    shown: list[int] = []
    with pytest.raises(ValueError, match=r"network must be one of .* but got 'mpl'"):
        estimate_noise(tiny, network="mpl", device="cpu", progress=lambda n, _: shown.append(n))
    assert not shown


@pytest.mark.parametrize("clean_validation", [True, False])
def test_of_a_class_without_samples_nothing_is_said(clean_validation: bool) -> None:
    digits = load_data("digits", noise="pair", noise_rate=0.3, seed=0)
    with pytest.warns(UserWarning, match=r"no sample of the classes \[10, 11\]"):
        data = NoisyData.from_arrays(
            digits.x, digits.noisy_labels, digits.x_val, digits.y_val, n_classes=12
        )
    found = estimate_noise(data, n_epochs=2, device="cpu", clean_validation=clean_validation)
    np.testing.assert_array_equal(found.transition_matrix[10:], np.eye(12)[10:])
    np.testing.assert_array_equal(found.deviations[10:], 0.0)


def test_one_epoch_is_refused_by_the_name_of_the_argument(tiny: NoisyData) -> None:
    with pytest.raises(ValueError, match="n_epochs must be an int of at least 2, but got 1"):
        estimate_noise(tiny, n_epochs=1, device="cpu")


def test_a_training_that_fails_says_why(tiny: NoisyData) -> None:
    def network(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        layer = nn.Linear(input_shape[0], n_classes)
        layer.weight.data.fill_(torch.inf)
        return layer

    with pytest.raises(ValueError, match=r"A training failed: .* non-finite"):
        estimate_noise(tiny, network=network, device="cpu")


def test_networks_of_the_estimate_are_returned_if_they_are_asked_for() -> None:
    data = load_data("digits", noise="symmetric", noise_rate=0.3, seed=0)
    kinds = {"device": "cpu", "n_epochs": 2, "clean_validation": False}
    found = estimate_noise(data, keep_networks=True, **kinds)
    plain = estimate_noise(data, **kinds)
    assert (len(found.networks), plain.networks) == (6, ())
    np.testing.assert_array_equal(found.probabilities, plain.probabilities)
    with torch.no_grad():
        every = torch.stack([net(to_input(data.x, torch.float32)) for net in found.networks])
    pairs = every.log_softmax(dim=2).view(3, 2, *every.shape[1:]).mean(dim=1).softmax(dim=2)
    # each sample is predicted by the one pair that was not trained on it
    off = np.abs(pairs.numpy() - found.probabilities).max(axis=2)
    assert (off.min(axis=0) < 1e-5).all()
    assert np.bincount(off.argmin(axis=0)).tolist() == pytest.approx([len(data.x) / 3] * 3, abs=10)
