"""A fitted classifier as a file: settings in JSON, weights and statistics as arrays.

The file is NumPy's .npz, and it is read without pickle: reading it runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from optuna_s2e.classifier._defaults import describe_network, find_network
from optuna_s2e.classifier._fitting import Noise
from optuna_s2e.classifier._inputs import InputEncoder
from optuna_s2e.coteaching import (
    NoiseEstimate,
    SampleStatistics,
    label_quality,
    make_network,
)
from optuna_s2e.schedules import Schedule

if TYPE_CHECKING:
    from optuna_s2e.classifier._classifier import NoisyLabelClassifier

FORMAT, VERSION = "optuna_s2e.classifier", 1
_OWN = ("network", "storage", "random_state")  # arguments that are saved otherwise, or not at all
_STATISTICS = [field.name for field in fields(SampleStatistics)]
_ESTIMATE = [field.name for field in fields(NoiseEstimate) if field.name != "networks"]


def save(model: NoisyLabelClassifier, path: str | os.PathLike[str]) -> None:
    """Write a fitted classifier to a file, which is replaced at once or not at all."""
    params = {k: v for k, v in model.get_params(deep=False).items() if k not in _OWN}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "params": params,
        "network": describe_network(model._network),
        "given_network": model.network if isinstance(model.network, str) else None,
        "input_shape": model._input_shape,
        "encoder": model._encoder.to_state(),
        "n_features_in": model.n_features_in_,
        "feature_names_in": getattr(model, "feature_names_in_", np.array([])).tolist(),
        "noise_rate": model.noise_rate_,
        "transition_matrix": _listed(model.transition_matrix_),
        "schedule": model.schedule_.to_json(),
        "temperature": model.temperature_,
        "classes": {"dtype": model.classes_.dtype.str, "values": model.classes_.tolist()},
    }
    content: dict[str, Any] = {
        "document": json.dumps(document, allow_nan=False),
        "labels": model._labels,
    }
    for i, net in enumerate(model._networks):
        weights = net.state_dict()
        content |= {f"network {i} {name}": w.numpy() for name, w in weights.items()}
    if isinstance(model._noise.known, NoiseEstimate):
        content |= {f"noise {name}": getattr(model._noise.known, name) for name in _ESTIMATE}
    for i, own in enumerate(model._samples):
        content |= {f"samples {i} {name}": getattr(own, name) for name in _STATISTICS}
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path must be a file, but {str(path)!r} is a folder.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(target.parent)!r}. Make it first.")
    unfinished = target.with_name(f".{target.name}.{uuid4().hex}")
    with unfinished.open("xb") as file:  # unlike a temporary file's, its mode follows the umask
        try:
            np.savez(file, **content)
            file.close()
            os.replace(unfinished, target)
        except BaseException:
            unfinished.unlink()
            raise


def load(
    model: NoisyLabelClassifier,
    path: str | os.PathLike[str],
    network: Callable[[tuple[int, ...], int], nn.Module] | None,
) -> NoisyLabelClassifier:
    """Give a new classifier what a file holds.

    Raises:
        ValueError: If the file is no classifier, or the network does not fit.
    """
    not_ours = f"{str(path)!r} must be a file that save() wrote, but is not."
    try:
        with open(path, "rb") as file:
            content = dict(np.load(file, allow_pickle=False))
        document = json.loads(str(content["document"]))
        is_known = document["format"] == FORMAT
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise ValueError(not_ours) from error
    if not is_known or document["version"] != VERSION:
        raise ValueError(
            f"{str(path)!r} must be a classifier of version {VERSION}, but is "
            f"{document.get('format')!r} of version {document.get('version')!r}. Read it with the "
            "release of optuna_s2e that wrote it."
        )
    try:
        return _restore(model, document, content, network)
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}).") from error


def _restore(
    model: NoisyLabelClassifier,
    document: Mapping[str, Any],
    content: Mapping[str, Any],
    network: Callable[[tuple[int, ...], int], nn.Module] | None,
) -> NoisyLabelClassifier:
    """Give a new classifier what was read."""
    model.set_params(**document["params"])
    model._network = _network_of(document, network)
    model.network = model._network if network else document["given_network"]
    model.classes_ = np.array(document["classes"]["values"], document["classes"]["dtype"])
    model.n_features_in_ = document["n_features_in"]
    if document["feature_names_in"]:
        model.feature_names_in_ = np.array(document["feature_names_in"], dtype=object)
    model._keep_noise(_noise_of(document, content))
    model.schedule_ = Schedule.from_json(document["schedule"])
    model.temperature_ = document.get("temperature", 1.0)  # older releases had none
    model.study_ = None
    model._encoder = InputEncoder.from_state(document["encoder"])
    model._input_shape = tuple(document["input_shape"])
    model._labels = content["labels"]
    model._samples = [SampleStatistics(**own) for own in _numbered("samples", content)]
    model.label_quality_ = label_quality(model._samples, model._labels, noise=model._noise.known)
    model._networks = [_restored(model, weights) for weights in _numbered("network", content)]
    model._dtype = next(p.dtype for p in model._networks[0].parameters() if p.is_floating_point())
    return model


def _network_of(document: Mapping[str, Any], network: object) -> Any:
    """Return the name of the network that a file was written with, or the user's function."""
    name = document["network"]
    if document["given_network"] is None:
        if network is None:
            raise ValueError(f"network must be the function {name!r} that it was fitted with.")
        return network
    if network is not None:
        raise ValueError(f"network must be left out: it was fitted with {name!r}.")
    return name


def _noise_of(document: Mapping[str, Any], content: Mapping[str, Any]) -> Noise:
    """Return how many labels are wrong. Files of older releases hold the matrix alone."""
    held = {name: content[f"noise {name}"] for name in _ESTIMATE if f"noise {name}" in content}
    if held:
        single = {k: v.item() for k, v in held.items() if v.ndim == 0}
        interval = tuple(held["interval"].tolist())
        return Noise(
            document["noise_rate"], NoiseEstimate(**{**held, **single, "interval": interval})
        )
    matrix = document["transition_matrix"]
    return Noise(document["noise_rate"], None if matrix is None else np.array(matrix))


def _numbered(kind: str, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the arrays of each network, or of each pair's samples, by name."""
    found: dict[int, dict[str, Any]] = {}
    for key, array in content.items():
        own_kind, _, rest = key.partition(" ")
        if own_kind == kind:
            number, _, name = rest.partition(" ")
            found.setdefault(int(number), {})[name] = array
    return [found[number] for number in sorted(found)]


def _restored(model: NoisyLabelClassifier, weights: Mapping[str, Any]) -> nn.Module:
    """Make a network and give it saved weights."""
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    made = make_network(
        find_network(model._network), model._input_shape, len(model.classes_), seed=0
    )
    dtype = next((w.dtype for w in state.values() if w.is_floating_point()), torch.float32)
    try:
        made.to(dtype).load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            "network must be the one that it was fitted with, but the saved weights do not fit: "
            + " ".join(str(error).split())
        ) from error
    return made.eval()


def _listed(matrix: npt.NDArray[Any] | None) -> list[Any] | None:
    return None if matrix is None else matrix.tolist()
