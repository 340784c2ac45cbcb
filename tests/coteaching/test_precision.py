"""What CUDA's libraries may do while networks train. Its switches exist without a GPU."""

from itertools import compress
from threading import Barrier, Thread

import numpy as np
import pytest
import torch
from torch import nn
from torch.backends import cudnn
from torch.backends.cuda import matmul

from optuna_s2e.coteaching import (
    CoteachingObjective,
    NoisyData,
    TrainingConfig,
    load_data,
    train_batch,
)
from optuna_s2e.coteaching._precision import cuda_precision

NEWER = hasattr(cudnn, "conv")


def _read(place, name):
    try:
        return getattr(place, name)
    except RuntimeError as error:  # PyTorch's older name, after the newer one was set
        return type(error)


def _state():
    found = [_read(cudnn, name) for name in ("enabled", "benchmark", "deterministic")]
    found += [_read(of, "allow_tf32") for of in (cudnn, matmul)]
    if NEWER:
        found += [of.fp32_precision for of in (cudnn.conv, cudnn.rnn, matmul)]
    try:
        return [*found, torch.get_float32_matmul_precision()]
    except RuntimeError as error:
        return [*found, type(error)]


def _newer_name():
    matmul.fp32_precision = "tf32"


def _newer_names():
    matmul.fp32_precision = "tf32"
    cudnn.conv.fp32_precision = "ieee"


def _benchmark():
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = True, True, False


SET_BY_USERS = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "benchmark": _benchmark,
} | ({"newer": _newer_name, "newer names": _newer_names} if NEWER else {})


@pytest.fixture(params=SET_BY_USERS)
def set_by_user(request):
    """Set what a user may have set, and everything back to PyTorch's own values afterwards."""
    SET_BY_USERS[request.param]()
    yield
    torch.set_float32_matmul_precision("highest")
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = False, False, True
    matmul.allow_tf32 = False
    if NEWER:
        matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


def _is_tf32():
    if not NEWER:
        return cudnn.allow_tf32, matmul.allow_tf32
    return cudnn.conv.fp32_precision == "tf32", matmul.fp32_precision == "tf32"


@pytest.mark.usefixtures("set_by_user")
@pytest.mark.parametrize("tf32", [False, True])
def test_precision_is_set_inside_and_everything_is_as_before_afterwards(tf32):
    before = _state()
    with cuda_precision(tf32=tf32):
        assert _is_tf32() == (tf32, tf32)
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        with cuda_precision(tf32=False):
            assert _is_tf32() == (False, False)
        assert _is_tf32() == (tf32, tf32)
    readable = [not isinstance(value, type) for value in before]
    assert list(compress(_state(), readable)) == list(compress(before, readable))


def test_an_error_brings_back_what_was_before():
    before = _state()
    with pytest.raises(KeyError, match="boom"), cuda_precision(tf32=True):
        raise KeyError("boom")
    assert _state() == before


def test_the_last_of_several_threads_brings_back_what_was_before_the_first():
    before, met = _state(), Barrier(2)

    def train():
        with cuda_precision(tf32=True):
            met.wait(10)  # both are inside

    first = Thread(target=train)
    first.start()
    with cuda_precision(tf32=True):
        met.wait(10)
        first.join()
        assert _is_tf32() == (True, True)
        assert cudnn.deterministic
    assert _state() == before


def test_tf32_is_a_setting_of_the_study_and_float32_on_a_cpu():
    data = load_data("digits", noise="symmetric", noise_rate=0.5, seed=0)
    single, tf32 = (
        train_batch(
            np.ones((1, 2)), [0], data=data, network="mlp", device="cpu",
            config=TrainingConfig(dtype=dtype),
        )[0]
        for dtype in ("float32", "tf32")
    )  # fmt: skip
    np.testing.assert_array_equal(tf32.curves.loss, single.curves.loss)
    objective = CoteachingObjective(data, config=TrainingConfig(dtype="tf32"), device="cpu")
    assert objective.settings["config"]["dtype"] == "tf32"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "tf32"])
@pytest.mark.parametrize("backend", ["loop", "fused"])
def test_networks_on_cuda_train_with_what_their_dtype_says(dtype, backend):
    seen = []

    class Looking(nn.Linear):
        def forward(self, x):
            seen.append((*_is_tf32(), cudnn.deterministic))
            return super().forward(x.flatten(1))

    x, y = np.random.default_rng(0).random((20, 64), dtype=np.float32), np.arange(20) % 10
    data = NoisyData.from_arrays(x, y, x, y)
    before = _state()
    (result,) = train_batch(
        np.ones((1, 1)), [0], data=data, network=lambda shape, n: Looking(64, n),
        config=TrainingConfig(dtype=dtype), device="cuda", backend=backend,
    )  # fmt: skip
    assert result.failure is None
    assert seen[-1] == (dtype == "tf32", dtype == "tf32", True)
    assert _state() == before
