"""Use the wheel with its extras, beside the packages that these extras ask for and nothing else.

    python tests/full_install.py WHEEL

`.ci/steps install` runs this with an interpreter beside which all packages are installed. A new
environment gets the wheel, and links to those packages that the metadata of the wheel lead to: a
package that is used but not asked for is missing there. Nothing is downloaded.
"""

import csv
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = {"coteaching", "dashboard"}
IN_PYTHON = """
import optuna, optuna_s2e
from pathlib import Path
from optuna_s2e.dashboard import is_available
from optuna_s2e.visualization import plot_schedules

found = Path(optuna_s2e.__file__)
assert found.is_relative_to(Path().resolve() / "venv"), found
model = optuna_s2e.NoisyLabelClassifier.load("model/model.npz")
assert model.find_label_errors(n=5)["index"].is_unique
assert plot_schedules(optuna.load_study(study_name="full", storage="sqlite:///s2e.db")).data
assert is_available()
"""


def needed(wheel: Distribution) -> dict[str, Distribution]:
    """Return the packages that the wheel and its extras lead to, by name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    left = [(wheel, extra) for extra in ("", *EXTRAS)]
    while left:
        package, extra = left.pop()
        for need in map(Requirement, package.requires or []):
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            of_wheel = need.name == wheel.name
            other = wheel if of_wheel else distribution(need.name)
            assert need.specifier.contains(other.version, prereleases=True), (package.name, need)
            if not of_wheel:
                found[need.name] = other
            for more in ("", *need.extras):
                if (need.name, more) not in seen:
                    seen.add((need.name, more))
                    left.append((other, more))
    return found


def make_environment(folder: Path, wheel: str) -> Path:
    """Install the wheel, link what it needs, and return the folder of scripts."""
    venv.create(folder, with_pip=False)
    variables = {"base": str(folder), "platbase": str(folder)}
    place = Path(sysconfig.get_path("purelib", "venv", variables))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet",
         "--no-deps", "--no-index", wheel],
        check=True,
    )  # fmt: skip
    (metadata,) = place.glob("optuna_s2e-*.dist-info")
    for package in needed(PathDistribution(metadata)).values():
        for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (place / top).exists():
                (place / top).symlink_to(Path(package.locate_file(top)))
    return folder / "bin"


def write_table(path: Path) -> None:
    """Write a table of numbers and categories, in which every seventh label is wrong."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", "other", "colour", "class"])
        for i in range(210):
            value, other = i * 37 % 101, i * 53 % 97
            right = value > 50
            label = "yes" if right != (i % 7 == 0) else "no"
            table.writerow([value, "" if i % 11 == 0 else other, ("red", "blue")[i % 2], label])


def main() -> None:
    """Run the commands of a user, each of which must end with 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        scripts = make_environment(folder / "venv", sys.argv[1])
        write_table(folder / "table.csv")
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

        def run(*command: str | Path) -> str:
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr, done.stderr
            return done.stdout

        s2e = scripts / "s2e"
        lines = json.loads(run(s2e, "doctor", "--json"))["lines"]
        states = {line["topic"]: line["state"] for line in lines}
        assert all(states[f"[{extra}]"] == "ok" for extra in EXTRAS), lines
        run(s2e, "fit", "table.csv", "--label", "class", "--quick", "--out", "model")
        run(s2e, "predict", "model", "table.csv", "--out", "predictions.csv")
        run(s2e, "label-errors", "model", "--number", "30", "--out", "errors")
        assert (folder / "errors" / "label-errors.html").stat().st_size > 1000
        run(s2e, "search", "--data", "digits", "--epochs", "3", "--trials", "2", "--storage",
            "sqlite:///s2e.db", "--study-name", "full")  # fmt: skip
        run(s2e, "export", "--storage", "sqlite:///s2e.db", "--out", "schedule.json")
        run(scripts / "python", "-c", IN_PYTHON)
        print(f"With [{', '.join(sorted(EXTRAS))}]: {len(states)} lines of `s2e doctor`, no error")


if __name__ == "__main__":
    main()
