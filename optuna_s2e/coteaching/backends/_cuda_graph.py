"""Experimental: the steps of a training from one CUDA graph, for `backend="graphs"`.

This module has never run on a GPU: there was none to try it on. `backend="auto"` never takes it.
The tests run it on the CPU, where a recorded step trains bit for bit as the step itself; what
stands in for CUDA's streams and graphs there is theirs. Only `_choice` imports it.

A step of a small network is some fifty short kernels, and launching them takes longer than they
run. A graph launches them all at once. It repeats the recorded kernels on the same memory, so a
step must read its inputs, networks and optimiser where they are and compute nothing on the host.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from optuna_s2e._chain import chain
from optuna_s2e.coteaching.backends._fused import Step, Tensors

_ONE_AT_A_TIME = threading.Lock()  # PyTorch records one graph at a time per process


class Graphs(Protocol):
    """Records steps in order to replay them.

    Attributes:
        can_record: Whether every recording so far succeeded.
    """

    can_record: bool

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
        self.can_record = True
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
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:  # also of a step that failed: memory that it writes to is given to others
                torch.cuda.current_stream().wait_stream(self._stream)


class CudaGraphSteps:
    """Runs the steps of one trainer, all but a few of them from a recording (`RunSteps`).

    The first step runs as it is, the second one is recorded and replayed from then on, in all
    epochs until the constants of the step change: Adam's beta1, the number of trials or of kept
    samples, the method. If a step cannot be recorded, there is one warning, and all steps run
    without a graph.
    """

    def __init__(self, graphs: Graphs) -> None:
        """Begin without a recording.

        Args:
            graphs: Records steps, also of other trainers.
        """
        self._graphs = graphs
        self._constants: Hashable = None
        self._replay: Callable[[Tensors], Tensors] | None = None

    def __call__(
        self, step: Step, inputs: Iterable[Tensors], n_steps: int, constants: Hashable
    ) -> list[Tensor]:
        """Run a step on each of its inputs (see `RunSteps`).

        Raises:
            torch.OutOfMemoryError: If recording a step of several trials takes too much memory.
                Fewer trials may fit.
        """
        if constants != self._constants:
            self._replay, self._constants = None, constants  # the memory of a recording is freed
        outputs: list[Tensor] = []
        for i, values in enumerate(inputs):
            if self._replay is None and i == 0:
                results = self._graphs.warm_up(step, values)
            else:
                if self._replay is None and self._graphs.can_record:
                    self._replay = self._record(step, values)
                results = self._replay(values) if self._replay else step(*values)
            outputs = outputs or [r.new_empty((n_steps, *r.shape)) for r in results]
            for place, result in zip(outputs, results, strict=True):
                place[i].copy_(result)
        return outputs

    def _record(self, step: Step, values: Tensors) -> Callable[[Tensors], Tensors] | None:
        """Record a step; return a function that replays it on any values, or None on failure.

        What that function returns is overwritten when it is called again.
        """
        places = tuple(value.clone() for value in values)
        try:
            run, results = self._graphs.record(step, places)
        except Exception as error:
            # lack of memory comes first: ending a recording that failed may be an error, too
            lacks = any(isinstance(link, torch.OutOfMemoryError) for link in chain(error))
            if lacks and len(places[0]) > 1:
                raise
            self._graphs.can_record = False
            warnings.warn(
                "backend 'graphs' trains as 'fused', which gives the same numbers but may be "
                f"slower: a training step cannot be recorded as a CUDA graph ({error!r}). "
                "backend='fused' silences this warning.",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

        def replay(values: Tensors) -> Tensors:
            for place, value in zip(places, values, strict=True):
                place.copy_(value)
            run()
            return results

        return replay
