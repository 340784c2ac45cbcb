"""What CUDA graphs require of a training step, tested on the CPU.

The host never waits for the device within an epoch, it computes nothing, and recorded operations
train as the step itself does.
"""

import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from optuna_s2e.coteaching import (
    METHODS,
    Coteaching,
    CoteachingPlus,
    ForwardCorrection,
    NoisyData,
    TrainingConfig,
    train_batch,
)
from optuna_s2e.coteaching import _training as training
from optuna_s2e.coteaching._correction import KnownCorrection
from optuna_s2e.coteaching.backends._base import TrainingSetup
from optuna_s2e.coteaching.backends._choice import Backend
from optuna_s2e.coteaching.backends._cuda_graph import CudaGraphs, CudaGraphSteps
from optuna_s2e.coteaching.backends._fused_cnn import FusedCnnTrainer
from optuna_s2e.coteaching.backends._fused_cnn_unfolded import UnfoldedCnnTrainer
from optuna_s2e.coteaching.backends._fused_mlp import FusedMlpTrainer
from optuna_s2e.coteaching.backends._fused_mlp_fixed import FixedMlpTrainer
from optuna_s2e.coteaching.backends._fused_vmap import FusedVmapTrainer
from optuna_s2e.coteaching.backends._loop import LoopTrainer
from optuna_s2e.coteaching.backends._loop_kept_rows import KeptRowsTrainer
from optuna_s2e.coteaching.backends._loop_reweight import ReweightTrainer
from optuna_s2e.coteaching.backends._padded import PaddedTrainer


def _convolutions(input_shape, n_classes):
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Flatten(), nn.Linear(36, n_classes)),
    )


def _dropout(input_shape, n_classes):
    layers = _convolutions(input_shape, n_classes)
    return nn.Sequential(*layers[:4], nn.Dropout2d(0.2), *layers[4:])


KINDS = {
    "mlp": (FusedMlpTrainer, "mlp"),
    "fixed mlp": (FixedMlpTrainer, "mlp"),
    "cnn": (FusedCnnTrainer, _dropout),
    "unfolded": (UnfoldedCnnTrainer, _dropout),
    "vmap": (FusedVmapTrainer, _convolutions),
}
RATES = np.array([[1.0, 0.6], [0.4, 0.9]])


def _setup(network, *, n_samples=30, **config):
    """Three steps an epoch: one as it is, one that is recorded, one replay."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n_samples, 2, 16, 16), dtype=np.uint8)
    y = np.arange(n_samples) % 3
    data = NoisyData.from_arrays(x, y, x[:7], y[:7], clean_labels=y[::-1].copy())
    defaults = {"batch_size": 10, "learning_rate": 0.01, "dtype": "float64"}
    config = TrainingConfig(**{**defaults, **config})
    return TrainingSetup(data, network, config, (data.x_val, data.y_val))


class HostSync(AssertionError):
    """The host would have to wait for the device."""


class NoSync(TorchDispatchMode):
    """Refuses operations that read a value on the host: `.item()`, `bool()`, shapes."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            raise HostSync(func.name())
        return func(*args, **(kwargs or {}))


class CpuGraphs:
    """Replays the operations of a step on the CPU, on the memory that it was recorded on."""

    can_record = True

    def __init__(self):
        self.recorded = []

    def warm_up(self, step, inputs):
        return step(*inputs)

    def record(self, step, inputs):
        self.recorded.append(len(inputs[0]))
        with Recorder() as recorder:
            outputs = step(*inputs)
        for tensor, before in reversed(recorder.changed):
            tensor.copy_(before)  # recording runs nothing
        return partial(_replay, recorder.calls), outputs


@torch.no_grad()
def _replay(calls):
    for func, args, kwargs, result in calls:
        again = func(*args, **kwargs)
        if not _aliases(func):
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor):
                    place.copy_(value)


