"""Inputs as users have them, turned into the tensors that networks are trained on.

Kinds of inputs
    table       data frame or array (N, d): float32 features (`TableEncoder`)
    images      uint8, (N, height, width), channels first or last: uint8, seen in [0, 1]
    signals     any other numbers, (N, ...): float32, standardised as a whole
    tokens      a tensor of integers other than uint8: int64, as they are
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from optuna_s2e.classifier._table import HUGE, TableEncoder, read_table


@dataclass(frozen=True)
class InputEncoder:
    """Turns inputs into tensors, as it was learned from the training inputs.

    Attributes:
        kind: "table", "images", "signals" or "tokens".
        shape: Shape of one input as it was given; None for a table.
        table: The encoding of a table, else None.
        mean: Mean of signals.
        scale: Standard deviation of signals.
    """

    kind: str
    shape: tuple[int, ...] | None = None
    table: TableEncoder | None = None
    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def learn(cls, x: Any) -> InputEncoder:
        """Learn the encoding of training inputs: a data frame, an array or a tensor.

        Raises:
            ValueError: If they cannot be encoded. The message names the column and the remedy.
        """
        if isinstance(x, Tensor) and not x.is_floating_point() and x.dtype != torch.uint8:
            return cls("tokens", tuple(x.shape[1:]))
        if _is_table(x):
            return cls("table", table=TableEncoder.learn(read_table(_array(x))))
        array = _array(x)
        if array.dtype == np.uint8:
            return cls("images", array.shape[1:])
        values = _finite(array)
        return cls(
            "signals", array.shape[1:], None, float(values.mean()), float(values.std()) or 1
        )

    def encode(self, x: Any) -> Tensor:
        """Return inputs as a tensor, (N, ...).

        Raises:
            ValueError: If they are of another kind or shape than those it was learned from.
        """
        if self.table is not None:
            if not _is_table(x):
                raise ValueError(f"X must be a table as in fit, but got shape {tuple(x.shape)}.")
            return torch.from_numpy(self.table.encode(read_table(_array(x))))
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"X must hold inputs of shape {self.shape}, as in fit, "
                f"but got {tuple(x.shape[1:])}."
            )
        if self.kind == "tokens":
            return torch.as_tensor(x).to(torch.int64)
        array = _array(x)
        if self.kind == "signals":
            return torch.from_numpy(((_finite(array) - self.mean) / self.scale).astype(np.float32))
        if array.dtype != np.uint8:
            raise ValueError(f"X must hold uint8 images, as in fit, but got {array.dtype}.")
        return torch.from_numpy(_channels_first(array).copy())

    def to_state(self) -> dict[str, Any]:
        """Return what was learned in JSON's types."""
        table = None if self.table is None else self.table.to_state()
        shape = None if self.shape is None else list(self.shape)
        return {**vars(self), "shape": shape, "table": table}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> InputEncoder:
        """Make the encoder again of what `to_state` returned."""
        table = None if state["table"] is None else TableEncoder.from_state(state["table"])
        shape = None if state["shape"] is None else tuple(state["shape"])
        return cls(**{**state, "shape": shape, "table": table})


def read_dataset(name: str, dataset: Dataset[Any]) -> tuple[Tensor, list[Any] | None]:
    """Return the inputs of a torch data set, and its labels if its items hold them.

    Raises:
        ValueError: If the items are no tensors of one shape, with or without a label.
    """

    def collate(items: list[Any]) -> tuple[Any, list[Any] | None]:
        if all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
            inputs, labels = zip(*items, strict=True)
            return default_collate(list(inputs)), list(labels)
        return default_collate(items), None

    # without a generator of its own, a DataLoader draws a seed from torch's global one
    loader = DataLoader(dataset, batch_size=1000, generator=torch.Generator(), collate_fn=collate)
    try:
        parts = list(loader)
        inputs = torch.cat([part for part, _ in parts])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be a data set of (tensor, label) items of one shape ({error}). "
            "Images need a transform such as torchvision's PILToTensor()."
        ) from error
    labels = [label for _, part in parts for label in part or ()]
    if len(labels) < len(inputs):
        return inputs, None
    return inputs, [y.item() if isinstance(y, Tensor) and y.ndim == 0 else y for y in labels]


def _is_table(x: Any) -> bool:
    return hasattr(x, "columns") or x.ndim == 2


def _array(x: Any) -> Any:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x


def _finite(array: Any) -> Any:
    """Return signals in float64, if they are numbers and finite."""
    try:
        values = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"X must hold numbers, but got {array.dtype} ({error}).") from error
    if not np.isfinite(values).all():
        raise ValueError("X must be finite, but contains NaN or infinity. Fill or drop them.")
    return np.clip(values, -HUGE, HUGE)


def _channels_first(images: Any) -> Any:
    if images.ndim == 3:
        return images[:, None]
    is_last = (
        images.ndim == 4 and images.shape[3] in (1, 3, 4) and images.shape[1] not in (1, 3, 4)
    )
    return images.transpose(0, 3, 1, 2) if is_last else images
