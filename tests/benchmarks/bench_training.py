"""What an epoch of a Co-teaching trial costs, beside the usual way of writing it and the floor.

    python tests/benchmarks/bench_training.py                          # digits, under a minute
    python tests/benchmarks/bench_training.py --data-root DIR --out speed.json     # all cases
    python tests/benchmarks/bench_training.py --data-root DIR --share 0.1          # shorter runs
    python tests/benchmarks/bench_training.py --data-root DIR --case cifar100-cnn7 --share 0.02

Cases: digits and MNIST with the MLP, CIFAR-10 with two convolutions; on whatever device torch
finds (`--device`); by name, and on CUDA, also CIFAR-100 with the large networks. All ways train
two networks on the same noisy labels at one keep rate:

    authors     as the published programs: a DataLoader (shuffle, drop_last) over a data set that
                turns each image into a PIL image and applies torchvision's ToTensor to it, a
                backward pass and an Adam for each network, two argsorts on the host, accuracies
                read at every step, one pass of a validation DataLoader for each network
    loop        backend "loop": data resident as one tensor, one fused Adam for both networks
    auto        the package's choice for one trial
    auto xK     its choice for K trials at once, per trial
    fused xK    on CUDA: K trials side by side, whatever the default width
    unfolded xK on CUDA, CIFAR-10: the same, convolutions as matrix products
    graphs xK   on CUDA: the faster of the two, the steps of an epoch replayed from a CUDA graph
    tf32 xK     on CUDA: the same with products of TF32
    bf16 xK     on CUDA: the same with products of bfloat16
    floor       forward, backward and one fused Adam for both networks on mini-batches that were
                gathered before; no selection, nothing measured. "+ eval": also the bare
                forward passes of an evaluation

A run trains whole epochs from new networks to the last evaluation. The ways take turns, so that
each repeat compares them under the same load; the table shows medians over the repeats of wall
seconds, of processor seconds of this process, of the ratio to the floor of the same repeat, of the
validation error after the run, and the peak memory beyond what the data set and the programs take
(of the device, or of the process).
Ratios, FLOP/s and trials per hour are of wall seconds on CUDA; on a CPU, where other processes
may want the cores, of processor seconds.

The error is that of a run's trials (seeds 0 to K - 1; each is in `--out`); train longer to compare
errors, at least on a GPU, where an epoch may cost less than making the networks:

    ... --case mnist-mlp --epochs 200 --widths 60 --ways loop "auto x60" "graphs x60" --repeats 1

Each run is written to `--out` at once, and runs found there are not repeated: a benchmark that
was stopped goes on where it was. `--limit` seconds stop it, also within a run, which is then begun
anew by the next call. A way that fails, or one run of which takes more than `--run-limit` seconds,
is a row with its reason, and is not tried again with the same `--out`. On CUDA a process that
hangs, or whose device no longer answers after a failure, makes room for a new one, which goes on.

Below the table stands which ways give trial 0 the same bits: whether they follow on this device
from the number of trials, and whether a way repeats them (then it is named once). "auto xK" has as
many lanes as trials; the ways with a width of their own have K, as `fused_width` says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import measuring
import numpy as np
import torch
from authors import PilImages, authors_error, authors_step
from measuring import TimeUp, at_most, clock, forget_peak, memory, since
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from optuna_s2e.coteaching import (
    CoteachingObjective,
    NoisyData,
    TrainingConfig,
    load_data,
    make_network,
    train_batch,
)
from optuna_s2e.coteaching._training import find_device
from optuna_s2e.coteaching.data import to_input

PAPER_EPOCHS = 200


class Case(NamedTuple):
    """One data set with its network."""

    data: str
    network: str
    epochs: int  # of a run
    needs_cuda: bool = False  # unless it is asked for by name


CASES = {
    "digits-mlp": Case("digits", "mlp", 20),
    "mnist-mlp": Case("mnist", "mlp", 1),
    "cifar10-cnn2": Case("cifar10", "cnn2", 1),
    "cifar100-cnn7": Case("cifar100", "cnn7", 1, needs_cuda=True),
    "cifar100-cnn9": Case("cifar100", "cnn9", 1, needs_cuda=True),
    "cifar100-resnet18": Case("cifar100", "resnet18", 1, needs_cuda=True),
}
ROWS, COPIED = 2048, 2**25  # of the matrices and arrays that the machine is measured with
# where the data sets are not at hand: shape of an image, training and validation samples
SHAPES = {
    "mnist": ((1, 28, 28), 10, 55_000, 5_000),
    "cifar10": ((3, 32, 32), 10, 45_000, 5_000),
    "cifar100": ((3, 32, 32), 100, 45_000, 5_000),
}


class Bench:
    """The ways to train one case on one device."""

    def __init__(self, case: Case, args: argparse.Namespace) -> None:
        self.case, self.keep_rate, self.n_workers = case, args.keep_rate, args.workers
        self.is_warm = False
        self.device = find_device(args.device)
        data = (
            _random_pixels(case.data)
            if args.synthetic and case.data in SHAPES
            else load_data(case.data, root=args.data_root, download=False)
        )
        self.config: TrainingConfig = CoteachingObjective(data, device="cpu").config
        data = _part(data, args.share)
        self.data: NoisyData = data.to(self.device)
        self.batch_size = min(self.config.batch_size, len(data.x))
        self.n_steps = len(data.x) // self.batch_size

    def ways(self, widths: Iterable[int]) -> dict[str, Callable[[], int]]:
        """Return the ways by name; each trains and returns the trial-epochs it trained."""
        ways: dict[str, Callable[[], int]] = {
            "floor": lambda: self.floor(evaluates=False),
            "floor + eval": lambda: self.floor(evaluates=True),
            "auto": lambda: self.package("auto", 1),
            "loop": lambda: self.package("loop", 1),
            "authors": self.authors,
        }
        bf16, tf32 = (replace(self.config, dtype=dtype) for dtype in ("bfloat16", "tf32"))
        for k in widths:
            ways[f"auto x{k}"] = lambda k=k: self.package("auto", k)
            if self.device.type == "cuda":
                ways[f"fused x{k}"] = lambda k=k: self.package("fused", k, width=k)
                if self.case.network == "cnn2":
                    ways[f"unfolded x{k}"] = lambda k=k: self.package("unfolded", k, width=k)
                ways[f"graphs x{k}"] = lambda k=k: self.package("graphs", k, width=k)
                ways[f"tf32 x{k}"] = lambda k=k: self.package("graphs", k, width=k, config=tf32)
                ways[f"bf16 x{k}"] = lambda k=k: self.package("graphs", k, width=k, config=bf16)
        return ways

    def package(
        self,
        backend: str,
        n_trials: int,
        *,
        width: int | None = None,
        config: TrainingConfig | None = None,
    ) -> int:
        """Train through `train_batch`."""
        rates = np.full((n_trials, self.case.epochs), self.keep_rate)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", RuntimeWarning)
            results = train_batch(
                rates, range(n_trials), data=self.data, network=self.case.network,
                config=config or self.config, device=self.device, backend=backend,
                fused_width=width,
            )  # fmt: skip
        for warning in seen:
            if "cannot be recorded" in str(warning.message):  # then this is another way
                raise RuntimeError(str(warning.message))
            print(warning.message, file=sys.stderr)
        for failure in (result.failure for result in results):
            if failure is not None:
                raise failure
        self.errors = [float(result.curves.error[-1].mean()) for result in results]
        self.bits = hashlib.sha256(np.array(results[0].curves).tobytes()).hexdigest()[:12]
        return rates.size

    def nets(self) -> list[nn.Module]:
        """Make two networks."""
        shape, n_classes = self.data.input_shape, self.data.n_classes
        return [
            make_network(self.case.network, shape, n_classes, seed=seed).to(self.device)
            for seed in (0, 1)
        ]

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Gather the mini-batches of an epoch."""
        order = torch.randperm(len(self.data.x), generator=torch.Generator().manual_seed(0))
        return [
            (to_input(self.data.x[index], torch.float32), self.data.noisy_labels[index])
            for index in order.to(self.device).split(self.batch_size)[: self.n_steps]
        ]

    def floor(self, *, evaluates: bool, epochs: int | None = None) -> int:
        """Train on gathered mini-batches; the gathering is not timed."""
        epochs = epochs or self.case.epochs
        nets, batches = self.nets(), self.batches()
        adam = torch.optim.Adam([p for net in nets for p in net.parameters()], 1e-3, fused=True)
        parts = to_input(self.data.x_val, torch.float32).split(1024)
        start = clock(self.device)
        for _ in range(epochs):
            for batch in batches:
                _bare_step(nets, adam, *batch)
            if evaluates:
                with torch.no_grad():
                    for net in nets:
                        for part in parts:
                            net(part)
        self.timed = since(start, self.device)
        return epochs

    def authors(self) -> int:
        """Train one trial with DataLoaders."""
        nets = self.nets()
        adams = [torch.optim.Adam(net.parameters(), self.config.learning_rate) for net in nets]
        train = PilImages(self.data.x, self.data.noisy_labels)
        validation = PilImages(self.data.x_val, self.data.y_val)
        options: dict[str, Any] = {
            "batch_size": self.config.batch_size, "num_workers": self.n_workers,
        }  # fmt: skip
        for _ in range(self.case.epochs):
            for net in nets:
                net.train()
            for x, y, _ in DataLoader(train, shuffle=True, drop_last=True, **options):
                kept = int(self.keep_rate * len(y))
                authors_step(x.to(self.device), y.to(self.device), nets, adams, kept)
            loaders = [DataLoader(validation, **options) for _ in nets]
            self.errors = [
                authors_error(net, loader, self.device)
                for net, loader in zip(nets, loaders, strict=True)
            ]
        return self.case.epochs

    def flops(self) -> int:
        """Count the floating-point operations of an epoch's bare steps (no Adam)."""
        nets, (batch, *_) = self.nets(), self.batches()
        with FlopCounterMode(display=False) as counter:
            _bare_step(nets, torch.optim.SGD([p for n in nets for p in n.parameters()]), *batch)
        return int(counter.get_total_flops()) * self.n_steps

    def run(self, way: Callable[[], int]) -> dict[str, Any]:
        """Run a way once; return seconds per trial-epoch, wall and processor, peak MiB, errors."""
        self.timed: tuple[float, float] | None = None
        self.errors: list[float] = []
        self.bits = ""
        forget_peak(self.device)
        before = memory(self.device)[0]
        start = clock(self.device)
        trial_epochs = way()
        wall, cpu = self.timed or since(start, self.device)
        peak = memory(self.device)[1] - before
        seconds = {"wall": wall / trial_epochs, "cpu": cpu / trial_epochs}
        return seconds | {"peak_mib": peak, "errors": self.errors, "bits": self.bits}

    def try_run(
        self,
        way: str,
        train: Callable[[], int],
        entry: dict[str, Any],
        left: float,
        run_limit: float,
        save: Callable[[], None],
    ) -> bool:
        """Run a way once; save how it went, or why it failed; return whether it ended."""
        limit, is_slow = min(left, run_limit), left >= run_limit

        def too_long() -> None:
            if is_slow:
                entry["failed"][way] = f"a run takes more than {run_limit:g} s"
            save()

        def give_up() -> None:
            too_long()
            measuring.leave()

        ended = True
        with measuring.watchdog(limit + measuring.GRACE, give_up):
            try:
                with at_most(limit):
                    if not self.is_warm:
                        self.floor(evaluates=True, epochs=1)
                        self.is_warm = True
                    entry["runs"][way].append(self.run(train))
            except TimeUp:
                too_long()
                ended = is_slow
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                entry["failed"][way] = f"{type(error).__name__}: {reason}"
            save()
            if not measuring.is_well(self.device):
                measuring.leave()
        return ended


