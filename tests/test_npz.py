"""Reading a user's .npz files: which arrays, no pickle, and one line for what is damaged."""

import io
from pathlib import Path

import numpy as np
import pytest

from optuna_s2e._npz import read_npz


def test_arrays_that_were_asked_for_are_read_and_the_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3), z=np.ones(1), note=np.array("mine"))
    found = read_npz(path, {"x", "y"})
    assert {name: array.tolist() for name, array in found.arrays.items()} == {"x": [0, 1, 2]}
    assert found.others == ["note", "z"]
    assert set(read_npz(path).arrays) == {"x", "z", "note"}


def test_content_that_was_read_already_is_not_read_again(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, x=np.arange(2))
    assert read_npz(tmp_path / "gone.npz", content=stream.getvalue()).arrays["x"].tolist() == [
        0,
        1,
    ]


def test_python_objects_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array(["a", None], dtype=object))
    with pytest.raises(
        ValueError, match=r"objects\.npz' is not .*: Object arrays .*\. Save .*astype"
    ):
        read_npz(path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    whole, cut, array = (tmp_path / name for name in ("a.npz", "cut.npz", "array.npz"))
    np.savez(whole, x=np.arange(1000))
    cut.write_bytes(whole.read_bytes()[:300])
    with array.open("wb") as file:
        np.save(file, np.arange(3))
    for path in (cut, array):
        with pytest.raises(ValueError, match=f"{path.name}' is not a .npz file of plain arrays: "):
            read_npz(path)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.npz"):
        read_npz(tmp_path / "gone.npz")
