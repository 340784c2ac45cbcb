"""Bytes and operations of a training step, counted on the CPU."""

import json
import statistics
from functools import cache
from pathlib import Path

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
        ("cnn9, grouped", 95, 10_500.0),
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
    timed = [way for way in WAYS.values() if way.tiny_shape is not None]
    assert all(0 < host_seconds(way, n_steps=2) < 1 for way in timed)
    assert len(timed) == len(WAYS) - 1


@pytest.mark.parametrize("name", ["cnn2, grouped", "cnn2, unfolded"])
def test_shapes_alone_give_the_counts_of_steps_that_are_computed(name):
    computed = _count(name, 1)
    followed = count(WAYS[name]._replace(tiny_shape=None), 1)
    assert (followed.calls, followed.n_bytes) == (computed.calls, computed.n_bytes)


def test_the_page_has_what_its_file_says_and_the_file_has_these_counts():
    """After the benchmark wrote the file anew, the page needs its host times."""
    docs = Path(__file__).parents[2] / "docs"
    recorded = json.loads((docs / "results" / "steps.json").read_text())["ways"]
    assert list(recorded) == list(WAYS)
    for name in WAYS:
        spy = _count(name, 1)
        found = recorded[name]["operations"]["1"], recorded[name]["bytes"]["1"]
        assert found == (len(spy.calls), spy.n_bytes), name
    page = (docs / "speed.md").read_text()
    table = page[page.index("| step | operations | MB, K = 1") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")] for row in table.splitlines()[2:]]
    first, network = [], ""
    for row, way in zip(rows, recorded.values(), strict=True):
        megabytes = [f"{n / 1e6:.1f}" for n in way["bytes"].values()]
        seconds, host = way["host_seconds"], ""
        if seconds and row[1].startswith(f"`{network}`"):
            ratios = [b / a for a, b in zip(first, seconds, strict=True)]
            host = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        elif seconds:
            first, network, host = seconds, row[1].split("`")[1], "1"
        assert row[2:6] == [str(max(way["operations"].values())), *megabytes, host], row
