"""The data of a user: tables, folders of images, arrays and data sets by name, and their labels.

Labels are text until the classes are known: what a file holds is what predictions say. Whoever
reads new data gives the `form` that the training data had, and gets inputs of that form.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from optuna_s2e._checks import spelling
from optuna_s2e._npz import read_npz
from optuna_s2e._pandas import import_pandas
from optuna_s2e.cli._images import LARGE, SUGGESTED, ImageShape, Listing, list_images, read_images
from optuna_s2e.cli._tables import (
    NEEDING,
    TableFile,
    describe_words,
    numbers_the_rows,
    refuse_dates,
)

if TYPE_CHECKING:
    import argparse

    import pandas as pd

Texts = npt.NDArray[np.str_]
Form = Mapping[str, Any]

NAMES = ("digits", "mnist", "cifar10", "cifar100")  # coteaching.DATA_SETS, which loads torch
FEWEST_OF_CLASS = 3  # samples of a class; fewer are learned badly
MAX_SHOWN = 5  # names that a remark lists
_PARTS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")


class Samples(NamedTuple):
    """Samples of a user.

    Attributes:
        x: Inputs as the classifier takes them: a data frame or an array.
        y: Their labels as text, (N,); None if there are none.
        files: The file of each image, relative to the folder; None for other data.
        form: How they were read, in JSON's types.
        digest: What tells them from other data.
        about: What they are, for the summary.
        remarks: What the user should know of how they were read.
        validation: Samples whose labels count as clean, if the data hold any.
        test: Samples with true labels, if the data hold any.
    """

    x: Any
    y: Texts | None
    files: list[str] | None
    form: Form
    digest: str
    about: str
    remarks: list[str]
    validation: tuple[Any, Texts] | None = None
    test: tuple[Any, Texts] | None = None


class Source(NamedTuple):
    """What the command line says of the training data; `fit.json` keeps it.

    Attributes:
        data: A file, a folder or the name of a data set.
        label: The column of the labels, as it was given.
        drop: Columns that are not used.
        header: Whether the first line of a file holds names.
        image_size: What images are resized to.
        data_root: Folder of data sets with names.
        noise: Noise that is added to a data set with a name.
        noise_rate: Its rate.
        seed: Its seed.
    """

    data: str
    label: str | None = None
    drop: tuple[str, ...] = ()
    header: bool = True
    image_size: int | None = None
    data_root: str | None = None
    noise: str | None = None
    noise_rate: float | None = None
    seed: int = 0

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """Return what a command line says."""
        root = None if args.data_root is None else str(args.data_root.absolute())
        path = Path(args.data).expanduser()
        return cls(
            str(path.absolute()) if path.exists() else args.data,
            args.label, tuple(args.drop), not args.no_header, args.image_size,
            root, args.noise, args.noise_rate, args.seed,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """What messages call it."""
        return Path(self.data).name

    def read(self) -> Samples:
        """Return the training data, with labels.

        Raises:
            ValueError: If they cannot be used. The message says what to do.
            OSError: If they cannot be read.
        """
        path = Path(self.data)
        if not path.exists():
            _check_name(self.data)
        if path.is_file() and path.suffix.lower() != ".npz":
            self._refuse("a table", image_size=self.image_size, noise=self.noise)
            return _read_table(path, self)
        self._refuse(
            "other data than tables",
            label=self.label, drop=self.drop or None, no_header=None if self.header else True,
        )  # fmt: skip
        if path.is_dir():
            self._refuse("a folder of images", noise=self.noise)
            return _read_classes_of_images(path, self.image_size)
        self._refuse("arrays", image_size=self.image_size)
        if path.is_file():
            self._refuse("a file", noise=self.noise)
            return _read_arrays(path)
        return _read_named(self)

    def _refuse(self, what: str, **options: object) -> None:
        for name, value in options.items():
            if value is not None:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be left out for {what}, but got {value!r}.")


def read_new(data: str, form: Form, data_root: Path | None = None) -> Samples:
    """Return further samples in the form of the training data, with labels if there are any.

    Args:
        data: A file, a folder, an image, or the name of a data set, whose test data are taken.
        form: The form of the training data.
        data_root: Folder of data sets with names.

    Raises:
        ValueError: If they have another form, such as missing columns.
        OSError: If they cannot be read.
    """
    path, kind = Path(data).expanduser(), form["kind"]
    if kind == "table":
        _check_file(path, "a table as the one that the model was fitted with")
        return _read_more_rows(path, form)
    if kind == "images":
        return _read_more_images(path, form)
    if path.exists():
        _check_file(path, "a .npz file with x")
        return _read_arrays(path)
    root = None if data_root is None else str(data_root)
    found = _read_named(Source(data, data_root=root, noise="none", seed=form.get("seed", 0)))
    if found.test is None:
        raise ValueError(f"{data!r} holds no test data to predict.")
    return found._replace(x=found.test[0], y=found.test[1], remarks=[])


def to_classes(y: Texts) -> npt.NDArray[Any]:
    """Return labels as ints if all of them are, else as text.

    Example:
        >>> import numpy as np
        >>> to_classes(np.array(["10", "9"])).tolist(), to_classes(np.array(["07", "9"])).tolist()
        ([10, 9], ['07', '9'])
    """
    is_int = all(re.fullmatch(r"0|-?[1-9]\d{0,17}", text) for text in np.unique(y))
    return y.astype(np.int64) if is_int else y


def check_labels(y: Texts, where: str) -> list[str]:
    """Refuse labels that nobody can learn from; return remarks on the others.

    Args:
        y: The labels as text, (N,).
        where: What holds them, for messages, such as "Column 'class'".

    Raises:
        ValueError: If labels are missing, there is one class, or nearly each has its own.
    """
    missing = np.flatnonzero(y == "")
    if len(missing):
        raise ValueError(
            f"{where} must hold a label of every sample, but {len(missing)} of {len(y)} are "
            f"empty, the first of sample {missing[0]} (counted from 0). Fill them in, or leave "
            "those samples out."
        )
    counts, shown = Counter(y.tolist()), y[:2].tolist()
    if len(counts) < 2:
        raise ValueError(f"{where} must hold at least 2 classes, but holds {shown[0]!r} alone.")
    if 2 * len(counts) > len(y):
        raise ValueError(
            f"{where} must hold classes with several samples each, but holds {len(counts)} "
            f"different labels of {len(y)} samples, such as {shown[0]!r} and {shown[1]!r}. "
            "Numbers with many values have to be cut into classes first."
        )
    remarks = []
    alike: dict[str, list[str]] = {}
    for name in sorted(counts):
        alike.setdefault(spelling(name), []).append(name)
    remarks += [
        f"{_some(names)} count as {len(names)} classes. If they are one, write them alike."
        for names in [names for names in alike.values() if len(names) > 1][:MAX_SHOWN]
    ]
    rare = [name for name, n in counts.items() if n < FEWEST_OF_CLASS]
    if rare:
        remarks.append(
            f"Classes of fewer than {FEWEST_OF_CLASS} samples are hardly learned: {_some(rare)}."
        )
    return remarks


# --- tables ----------------------------------------------------------------------------------


def _read_table(path: Path, source: Source) -> Samples:
    content = path.read_bytes()
    file = TableFile(path, content, header=source.header)
    if source.label is None:
        raise ValueError(
            f"--label is needed: the column of {path.name} that holds the labels. Its columns "
            f"are {_some(file.columns, 20)}."
        )
    label = file.find_column("--label", source.label)
    dropped = [file.find_column("--drop", name) for name in source.drop]
    if label in dropped:
        raise ValueError(f"--drop must name other columns than --label, but got {label!r}.")
    frame = file.read(label=label)
    y = _as_texts(frame[label].tolist())
    x = frame.drop(columns=[label, *dropped])
    if x.shape[1] == 0:
        raise ValueError(f"{str(path)!r} must hold a column beside {label!r}, but holds none.")
    refuse_dates(x)
    remarks = list(file.remarks)
    remarks += [
        f"Column {name!r} numbers the rows. If it says nothing of the class, leave it out with "
        f"--drop {name!r}."
        for name in x.columns if numbers_the_rows(x[name])
    ]  # fmt: skip
    kinds = {name: "category" if _is_category(x[name]) else "number" for name in x.columns}
    words = [describe_words(name, x[name]) for name, kind in kinds.items() if kind == "category"]
    remarks += [remark for remark in words if remark]
    unused = [name for name in file.columns if name not in x.columns and name != label]
    form = {
        "kind": "table", "columns": kinds, "label": label, "unused": unused,
        "header": source.header,
    }  # fmt: skip
    n_numbers = list(kinds.values()).count("number")
    about = (
        f"{len(x)} rows, {len(kinds)} column{'s' * (len(kinds) != 1)} ({n_numbers} of numbers, "
        f"{len(kinds) - n_numbers} of categories)"
    )
    return Samples(x, y, None, form, hashlib.sha256(content).hexdigest(), about, remarks)


def _read_more_rows(path: Path, form: Form) -> Samples:
    """Read a table with the columns that the training table had, in any order."""
    content, columns, label = path.read_bytes(), form["columns"], form["label"]
    file = TableFile(path, content, header=form["header"])
    if not form["header"] and len(file.columns) == len(columns) + len(form["unused"]):
        # no names: the column of the labels is missing, and the others move up
        file.columns = [n for n in _numbered(len(file.columns) + 1) if n != label]
    missing = [name for name in columns if name not in file.columns]
    if missing:
        column = "column" if len(missing) == 1 else "columns"
        raise ValueError(
            f"{str(path)!r} lacks the {column} {_some(missing, 20)}, which the model was fitted "
            f"with. It holds {_some(file.columns, 20)}."
        )
    frame = file.read(
        label=label if label in file.columns else None,
        as_text=[name for name, kind in columns.items() if kind == "category"],
    )
    others = [name for name in frame.columns if name not in {*columns, label, *form["unused"]}]
    remarks = [r for r in file.remarks if "numbers the rows" not in r]
    if others:
        remarks.append(f"Columns that the model does not know are not used: {_some(others)}.")
    y = _as_texts(frame[label].tolist()) if label in frame.columns else None
    digest = hashlib.sha256(content).hexdigest()
    return Samples(frame[list(columns)], y, None, form, digest, f"{len(frame)} rows", remarks)


def _numbered(n: int) -> list[str]:
    return [str(number + 1) for number in range(n)]


def _is_category(values: pd.Series) -> bool:
    is_declared = isinstance(values.dtype, import_pandas(NEEDING).CategoricalDtype)
    return is_declared or any(isinstance(value, str) for value in values.tolist())


# --- images ----------------------------------------------------------------------------------


def _read_classes_of_images(folder: Path, size: int | None) -> Samples:
    """Read a folder that holds a folder of images per class."""
    images, others = list_images(folder)
    files = [path.relative_to(folder) for path in images]
    if not images:
        raise ValueError(
            f"{str(folder)!r} must hold a folder of images per class, but holds no images."
        )
    loose = [str(file) for file in files if len(file.parts) == 1]
    if loose:
        raise ValueError(
            f"{str(folder)!r} must hold a folder of images per class, but {len(loose)} images, "
            f"such as {loose[0]!r}, lie in no such folder. Move them into that of their class."
        )
    y = np.array([file.parts[0] for file in files])
    parts = [name for name in sorted({*y.tolist()}) if name.casefold() in _PARTS]
    if len(parts) == len({*y}) and all(len(file.parts) > 2 for file in files):
        raise ValueError(
            f"{str(folder)!r} must hold a folder of images per class, but holds the parts of a "
            f"data set: {_some(parts)}. Name one of them, such as {str(folder / parts[-1])!r}."
        )
    if len({*y}) < 2:
        raise ValueError(
            f"{str(folder)!r} must hold folders of at least 2 classes, but holds images of "
            f"{files[0].parts[0]!r} alone."
        )
    found = read_images(images, size=size)
    shape = found.shape
    remarks = _left_out(others)
    empty = [
        path.name for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path.name not in set(y)
    ]  # fmt: skip
    if empty:
        remarks.append(f"Folders without images are passed over: {_some(empty)}.")
    if max(shape.height, shape.width) > LARGE:
        remarks.append(
            f"Images of {shape.width} x {shape.height} pixels train slowly: --image-size "
            f"{SUGGESTED} makes them smaller."
        )
    about = (
        f"{len(y)} images of {shape.width} x {shape.height} pixels, "
        f"{'grey' if shape.channels == 1 else 'in colours'}"
    )
    form = {"kind": "images", **shape._asdict()}
    names = [file.as_posix() for file in files]
    return Samples(found.pixels, y, names, form, found.digest, about, remarks)


def _read_more_images(path: Path, form: Form) -> Samples:
    """Read the images of a folder, with or without classes, or one image."""
    if path.is_file():
        folder, (images, others) = path.parent, Listing([path], [])
    else:
        if not path.is_dir():
            raise FileNotFoundError(f"There is no file or folder {str(path)!r}.")
        folder = path
        images, others = list_images(folder)
    if not images:
        raise ValueError(f"{str(path)!r} must hold images, but holds none.")
    shape = ImageShape(**{name: form[name] for name in ImageShape._fields})
    found = read_images(images, shape=shape)
    files = [image.relative_to(folder) for image in images]
    in_folders = all(len(file.parts) > 1 for file in files)
    y = np.array([file.parts[0] for file in files]) if in_folders else None
    names, about = [file.as_posix() for file in files], f"{len(images)} images"
    return Samples(found.pixels, y, names, form, found.digest, about, _left_out(others))


def _left_out(others: list[str]) -> list[str]:
    return [f"Files that are no images are passed over: {_some(others)}."] if others else []


# --- arrays ----------------------------------------------------------------------------------


def _read_arrays(path: Path) -> Samples:
    """Read a .npz file with x and, to train on, y; x_val and y_val if they are there."""
    content = path.read_bytes()
    if not content.startswith(b"PK"):
        raise ValueError(f"{str(path)!r} must be a .npz file, but is none.")
    read = read_npz(path, content=content).arrays
    arrays = {name.removeprefix("train_"): array for name, array in read.items()}
    held = _some(sorted(arrays)) or "nothing"
    if "x" not in arrays:
        raise ValueError(f"{str(path)!r} must hold x, but holds {held}.")
    pairs = {}
    for end in ("", "_val", "_test"):
        x, y = arrays.get(f"x{end}", arrays.get(f"{end[1:]}_x")), arrays.get(f"y{end}")
        y = arrays.get(f"{end[1:]}_y") if y is None else y
        if x is not None and (x.ndim < 2 or len(x) == 0):
            raise ValueError(f"x{end} in {str(path)!r} must hold samples, but got {x.shape}.")
        if y is not None and (y.ndim != 1 or x is None or len(x) != len(y)):
            shape = None if x is None else x.shape
            raise ValueError(
                f"x{end} and y{end} in {str(path)!r} must have shapes (N, ...) and (N,), but got "
                f"{shape} and {y.shape}."
            )
        pairs[end] = (x, None if y is None else _as_texts(y.tolist()))
    x, y = arrays["x"], pairs[""][1]
    known = {end: (x, y) for end, (x, y) in pairs.items() if x is not None and y is not None}
    about = f"{len(x)} samples of shape {x.shape[1:]}"
    digest = hashlib.sha256(content).hexdigest()
    return Samples(x, y, None, {"kind": "arrays"}, digest, about, [], known.get("_val"),
                   known.get("_test"))  # fmt: skip


def _read_named(source: Source) -> Samples:
    """Read a data set by name, with the noise that the command line asks for."""
    from optuna_s2e.coteaching import load_data

    _check_name(source.data)
    data = load_data(
        source.data, root=source.data_root, noise=source.noise, noise_rate=source.noise_rate,
        seed=source.seed,
    )  # fmt: skip
    names = _as_texts(data.classes)
    remarks = [data.describe_noise()]
    if source.noise is None:
        remarks[0] += " Add none with --noise none."
    test = None
    if data.x_test is not None and data.y_test is not None:
        test = (data.x_test.numpy(), names[data.y_test.numpy()])
    digest = hashlib.sha256(repr([source._replace(data_root=None), len(data.x)]).encode())
    return Samples(
        data.x.numpy(), names[data.noisy_labels.numpy()], None,
        {"kind": "arrays", "seed": source.seed},  # the digits' test part follows from it
        digest.hexdigest(), f"{len(data.x)} samples of {source.data}", remarks,
        (data.x_val.numpy(), names[data.y_val.numpy()]), test,
    )  # fmt: skip


# --- what they share -------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise FileNotFoundError(
            f"There is no file or folder {name!r}. Data sets with names are {', '.join(NAMES)}."
        )


def _check_file(path: Path, what: str) -> None:
    if path.is_dir():
        raise ValueError(f"{str(path)!r} must be {what}, but is a folder.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")


def _as_texts(labels: Iterable[object]) -> Texts:
    """Return labels as text: "" for missing ones, 1 for 1.0."""
    return np.array([_as_text(label) for label in labels], dtype=np.str_)


def _as_text(label: object) -> str:
    if label is None or type(label).__name__ == "NAType" or label != label:  # NaN, NaT
        return ""
    text = label.decode(errors="replace") if isinstance(label, bytes) else str(label).strip()
    return re.sub(r"\.0+$", "", text) if re.fullmatch(r"-?\d+\.0+", text) else text


def _some(names: Iterable[str], n: int = MAX_SHOWN) -> str:
    """Return names as a list, the first ones if there are many."""
    listed = [repr(str(name)) for name in names]
    more = f" and {len(listed) - n} more" if len(listed) > n else ""
    return ", ".join(listed[:n]) + more
