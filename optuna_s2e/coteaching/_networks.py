"""The networks of the papers, and the initialisation of any network.

References:
    Yu et al., "How does Disagreement Help Generalization against Label Corruption?", ICML 2019:
    the MLP for MNIST, the CNN with two convolutions for CIFAR-10 and the CNN of seven layers for
    CIFAR-100, which S2E uses.
    Han et al., "Co-teaching", NeurIPS 2018: the CNN of nine layers.
"""

from __future__ import annotations

import inspect
import math
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from optuna_s2e._checks import check_int
from optuna_s2e.coteaching._torchvision import import_models

Shape = tuple[int, ...]
NetworkFunction = Callable[[Shape, int], nn.Module]
Network = str | NetworkFunction

# torch initialises modules from one generator per process: threads must take turns
_GENERATOR_LOCK = threading.RLock()


def _renew_lock() -> None:
    global _GENERATOR_LOCK
    _GENERATOR_LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):  # another thread may hold the lock while this one forks
    os.register_at_fork(after_in_child=_renew_lock)


def make_network(network: Network, input_shape: Shape, n_classes: int, *, seed: int) -> nn.Module:
    """Make a network on the CPU. Its weights depend on the seed alone.

    The global generators of torch, NumPy and Python are left as they were. The weights do not
    depend on the device that the network is moved to later.

    Args:
        network: The name of a network, or a function (input_shape, n_classes) ->
            `torch.nn.Module` that returns a new network with C logits at each call: whatever
            training changes must be made or copied within the function, only frozen weights and
            constant buffers may be shared. Names:
            "mlp" (in-256-ReLU-C; 203,530 parameters on MNIST);
            "cnn2" (two convolutions of 5 x 5, each with ReLU and max-pooling, then 120-84-C;
            62,006 parameters on CIFAR-10);
            "cnn7" (six convolutions with batch normalisation, one linear layer; 541,280
            parameters on CIFAR-100);
            "cnn9" (nine layers with batch normalisation, and dropout in training; 4,434,570
            parameters on CIFAR-10);
            "resnet18", "resnet34", "resnet50", "densenet121" (torchvision's, in their form for
            CIFAR: the first convolution is 3 x 3, without stride or pooling).
        input_shape: Shape of one input, for example (1, 28, 28).
        n_classes: C, at least 1.
        seed: Seed of the weights, an int in [0, 2^64).

    Returns:
        The network, in float32 unless the function decides otherwise.

    Raises:
        ValueError: If an argument is out of range, the network is unknown, it does not fit the
            input shape, or the function returns no module.
        ImportError: If the network needs torchvision and it is missing.

    Example:
        >>> net = make_network(lambda shape, c: nn.Linear(shape[0], c), (5,), 2, seed=0)
        >>> sum(p.numel() for p in net.parameters())
        12
    """
    seed, n_classes = check_int("seed", seed, 0, 2**64 - 1), check_int("n_classes", n_classes, 1)
    function = find_network(network)
    with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]), _seeded_elsewhere(seed):
        torch.default_generator.manual_seed(seed)
        made = function(tuple(map(int, input_shape)), n_classes)
    if not isinstance(made, nn.Module):
        raise ValueError(f"network must return a torch.nn.Module, but got {made!r}.")
    return made