class Recorder(NoSync):
    def __init__(self):
        super().__init__()
        self.calls, self.changed = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert torch.Tag.nondeterministic_seeded not in func.tags, "draws random numbers"
        kwargs = kwargs or {}
        self.changed += [(x, x.clone()) for x in _written(func, args, kwargs)]
        result = super().__torch_dispatch__(func, types, args, kwargs)
        detached = tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, result)
        self.calls.append((func, args, kwargs, detached))
        return result


def _written(func, args, kwargs):
    """Return the tensors that an operation changes in place."""
    if func.name() == "aten::native_batch_norm":  # its schema does not say so
        return args[3:5]
    arguments = func._schema.arguments
    values = [*args, *(kwargs.get(argument.name) for argument in arguments[len(args) :])]
    return [
        tensor.detach()
        for argument, value in zip(arguments, values, strict=True)
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tree_leaves(value)
    ]


def _aliases(func):
    return any(returned.alias_info is not None for returned in func._schema.returns)


def _epochs(trainer, mode=nullcontext, *, short=False):
    """Train three epochs, then two epochs of a single trial; return all measurements.

    Learning rates are powers of 2: a trainer that reads them from the device has them in float32.

    Args:
        trainer: The trainer of two trials.
        mode: Makes a context for all of it.
        short: Whether one epoch of each is left out.
    """
    measured = []
    plan = [(0, 2**-7, 0.9), (1, 2**-8, 0.9), (1, 2**-9, 0.1)]
    with mode():
        for epoch, *rates in plan[:2] if short else plan:
            measured += [trainer.train_epoch(RATES[:, epoch], *rates), trainer.evaluate()]
        trainer.keep_trials([1])
        for epoch in (0,) if short else (0, 1):
            measured += [trainer.train_epoch(RATES[1:, epoch], 2**-9, 0.1), trainer.evaluate()]
    return measured


def _recording(graphs):
    return partial(CudaGraphSteps, graphs)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device_within_an_epoch(kind):
    trainer_type, network = KINDS[kind]
    setup = _setup(network)
    made = trainer_type(setup, [0, 1], setup.data.noisy_labels)
    with pytest.raises(HostSync), NoSync():
        made.train_epoch(RATES[:, 0], 0.01, 0.9).sum().item()
    _epochs(made, NoSync)


@pytest.mark.parametrize("trainer_type", [LoopTrainer, KeptRowsTrainer])
def test_nothing_waits_for_the_device_in_the_loop(trainer_type):
    setup = _setup("cnn2")
    made = trainer_type(setup, [0], setup.data.noisy_labels)
    made.train_epoch(RATES[:1, 1], 0.01, 0.9)  # the first step looks at the network's outputs
    with NoSync():
        made.train_epoch(RATES[:1, 1], 0.01, 0.9)
        made.evaluate()


def test_nothing_waits_for_the_device_in_bfloat16():
    setup = _setup(_dropout, dtype="bfloat16")
    trainer = FusedCnnTrainer(setup, [0], setup.data.noisy_labels)
    with NoSync():
        trainer.train_epoch(RATES[0, :1], 0.01, 0.9)
        trainer.evaluate()


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        *((kind, "adam") for kind in KINDS),
        *(("fixed mlp", "sgd"), ("cnn", "sgd")),
        *(("mlp", "rmsprop"), ("cnn", "rmsprop")),
    ],
)
def test_a_recorded_step_trains_as_the_step_does(kind, optimizer):
    trainer_type, network = KINDS[kind]
    setup, graphs = _setup(network, optimizer=optimizer), CpuGraphs()
    labels = setup.data.noisy_labels
    eager = _epochs(trainer_type(setup, [3, 4], labels))
    replayed = _epochs(trainer_type(setup, [3, 4], labels, make_steps=_recording(graphs)))
    assert all(torch.isfinite(values).all() for values in eager)
    for a, b in zip(eager, replayed, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("kind", "optimizer", "recorded"),
    [
        # anew for the second beta1, for one trial, and for the rows of another R(t)
        ("fixed mlp", "adam", [2, 2, 1]),
        ("fixed mlp", "sgd", [2, 1]),
        ("mlp", "adam", [2, 2, 1, 1]),
        ("cnn", "adam", [2, 2, 1]),
        ("vmap", "adam", [2, 2, 1]),
        ("cnn", "rmsprop", [2, 2, 2, 1]),  # its learning rate is a constant of the step
    ],
)
def test_a_step_is_recorded_anew_only_when_its_constants_change(kind, optimizer, recorded):
    trainer_type, network = KINDS[kind]
    setup = _setup(network, n_samples=40, optimizer=optimizer, batch_size=20)
    graphs = CpuGraphs()
    _epochs(trainer_type(setup, [3, 4], setup.data.noisy_labels, make_steps=_recording(graphs)))
    assert graphs.recorded == recorded


