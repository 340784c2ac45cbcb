"""What an epoch of a Co-teaching trial costs: the resident loop beside one written the usual way.

    python tests/benchmarks/bench_training.py                                  # digits, seconds
    python tests/benchmarks/bench_training.py --data mnist --data-root DIR     # some minutes
    python tests/benchmarks/bench_training.py --data cifar10 --data-root DIR --network cnn2
    python tests/benchmarks/bench_training.py --json training.json

Both train two networks on the same noisy labels under the same schedule (R(t) falling to 0.5)
and evaluate both on the validation part after each epoch. "resident" is the package's
`train_batch`: data in memory as one tensor, one backward pass and one fused Adam for both
networks. "usual" follows the published programs: a DataLoader (shuffle, drop_last, as many
workers as asked) over a data set that turns each image into a PIL image and applies torchvision's
ToTensor to it, a backward pass and an Adam for each network, two argsorts on the host, running
accuracies read at every step, and one pass of a validation DataLoader for each network.

A run is one whole training of a few epochs, from new networks to the last evaluation; files are
read before. The two ways take turns. Wall seconds per trial-epoch: the median over the repeats.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from optuna_s2e.coteaching import (
    DATA_SETS,
    NETWORKS,
    CoteachingObjective,
    NoisyData,
    TrainingConfig,
    load_data,
    make_network,
    train_batch,
)
from optuna_s2e.coteaching._torchvision import import_datasets
from optuna_s2e.schedules import coteaching_schedule


class PilImages(Dataset[tuple[Tensor, int, int]]):
    """Images as torchvision's data sets give them: through PIL and a transform, one by one."""

    def __init__(self, x: Tensor, y: Tensor, to_tensor: Callable[[Image.Image], Tensor]) -> None:
        pixels = x if x.dtype == torch.uint8 else (x * 255).round().to(torch.uint8)
        self.images = pixels.permute(0, 2, 3, 1).squeeze(-1).numpy()
        self.labels = y.tolist()
        self.to_tensor = to_tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.to_tensor(Image.fromarray(self.images[index])), self.labels[index], index


def usual_step(
    x: Tensor, y: Tensor, nets: list[nn.Module], adams: list[torch.optim.Adam], n_kept: int
) -> list[float]:
    """Take one step of both networks; return the running accuracies of the mini-batch."""
    logits = [net(x) for net in nets]
    losses = [F.cross_entropy(out, y, reduction="none") for out in logits]
    order = [np.argsort(loss.detach().cpu().numpy()) for loss in losses]
    for i, adam in enumerate(adams):
        peer = torch.from_numpy(order[1 - i][:n_kept]).to(x.device)
        adam.zero_grad()
        F.cross_entropy(logits[i][peer], y[peer]).backward()
        adam.step()
    return [(out.argmax(dim=1) == y).float().mean().item() for out in logits]


def usual_error(net: nn.Module, loader: Iterable[Any], device: torch.device) -> float:
    """Return the share of wrong predictions over a DataLoader."""
    wrong = total = 0
    net.eval()
    with torch.no_grad():
        for x, y, _ in loader:
            wrong += int((net(x.to(device)).argmax(dim=1).cpu() != y).sum())
            total += len(y)
    return wrong / total


def train_usual(
    keep_rates: np.ndarray,
    data: NoisyData,
    network: str,
    config: TrainingConfig,
    device: torch.device,
    n_workers: int,
) -> float:
    """Train one trial with DataLoaders; return the last validation error."""
    import_datasets()  # torchvision, where it does not load by itself
    from torchvision.transforms import ToTensor

    nets = [
        make_network(network, data.input_shape, data.n_classes, seed=i).to(device) for i in (0, 1)
    ]
    adams = [torch.optim.Adam(net.parameters(), config.learning_rate) for net in nets]
    train = PilImages(data.x, data.noisy_labels, ToTensor())
    validation = PilImages(data.x_val, data.y_val, ToTensor())
    options: dict[str, Any] = {"batch_size": config.batch_size, "num_workers": n_workers}
    errors = []
    for keep_rate in keep_rates:
        for net in nets:
            net.train()
        for x, y, _ in DataLoader(train, shuffle=True, drop_last=True, **options):
            n_kept = int(keep_rate * len(y))
            usual_step(x.to(device), y.to(device), nets, adams, n_kept)
        errors = [usual_error(net, DataLoader(validation, **options), device) for net in nets]
    return statistics.mean(errors)


def measure(
    ways: dict[str, Callable[[], float]], n_repeats: int, n_epochs: int
) -> dict[str, dict[str, Any]]:
    """Time the ways in turns; return seconds per trial-epoch of each run and the median."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    errors: dict[str, float] = {}
    for _ in range(n_repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            errors[name] = way()
            seconds[name].append((time.perf_counter() - start) / n_epochs)
    return {
        name: {
            "seconds_per_epoch": statistics.median(seconds[name]),
            "runs": seconds[name],
            "validation_error": errors[name],
        }
        for name in ways
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """Print one line for each way, and the ratio of the medians."""
    print(f"{'way':10}{'s per trial-epoch':>20}{'fastest':>10}{'slowest':>10}{'last error':>12}")
    for name, result in results.items():
        print(
            f"{name:10}{result['seconds_per_epoch']:20.3f}{min(result['runs']):10.3f}"
            f"{max(result['runs']):10.3f}{result['validation_error']:12.3f}"
        )
    usual, resident = (results[name]["seconds_per_epoch"] for name in ("usual", "resident"))
    print(f"usual / resident: {usual / resident:.1f}")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=DATA_SETS, default="digits", help="data set")
    parser.add_argument("--data-root", type=Path, help="folder of torchvision's data sets")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="mlp", help="network")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the usual way")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    data = load_data(args.data, root=args.data_root, download=False)
    config = CoteachingObjective(data, network=args.network, device=args.device).config
    device = torch.device(args.device)
    keep_rates = coteaching_schedule(max(2, args.epochs), 0.5).keep_rates[: args.epochs]
    on_device = data.to(device)

    def resident() -> float:
        (result,) = train_batch(
            keep_rates[None], [0], data=on_device, network=args.network, config=config,
            device=device,
        )  # fmt: skip
        return float(result.curves.error[-1].mean())

    def usual() -> float:
        return train_usual(keep_rates, data, args.network, config, device, args.workers)

    warm_up = replace(config, batch_size=8)
    small = NoisyData.from_arrays(data.x[:400], data.noisy_labels[:400], data.x_val, data.y_val)
    train_batch([[1.0]], [0], data=small, network=args.network, config=warm_up, device=device)
    train_usual(np.ones(1), small, args.network, warm_up, device, 0)
    results = measure({"usual": usual, "resident": resident}, args.repeats, args.epochs)

    print(f"{args.data}, {args.network}, {len(data.x)} training samples, {args.device}, ", end="")
    print(f"{args.threads} thread(s), {args.epochs} epochs x {args.repeats} runs in turns")
    print_table(results)
    if args.json:
        document = {
            "arguments": {k: v for k, v in vars(args).items() if k not in ("json", "data_root")},
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "results": results,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
