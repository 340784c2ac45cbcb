"""What is published: an sdist that builds the same wheel as the checkout, and its metadata."""

import gzip
import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from functools import partial
from pathlib import Path

import pytest

import optuna_s2e

pytest.importorskip("hatchling", reason="the test extra brings it")

from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent


BUILDERS = {"sdist": SdistBuilder, "wheel": WheelBuilder}


def build(target: str, source: Path, out: Path) -> Path:
    """Build what `hatchling build` builds; packing it tightly would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gzip.GzipFile", partial(gzip.GzipFile, compresslevel=1))
        (built,) = BUILDERS[target](str(source)).build(directory=str(out))
    return Path(built)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", ROOT, folder / "built")) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"optuna_s2e-{optuna_s2e.__version__}"


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel that is built from the sdist."""
    return build("wheel", sdist, sdist.parent / "wheel")


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def test_the_sdist_builds_the_wheel_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    ours = build("wheel", ROOT, tmp_path / "ours")
    with zipfile.ZipFile(wheel) as theirs, zipfile.ZipFile(ours) as direct:
        assert sorted(theirs.namelist()) == sorted(direct.namelist())
        for name in theirs.namelist():
            assert theirs.read(name) == direct.read(name), name
        inside = {name for name in theirs.namelist() if name.startswith("optuna_s2e/")}
    package = ROOT / "optuna_s2e"
    code = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}
    assert code | {"optuna_s2e/py.typed"} <= inside
    assert not any(name.startswith(("tests/", "docs/", "studies/")) for name in inside)


def test_the_sdist_holds_what_the_image_and_the_tests_need(sdist: Path) -> None:
    files = (
        *("LICENSE", "CHANGELOG.md", "constraints.txt", "Makefile", "tests/conftest.py"),
        *("docs/launch/Dockerfile", "docs/optunahub/package/samplers/s2e/README.md"),
    )
    for name in files:
        assert (sdist / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_wheel_runs_when_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
               "--no-deps", "--no-compile", "--target", tmp_path / "site", wheel]  # fmt: skip
    subprocess.run(install, check=True)
    code = "import optuna_s2e; print(optuna_s2e.__file__, optuna_s2e.__version__)"
    for command in (
        [sys.executable, "-c", code],
        [tmp_path / "site" / "bin" / "s2e", "--version"],
    ):
        said = subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        ).stdout  # fmt: skip
        assert optuna_s2e.__version__ in said
        assert command[0] != sys.executable or str(tmp_path / "site") in said


def test_the_metadata_are_complete(metadata: Message) -> None:
    from trove_classifiers import classifiers

    assert metadata["Name"] == "optuna-s2e"
    assert metadata["Version"] == optuna_s2e.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Keywords"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    given = metadata.get_all("Classifier") or []
    assert set(given) <= classifiers
    assert {f"Programming Language :: Python :: 3.{n}" for n in (11, 12, 13)} <= set(given)
    assert "Typing :: Typed" in given