def _random_pixels(name: str) -> NoisyData:
    shape, n_classes, n, n_val = SHAPES[name]
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n + n_val, *shape), dtype=np.uint8)
    y = np.arange(n + n_val) % n_classes
    return NoisyData.from_arrays(x[:n], y[:n], x[n:], y[n:], clean_labels=y[:n])


def _part(data: NoisyData, share: float) -> NoisyData:
    rows, rows_val = (
        _spread(y.numpy(), max(data.n_classes, round(share * len(y))))
        for y in (data.noisy_labels, data.y_val)
    )
    clean = data.clean_labels
    return NoisyData.from_arrays(
        data.x[rows], data.noisy_labels[rows], data.x_val[rows_val], data.y_val[rows_val],
        clean_labels=None if clean is None else clean[rows], n_classes=data.n_classes,
    )  # fmt: skip


def _spread(labels: np.ndarray, n: int) -> np.ndarray:
    """Return n positions, in order, whose labels are spread as evenly as they can be."""
    order = np.argsort(labels, kind="stable")
    rank = np.empty_like(order)  # the how-manieth of its label
    rank[order] = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    return np.sort(np.argsort(rank, kind="stable")[:n])


def _bare_step(
    nets: list[nn.Module], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> None:
    loss = sum(F.cross_entropy(net(x), y) for net in nets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the device, with its rates for large matrix products and copies."""
    device = find_device(args.device)
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if "model name" in line), name)
    a, big = torch.rand(ROWS, ROWS, device=device), torch.rand(COPIED, device=device)
    copy = torch.empty_like(big)
    which = 0 if device.type == "cuda" else 1
    rates = []
    for operation in (lambda: a @ a, lambda: copy.copy_(big)):
        operation()
        times = []
        for _ in range(5):
            start = clock(device)
            operation()
            times.append(since(start, device)[which])
        rates.append(min(times))
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "matmul_gflops": round(2 * ROWS**3 / rates[0] / 1e9, 1),
        "copy_gb_per_s": round(2 * big.nbytes / rates[1] / 1e9, 1),
    }


def print_table(name: str, entry: dict[str, Any], gflops: float, clock: str) -> None:
    """Print one line for each way of a case; `clock` is "wall" or "cpu"."""
    runs: dict[str, list[dict[str, Any]]] = entry["runs"]
    print(f"\n{name}: seconds per trial-epoch, medians; ratios (range) of {clock} seconds")
    print(
        f"{'':14}{'runs':>5}{'wall':>9}{'cpu':>9}{'/ floor':>22}{'/ fl.+eval':>11}"
        f"{'200-ep. trials/h':>18}{'GFLOP/s':>9}{'of matmul':>10}{'peak MiB':>10}{'error':>8}"
    )
    for way, of_way in runs.items():
        if way in entry.get("failed", {}):
            print(f"{way:14}{len(of_way):5}    failed: {entry['failed'][way]}")
        if not of_way:
            continue
        keys = ("wall", "cpu", "peak_mib")
        seconds = {key: statistics.median(run[key] for run in of_way) for key in keys}
        errors = of_way[-1].get("errors") or [math.nan]
        to_floor, to_evaluating = (
            [run[clock] / base[clock] for run, base in zip(of_way, runs[floor], strict=False)]
            for floor in ("floor", "floor + eval")
        )
        span = "-"
        if to_floor:
            span = f"{statistics.median(to_floor):.2f} ({min(to_floor):.2f}, {max(to_floor):.2f})"
        rate = entry["flops"] / seconds[clock] / 1e9
        per_hour = 3600 * entry["share"] / seconds[clock] / PAPER_EPOCHS
        print(
            f"{way:14}{len(of_way):5}{seconds['wall']:9.3f}{seconds['cpu']:9.3f}{span:>22}"
            f"{statistics.median(to_evaluating or [math.nan]):11.2f}{per_hour:18.1f}"
            f"{rate:9.1f}{rate / gflops:10.0%}{seconds['peak_mib']:10.0f}"
            f"{statistics.fmean(errors):8.3f}"
        )
    same: dict[str, list[str]] = {}  # bits -> ways
    for way, of_way in runs.items():
        for bits in {run["bits"] for run in of_way if run.get("bits")}:
            same.setdefault(bits, []).append(way)
    if same:
        print("trial 0 has the same bits in: " + "; ".join(map(", ".join, same.values())))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, action="append", help="default: all at hand")
    parser.add_argument("--data-root", type=Path, help="folder of torchvision's data sets")
    parser.add_argument(
        "--synthetic", action="store_true", help="random pixels in place of MNIST and CIFAR-10"
    )
    parser.add_argument("--keep-rate", type=float, default=0.5, help="R of all epochs")
    parser.add_argument("--share", type=float, default=1.0, help="part of the data to train on")
    parser.add_argument("--widths", type=int, nargs="*", default=[6], help="trials at once")
    parser.add_argument("--ways", nargs="*", metavar="WAY", help='as in the table: "auto x60", ..')
    parser.add_argument("--epochs", type=int, help="epochs of a run; default: 1, of the digits 20")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each way")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--workers", type=int, default=0, help="the authors' DataLoader workers")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    parser.add_argument("--limit", type=float, default=540.0, help="stop after (s)")
    parser.add_argument("--run-limit", type=float, default=300.0, help="longest run (s)")
    parser.add_argument("--out", type=Path, help="JSON file to go on with and to write")
    parser.add_argument("--one-process", action="store_true", help="start no new ones on CUDA")
    return parser.parse_args()


def main() -> None:
    """Run what is missing and print the tables."""
    args = parse_args()
    start = time.monotonic()
    on_cuda = find_device(args.device).type == "cuda"
    if on_cuda and not args.one_process:
        measuring.in_new_processes(args.limit, args.out)
    torch.set_num_threads(args.threads)
    at_hand = [
        name
        for name, case in CASES.items()
        if case.data == "digits"
        or ((args.data_root or args.synthetic) and (on_cuda or not case.needs_cuda))
    ]
    document: dict[str, Any] = {"cases": {}}
    if args.out and args.out.exists():
        document = json.loads(args.out.read_text())
    document["machine"] = machine(args)
    unfinished = False

    def save() -> None:
        if args.out:
            measuring.write_json(args.out, document)

    for name in args.case or at_hand:
        case = CASES[name]._replace(**({"epochs": args.epochs} if args.epochs else {}))
        try:
            bench = Bench(case, args)
            n_flops = bench.flops()
        except (FileNotFoundError, ImportError) as error:
            print(f"\n{name} is left out: {error}")
            continue
        part = "" if args.share == 1 else f" {100 * args.share:g}% of the data"
        part += " random pixels" if args.synthetic and bench.case.data in SHAPES else ""
        part += f" {args.epochs} epochs" if args.epochs else ""
        key = f"{name} R={args.keep_rate:g} {bench.device}{part}"
        ways = bench.ways(args.widths)
        entry = document["cases"].setdefault(
            key, {"share": args.share, "flops": n_flops, "runs": {}}
        )
        for way in ways:
            entry["runs"].setdefault(way, [])
        failed = entry.setdefault("failed", {})
        if unknown := set(args.ways or []) - set(ways):
            print(f"\n{name} has no ways {sorted(unknown)} on {bench.device}.")
        wanted = {way: train for way, train in ways.items() if way in (args.ways or ways)}
        for repeat in range(args.repeats):
            for way, train in wanted.items():
                left = args.limit - (time.monotonic() - start)
                if len(entry["runs"][way]) > repeat or way in failed:
                    continue
                if left <= 0:
                    unfinished = True
                    break
                unfinished |= not bench.try_run(way, train, entry, left, args.run_limit, save)
        if all(entry["runs"][way] or way in failed for way in wanted):
            seconds = "wall" if bench.device.type == "cuda" else "cpu"
            print_table(key, entry, document["machine"]["matmul_gflops"], seconds)
    print(f"\n{document['machine']}")
    if unfinished:
        print("stopped at --limit: run the same command again")


if __name__ == "__main__":
    main()
