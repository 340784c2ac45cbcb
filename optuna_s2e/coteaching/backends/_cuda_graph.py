"""The steps of an epoch as one CUDA graph: the only module that needs CUDA.

A step of a small network is some fifty short kernels, and launching them takes longer than they
run. A graph launches them all at once. It repeats what was recorded, on the same memory: the
step must read its inputs, networks and optimiser where they lie, and compute nothing on the host.
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

_ONE_AT_A_TIME = threading.Lock()  # PyTorch records one graph at a time in a process


class Graphs(Protocol):
    """Records steps, to replay them."""

    def warm_up(self, step: Step, inputs: Tensors) -> Tensors:
        """Run the step where it will be recorded."""

    def record(self, step: Step, inputs: Tensors) -> tuple[Callable[[], None], Tensors]:
        """Record the step without running it; return what replays it, and where its outputs lie.

        Raises:
            Exception: If that is not possible; nothing has happened then.
        """


class CudaGraphs:
    """CUDA's graphs (see `Graphs`), of one device."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def warm_up(self, step: Step, inputs: Tensors) -> Tensors:
        """Run the step; libraries may allocate what they need, as they may not while recording."""
        with self._on_stream(inputs[0].device), warnings.catch_warnings():
            # optimisers warn that a step to be recorded later runs unrecorded now
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            return step(*inputs)

    def record(self, step: Step, inputs: Tensors) -> tuple[Callable[[], None], Tensors]:
        """Record the step; other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with (
            _ONE_AT_A_TIME,
            self._on_stream(inputs[0].device),
            # PyTorch's own stream lies on the device that recorded first in this process
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            outputs = step(*inputs)
        return graph.replay, outputs

    @contextmanager
    def _on_stream(self, device: torch.device) -> Iterator[None]:
        """Work on the stream that records; what was begun before it, and comes after, waits."""
        with torch.cuda.device(device):
            self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                yield
            torch.cuda.current_stream().wait_stream(self._stream)


class GraphSteps:
    """Runs the first step of an epoch, records the second and replays it for all others.

    Each epoch is recorded anew: its learning rate and numbers of kept samples are constants.
    Where a step cannot be recorded, one warning, and all steps run as they are.
    """

    def __init__(self, graphs: Graphs | None = None) -> None:
        self._graphs = graphs or CudaGraphs()
        self._records = True

    def __call__(self, step: Step, inputs: Iterable[Tensors]) -> list[Tensors]:
        """Return what a step makes of each of its inputs (`RunSteps`).

        Raises:
            torch.OutOfMemoryError: If recording a step of several lanes takes too much memory;
                fewer of them may fit.
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
        """Return what does the same as the step, on any values; None if it cannot be recorded."""
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
