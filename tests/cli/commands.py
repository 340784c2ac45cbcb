"""What the tests of the `s2e` command share: tiny data, and searches that take little time."""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import pytest

from optuna_s2e.cli import main

K = 3  # population size of all searches here
N_SEARCHED = 9  # trials of the search that the tests share

EPOCHS = 4
LONG = ["--epochs", "40"]  # a tenth of a second, for tests that stop a search while it trains
DATA = "own.npz"
SEARCH = [
    "search",
    "--data",
    DATA,
    "--epochs",
    str(EPOCHS),
    "--population-size",
    str(K),
    "--no-dashboard",
    "--no-noise-rate-estimate",  # tests/cli/test_cli_noise_rate.py is about it
    "--noise",  # is added to a user's own labels only by name
    "symmetric",
]


class Searched(NamedTuple):
    """A search that nothing disturbed: its folder, and what it printed."""

    folder: Path
    printed: str


def search(n_trials: int, *options: str, name: str = "s") -> list[str]:
    """Return the command line of a search on the tiny data."""
    return [*SEARCH, "--study-name", name, "--trials", str(n_trials), *options]


def study(name: str = "s", storage: str = "sqlite:///s2e.db") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=storage)


def make_arrays() -> dict[str, np.ndarray]:
    """Make 120 samples to train on and 12 to test on, of three classes."""
    rng = np.random.default_rng(0)
    x = rng.random((132, 4))
    y = np.digitize(x.sum(axis=1), [1.7, 2.3])
    return {"train_x": x[:120], "train_y": y[:120], "test_x": x[120:], "test_y": y[120:]}


def as_script(argv: list[str]) -> None:
    """Run the command as the script `s2e` does; say whether the interpreter clears up."""
    sys.argv = ["s2e", *argv]
    try:
        sys.exit(main())
    finally:
        print("cleared up")


def last_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail with exit code 2; return the last line of its errors."""
    capsys.readouterr()
    assert main(argv) == 2
    lines: list[str] = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


def only_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail with exit code 2 and one line; return the line."""
    capsys.readouterr()
    assert main(argv) == 2
    error: str = capsys.readouterr().err
    assert error.startswith(f"s2e {argv[0]}: error: ")
    assert error.count("\n") == 1
    return error.strip()


def write_table(path: str, n: int = 60, *, flipped: int = 0, separator: str = ",") -> Path:
    """Write a table of a number, a category and a class; every `flipped`th label is wrong."""
    rng = np.random.default_rng(0)
    lines = [separator.join(["size", "colour", "kind"])]
    for i in range(n):
        label = i % 2 != bool(flipped and i % flipped == 0)
        size = rng.normal() / 2 + 3 * (i % 2)
        cells = [f"{size:.3f}", ["red", "blue", "green"][i % 3], "cat" if label else "dog"]
        lines.append(separator.join(cells))
    Path(path).write_text("\n".join(lines) + "\n")
    return Path(path)


def write_image(
    path: str, level: int = 0, *, size: tuple[int, int] = (5, 6), mode: str = "L"
) -> None:
    """Write an image of width and height `size`, the darker half of grey `level`."""
    from PIL import Image

    pixels = np.full((size[1], size[0]), 255, dtype=np.uint8)
    pixels[: size[1] // 2] = level
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def write_classes(folder: str, n: int = 16, size: tuple[int, int] = (5, 6)) -> None:
    """Write a folder with a folder of images for each of two classes."""
    for i in range(n):
        name, level = ("dark", 20 + i) if i % 2 else ("light", 200 + i)
        write_image(f"{folder}/{name}/{i:02d}.png", level, size=size)