@contextmanager
def _seeded_elsewhere(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy and Python inside the block, then restore them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - networks may use it
    random.seed(seed)
    np.random.seed([seed % 2**32, seed // 2**32])  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def find_network(network: Network) -> NetworkFunction:
    """Return the function behind a network's name. Functions are returned as they are.

    Raises:
        ValueError: If the name is unknown, or the network is neither a name nor such a function.
    """
    if isinstance(network, str) and network in NETWORKS:
        return NETWORKS[network]
    if isinstance(network, str | nn.Module) or not callable(network):
        raise ValueError(
            f"network must be one of {sorted(NETWORKS)} or a function (input_shape, n_classes) "
            f"-> torch.nn.Module that makes a new network at each call, but got {network!r}."
        )
    try:
        inspect.signature(network).bind((), 2)
    except TypeError as error:
        name = getattr(network, "__qualname__", repr(network))
        raise ValueError(
            f"network must be a function (input_shape, n_classes) -> torch.nn.Module, but {name} "
            f"takes other arguments: {error}. Take `lambda input_shape, n_classes: ...`."
        ) from error
    except ValueError:  # some of C do not tell
        pass
    return network


def check_inputs(network: Network, dtype: torch.dtype) -> None:
    """Refuse integers for a network by name; a function may begin with an embedding.

    Raises:
        ValueError: If the network is a name and the inputs are integers other than uint8 images.
    """
    if isinstance(network, str) and not dtype.is_floating_point and dtype != torch.uint8:
        raise ValueError(
            f"network {network!r} needs images (uint8) or floats, but the data hold integers. "
            "If they are features, scale them to about [0, 1] as floats; if they are tokens, give "
            "a network function whose first layer is a torch.nn.Embedding."
        )


def is_plain(network: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a network can be computed by the rules of its layers' types.

    It must be an `nn.Sequential` of PyTorch's own modules: a subclass may compute anything, also
    from its weights (`torch.nn.utils.parametrize`). No module occurs twice, has hooks or replaced
    methods. All parameters are trained, each in memory of its own, and have no hooks.
    """
    if type(network) is not nn.Sequential or any(map(_is_changed, network.modules())):
        return False
    modules = list(network)
    parameters = [p for module in modules for p in module.parameters()]
    if any(is_lazy(p) or not p.requires_grad or has_hooks(p) for p in parameters):
        return False
    memories = {p.untyped_storage().data_ptr() for p in parameters}
    return len(set(modules)) == len(modules) and len(memories) == len(parameters)


def has_hooks(parameter: nn.Parameter) -> bool:
    """Whether functions of the user change or see the gradient of a parameter."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def flattens_once(network: nn.Sequential) -> bool:
    """Whether a network sees images up to its only `Flatten`, and vectors after it.

    All linear layers must come after `Flatten`, together with activations alone.
    """
    modules = list(network)
    positions = [i for i, module in enumerate(modules) if str(module) == str(nn.Flatten())]
    if len(positions) != 1:
        return False
    before, after = modules[: positions[0]], modules[positions[0] + 1 :]
    return not any(isinstance(module, nn.Linear) for module in before) and all(
        isinstance(module, nn.Linear | nn.ReLU | nn.LeakyReLU) for module in after
    )


def _is_changed(module: nn.Module) -> bool:
    """Whether a module is not PyTorch's own, or was changed after it was made."""
    if getattr(nn, type(module).__name__, None) is not type(module):
        return True
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    attributes = vars(module)
    return "forward" in attributes or "train" in attributes or any(attributes[h] for h in hooks)


@contextmanager
def seeded_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    This is for networks that draw random numbers while they train (dropout). If threads of one
    process train such networks at the same time, they share the generators, and their draws are
    not reproducible. Nor are those of networks that draw from NumPy or Python while they train.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    with _GENERATOR_LOCK:
        states = [generator.get_state() for generator in generators]
        for generator in generators:
            generator.manual_seed(seed)
    try:
        yield
    finally:
        with _GENERATOR_LOCK:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _mlp(input_shape: Shape, n_classes: int) -> nn.Module:
    n_inputs = math.prod(input_shape)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(n_inputs, 256), nn.ReLU(), nn.Linear(256, n_classes)
    )


def _cnn2(input_shape: Shape, n_classes: int) -> nn.Module:
    channels, height, width = _image_shape("cnn2", input_shape, 16)
    n_features = 16 * math.prod(((size - 4) // 2 - 4) // 2 for size in (height, width))
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(n_features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, n_classes),
    )


def _cnn7(input_shape: Shape, n_classes: int) -> nn.Module:
    channels, height, width = _image_shape("cnn7", input_shape, 8)
    layers: list[nn.Module] = []
    for widths in ((64, 64), (128, 128), (196, 16)):
        for n_out in widths:
            layers += [nn.Conv2d(channels, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
            channels = n_out
        layers.append(nn.MaxPool2d(2))
    n_features = channels * (height // 8) * (width // 8)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_features, n_classes))


def _cnn9(input_shape: Shape, n_classes: int) -> nn.Module:
    channels, *_ = _image_shape("cnn9", input_shape, 28)
    layers: list[nn.Module] = []
    for widths, padding in (((128,) * 3, 1), ((256,) * 3, 1), ((512, 256, 128), 0)):
        for n_out in widths:
            layers += [nn.Conv2d(channels, n_out, 3, padding=padding), nn.BatchNorm2d(n_out)]
            layers.append(nn.LeakyReLU(0.01))
            channels = n_out
        if padding:
            layers += [nn.MaxPool2d(2), nn.Dropout2d(0.25)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes)
    )


def _image_shape(name: str, input_shape: Shape, size: int) -> Shape:
    if len(input_shape) != 3 or min(input_shape[1:]) < size:
        remedy = "Take 'mlp' or a network of your own."
        if len(input_shape) == 2:
            remedy = "Give images without channels one by x[:, None], or take 'mlp'."
        elif len(input_shape) == 3 and input_shape[2] in (1, 3, 4):
            remedy = "Bring the channels to the front with x.transpose(0, 3, 1, 2)."
        raise ValueError(
            f"network {name!r} needs inputs (channels, height, width) of at least "
            f"{size} x {size} pixels, but got {input_shape}. {remedy}"
        )
    return input_shape


def _torchvision_network(name: str) -> NetworkFunction:
    """Return torchvision's network in its form for CIFAR.

    Its first convolution is 3 x 3 with stride 1, and no pooling follows it.
    """

    def make(input_shape: Shape, n_classes: int) -> nn.Module:
        channels, *_ = _image_shape(name, input_shape, 8)
        made: nn.Module = getattr(import_models(), name)(num_classes=n_classes)
        first = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        # the initialisation that each model has for its own convolutions
        if name.startswith("densenet"):
            nn.init.kaiming_normal_(first.weight)
            made.set_submodule("features.conv0", first)
            made.set_submodule("features.pool0", nn.Identity())
        else:
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
            made.conv1, made.maxpool = first, nn.Identity()
        return made

    return make


NETWORKS: dict[str, NetworkFunction] = {
    "mlp": _mlp,
    "cnn2": _cnn2,
    "cnn7": _cnn7,
    "cnn9": _cnn9,
    **{
        name: _torchvision_network(name)
        for name in ("resnet18", "resnet34", "resnet50", "densenet121")
    },
}