def test_a_group_of_one_size_is_not_recorded_anew_when_a_trial_leaves():
    setup, graphs = _setup("mlp"), CpuGraphs()
    recording = partial(FixedMlpTrainer, make_steps=_recording(graphs))
    eager, replayed = (
        _epochs(PaddedTrainer(make, 3, setup, [3, 4], setup.data.noisy_labels))
        for make in (FixedMlpTrainer, recording)
    )
    assert graphs.recorded == [3, 3]  # all lanes, for two values of beta1
    assert all(map(torch.equal, eager, replayed))


def _methods():
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.0, 0.7]])
    known = KnownCorrection(ForwardCorrection("true"), rows)
    options = [CoteachingPlus(warm_up=1, softmax_twice=True), Coteaching(divide_again=True), known]
    names = ("decoupling", "bare", "jocor", "coteaching+", "mentornet")
    return {name: METHODS[name] for name in names} | {repr(m)[:30]: m for m in options}


@pytest.mark.parametrize("kind", ["mlp", "fixed mlp", "cnn"])  # the others choose as "cnn" does
@pytest.mark.parametrize("method", _methods().values(), ids=_methods())
def test_steps_of_every_pointwise_method_can_be_recorded(kind, method):
    trainer_type, network = KINDS[kind]
    setup = _setup(network)._replace(method=method)
    made = trainer_type(setup, [3, 4], setup.data.noisy_labels)
    eager = _epochs(made, NoSync, short=True)
    recording = _recording(CpuGraphs())
    made = trainer_type(setup, [3, 4], setup.data.noisy_labels, make_steps=recording)
    replayed = _epochs(made, short=True)
    for a, b in zip(eager, replayed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["bare", "jocor", "coteaching+", "reweight"])
def test_nothing_waits_for_the_device_in_the_loop_of_a_method(name):
    setup = _setup("cnn2")._replace(method=METHODS[name])
    trainer_type = ReweightTrainer if name == "reweight" else LoopTrainer
    made = trainer_type(setup, [0], setup.data.noisy_labels)
    made.train_epoch(RATES[:1, 1], 0.01, 0.9)  # the first step looks at the network's outputs
    with NoSync():
        made.train_epoch(RATES[:1, 1], 0.01, 0.9)
        made.evaluate()


def test_an_epoch_of_one_step_is_not_recorded():
    graphs = CpuGraphs()
    (outputs,) = CudaGraphSteps(graphs)(lambda x: (x + 1,), [(torch.ones(2),)], 1, None)
    assert torch.equal(outputs, torch.full((1, 2), 2.0))
    assert graphs.recorded == []


class FailingGraphs(CpuGraphs):
    """Fails at the end of a recording, for groups of at least `width` trials."""

    def __init__(self, error, width=1, at_end=None):
        super().__init__()
        self.error, self.width, self.at_end = error, width, at_end

    def record(self, step, inputs):
        replay, outputs = super().record(step, inputs)
        if len(inputs[0]) >= self.width:
            try:
                raise type(self.error)(*self.error.args)
            finally:
                if self.at_end:  # as `torch.cuda.graph` ends a recording that was broken off
                    raise type(self.at_end)(*self.at_end.args)
        return replay, outputs


