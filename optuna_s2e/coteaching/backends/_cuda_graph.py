"""Experimental: the steps of an epoch as one CUDA graph, for `backend="graphs"`.

This module has never run on a GPU: there was none to try it on. `backend="auto"` never takes it.
The tests run everything but `CudaGraphs` on the CPU, where a recorded step trains bit for bit as
the step itself. It is the only module that needs CUDA, and only `_choice` imports it.

A step of a small network is some fifty short kernels, and launching them takes longer than they
run. A graph launches them all at once. It repeats the recorded kernels on the same memory, so a
step must read its inputs, networks and optimiser where they are and compute nothing on the host.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from optuna_s2e.coteaching.backends._fused import Tensors

Step = Callable[..., Tensors]

_ONE_AT_A_TIME = threading.Lock()  # PyTorch records one graph at a time per process


class Graphs(Protocol):
    """Records steps in order to replay them."""

    def warm_up(self, step: Step, inputs: Tensors) -> Tensors:
        """Run the step once, where it will be recorded."""

    def record(self, step: Step, inputs: Tensors) -> tuple[Callable[[], None], Tensors]:
        """Record the step without running it.

        Returns:
            A function that replays the step, and the tensors that then hold its outputs.

        Raises:
            Exception: If the step cannot be recorded. Nothing has changed then.
        """


class CudaGraphs:
    """CUDA's graphs on one device (see `Graphs`)."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def warm_up(self, step: Step, inputs: Tensors) -> Tensors:
        """Run the step once; libraries may allocate memory here, but not during a recording."""
        with self._on_stream(inputs[0].device), warnings.catch_warnings():
            # optimisers warn that a step of theirs runs without being recorded
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            return step(*inputs)

    def record(self, step: Step, inputs: Tensors) -> tuple[Callable[[], None], Tensors]:
        """Record the step; other threads may use the device at the same time."""
        graph = torch.cuda.CUDAGraph()
        with (
            _ONE_AT_A_TIME,
            self._on_stream(inputs[0].device),
            # PyTorch's own stream belongs to the device that recorded first in this process
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            outputs = step(*inputs)
        return graph.replay, outputs

    @contextmanager
    def _on_stream(self, device: torch.device) -> Iterator[None]:
        """Work on the recording stream, after all earlier work and before all later work."""
        with torch.cuda.device(device):
            self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                yield
            torch.cuda.current_stream().wait_stream(self._stream)


class CudaGraphSteps:
    """Runs the first step of an epoch, records the second one and replays it for all others.

    Each epoch is recorded anew, because the graph holds its learning rate and its numbers of kept
    samples as constants. If a step cannot be recorded, there is one warning, and all steps run
    without a graph.
    """

    def __init__(self, graphs: Graphs | None = None) -> None:
        self._graphs = graphs or CudaGraphs()
        self._records = True

    def __call__(self, step: Step, inputs: Iterable[Tensors]) -> list[Tensors]:
        """Run a step on each of its inputs and return the outputs (`RunSteps`).

        Raises:
            torch.OutOfMemoryError: If recording a step of several trials takes too much memory.
                Fewer trials may fit.
        """
        steps = iter(inputs)
        outputs = [self._graphs.warm_up(step, next(steps))]
        replay: Step | None = None
        for values in steps:
            if replay is None and self._records:
                replay = self._record(step, values)
            outputs.append((replay or step)(*values))
        return outputs

    def _record(self, step: Step, values: Tensors) -> Step | None:
        """Record a step; return a function that replays it on any values, or None on failure."""
        places = tuple(value.clone() for value in values)
        try:
            run, results = self._graphs.record(step, places)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) and len(places[0]) > 1:
                raise
            self._records = False
            warnings.warn(
                "backend 'graphs' trains as 'fused', which gives the same numbers but may be "
                f"slower: a training step cannot be recorded as a CUDA graph ({error!r}). "
                "backend='fused' silences this warning.",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

        def replay(*values: Tensor) -> Tensors:
            for place, value in zip(places, values, strict=True):
                place.copy_(value)
            run()
            return tuple(result.clone() for result in results)

        return replay
