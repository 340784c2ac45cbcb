"""The rules of the rooms: who may import what, what a door holds, where a module is tested.

CONTRIBUTING.md states the rules. import-linter checks the arrows between rooms (`make lint`).
These tests read source text and import nothing of the package.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
PACKAGE = ROOT / "optuna_s2e"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOORS = [path for path in MODULES if path.name == "__init__.py"]
SCRIPTS = sorted([*(ROOT / "studies").glob("*.py"), *(ROOT / "docs").rglob("*.py")])

MAX_LINES = 480
MAX_TEST_LINES = 500

TESTED_THROUGH = {  # module -> the test file that reaches it through a neighbour, by file name
    "optuna_s2e.coteaching.data._sources": "test_noisy_data.py",
    "optuna_s2e.dashboard._pictures": "test_reporter.py",
    "optuna_s2e.dashboard._trial_page": "test_reporter.py",
    "optuna_s2e.visualization._loss_figures": "test_figures.py",
    "optuna_s2e.visualization._theta_figure": "test_figures.py",
}
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}  # public, in spite of their names


def name_of(path: Path) -> str:
    """Return the dotted name of a module of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements below a node: a small part of what `ast.walk` would look at."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield child
            yield from statements(child)


class Import(NamedTuple):
    """A name that a file imports from this package."""

    dotted: str  # optuna_s2e.history.Ledger
    local: str  # what the file calls it
    line: int


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Return what a file imports from this package, also in functions and for type checking."""
    found = []
    for node in statements(tree(path)):
        if isinstance(node, ast.Import):
            found += [Import(a.name, a.asname or a.name, node.lineno) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            found += [
                Import(f"{node.module}.{a.name}", a.asname or a.name, node.lineno)
                for a in node.names
            ]
    return tuple(i for i in found if is_inside(i.dotted, "optuna_s2e"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def private_parts(dotted: str) -> Iterator[str]:
    """Yield what holds each private part of a dotted name: `a.b` for `a.b._c`."""
    parts = dotted.split(".")
    for i, part in enumerate(parts):
        if is_private(part):
            yield ".".join(parts[:i])


def private_attributes(path: Path) -> Iterator[tuple[str, int]]:
    """Yield `name._attribute` and its line, for the names that a file imports from us."""
    imported = {local for _, local, _ in imports(path)}
    for node in ast.walk(tree(path)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in imported
            and is_private(node.attr)
            and node.attr not in NAMED_TUPLE
        ):
            yield f"{node.value.id}.{node.attr}", node.lineno


@cache
def origin(dotted: str) -> str:
    """Return the module that defines a name: doors are followed to what they pass on."""
    if dotted in NAMES:
        return dotted
    module, _, name = dotted.rpartition(".")
    if module not in NAMES:
        return origin(module) if module else dotted
    for source, local, _ in imports(NAMES[module]):
        if local == name:
            return origin(source)
    return module


def defined(path: Path) -> set[str]:
    """Return the names that a module binds at its top level."""
    names = {local for _, local, _ in imports(path)}
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@cache
def modules_imported_in(folder: Path) -> set[str]:
    """Return the modules whose names the tests of a folder import, through doors or not."""
    return {origin(dotted) for path in folder.rglob("test_*.py") for dotted, _, _ in imports(path)}


def kind_and_name(name: str) -> tuple[int, str]:
    """Constants first, then classes, then functions: the order that ruff keeps (RUF022)."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def is_tested(name: str, path: Path) -> bool:
    """Return whether the tests of a room import from a module, or a test file has its name."""
    folder = TESTS / path.parent.relative_to(PACKAGE)
    own_name = re.compile(rf"test_(\w+_)?{path.stem.strip('_')}(_\w+)?")
    files = folder.rglob("test_*.py")
    return name in modules_imported_in(folder) or any(own_name.fullmatch(f.stem) for f in files)


def is_for_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def private_names_of_optuna(node: ast.AST) -> Iterator[str]:
    """Yield the private names of Optuna that are imported when the code below a node runs."""
    if isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    yield from (n for n in names if is_inside(n, "optuna") and any(private_parts(n)))
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr) and not is_for_type_checking(child):
            yield from private_names_of_optuna(child)


