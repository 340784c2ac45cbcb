"""The OptunaHub packages of docs/optunahub: complete, public names, examples run as pasted."""

import ast
import os
import re
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import optunahub
import pytest
import yaml
from processes import Process

ROOT = Path(__file__).parent.parent
REGISTRY = ROOT / "docs" / "optunahub" / "package"
PACKAGES = sorted(page.parent for page in REGISTRY.glob("*/*/README.md"))
TAGS = {"samplers": "sampler", "visualization": "visualization"}  # OptunaHub wants one by category

each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: folder.name)


def read_page(package: Path) -> tuple[dict[str, Any], str]:
    """Return the front matter of a package's page, and the rest."""
    _, head, text = (package / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def load(package: Path) -> Any:
    return optunahub.load_local_module(name_of(package), registry_root=str(REGISTRY))


def name_of(package: Path) -> str:
    return package.relative_to(REGISTRY).as_posix()


def test_there_is_a_sampler_and_a_visualization() -> None:
    assert {*map(name_of, PACKAGES)} == {"samplers/s2e", "visualization/plot_s2e_schedules"}


@each_package
def test_the_front_matter_is_complete(package: Path) -> None:
    head, _ = read_page(package)
    assert list(head) == ["author", "title", "description", "tags", "optuna_versions", "license"]
    assert head["license"] == "MIT License"
    assert TAGS[package.parent.name] in head["tags"]
    assert all(isinstance(tag, str) for tag in head["tags"])
    assert [v.split(".")[0] for v in head["optuna_versions"]] == ["4", "5"]
    assert optuna.__version__.split(".")[0] in {v.split(".")[0] for v in head["optuna_versions"]}


@each_package
def test_the_page_has_its_sections_and_names_what_the_package_exports(package: Path) -> None:
    _, text = read_page(package)
    sections = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", text, re.MULTILINE))
    assert list(sections) == ["Abstract", "APIs", "Installation", "Example", "Others"]
    module = load(package)
    for name in module.__all__:
        assert f"`{name}(" in sections["APIs"]
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert all((package / picture).exists() for picture in pictures)
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (package / "requirements.txt").read_text().strip() in sections["Installation"]


@each_package
def test_no_private_name_is_imported(package: Path) -> None:
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            assert not any(part.startswith("_") for name in names for part in name.split(".")
                           if part != "__future__"), f"{path}: {names}"  # fmt: skip


EXAMPLES = [
    pytest.param(text, package, id=f"{package.name}-{kind}")
    for package in PACKAGES
    for kind, text in (
        ("page", "\n".join(re.findall(r"```python\n(.*?)```", read_page(package)[1], re.DOTALL))),
        ("file", (package / "example.py").read_text()),
    )
]


BROWSER = """
import os, sys, urllib.request
page = urllib.request.urlopen(sys.argv[1]).read()
assert b"Plotly.newPlot" in page
open(f"{os.getpid()}.html", "wb").write(page)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def run_script(path: Path) -> None:
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize(("text", "package"), EXAMPLES)
def test_an_example_runs_as_pasted(
    text: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder; the registry that it asks is this checkout."""
    here = text.replace("load_module(", f"load_local_module(registry_root={str(REGISTRY)!r}, ")
    assert here.count("load_local_module(") == 1
    script, browser = tmp_path / "example.py", tmp_path / "browser.py"
    script.write_text(here)
    browser.write_text(BROWSER)
    monkeypatch.chdir(tmp_path)
    command = f"{sys.executable} -S {browser} %s &"
    done = Process(run_script, script, env={"BROWSER": command})
    assert done.wait(120) == 0, done.errors
    trials = len(re.findall(r"Trial \d+ finished", done.errors))
    assert trials == int(re.findall(r"n_trials=(\d+)", text)[0])
    wait_for(lambda: len([*tmp_path.glob("*.html")]) == text.count(".show()"))


def run_tests(folder: Path) -> None:
    os.chdir(folder)
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", ".", "-c", "/dev/null",
                          "package/samplers/s2e/tests"]))  # fmt: skip


def test_the_suite_of_the_sampler_runs_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's own tests, as they run in the registry: none is deselected, skipped or replaced."""
    monkeypatch.chdir(tmp_path)
    done = Process(run_tests, REGISTRY.parent)
    assert done.wait() == 0, done.printed
    last = done.printed.splitlines()[-1]
    assert re.fullmatch(r"\d+ passed(, \d+ warnings?)? in .*", last), last


def test_the_plots_are_figures_of_the_study() -> None:
    module = load(REGISTRY / "visualization" / "plot_s2e_schedules")
    space = module.ScheduleSpace(n_epochs=6)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: float(space.suggest(trial).keep_rates.mean()), n_trials=3)
    curves = [trace for trace in module.plot_schedules(study).data if len(trace.y or ()) >= 6]
    best = min(study.trials, key=lambda trial: trial.value)
    lowest = min(sum(curve.y[:6]) / 6 for curve in curves)
    assert lowest == pytest.approx(best.value, abs=1e-3)
    with pytest.raises(ValueError, match="has no completed trial"):
        module.plot_basis_functions(optuna.create_study())
