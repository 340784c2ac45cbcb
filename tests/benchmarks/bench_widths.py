"""What a trial's epoch costs under each backend, alone and with others at its side.

    python tests/benchmarks/bench_widths.py --out widths.json       # some ten minutes
    python tests/benchmarks/bench_widths.py --case digits-64        # one case

"compiled" is the loop with networks from `torch.compile`, which was done before. Every other way
trains K trials, at most so many side by side, under schedules drawn from the default space
(`--rates drawn`: keep rates differ within a group, as in a search) or at one keep rate, with the
evaluation after each epoch; making the networks and the first epochs are not counted. The digits
are themselves, MNIST and CIFAR-10 are ten mini-batches of random pixels in their shapes. The ways
take turns, so that each repeat compares them under the same load; medians of processor
milliseconds per trial and epoch, and of the ratios to the loop of the same repeat. Choices of
`backend="auto"` rest on this table: "auto" is one of the ways.

Runs found in `--out` are not repeated; `--limit` ends a call, and the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from torch import nn

from optuna_s2e import ScheduleSpace
from optuna_s2e.coteaching import (
    Metrics,
    NoisyData,
    TrainingConfig,
    load_data,
    train_batch,
)
from optuna_s2e.coteaching._networks import Network, Shape, find_network

EPOCHS = 8  # of a run on the digits with one trial, shared by more of them
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
FEW = (1, 2, 4)


class Case(NamedTuple):
    """One kind of data with one network."""

    data: str
    network: Network
    backends: tuple[str, ...]
    widths: tuple[int, ...] = WIDTHS


def _mlp(*hidden: int) -> Network:
    def network(input_shape: Shape, n_classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        n_in = math.prod(input_shape)
        for n_out in hidden:
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
            n_in = n_out
        return nn.Sequential(*layers, nn.Linear(n_in, n_classes))

    return network


def _convolution(input_shape: Shape, n_classes: int) -> nn.Module:
    """Make a convolution of 6 filters and a hidden layer of 32."""
    channels, height, width = input_shape
    n_features = 6 * ((height - 2) // 2) * ((width - 2) // 2)
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(n_features, 32), nn.ReLU(), nn.Linear(32, n_classes)),
    )


def _normalised(input_shape: Shape, n_classes: int) -> nn.Module:
    """Make a convolution of 8 filters with batch normalisation."""
    channels, height, width = input_shape
    n_features = 8 * ((height - 2) // 2) * ((width - 2) // 2)
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(n_features, n_classes)),
    )


class _Skip(nn.Module):
    """Two hidden layers of 64 with batch normalisation and a skip: only vmap takes it."""

    def __init__(self, input_shape: Shape, n_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(math.prod(input_shape), 64), nn.Linear(64, 64)
        self.norm, self.last = nn.BatchNorm1d(64), nn.Linear(64, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.first(x.flatten(1))))
        return self.last(hidden + torch.relu(self.second(hidden)))  # type: ignore[no-any-return]


def _compiled(network: Network, input_shape: Shape, n_classes: int) -> nn.Module:
    made: nn.Module = torch.compile(find_network(network)(input_shape, n_classes))
    return made


CASES = {
    "digits-48": Case("digits", _mlp(48), ("loop", "fused")),
    "digits-64": Case("digits", _mlp(64), ("loop", "compiled", "fused")),
    "digits-mlp": Case("digits", "mlp", ("loop", "fused")),
    "mnist-64": Case("mnist", _mlp(64), ("loop", "fused"), (1, 2, 4, 8, 16, 32)),
    "mnist-mlp": Case("mnist", "mlp", ("loop", "fused"), (1, 2, 4, 6, 8)),
    "cifar10-mlp": Case("cifar10", "mlp", ("loop", "fused"), FEW),
    "digits-conv": Case("digits", _convolution, ("loop", "rows", "fused"), (1, 2, 4, 8, 16, 32)),
    "digits-norm": Case("digits", _normalised, ("loop", "fused"), (1, 2, 4, 8, 16, 32)),
    "mnist-conv": Case("mnist", _convolution, ("loop", "rows", "fused"), FEW),
    "mnist-cnn2": Case("mnist", "cnn2", ("loop", "rows", "fused"), FEW),
    "cifar10-cnn2": Case("cifar10", "cnn2", ("loop", "compiled", "rows", "fused"), FEW),
    "digits-skip": Case("digits", _Skip, ("loop", "fused"), (1, 2, 4, 8, 16)),
}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
N_STEPS = 10


def make_data(name: str) -> tuple[NoisyData, TrainingConfig, int]:
    """Return data, mini-batches and the epochs of a run."""
    if name == "digits":
        noisy = load_data("digits", noise="symmetric", noise_rate=0.5, seed=0)
        return noisy, TrainingConfig(64, 1e-2), EPOCHS
    rng = np.random.default_rng(0)
    n, n_val = N_STEPS * 128, N_STEPS * 12
    x = rng.integers(0, 256, (n + n_val, *SHAPES[name]), dtype=np.uint8)
    y = np.arange(n + n_val) % 10
    data = NoisyData.from_arrays(x[:n], y[:n], x[n:], y[n:], clean_labels=y[:n])
    return data, TrainingConfig(), 3


def draw_rates(rates: str, n_trials: int, n_epochs: int) -> np.ndarray:
    """Return R(t) of the trials, (K, T)."""
    if rates != "drawn":
        return np.full((n_trials, n_epochs), float(rates))
    space = ScheduleSpace(n_epochs)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return np.stack([space.suggest(study.ask()).keep_rates for _ in range(n_trials)])


def run(case: Case, backend: str, width: int, rates: str) -> float:
    """Train a group; return processor milliseconds per trial and epoch, first epochs left out."""
    data, config, n_epochs = make_data(case.data)
    keep_rates = draw_rates(rates, width, max(3, n_epochs // width))
    network = case.network
    if backend == "compiled":
        backend, network = "loop", partial(_compiled, network)
    seconds, last = 0.0, 0.0

    def on_epoch(k: int, epoch: int, metrics: Metrics) -> None:
        nonlocal seconds, last
        now = time.process_time()
        if epoch:
            seconds += now - last
        last = now

    results = train_batch(
        keep_rates, range(width), data=data, network=network, config=config, device="cpu",
        backend=backend, fused_width=None if backend == "auto" else width, on_epoch=on_epoch,
    )  # fmt: skip
    assert all(result.failure is None for result in results), results[0].failure
    return 1e3 * seconds / keep_rates[:, 1:].size


def ways_of(case: Case) -> dict[str, tuple[str, int]]:
    """Return the ways by name: backend and trials side by side."""
    ways = {name: (name, 1) for name in case.backends if name != "fused"}
    ways |= {f"fused x{k}": ("fused", k) for k in case.widths}
    return ways | {"auto x1": ("auto", 1), "auto x6": ("auto", 6)}


def print_table(name: str, runs: dict[str, list[float]]) -> None:
    """Print one line for each way of a case."""
    print(f"\n{name}: processor ms per trial and epoch; of the loop in the same repeat")
    for way, of_way in runs.items():
        ratios = [ms / loop for ms, loop in zip(of_way, runs["loop"], strict=False)]
        span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(f"{way:12}{len(of_way):4}{statistics.median(of_way):10.2f}   {span}")


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument(
        "--rates", nargs="*", default=["drawn"], help='"drawn", or R of all epochs'
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each way")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--limit", type=float, default=math.inf, help="start no repeat after (s)")
    parser.add_argument("--out", type=Path, help="JSON file to go on with and to write")
    args = parser.parse_args()
    start = time.monotonic()
    torch.set_num_threads(args.threads)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    document: dict[str, Any] = {"cases": {}}
    if args.out and args.out.exists():
        document = json.loads(args.out.read_text())
    document["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in args.case or CASES:
        ways = ways_of(CASES[name])
        for backend in {"loop", "compiled"} & set(CASES[name].backends):
            run(CASES[name], backend, 1, "drawn")  # warms up
        for rates in args.rates:
            key = f"{name} R={rates}"
            runs = document["cases"].setdefault(key, {way: [] for way in ways})
            for repeat in range(args.repeats):
                for way, (backend, width) in ways.items():
                    late = time.monotonic() - start > args.limit
                    if len(runs.setdefault(way, [])) == repeat and not late:
                        ms = run(CASES[name], backend, width, rates)
                        runs[way].append(round(ms, 3))
                if args.out:
                    args.out.write_text(json.dumps(document, indent=1) + "\n")
            if all(runs.values()):
                print_table(key, runs)


if __name__ == "__main__":
    main()
