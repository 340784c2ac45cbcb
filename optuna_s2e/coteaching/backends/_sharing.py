"""Networks that share what training changes are refused: they would train one another.

Training changes the trainable weights, and whatever a network writes to in its forward pass, such
as the statistics of batch normalisation, also if its weights are frozen. Frozen weights and
constant buffers may be shared.

Weights that a network uses and does not hold as parameters are refused, too.

Notation
    place           device and address of the memory that holds a tensor
    span            first byte and end of a tensor within that memory
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy

_REMEDY = (
    "Make or copy that part within the network function, as copy.deepcopy(part) and "
    "nn.Embedding.from_pretrained(vectors.clone(), freeze=False) do"
)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Place = tuple[torch.device, int]
Span = tuple[int, int]


class _Held(NamedTuple):
    """A tensor that a network holds."""

    name: str
    tensor: Tensor
    place: Place
    span: Span

    def overlaps(self, span: Span) -> bool:
        return self.span[0] < span[1] and span[0] < self.span[1]


class _Trained(NamedTuple):
    """Memory that a training changes. The reference does not keep it.

    Until the reference expires, nothing else has the same address.
    """

    storage: StorageWeakRef
    place: Place
    span: Span


class _Constant(NamedTuple):
    """A tensor that training seems not to change.

    Attributes:
        held: The tensor.
        content: What `_content` returned before the training.
        is_shared: Whether both networks of the trial hold it.
        copy: Its values before the training, if it is a shared buffer.
    """

    held: _Held
    content: int
    is_shared: bool
    copy: Tensor | None

    @property
    def changed(self) -> bool:
        return self.held.tensor.requires_grad or _content(self.held.tensor) != self.content


# of all trainings of this process; each by its own id, so that threads need no lock
_trained: dict[int, _Trained] = {}


class SharingGuard:
    """Watches the two networks of a trial."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Look at the networks before they are trained.

        Raises:
            ValueError: If they share trainable weights, or hold what an earlier trial trained.
        """
        first, second = (list(_held_by(net)) for net in networks)
        at = _by_place(second)
        shared = [(a, b) for a in first for b in at[a.place] if a.overlaps(b.span)]
        for a, b in shared:
            if a.tensor.requires_grad or b.tensor.requires_grad:
                raise ValueError(
                    f"network must make new weights at each call, but {a.name!r} is the same "
                    "memory in both networks of a trial: they would train one another. "
                    f"{_REMEDY}, or freeze it by requires_grad_(False)."
                )
        _refuse_trained([*first, *second])
        is_shared = {id(each.tensor) for pair in shared for each in pair}
        self._constants: list[_Constant] = []
        for each in (*first, *second):
            if each.tensor.requires_grad:
                _note_trained(each)
            else:
                self._constants.append(_constant(each, id(each.tensor) in is_shared))

    def look(self) -> None:
        """Look at what seemed constant, after an epoch.

        Raises:
            ValueError: If the epoch changed what both networks hold. Buffers are restored.
        """
        constants, self._constants = self._constants, []
        shared: list[_Constant] = []
        for each in constants:
            if not each.changed:
                self._constants.append(each)
                continue
            if each.is_shared:
                shared.append(each)
            if each.copy is None:
                _note_trained(each.held)
            else:
                each.held.tensor.copy_(each.copy)
        if shared:
            name = shared[0].held.name
            raise ValueError(
                f"network must make new weights and buffers at each call, but {name!r} is the "
                "same memory in both networks of a trial, and the training changed it. "
                f"{_REMEDY}. "
                "Batch normalisation changes its statistics also if its weights are frozen, "
                "unless the network keeps it in evaluation mode."
            )


def _held_by(network: nn.Module) -> Iterator[_Held]:
    """Yield parameters, buffers and other tensors of a network that have memory of their own."""
    named = (*network.named_parameters(), *network.named_buffers(), *_attributes_of(network))
    for name, tensor in named:
        if is_lazy(tensor):  # it gets its memory in the first forward pass
            yield _Held(name, tensor, (tensor.device, -id(tensor)), (0, 1))
        elif tensor.layout == torch.strided and tensor.numel():
            # not the address of the tensor itself: not every device has addresses to count with
            place = tensor.device, tensor.untyped_storage().data_ptr()
            first, size = int(tensor.storage_offset()), tensor.itemsize
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            last = first + sum((length - 1) * stride for length, stride in steps)
            yield _Held(name, tensor, place, (first * size, (last + 1) * size))


def _attributes_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that are plain attributes of modules or of their classes."""
    for prefix, module in network.named_modules(prefix="network"):
        for owner in (module, *type(module).__mro__):
            for name, value in vars(owner).items():
                if isinstance(value, Tensor) and not value.is_meta:
                    yield f"{prefix}.{name}", value


def refuse_unregistered(objectives: Tensor, networks: Iterable[nn.Module]) -> None:
    """Refuse networks that use weights which they do not hold as parameters.

    Training would leave them as they are, and does not see who shares them.

    Args:
        objectives: What the networks descend on, computed from their outputs.
        networks: The networks.

    Raises:
        ValueError: If there are such weights.
    """
    known = {id(weight) for net in networks for weight in net.parameters()}
    nodes, seen = [objectives.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        weight = getattr(node, "variable", None)
        if isinstance(weight, nn.Parameter) and id(weight) not in known:
            raise ValueError(
                f"network must hold its layers as attributes or in an nn.ModuleList, but uses a "
                f"weight of shape {tuple(weight.shape)} that is none of its parameters and would "
                "never be trained. If that is meant, freeze it by requires_grad_(False)."
            )
        nodes += [parent for parent, _ in node.next_functions]


def _by_place(held: Iterable[_Held]) -> defaultdict[Place, list[_Held]]:
    at: defaultdict[Place, list[_Held]] = defaultdict(list)
    for each in held:
        at[each.place].append(each)
    return at


def _refuse_trained(held: Iterable[_Held]) -> None:
    at = _by_place(held)
    for key, earlier in list(_trained.items()):
        if earlier.storage.expired():  # type: ignore[no-untyped-call]
            _trained.pop(key, None)
            continue
        for each in at[earlier.place]:
            if each.overlaps(earlier.span):
                raise ValueError(
                    f"network must make new weights and buffers at each call, but {each.name!r} "
                    f"is memory that the training of an earlier trial changed. {_REMEDY}."
                )


def _note_trained(held: _Held) -> None:
    if not is_lazy(held.tensor):
        storage = StorageWeakRef(held.tensor.untyped_storage())  # type: ignore[no-untyped-call]
        trained = _Trained(storage, held.place, held.span)
        _trained[id(trained)] = trained


def _constant(held: _Held, is_shared: bool) -> _Constant:
    copies = is_shared and not isinstance(held.tensor, nn.Parameter)
    copy = held.tensor.clone() if copies else None
    return _Constant(held, _content(held.tensor), is_shared, copy)


def _content(tensor: Tensor) -> int:
    """Return the sum of a tensor's bits, read as integers: exact, in whichever order."""
    if is_lazy(tensor):
        return 0
    flat = tensor.detach().contiguous().view(-1)
    integers = flat.view(_INTEGERS[math.gcd(flat.itemsize, 8)])
    return int(integers.sum(dtype=torch.int64))
