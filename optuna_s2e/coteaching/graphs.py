"""The steps of an epoch as one CUDA graph: the only module that needs CUDA.

A step of a small network is some fifty short kernels, and launching them takes longer than they
run. A graph launches them all at once. It repeats what was recorded, on the same memory: the
step must read its inputs, networks and optimiser where they lie, and compute nothing on the host.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from optuna_s2e.coteaching.fused import Tensors


class Graph(Protocol):
    """A step that is recorded once and then replayed."""

    def warm_up(self, step: Callable[..., Tensors], inputs: Tensors) -> Tensors:
        """Run the step, as it is run where it is recorded."""

    def record(self, step: Callable[..., Tensors], inputs: Tensors) -> Tensors:
        """Record the step without running it; return where its outputs will lie."""

    def replay(self) -> None:
        """Run what was recorded."""


class CudaGraph:
    """CUDA's graphs (see `Graph`)."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, step: Callable[..., Tensors], inputs: Tensors) -> Tensors:
        """Run the step on another stream, where libraries may allocate what they need."""
        with torch.cuda.device(inputs[0].device), warnings.catch_warnings():
            # optimisers warn that a step to be recorded later runs unrecorded now
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                outputs = step(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def record(self, step: Callable[..., Tensors], inputs: Tensors) -> Tensors:
        """Record the step."""
        with torch.cuda.device(inputs[0].device), torch.cuda.graph(self._graph):
            return step(*inputs)

    def replay(self) -> None:
        """Run what was recorded."""
        self._graph.replay()


class GraphSteps:
    """Runs the first step of an epoch, records the second and replays it for all others.

    Each epoch is recorded anew: its learning rate and numbers of kept samples are constants.
    """

    def __init__(self, make_graph: Callable[[], Graph] = CudaGraph) -> None:
        self._make_graph = make_graph

    def __call__(self, step: Callable[..., Tensors], inputs: Iterable[Tensors]) -> list[Tensors]:
        """Return what a step makes of each of its inputs (`RunSteps`)."""
        graph = self._make_graph()
        steps = iter(inputs)
        first = next(steps)
        outputs = [graph.warm_up(step, first)]
        places: Tensors = ()
        for values in steps:
            if not places:
                places = tuple(value.clone() for value in values)
                results = graph.record(step, places)
            for place, value in zip(places, values, strict=True):
                place.copy_(value)
            graph.replay()
            outputs.append(tuple(result.clone() for result in results))
        return outputs