@pytest.mark.parametrize("kind", ["fixed mlp", "cnn"])
def test_steps_that_cannot_be_recorded_run_as_they_are_with_one_warning(kind):
    trainer_type, network = KINDS[kind]
    setup = _setup(network)
    graphs = FailingGraphs(RuntimeError("operation not permitted when stream is capturing"))
    for seeds in ([3, 4], [5, 6]):
        eager = _epochs(trainer_type(setup, seeds, setup.data.noisy_labels))
        warns = pytest.warns(RuntimeWarning, match="as 'fused'.*not permitted")
        with nullcontext() if graphs.recorded else warns:
            plain = _epochs(
                trainer_type(setup, seeds, setup.data.noisy_labels, make_steps=_recording(graphs))
            )
        assert all(map(torch.equal, eager, plain))
    assert graphs.recorded == [2]


@pytest.mark.parametrize(
    ("width", "at_end"), [(2, None), (1, None), (2, RuntimeError("capture was invalidated"))]
)
def test_a_recording_that_runs_out_of_memory_halves_the_group(width, at_end, monkeypatch):
    """A trial that is too large even alone is trained without a graph."""
    setup = _setup("mlp")
    graphs = FailingGraphs(torch.OutOfMemoryError("out of memory"), width, at_end)
    make = partial(FusedMlpTrainer, make_steps=_recording(graphs))
    config = replace(setup.config, learning_rate=2**-7, decay_start=1.0)
    options = {"data": setup.data, "config": config, "device": "cpu"}
    rates, seeds = np.repeat(RATES, 2, axis=0), range(4)
    expected = train_batch(rates, seeds, **options, backend="fused")
    monkeypatch.setattr(training, "find_backend", lambda *_: Backend(make, 4))
    with pytest.warns(RuntimeWarning, match="OutOfMemory") if width == 1 else nullcontext():
        results = train_batch(rates, seeds, **options)
    assert graphs.recorded == ([4, 2, 1, 1, 2, 1, 1] if width == 2 else [4, 2, 1])
    for a, b in zip(results, expected, strict=True):
        assert a.failure is None
        for name in a.curves._fields:
            np.testing.assert_array_equal(getattr(a.curves, name), getattr(b.curves, name))


class FakeCuda:
    """Streams and graphs on the CPU: it notes who waits for whom, and on what is recorded."""

    def __init__(self, monkeypatch):
        self.log, self.streams, self.fails = [], ["main"], False
        fake = {"device": nullcontext, "Stream": lambda: self.stream_of("side")}
        fake |= {"current_stream": lambda: self.stream_of(self.streams[-1])}
        fake |= {"stream": self.on, "CUDAGraph": SimpleNamespace, "graph": self.recording}
        for name, value in fake.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def stream_of(self, name):
        wait = lambda other: self.log.append(f"{name} waits for {other.name}")  # noqa: E731
        return SimpleNamespace(name=name, wait_stream=wait)

    @contextmanager
    def on(self, stream):
        self.streams.append(stream.name)
        try:
            yield
        finally:
            self.streams.pop()

    @contextmanager
    def recording(self, graph, stream, capture_error_mode):
        assert (stream.name, capture_error_mode) == ("side", "thread_local")
        self.log.append(f"{self.streams[-1]} records")
        with Recorder() as recorder:
            yield
        for tensor, before in reversed(recorder.changed):
            tensor.copy_(before)
        graph.replay = partial(_replay, recorder.calls)
        if self.fails:
            raise RuntimeError("capture was invalidated")


