"""Which of several trainers is the fastest on the device at hand: measured once, then remembered.

The numbers of all trainers agree but for rounding, so a choice that is measured may change the
last bits of a training. It must not change from one run to the next. What was measured first
holds: for this process, and as a file in the user's folder of caches, for all processes of this
user that train such networks on such a device with this version of PyTorch. Of several that
measure at the same time, the first to write the file decides. Nothing is ever measured for a CPU:
there the choice is fixed (`_choice`).

The folder is `$XDG_CACHE_HOME/optuna_s2e`, or `~/.cache/optuna_s2e`. Without a folder that can be
written to, the choice holds for this process alone. If the files are deleted, it is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

from optuna_s2e.coteaching.backends._base import Trainer, TrainingSetup

_N_TRIALS, _N_STEPS, _N_EPOCHS = 16, 4, 3

_lock = Lock()
_chosen: dict[str, str] = {}  # key -> name

MakeTrainer = Callable[[TrainingSetup, Sequence[int], Tensor], Trainer]


def fastest(setup: TrainingSetup, probe: nn.Module, trainers: Mapping[str, MakeTrainer]) -> str:
    """Return the name of the trainer whose steps take the least time, as first measured.

    A measurement takes sixteen steps of each, of 16 trials on mini-batches of these data. A
    trainer that fails, for example by lack of memory, is not taken.

    Args:
        setup: What is trained, on which device.
        probe: One of the networks. Its printed form says which networks are alike.
        trainers: Trainers by name; the first one is taken if all fail.
    """
    key = _key(setup, probe, trainers)
    with _lock:
        if key not in _chosen:
            path = _folder() / hashlib.sha256(key.encode()).hexdigest()[:32]
            _chosen[key] = _read(path, trainers) or _measure(setup, trainers, path, key)
        return _chosen[key]


def _key(setup: TrainingSetup, probe: nn.Module, names: Mapping[str, MakeTrainer]) -> str:
    device = setup.data.x.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = (name, torch.__version__, setup.config.dtype, setup.config.batch_size)
    return repr((*parts, tuple(setup.data.input_shape), str(probe), tuple(names)))


def _folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "optuna_s2e"


def _read(path: Path, names: Mapping[str, MakeTrainer]) -> str | None:
    """Return the name that a file holds, or None if there is none."""
    try:
        name = json.loads(path.read_text())["fastest"]
        return name if name in names else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _measure(
    setup: TrainingSetup, trainers: Mapping[str, MakeTrainer], path: Path, key: str
) -> str:
    """Measure all trainers; return what is the fastest, or what another process found before."""
    seconds = {name: _seconds(setup, make) for name, make in trainers.items()}
    name = min(seconds, key=lambda name: seconds[name])
    text = {"fastest": name, "of": key, "seconds": {n: repr(s) for n, s in seconds.items()}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{path.name}.{os.getpid()}")
        own.write_text(json.dumps(text, indent=1) + "\n")
        try:
            os.link(own, path)  # as a whole, and only if no other process was first
        finally:
            own.unlink()
    except OSError:
        pass
    return _read(path, trainers) or name


def _seconds(setup: TrainingSetup, make: MakeTrainer) -> float:
    """Return the time of the fastest of a few short epochs; infinity if they fail."""
    data, device = setup.data, setup.data.x.device
    rows = torch.arange(_N_STEPS * setup.config.batch_size, device=device) % len(data.x)
    few = replace(data, x=data.x[rows], noisy_labels=data.noisy_labels[rows], clean_labels=None)
    times = []
    try:
        with setup.repeatable():
            small = setup._replace(data=few, watch_samples=False, n_left_out=0)
            trainer = make(small, range(_N_TRIALS), few.noisy_labels)
            for _ in range(1 + _N_EPOCHS):
                _wait(device)
                start = time.perf_counter()
                trainer.train_epoch(np.ones(_N_TRIALS), 1e-3, 0.9)
                _wait(device)
                times.append(time.perf_counter() - start)
    except Exception:  # a training says why
        return math.inf
    return min(times[1:])  # the first one makes what the others have


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
