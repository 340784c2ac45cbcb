"""The `s2e doctor` command: what is installed, what trains, and whether the storage answers."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, NamedTuple

from optuna_s2e.cli._options import JSON, Options, add_table, option

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet
    from torch import device as Device

HELP = """\
It looks at the versions, the extras, the device that "auto" takes, the way in
which networks are trained there, the CPU threads and the storage. Each line is
ok, a warning or an error, with its remedy. The exit code is 1 if there is an
error. It changes no study; of a GPU it keeps which way of training is faster.

    s2e doctor
    s2e doctor --storage postgresql://me@db/s2e
    s2e doctor --json | jq '.lines[] | select(.state != "ok")'

Next: mend the errors from the top; `s2e fit` and `s2e search` train.
"""

OPTIONS: Options = {
    "--device": option("NAME", "the device to look at (default auto, as the commands take it)",
                       "auto"),
    **JSON,
}  # fmt: skip

EXIT_ILL = 1
OK, WARNING, ERROR = "ok", "warning", "error"
DISTRIBUTION = "optuna-s2e"
EXTRAS = {  # what each is for
    "coteaching": "`s2e fit`, `search`, `evaluate` and all training",
    "dashboard": "`s2e dashboard`",
    "visualization": "figures in Python",
    "postgres": "PostgreSQL",
    "grpc": "grpc:// storages",
    "ray": "RayExecutor",
}
NETWORKS = {  # inputs that each is asked about
    "mlp": (1, 28, 28), "cnn2": (3, 32, 32), "cnn9": (3, 32, 32), "resnet18": (3, 32, 32)
}  # fmt: skip


class Line(NamedTuple):
    """What was found about one thing.

    Attributes:
        topic: The thing.
        state: "ok", "warning" or "error".
        text: What was found.
        remedy: What to do; "" if nothing has to be done.
    """

    topic: str
    state: str
    text: str
    remedy: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    add_table(parser, OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Print a line for each thing that was looked at."""
    from optuna_s2e.cli._common import print_json

    looks = [_python(), _packages(), _torch(), _torchvision(), _device(args.device), _threads(),
             _storage(args.storage)]  # fmt: skip
    lines = []
    for look in looks:
        for line in look:
            lines.append(line)
            if not args.json:
                _print(line)
    states = [line.state for line in lines]
    if args.json:
        worst = next((s for s in (ERROR, WARNING) if s in states), OK)
        print_json({"state": worst, "lines": [line._asdict() for line in lines]})
    else:
        n_errors, n_warnings = states.count(ERROR), states.count(WARNING)
        print(f"{n_errors} error{'s' * (n_errors != 1)}, "
              f"{n_warnings} warning{'s' * (n_warnings != 1)}")  # fmt: skip
    return EXIT_ILL if ERROR in states else 0


def _print(line: Line) -> None:
    print(f"{line.state:<8}{line.topic + ':':<17}{line.text}")
    if line.remedy:
        print(f"{'':25}-> {line.remedy}")


# --- what is installed -----------------------------------------------------------------------


def _python() -> Iterator[Line]:
    import optuna_s2e

    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Line("python", OK, found)
    try:
        requires(DISTRIBUTION)
        yield Line("optuna-s2e", OK, optuna_s2e.__version__)
    except PackageNotFoundError:
        yield Line("optuna-s2e", WARNING, "a checkout that is not installed: the versions of "
                   "other packages cannot be compared with what it needs",
                   "pip install -e .")  # fmt: skip


