"""Devices: which one "auto" takes, which ones are refused, CUDA against the CPU."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
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
