"""Bytes and operations of a training step, counted on the CPU."""

from functools import cache

import pytest
import torch
from bench_steps import WAYS, StepSpy, count, host_seconds

A, B = torch.ones((4, 6)), torch.ones((6, 5))
INDEX = torch.tensor([0, 2])
N = 4  # bytes of a float32


@pytest.mark.parametrize(
    ("operation", "n_bytes"),
    [
        (lambda: A + 1, N * (24 + 24)),
        (lambda: A + A, N * (24 + 24)),  # one tensor
        (lambda: A @ B, N * (24 + 30 + 20)),
        (lambda: torch.mm(A, B, out=torch.empty((4, 5))), N * (24 + 30 + 20)),
        (lambda: A.mul_(1), N * (24 + 24)),
        (lambda: A.add_(B[0, 0]), N * (24 + 1 + 24)),
        (lambda: A[:1].expand(4, -1) + A, N * (6 + 24 + 24)),
        (lambda: A.unfold(1, 3, 1).clone(), N * (24 + 4 * 4 * 3)),  # windows that overlap
        (lambda: A.index_select(0, INDEX), N * (12 + 12) + 2 * 8),  # what is not asked for stays
        (lambda: A.t().view(6, 4)[None].detach(), 0),
        (lambda: torch.empty(1000), 0),
    ],
)
def test_bytes_by_hand(operation, n_bytes):
    with StepSpy() as spy:
        operation()
    assert spy.n_bytes == n_bytes
    assert len(spy.calls) == (n_bytes > 0)


@cache
def _count(name, n_trials):
    return count(WAYS[name], n_trials)


@pytest.mark.parametrize(
    ("name", "operations", "megabytes"),
    [
        ("mlp, kept rows", 32, 23.0),
        ("mlp, one size", 20, 21.0),
        ("cnn2, grouped", 57, 102.0),
        ("cnn2, unfolded", 60, 279.0),
    ],
)
def test_a_step_asks_for_no_more_than_it_did(name, operations, megabytes):
    one, two = _count(name, 1), _count(name, 2)
    assert len(one.calls) <= operations
    assert len(two.calls) <= operations  # no operation per trial
    assert one.n_bytes <= megabytes * 1e6
    assert two.n_bytes <= 2 * megabytes * 1e6


def test_steps_of_one_size_ask_for_less_than_those_over_kept_rows():
    before, now = (_count(name, 2) for name in ("mlp, kept rows", "mlp, one size"))
    assert len(now.calls) < len(before.calls)
    assert now.n_bytes < before.n_bytes
    weights = 2 * 2 * (785 * 256 + 257 * 10)
    least = 7 * N * weights  # Adam reads weight, gradient and moments, and writes all but one
    assert least < now.n_bytes < 2 * least


def test_the_host_time_is_that_of_all_ways():
    assert all(0 < host_seconds(way, n_steps=2) < 1 for way in WAYS.values())
