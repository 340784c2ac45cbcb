"""What a training step asks of a device and of its host: operations, bytes, host time.

    python tests/benchmarks/bench_steps.py --out steps.json       # under a minute, no GPU

A step is forward, selection, backward and Adam for both networks of K trials, on mini-batches of
128 images. For "mlp" and "cnn2" two ways are compared: what a GPU was given before, and what it
is given now (for "cnn2" either, as measured there). Steps of "cnn9" are too long for a CPU: its
operations are followed with the shapes of all tensors, and nothing is computed.

    operations  calls that compute, each a kernel or more; views and new memory are not counted
    MB          bytes that they read and write, as if nothing stayed in a cache: a tensor counts
                once for each operation, what is gathered counts by what comes out; each further
                trial adds as many as the first
    host        processor seconds of Python and PyTorch per step, with mini-batches of two tiny
                images on the CPU, where next to nothing is computed and nothing launched: the
                ways take turns, medians of the ratios to the first way

Masks of dropout are inputs of a step: "cnn9" draws four for each trial, outside of these numbers.

Bytes over a device's bandwidth, and operations times the time of a launch, are what a step takes
at least. Recorded steps (`backend="graphs"`) have no host time but that of one launch.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optuna_s2e.coteaching import NoisyData, TrainingConfig
from optuna_s2e.coteaching.backends import TrainingSetup
from optuna_s2e.coteaching.backends._fused import FusedTrainer
from optuna_s2e.coteaching.backends._fused_cnn import FusedCnnTrainer
from optuna_s2e.coteaching.backends._fused_cnn_unfolded import UnfoldedCnnTrainer
from optuna_s2e.coteaching.backends._fused_mlp import FusedMlpTrainer
from optuna_s2e.coteaching.backends._fused_mlp_fixed import FixedMlpTrainer

WIDTHS = (1, 6)
BATCH_SIZE = 128
FREE = (
    "aten::empty", "aten::new_empty", "aten::detach", "aten::_unsafe_view", "profiler::", "prim::",
)  # fmt: skip
GATHERS = ("aten::index_select", "aten::gather", "aten::index.Tensor")


class Way(NamedTuple):
    """One way to train a network."""

    network: str
    trainer: type[FusedTrainer]
    shape: tuple[int, ...]
    tiny_shape: tuple[int, ...] | None  # None: nothing is computed, and no time is measured


WAYS = {
    "mlp, kept rows": Way("mlp", FusedMlpTrainer, (1, 28, 28), (1, 2, 2)),
    "mlp, one size": Way("mlp", FixedMlpTrainer, (1, 28, 28), (1, 2, 2)),
    "cnn2, grouped": Way("cnn2", FusedCnnTrainer, (3, 32, 32), (1, 16, 16)),
    "cnn2, unfolded": Way("cnn2", UnfoldedCnnTrainer, (3, 32, 32), (1, 16, 16)),
    "cnn9, grouped": Way("cnn9", FusedCnnTrainer, (3, 32, 32), None),
}


class StepSpy(TorchDispatchMode):
    """Notes the operations that compute, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it, unless it is a view or makes memory."""
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not (is_view or func.name().startswith(FREE)):
            self.calls.append(func.name())
            self.n_bytes += _bytes_of(func, args, kwargs or {}, result)
        return result


def _bytes_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the bytes of all tensors that an operation reads, and of all that it writes."""
    written = {id(t): t for t in tree_leaves(result) if isinstance(t, Tensor)}
    given = list(zip(func._schema.arguments, args, strict=False))
    given += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
    read: list[Tensor] = []
    for argument, value in given:
        tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
        if argument.alias_info is not None and argument.alias_info.is_write:
            written |= {id(t): t for t in tensors}
            if argument.is_out:
                continue
        read += tensors
    n_written = sum(map(_n_bytes, written.values()))
    if func.name().startswith(GATHERS):
        source, *rest = read
        return min(_n_bytes(source), n_written) + sum(map(_n_bytes, rest)) + n_written
    return sum(map(_n_bytes, {id(t): t for t in read}.values())) + n_written


