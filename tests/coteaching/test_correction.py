"""F-correction's matrices, and its two trainings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import (
    ForwardCorrection,
    NoisyData,
    TrainingConfig,
    train_batch,
)
from optuna_s2e.coteaching._correction import anchor_matrix, true_matrix

CONFIG = TrainingConfig(batch_size=5, learning_rate=0.02, dtype="float64")
RATES = np.ones((2, 4))
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_steps.json").read_text())


def _small_net(input_shape, n_classes):
    return nn.Sequential(nn.Linear(input_shape[0], 6), nn.Tanh(), nn.Linear(6, n_classes))


def _train(data, method, **options):
    return train_batch(
        RATES, [0, 1], data=data, network=_small_net, config=CONFIG, device="cpu", method=method,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize(("percentile", "name"), [(100.0, "argmax"), (97.0, "percentile_97")])
def test_anchors_are_those_of_the_authors_program(percentile, name):
    logits = torch.tensor(GOLDEN["logits"], dtype=torch.float64).reshape(-1, 5)
    expected = GOLDEN["forward"]["anchors"][name]
    found = anchor_matrix(logits.softmax(dim=1), percentile)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_anchors_are_the_inputs_that_are_surest_of_a_class():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    assert torch.equal(anchor_matrix(p), p[[0, 3]])
    assert torch.equal(anchor_matrix(p, percentile=67.0), p[[1, 2]])


@pytest.mark.parametrize("n_classes", [3, 99, 100])
def test_anchors_are_those_of_eq_12_for_any_number_of_classes(n_classes):
    p = torch.rand(200, n_classes, generator=torch.Generator().manual_seed(0))
    assert torch.equal(anchor_matrix(p, ForwardCorrection().percentile), p[p.argmax(dim=0)])


def test_the_true_matrix_counts_labels_and_keeps_classes_without_samples():
    clean, noisy = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 0])
    expected = [[0.75, 0.25, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert true_matrix(clean, noisy, 3).tolist() == expected


def test_the_estimate_comes_from_the_networks_of_a_standard_training(tiny):
    corrected = _train(tiny, "f-correction", keep_networks=True)
    for seed, result in enumerate(corrected):
        (standard,) = train_batch(
            RATES[:1], [seed], data=tiny, network=_small_net, config=CONFIG, device="cpu",
            method="standard", keep_networks=True,
        )  # fmt: skip
        matrices = []
        with torch.no_grad():
            for net in standard.networks:
                p = net(tiny.x.double()).softmax(dim=1).numpy()
                matrices.append([p[p[:, i].argmax()] for i in range(3)])
        for i in (0, 1):  # each network has its own estimate
            (alone,) = train_batch(
                RATES[:1], [seed], data=tiny, network=_small_net, config=CONFIG, device="cpu",
                method=ForwardCorrection(np.array(matrices[i]).tolist()),
            )  # fmt: skip
            np.testing.assert_allclose(
                result.curves.loss[:, i], alone.curves.loss[:, i], atol=1e-6
            )
        assert result.seconds > 0
        assert result.networks is not None


@pytest.mark.parametrize("method", ["f-correction", "f-correction-true"])
def test_matrices_know_nothing_of_samples_that_are_left_out(tiny, method):
    labels = tiny.noisy_labels.clone()
    labels[::3] = -1
    other = replace(tiny, x=tiny.x.clone(), clean_labels=tiny.clean_labels.clone())
    other.x[::3] *= 40.0  # they would be the anchors
    other.clean_labels[::3] = (other.clean_labels[::3] + 1) % 3
    found = [_train(data, method, labels=torch.stack([labels] * 2)) for data in (tiny, other)]
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours.curves.loss, theirs.curves.loss)


def test_the_true_matrix_is_that_of_the_labels_of_each_trial(tiny):
    own = np.stack([tiny.noisy_labels.numpy(), (tiny.clean_labels.numpy() + 1) % 3])
    together = _train(tiny, "f-correction-true", labels=own)
    for k, labels in enumerate(own):
        clean = tiny.clean_labels.numpy()
        rows = [[np.mean(labels[clean == i] == j) for j in range(3)] for i in range(3)]
        method = ForwardCorrection(rows)
        alone = _train(tiny, method, labels=np.stack([labels] * 2))
        np.testing.assert_allclose(together[k].curves.loss, alone[k].curves.loss, atol=1e-6)


def test_each_trial_reports_its_epochs_once(tiny):
    seen = []
    _train(tiny, "f-correction", on_epoch=lambda k, epoch, metrics: seen.append((k, epoch)))
    assert sorted(seen) == [(k, epoch) for k in (0, 1) for epoch in range(4)]


def test_a_first_training_that_fails_fails_its_trial(tiny):
    config = TrainingConfig(batch_size=5, learning_rate=1e39, optimizer="sgd")
    results = train_batch(
        RATES, [0, 1], data=tiny, network=_small_net, config=config, device="cpu",
        method="f-correction",
    )  # fmt: skip
    for result in results:
        assert isinstance(result.failure, FloatingPointError)
        assert (result.n_epochs, result.networks) == (0, None)
        assert np.isnan(result.curves.loss).all()


def test_matrices_that_cannot_be_had_are_refused(tiny):
    x = tiny.x.numpy()
    unknown = NoisyData.from_arrays(x, tiny.noisy_labels, x[:6], tiny.clean_labels[:6])
    with pytest.raises(ValueError, match=r"needs the clean labels .* Take 'f-correction'"):
        _train(unknown, "f-correction-true")
    with pytest.raises(ValueError, match=r"matrix must have shape \(C, C\) = \(3, 3\)"):
        _train(tiny, ForwardCorrection(((0.5, 0.5), (0.5, 0.5))))
