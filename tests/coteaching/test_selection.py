"""Small-loss selection against loops that sort."""

import numpy as np
import pytest
import torch

from optuna_s2e.coteaching import _selection as selection


def _smallest(losses, n_kept):
    """Return the positions of the smallest losses; of equal losses the first, NaN last."""

    def key(i):
        return (np.isnan(losses[i]), 0.0 if np.isnan(losses[i]) else losses[i], i)

    return sorted(range(len(losses)), key=key)[:n_kept]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_kept", [1, 7, 20])
def test_small_loss_takes_the_smallest_and_breaks_ties_by_position(seed, n_kept):
    rng = np.random.default_rng(seed)
    losses = rng.integers(0, 6, (2, 20)).astype(float)  # many ties
    losses[0, 3] = np.nan
    selected = selection.small_loss(torch.from_numpy(losses), n_kept)
    assert selected.tolist() == [_smallest(row, n_kept) for row in losses]


def test_each_network_trains_on_the_selection_of_its_peer():
    selected = torch.tensor([[1, 2], [3, 0]])
    assert selection.exchange(selected).tolist() == [[3, 0], [1, 2]]


def test_selected_means_average_the_losses_at_the_selected_positions():
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    means = selection.selected_means(losses, torch.tensor([[2, 0], [0, 1]]))
    assert means.tolist() == [2.5, 12.0]


def test_label_precision_counts_clean_labels_over_all_mini_batches():
    rng = np.random.default_rng(0)
    is_clean = rng.random((4, 10)) < 0.5
    selected = np.stack([[rng.permutation(10)[:3] for _ in range(2)] for _ in range(4)])
    expected = [
        np.mean([is_clean[s, i] for s in range(4) for i in selected[s, net]]) for net in (0, 1)
    ]
    kept = torch.from_numpy(selected)
    precision = selection.label_precision(torch.from_numpy(is_clean), kept, torch.ones(4, 2, 3))
    np.testing.assert_allclose(precision, expected, rtol=1e-15)


def test_label_precision_counts_samples_by_their_weights():
    is_clean = torch.tensor([[True, False], [True, True]])
    kept = torch.tensor([[[0, 1], [1, 0]], [[0, 1], [0, 1]]])
    weights = torch.tensor([[[0.25, 0.75], [1.0, 0.0]], [[0.0, 0.0], [0.5, 0.5]]])
    found = selection.label_precision(is_clean, kept, weights)
    assert found.tolist() == [0.25, 0.5]
    assert selection.label_precision(is_clean, kept, torch.zeros(2, 2, 2)).isnan().all()