def _packages() -> Iterator[Line]:
    """Compare the installed packages with what the package and its extras ask for."""
    for name, need in _needs("").items():
        found = _installed(name)
        if found is None or not need.contains(found, prereleases=True):
            text = "not installed" if found is None else f"{found}, but {need} is needed"
            yield Line(name, ERROR, text, f"pip install '{name}{need}'")
        else:
            yield Line(name, OK, found)
    for extra, purpose in EXTRAS.items():
        topic = f"[{extra}]"
        needs = _needs(extra)
        found_all = {name: _installed(name) for name in needs}
        missing = [name for name, found in found_all.items() if found is None]
        wrong = [
            f"{name} {found}, but {needs[name]} is needed"
            for name, found in found_all.items()
            if found is not None and not needs[name].contains(found, prereleases=True)
        ]
        remedy = f'pip install "{DISTRIBUTION}[{extra}]"'
        if wrong:
            yield Line(topic, WARNING, "; ".join(wrong), remedy)
        elif missing:
            state = WARNING if extra == "coteaching" else OK
            yield Line(topic, state, f"not installed ({', '.join(missing)}); it is for {purpose}",
                       remedy)  # fmt: skip
        elif needs:
            shown = ", ".join(f"{name} {found}" for name, found in found_all.items())
            yield Line(topic, OK, shown)


def _needs(extra: str) -> dict[str, SpecifierSet]:
    """Return the packages that an extra asks for, or the package itself, and their versions."""
    from packaging.requirements import Requirement  # Optuna needs it, too

    try:
        texts = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}
    found: dict[str, SpecifierSet] = {}
    for need in map(Requirement, texts):
        is_base = need.marker is None or need.marker.evaluate({"extra": ""})
        if is_base != (extra == ""):
            continue
        if need.marker is not None and not need.marker.evaluate({"extra": extra}):
            continue
        if need.name == DISTRIBUTION:  # an extra that holds another one
            for other in need.extras:
                found |= _needs(other)
        else:
            found[need.name] = need.specifier
    return found


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> Iterator[Line]:
    if _installed("torch") is None:
        yield Line("torch", WARNING, "not installed: nothing can be trained here",
                   f'pip install "{DISTRIBUTION}[coteaching]"')  # fmt: skip
        return
    try:
        import torch
    except Exception as error:  # of its libraries
        yield Line("torch", ERROR, f"cannot be imported: {_first_line(error)}",
                   "pip install --force-reinstall torch")  # fmt: skip
        return
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU"
    text, state, remedy = f"{torch.__version__}, built {build}", OK, ""
    if shutil.which("nvidia-smi") is not None and not torch.cuda.is_available():
        state, text = WARNING, f"{text}, finds no GPU although there is an NVIDIA driver"
        remedy = "install the build for CUDA: https://pytorch.org"
        if torch.version.cuda is not None:
            remedy = "nvidia-smi says whether there is a GPU, and which CUDA the driver takes"
    yield Line("torch", state, text, remedy)


def _torchvision() -> Iterator[Line]:
    """Import torchvision, and compare the torch that it was built for with what is there."""
    own, torch_version = _installed("torchvision"), _installed("torch")
    if own is None or torch_version is None:
        return  # [coteaching] says it
    fitting = [t for t in requires("torchvision") or [] if t.startswith("torch==")]
    built_for = fitting[0].partition("==")[2].partition(";")[0].strip() if fitting else ""
    torch_own = torch_version.partition("+")[0]
    if built_for and built_for.partition("+")[0] != torch_own:
        yield Line("torchvision", WARNING, f"{own} is made for torch {built_for}, but torch is "
                   f"{torch_own}", "pip install --upgrade torch torchvision")  # fmt: skip
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            yield Line("torchvision", ERROR, f"{own} cannot be imported: {_first_line(error)}",
                       "pip install --force-reinstall torchvision")  # fmt: skip
            return
        yield Line("torchvision", WARNING, f"{own} is of another build than torch "
                   f"{torch_version}. Its data sets and networks work here all the same",
                   "install both from one index: https://pytorch.org")  # fmt: skip
    except Exception as error:
        yield Line("torchvision", ERROR, f"{own} cannot be imported: {_first_line(error)}",
                   "pip install --force-reinstall torchvision")  # fmt: skip
    else:
        yield Line("torchvision", OK, own)


# --- what trains -----------------------------------------------------------------------------


