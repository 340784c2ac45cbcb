"""What CUDA's libraries may do to float32: state of the process, set while networks train.

By default PyTorch lets cuDNN compute convolutions of float32 in TF32, which has ten bits of
mantissa, and choose kernels that add in any order. A training with `dtype="float32"` computes in
float32, one with "tf32" has TF32 everywhere, and both take kernels that repeat their bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import torch

_CUDNN: Any = torch.backends.cudnn
_MATMUL: Any = torch.backends.cuda.matmul

_lock = Lock()
_inside: list[bool] = []  # what each that is inside wants
_restore: list[Callable[[], None]] = []


@contextmanager
def cuda_precision(*, tf32: bool) -> Iterator[None]:
    """Let CUDA's products and convolutions repeat their bits, in TF32 or in float32.

    Several threads may be inside at once, with one choice of `tf32`. What was set before the first
    one returns with the last.
    """
    global _restore
    with _lock:
        if not _inside:
            _restore = _settings()
            _CUDNN.benchmark, _CUDNN.deterministic = False, True
        _inside.append(tf32)
        _set_tf32(tf32)
    try:
        yield
    finally:
        with _lock:
            _inside.reverse()
            _inside.remove(tf32)  # the latest
            _inside.reverse()
            if _inside:
                _set_tf32(_inside[-1])
            else:
                for restore in _restore:
                    restore()


def _set_tf32(wanted: bool) -> None:
    """Set TF32 by the older of PyTorch's two names, which also sets the newer one."""
    try:
        for library in (_MATMUL, _CUDNN):
            if library.allow_tf32 != wanted:
                library.allow_tf32 = wanted
    except RuntimeError:  # the user set the newer name alone: now the older one cannot be read
        for operations in (_MATMUL, _CUDNN.conv, _CUDNN.rnn):
            operations.fp32_precision = "tf32" if wanted else "ieee"


def _settings() -> list[Callable[[], None]]:
    """Return what sets everything again as it is now, in this order."""
    parts = [getattr(_CUDNN, name, None) for name in ("conv", "rnn")]
    wanted = [(_CUDNN, "benchmark"), (_CUDNN, "deterministic"), (_CUDNN, "allow_tf32")]
    wanted += [(_MATMUL, "allow_tf32")]
    if None not in parts:  # since PyTorch 2.9
        wanted += [(operations, "fp32_precision") for operations in (_MATMUL, *parts)]
    found: list[Callable[[], None]] = []
    for place, name in wanted:
        try:
            found.append(partial(setattr, place, name, getattr(place, name)))
        except RuntimeError:  # see above
            continue
    try:
        if (precision := torch.get_float32_matmul_precision()) == "medium":  # above it is "high"
            found.append(partial(torch.set_float32_matmul_precision, precision))
    except RuntimeError:
        pass
    return found