def _n_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor; what is expanded, or overlaps, is there once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    n_elements = int(np.prod([size for size, stride in sizes if stride]))
    return min(tensor.itemsize * n_elements, tensor.untyped_storage().nbytes())


def make_trainer(
    way: Way, n_trials: int, run_steps: Callable[..., list[Tensor]], *, tiny: bool = False
) -> FusedTrainer:
    """Make a trainer of K trials with two mini-batches of random pixels, 60 % of them kept."""
    batch_size, shape = (2, way.tiny_shape or ()) if tiny else (BATCH_SIZE, way.shape)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2 * batch_size, *shape), dtype=np.uint8)
    y = np.arange(2 * batch_size) % (2 if tiny else 10)
    data = NoisyData.from_arrays(x, y, x[:10], y[:10], n_classes=max(y) + 1)
    setup = TrainingSetup(data, way.network, TrainingConfig(batch_size), (data.x_val, data.y_val))
    return way.trainer(setup, range(n_trials), data.noisy_labels, make_steps=lambda: run_steps)


def count(way: Way, n_trials: int) -> StepSpy:
    """Return what the second step of K trials does: the first one makes Adam's state."""
    spies = []

    shapes_only = way.tiny_shape is None

    def run_steps(step: Any, inputs: Any, n_steps: int, constants: Any) -> list[Tensor]:
        outputs = []
        with FakeTensorMode(allow_non_fake_inputs=True) if shapes_only else nullcontext():
            for values in inputs:
                with StepSpy() as spy:
                    outputs.append(step(*values))
                spies.append(spy)
        if shapes_only:
            outputs = [[torch.zeros(o.shape, dtype=o.dtype) for o in step] for step in outputs]
        return [torch.stack(of_steps) for of_steps in zip(*outputs, strict=True)]

    trainer = make_trainer(way, n_trials, run_steps)
    trainer.train_epoch(np.full(n_trials, 0.6), 1e-3, 0.9)
    return spies[-1]


def host_seconds(way: Way, n_steps: int = 200) -> float:
    """Return processor seconds of a step on tiny images, of six trials."""
    seconds = []

    def run_steps(step: Any, inputs: Any, _: int, constants: Any) -> list[Tensor]:
        values = next(iter(inputs))
        for _ in range(20):
            outputs = step(*values)
        start = time.process_time()
        for _ in range(n_steps):
            outputs = step(*values)
        seconds.append((time.process_time() - start) / n_steps)
        return [torch.stack([output, output]) for output in outputs]

    make_trainer(way, 6, run_steps, tiny=True).train_epoch(np.full(6, 0.6), 1e-3, 0.9)
    return seconds[0]


def main() -> None:
    """Count, time and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS, help="trials at once")
    parser.add_argument("--repeats", type=int, default=9, help="turns of the host time")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, Any] = {}
    for name, way in WAYS.items():
        spies = {k: count(way, k) for k in args.widths}
        operations = {str(k): len(spy.calls) for k, spy in spies.items()}
        n_bytes = {str(k): spy.n_bytes for k, spy in spies.items()}
        ways[name] = {"operations": operations, "bytes": n_bytes, "host_seconds": []}
    for _ in range(args.repeats):
        for name, way in WAYS.items():
            if way.tiny_shape is not None:
                ways[name]["host_seconds"].append(host_seconds(way))
    print(f"{'':18}{'operations':>11}" + "".join(f"{f'MB, K = {k}':>13}" for k in args.widths)
          + f"{'host / first':>26}")  # fmt: skip
    firsts = {way.network: name for name, way in reversed(WAYS.items())}
    for name, found in ways.items():
        before = ways[firsts[WAYS[name].network]]["host_seconds"]
        ratios = [a / b for a, b in zip(found["host_seconds"], before, strict=True)]
        span = ""
        if ratios:
            span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        most = max(found["operations"].values())
        sizes = "".join(f"{n / 1e6:13.1f}" for n in found["bytes"].values())
        print(f"{name:18}{most:11}{sizes}{span:>26}")
    if args.out:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        args.out.write_text(json.dumps({"versions": versions, "ways": ways}, indent=1) + "\n")


if __name__ == "__main__":
    main()