def show(found: Iterable[str]) -> str:
    return "\n" + "\n".join(found)


def test_every_module_is_seen() -> None:
    assert {"optuna_s2e", "optuna_s2e.sampler._sampler", "optuna_s2e.coteaching.data"} <= {*NAMES}
    assert origin("optuna_s2e.ScheduleSpace") == "optuna_s2e.schedules._schedule"
    assert len(SCRIPTS) > 10


def test_private_modules_and_names_are_imported_inside_their_room_only() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {dotted}, private to {holder}"
        for path in MODULES
        for dotted, _, line in imports(path)
        for holder in private_parts(dotted)
        if not is_inside(name_of(path), holder)
    ]
    assert not found, show(found)


def test_one_module_imports_the_private_names_of_optuna() -> None:
    found = {name_of(p): [*private_names_of_optuna(tree(p))] for p in MODULES}
    assert [name for name, names in found.items() if names] == ["optuna_s2e._optuna"]


@pytest.mark.parametrize("paths", [MODULES, SCRIPTS], ids=["package", "scripts"])
def test_private_attributes_of_what_is_imported_are_left_alone(paths: list[Path]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} uses {name}"
        for path in paths
        for name, line in private_attributes(path)
    ]
    assert not found, show(found)


def test_studies_and_pictures_use_public_names_only() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {dotted}"
        for path in SCRIPTS
        for dotted, _, line in imports(path)
        if any(private_parts(dotted))
    ]
    assert not found, show(found)


@pytest.mark.parametrize("path", DOORS, ids=map(name_of, DOORS))
def test_a_door_says_what_the_room_is_for_and_what_it_exports(path: Path) -> None:
    name = name_of(path)
    assert ast.get_docstring(tree(path)), f"{name} has no docstring"
    exported: list[str] = []
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = ast.literal_eval(node.value)
    assert exported, f"{name} exports nothing"
    assert len(set(exported)) == len(exported)
    assert exported == sorted(exported, key=kind_and_name), f"{name}.__all__ is not sorted"
    wrong = {n for n in exported if is_private(n)} | set(exported) - defined(path)
    assert not wrong, f"{name}.__all__ holds private or missing names: {sorted(wrong)}"


def test_every_module_is_tested_in_the_folder_of_its_room() -> None:
    modules = {n: p for n, p in NAMES.items() if p.parent != PACKAGE and p.name[:2] != "__"}
    untested = {name for name, path in modules.items() if not is_tested(name, path)}
    missing = sorted(untested - set(TESTED_THROUGH))
    assert not missing, show(missing)
    not_needed = sorted(set(TESTED_THROUGH) - untested)
    assert not not_needed, f"to be taken out of TESTED_THROUGH: {show(not_needed)}"
    gone = set(TESTED_THROUGH.values()) - {path.name for path in TESTS.rglob("test_*.py")}
    assert not gone, f"test files that TESTED_THROUGH names: {show(gone)}"


def test_the_architecture_page_has_a_line_for_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    told = re.findall(r"^\| `([\w/]+\.py)` \|", page, re.MULTILINE)
    known = [str(p.relative_to(PACKAGE)) for p in MODULES if not p.name.startswith("__")]
    assert len(set(told)) == len(told)
    missing, gone = sorted(set(known) - set(told)), sorted(set(told) - set(known))
    assert not missing, show(missing)
    assert not gone, f"modules that are gone: {show(gone)}"


def test_file_names_are_unique_among_tests_and_studies() -> None:
    """pytest puts all of their folders on the path."""
    paths = [*TESTS.rglob("*.py"), *(ROOT / "studies").glob("*.py")]
    names = Counter(path.name for path in paths if path.name != "conftest.py")
    assert not [name for name, n in names.items() if n > 1]


def test_files_are_short() -> None:
    allowed = dict.fromkeys(MODULES, MAX_LINES)
    allowed |= dict.fromkeys(TESTS.rglob("*.py"), MAX_TEST_LINES)
    long = [
        f"{path.relative_to(ROOT)}: {n} lines, at most {most} are allowed"
        for path, most in allowed.items()
        if (n := len(path.read_text().splitlines())) > most
    ]
    assert not long, show(long)