@pytest.mark.parametrize("kind", ["fixed mlp", "cnn"])
@pytest.mark.parametrize("fails", [False, True])
def test_streams_wait_for_each_other_around_each_recording(kind, fails, monkeypatch):
    trainer_type, network = KINDS[kind]
    setup, cuda = _setup(network), FakeCuda(monkeypatch)
    cuda.fails = fails
    labels = setup.data.noisy_labels
    eager = _epochs(trainer_type(setup, [3, 4], labels))
    with pytest.warns(RuntimeWarning, match="invalidated") if fails else nullcontext():
        replayed = _epochs(
            trainer_type(setup, [3, 4], labels, make_steps=_recording(CudaGraphs()))
        )
    assert all(map(torch.equal, eager, replayed))
    around = ["side waits for main", "main waits for side"]
    assert cuda.log[:5] == [*around, around[0], "side records", around[1]]
    assert set(cuda.log[5:]) == {*around} | (set() if fails else {"side records"})
    assert cuda.streams == ["main"]


def test_work_after_a_step_that_failed_waits_for_it(monkeypatch):
    cuda = FakeCuda(monkeypatch)

    def step(x):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphs().warm_up(step, (torch.ones(2),))
    assert cuda.log == ["side waits for main", "main waits for side"]
    assert cuda.streams == ["main"]


def test_graphs_need_cuda():
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    setup = _setup("mlp")
    with pytest.raises(ValueError, match="'graphs' needs a CUDA device"):
        train_batch(RATES, [0, 1], data=setup.data, device="cpu", backend="graphs")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("network", ["mlp", "cnn2", "cnn7"])
def test_graphs_on_cuda_train_as_the_loop_on_the_cpu(network):
    # a constant power of 2: learning rates are float32 on the device
    setup = _setup(network, learning_rate=2**-7, decay_start=1.0)
    graphs, loop = (
        train_batch(
            RATES, [0, 1], data=setup.data, network=network, config=setup.config,
            device=device, backend=backend,
        )
        for device, backend in (("cuda", "graphs"), ("cpu", "loop"))
    )  # fmt: skip
    for a, b in zip(graphs, loop, strict=True):
        assert (a.n_epochs, a.failure) == (2, None)
        for name in a.curves._fields:
            np.testing.assert_allclose(
                getattr(a.curves, name), getattr(b.curves, name), rtol=0, atol=1e-8, err_msg=name
            )


FAILING = """
import warnings
import torch
from optuna_s2e.coteaching.backends._cuda_graph import CudaGraphs, CudaGraphSteps

inputs = [(torch.full((2, 3), value, device="cuda"),) for value in (1.0, 2.0, 3.0)]
with warnings.catch_warnings(record=True) as seen:
    (waited,) = CudaGraphSteps(CudaGraphs())(lambda x: (x * x.sum().item(),), inputs, 3, None)
assert any("cannot be recorded as a CUDA graph" in str(warning.message) for warning in seen), seen
(replayed,) = CudaGraphSteps(CudaGraphs())(lambda x: (x * x.sum(),), inputs, 3, None)
for (x,), a, b in zip(inputs, waited, replayed, strict=True):
    assert torch.equal(a, x * x.sum()) and torch.equal(b, x * x.sum())
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_what_cuda_cannot_record_runs_as_it_is():
    """In a process of its own: PyTorch before 2.12 goes on with a damaged allocator."""
    subprocess.run([sys.executable, "-c", FAILING], check=True, timeout=120)


@pytest.mark.gpu
@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices"
)
def test_one_process_may_record_on_several_devices():
    setup = _setup("mlp")
    results = [
        train_batch(
            RATES, [0, 1], data=setup.data, config=setup.config, device=device,
            backend="graphs",
        )
        for device in ("cuda:0", "cuda:1")
    ]  # fmt: skip
    for a, b in zip(*results, strict=True):
        assert a.failure is b.failure is None
        np.testing.assert_allclose(a.curves.loss, b.curves.loss, rtol=0, atol=1e-8)
