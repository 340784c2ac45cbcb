"""Inputs as users have them, turned into tensors, and what networks see of them.

Kinds of inputs
    images      uint8, (N, channels, height, width) or any shape; networks see them in [0, 1]
    features    float32; networks see them as they are
    tokens      int64, such as the ids of words; networks see them as they are
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

_EXACT = 2**24  # float32 holds all whole numbers up to here
_DIFFER = "{name} must hold samples of one shape, but they differ. Pad or resize them."


def read_inputs(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return inputs as uint8, float32 or int64 tensors on the device of the first.

    Args:
        inputs: Inputs by the name of their argument, (N, ...) each: arrays, tensors, data frames.

    Raises:
        ValueError: If inputs are no numbers, or not finite.
    """
    tensors = {name: _tensor(name, x) for name, x in inputs.items()}
    if _are_tokens(tensors):
        tensors = {name: x.to(torch.int64) for name, x in tensors.items()}
    device = next(iter(tensors.values())).device
    for name, x in tensors.items():
        single = _single(name, x) if x.is_floating_point() else x
        tensors[name] = single.to(device).contiguous()
        if x.dtype == torch.float64 and ((x.abs() > _EXACT) & (single != x)).any():
            warnings.warn(
                f"{name} holds numbers beyond 2^24, where float32 merges neighbours. Scale them "
                "to about [0, 1] first.",
                UserWarning,
                stacklevel=4,
            )
    return tensors


def to_input(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mini-batch as networks see it.

    uint8 images are scaled to [0, 1] (ToTensor), floats get the dtype, tokens stay as they are.
    """
    if x.dtype == torch.uint8:
        return x.to(dtype).div_(255)
    return x.to(dtype) if x.is_floating_point() else x


def _tensor(name: str, x: Any) -> Tensor:
    """Return inputs as a tensor of uint8, int64 or floats."""
    tensor = x.detach() if isinstance(x, Tensor) else torch.from_numpy(_array(name, x))
    if tensor.is_nested:
        raise ValueError(_DIFFER.format(name=name))
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be dense, but is sparse. Take {name}.to_dense().")
    if tensor.is_quantized:
        raise ValueError(f"{name} must not be quantized. Take {name}.dequantize().")
    if tensor.is_complex():
        raise ValueError(f"{name} must hold real numbers, but got {tensor.dtype}.")
    if tensor.ndim < 2 or tensor.numel() == 0:
        remedy = f" Take {name}[:, None]." if tensor.ndim == 1 and len(tensor) else ""
        raise ValueError(
            f"{name} must have shape (N, ...), but got {tuple(tensor.shape)}.{remedy}"
        )
    if tensor.dtype == torch.uint8:
        return _channels_first(tensor)
    if tensor.dtype == torch.bool:
        return tensor.to(torch.float32)
    return tensor if tensor.is_floating_point() else tensor.to(torch.int64)


def _array(name: str, x: Any) -> np.ndarray[Any, Any]:
    """Return a copy of inputs as an array of a dtype that torch knows."""
    if hasattr(x, "toarray"):
        raise ValueError(f"{name} must be dense, but is sparse. Take {name}.toarray().")
    if isinstance(x, list | tuple) and any(isinstance(sample, Tensor) for sample in x):
        x = [np.asarray(s.detach().cpu()) if isinstance(s, Tensor) else s for s in x]
    if np.ma.is_masked(x):
        raise ValueError(f"{name} must hold all values, but some are masked. Fill or drop them.")
    try:
        given = array = np.array(x)
        if array.dtype == object:  # of a data frame with columns of several types
            array = np.array(array.tolist())
    except ValueError as error:
        raise ValueError(_DIFFER.format(name=name)) from error
    kind = array.dtype.kind
    if kind == "f" and array.dtype.itemsize > 4:
        return array.astype(np.float64, copy=False)
    if kind in "fb" or array.dtype == np.uint8 or kind == "c":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if kind in "iu":
        if kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"{name} must hold ints below 2^63, but got {array.max()}.")
        return array.astype(np.int64, copy=False)
    if not given.ndim or not given.size:
        raise ValueError(f"{name} must have shape (N, ...), but got {type(x).__name__}.")
    values = np.ndenumerate(given.astype(object))
    wrong = ((i, value) for i, value in values if not isinstance(value, Real))
    where, value = next(wrong, ((0,) * given.ndim, given.flat[0]))
    raise ValueError(
        f"{name} must hold numbers, but {name}{list(where)} is {value!r}. Encode text as numbers, "
        "and fill or drop missing values."
    )


def _channels_first(x: Tensor) -> Tensor:
    """Return images (N, height, width, 1 or 3) with the channels first, other inputs unchanged."""
    if x.ndim != 4 or x.shape[3] not in (1, 3) or x.shape[1] in (1, 3):
        return x
    return x.permute(0, 3, 1, 2)


def _are_tokens(tensors: Mapping[str, Tensor]) -> bool:
    """Whether floats are whole numbers, and some of them too large for float32."""
    doubles = [x for x in tensors.values() if x.dtype == torch.float64]
    if len(doubles) < len(tensors) or not any((x.abs() > _EXACT).any() for x in doubles):
        return False
    return all(((x == x.round()) & (x.abs() < 2**63)).all() for x in doubles)


def _single(name: str, x: Tensor) -> Tensor:
    """Return floats in float32."""
    single = x.to(torch.float32)
    finite = single.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{name} must be finite in float32, but {int((~finite).sum())} of {len(x)} samples "
            f"hold NaN or infinity, the first is {name}[{int(finite.int().argmin())}]."
        )
    return single
