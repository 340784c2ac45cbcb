"""Losses, weights and selections that all methods share."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from optuna_s2e.coteaching._steps import (
    Step,
    counts_kept,
    cross_entropies,
    mean_over,
    smallest,
)
from optuna_s2e.schedules import n_kept


def test_cross_entropies_are_those_of_pytorch():
    x = torch.randn(3, 2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(21).view(3, 7) % 5
    found = cross_entropies(x, labels)
    for k in range(3):
        for i in (0, 1):
            expected = F.cross_entropy(x[k, i], labels[k], reduction="none")
            torch.testing.assert_close(found[k, i], expected)


@pytest.mark.parametrize("seed", range(5))
def test_smallest_marks_the_smallest_of_each_row_ties_first_come_and_nan_last(seed):
    rng = np.random.default_rng(seed)
    losses = rng.integers(0, 4, (3, 2, 10)).astype(float)
    losses[0, 0, 2] = np.nan
    n = rng.integers(0, 11, (3, 2, 1))
    found = smallest(torch.from_numpy(losses), torch.from_numpy(n))
    for k in range(3):
        for i in (0, 1):
            row = losses[k, i]
            order = sorted(range(10), key=lambda j, row=row: (np.isnan(row[j]), row[j], j))
            expected = sorted(order[: n[k, i, 0]])
            assert torch.nonzero(found[k, i])[:, 0].tolist() == expected


def test_counts_are_those_of_the_schedule_for_every_number_of_samples():
    rates = np.array([1.0, 0.29, 0.001])
    counts = counts_kept(rates, 100)
    assert counts.shape == (3, 101)
    assert (counts[:, 0] == 0).all()
    for m in range(1, 101):
        np.testing.assert_array_equal(counts[:, m], n_kept(rates, m))


def test_objectives_are_weighted_sums_that_unused_samples_cannot_spoil():
    losses = torch.tensor([[[1.0, 2.0, torch.inf], [4.0, torch.nan, 6.0]]], requires_grad=True)
    step = mean_over(losses, torch.tensor([[[True, True, False], [True, False, True]]]))
    assert step.objectives.tolist() == [[1.5, 5.0]]
    step.objectives.sum().backward()
    assert losses.grad.tolist() == [[[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]]


def test_means_have_no_weight_without_samples_and_divide_by_at_least_the_given_number():
    losses = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    none = torch.zeros((1, 2, 2), dtype=torch.bool)
    assert mean_over(losses, none).objectives.tolist() == [[0.0, 0.0]]
    assert mean_over(losses, none, least=1.0).objectives.tolist() == [[0.0, 0.0]]
    shares = torch.tensor([[[1.0, 3.0], [0.0, 1.0]]])
    assert mean_over(losses, shares).weights.tolist() == [[[0.25, 0.75], [0.0, 1.0]]]
    assert mean_over(losses, shares, least=8.0).objectives.tolist() == [[7 / 8, 4 / 8]]
    assert Step(losses, shares).objectives.tolist() == [[7.0, 4.0]]