def _device(asked: str) -> Iterator[Line]:
    """Say on what, in which precision and how networks are trained."""
    try:
        import torch
    except Exception:  # said above
        return
    try:
        from optuna_s2e.coteaching import find_device

        device = find_device(asked)
        torch.ones((8, 8), device=device) @ torch.ones((8, 8), device=device)
    except Exception as error:
        yield Line("device", ERROR, _first_line(error), "--device cpu trains on the CPU")
        return
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        text = (
            f"{device}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute "
            f"capability {properties.major}.{properties.minor}, one of "
            f"{torch.cuda.device_count()}"
        )
    else:
        text = str(device)
    remedy = ""
    if asked == "auto" and device.type == "cpu" and torch.backends.mps.is_available():
        remedy = "--device mps trains on Apple's GPU (never tried)"
    yield Line("device", OK, f"{text}{' (auto)' * (asked == 'auto')}", remedy)
    yield Line("precision", OK, _precision(device.type))
    for network, shape in NETWORKS.items():
        yield _backend(network, shape, device)


def _precision(kind: str) -> str:
    import torch

    if kind != "cuda":
        return "float32; TrainingConfig(dtype='bfloat16') is a choice in Python"
    slow = "" if torch.cuda.is_bf16_supported() else " (slow on this GPU)"
    return (
        "float32 without TF32; TrainingConfig(dtype='tf32') and 'bfloat16'"
        f"{slow} are choices in Python"
    )


def _backend(network: str, shape: tuple[int, ...], device: Device) -> Line:
    import numpy as np

    from optuna_s2e.coteaching import NoisyData, TrainingConfig
    from optuna_s2e.coteaching.backends import TrainingSetup, find_backend

    topic, size = f"  {network}", " x ".join(map(str, shape))
    n = 512  # the memory of whole mini-batches and of an evaluation decides how many trials fit
    x, y = np.zeros((n, *shape), dtype=np.uint8), np.arange(n) % 10
    try:
        data = NoisyData.from_arrays(x, y, x, y).to(device)
        setup = TrainingSetup(data, network, TrainingConfig(), (data.x_val, data.y_val))
        found = find_backend("auto", setup, None)
    except Exception as error:
        return Line(topic, WARNING, _first_line(error), "the extra coteaching brings torchvision")
    beside = "one trial at a time" if found.width == 1 else f"up to {found.width} trials at once"
    return Line(topic, OK, f"backend {found.name!r}, {beside} (inputs {size})")


def _threads() -> Iterator[Line]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS")
    text = f"{cores} cores; commands take one thread unless --threads says more"
    if asked is not None:
        text += f"; OMP_NUM_THREADS is {asked}"
    yield Line("threads", OK, text)


# --- the storage -----------------------------------------------------------------------------


def _storage(url: str) -> Iterator[Line]:
    import optuna

    from optuna_s2e import _optuna
    from optuna_s2e.cli._errors import MENDABLE
    from optuna_s2e.storages import absolute_url, file_of, hide_passwords, mask_url, open_storage

    shown = hide_passwords(url)
    try:
        shown = mask_url(absolute_url(url))
        file = file_of(url)
        if (
            file is not None
            and not os.path.exists(file)
            and os.path.isdir(os.path.dirname(file) or ".")
        ):
            yield Line("storage", OK, f"{shown} is not there yet",
                       "the first `s2e search` or `s2e fit` makes it")  # fmt: skip
            return
        storage = open_storage(url, create=False, patience=5)
        studies = optuna.get_all_study_names(storage)
        schema = _optuna.schema_version(storage)
    except MENDABLE as error:
        text = hide_passwords(_first_line(error).replace(url, shown))
        yield Line("storage", ERROR, text, "see docs/parallel.md for URLs of storages")
        return
    tables = "" if schema is None else f", tables of version {schema}"
    n = f"{len(studies)} {'study' if len(studies) == 1 else 'studies'}"
    yield Line("storage", OK, f"{shown} answers: {n}{tables}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
