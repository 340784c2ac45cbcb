"""Devices: which one "auto" takes, which ones are refused, CUDA against the CPU."""

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Process
from torch import nn

from optuna_s2e.coteaching import CoteachingObjective, TrainingConfig, train_batch
from optuna_s2e.coteaching._training import find_device

RATES = np.array([[1.0, 0.9, 0.62, 0.5, 0.5, 0.4]])
CONFIG = TrainingConfig(batch_size=5, learning_rate=0.02, dtype="float64")


def _small_net(input_shape, n_classes):
    return nn.Sequential(nn.Linear(input_shape[0], 6), nn.Tanh(), nn.Linear(6, n_classes))


def _train_on(data, device, rates=RATES[:, :1], config=CONFIG):
    (result,) = train_batch(
        rates, [0], data=data, network=_small_net, config=config, device=device
    )
    return result


@pytest.mark.parametrize("available", [True, False])
def test_auto_is_cuda_if_there_is_any(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert find_device("auto") == torch.device("cuda" if available else "cpu")


def test_cuda_without_cuda_is_one_clear_error(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"but got 'cuda': torch finds no CUDA\. Take 'auto'"):
        _train_on(tiny, "cuda")
    assert _train_on(tiny, "auto").failure is None


def test_a_gpu_that_is_not_there_is_one_clear_error(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"but got 'cuda:2': torch finds 2 CUDA devices"):
        _train_on(tiny, "cuda:2")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("xpu", "device must be one that torch finds, but got 'xpu': torch "),
        ("mps", "device must be one that torch finds, but got 'mps': torch "),
        ("meta", "device must be one that torch finds, but got 'meta': torch "),
        ("cpu:1", "but got 'cpu:1': there is one CPU, 'cpu'. Take 'auto'."),
        ("gpu", "device must be one that torch knows, but got 'gpu'. Take 'auto', 'cpu', "),
        (None, "device must be one that torch knows, but got None. "),
        (1.5, "device must be one that torch knows, but got 1.5. "),
    ],
)
def test_a_device_that_cannot_compute_is_one_clear_line(tiny, device, message):
    for use in (find_device, lambda device: CoteachingObjective(tiny, device=device)):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            use(device)
        assert "\n" not in str(caught.value)
    assert find_device("cpu:0").type == "cpu"


def small_cnn(input_shape, n_classes):
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, n_classes)
    )


def smooth(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, n_classes))


def train_on_a_cpu() -> None:
    """Import the package anew, where there is an (empty) Triton; print what trained and loaded."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("optuna_s2e", "triton")]:
        del sys.modules[name]
    Path("triton.py").touch()
    sys.path.insert(0, "")
    coteaching = importlib.import_module("optuna_s2e.coteaching")
    backends = importlib.import_module("optuna_s2e.coteaching.backends")
    imported = sorted(sys.modules)
    sys.path.pop(0)  # PyTorch's optimisers load one that they find
    x, y = np.random.default_rng(0).random((12, 1, 8, 8), dtype=np.float32), np.arange(12) % 3
    data = coteaching.NoisyData.from_arrays(x, y, x, y, x_test=x, y_test=y)
    config = coteaching.TrainingConfig(batch_size=6)
    trained = []
    for backend in backends.BACKENDS:
        for network in ("mlp", small_cnn, smooth):
            try:
                results = coteaching.train_batch(
                    np.ones((2, 2)), [0, 1], data=data, network=network, config=config,
                    device="cpu", backend=backend,
                )  # fmt: skip
            except ValueError as error:
                if "needs a" not in str(error):
                    raise
            else:
                assert [result.failure for result in results] == [None, None], results
                trained.append(f"{backend} {getattr(network, '__name__', network)}")
    coteaching.CoteachingObjective(data, n_epochs=2, device="cpu").check()
    print(json.dumps([trained, torch.cuda.is_initialized(), imported, sorted(sys.modules)]))


def test_a_training_on_a_cpu_loads_nothing_of_cuda(tmp_path, monkeypatch):
    """Nor does its import load Triton where that is installed."""
    monkeypatch.chdir(tmp_path)
    process = Process(train_on_a_cpu)
    assert process.wait() == 0, process.errors
    trained, is_initialized, imported, modules = json.loads(process.printed.splitlines()[-1])
    assert trained[:3] == ["auto mlp", "auto small_cnn", "auto smooth"]
    assert {"loop mlp", "rows small_cnn", "fused mlp", "fused small_cnn", "fused smooth"} <= set(
        trained
    )
    assert not is_initialized
    own = {name for name in modules if name.startswith("optuna_s2e.")}
    assert "optuna_s2e.coteaching.backends._fused_vmap" in own
    of_cuda = ("_cuda_graph", "_precision")
    assert not [name for name in own if name.endswith(of_cuda)]
    assert "triton" not in imported


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_cuda_trains_the_same_networks_on_the_same_order(tiny):
    # a constant power of 2: learning rates are float32 on the device
    config = replace(CONFIG, learning_rate=2**-6, decay_start=1.0)
    on_cpu, on_cuda = (_train_on(tiny, device, RATES, config) for device in ("cpu", "cuda"))
    for name in on_cpu.curves._fields:
        np.testing.assert_allclose(
            getattr(on_cuda.curves, name), getattr(on_cpu.curves, name), atol=1e-8, err_msg=name
        )
