"""Run the blocks of README and of the docs as printed, with the package from its wheel.

`make readme` runs this in a few minutes. Each page has a new folder, and its blocks run in order.
Of README, each block of Python becomes a script, and `s2e dashboard` is started, asked for its
page and stopped. `page_blocks.py` runs the others. The first command that fails ends the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

from page_blocks import PAGES, ROOT, commands, read_blocks

TIMEOUT = 1200  # seconds that one command, or a page, may take
PAGE = "http://127.0.0.1:8080/dashboard/"  # where `s2e dashboard` serves by default


def make_environment(folder: Path) -> Path:
    """Install the wheel beside this interpreter's dependencies; return the folder of scripts."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    # The path alone: the editable install of this checkout is not taken over.
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
         "--no-warn-script-location", "--ignore-installed", wheel],
        check=True,
    )  # fmt: skip
    return environment / "bin"


def serve(command: str, folder: Path, env: dict[str, str]) -> None:
    """Start the dashboard, ask for its page, and stop it."""
    server = subprocess.Popen(command.split(), cwd=folder, env=env)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(PAGE, timeout=5) as page:
                    assert b"<html" in page.read().lower()
                return
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command!r} did not serve {PAGE}.") from None
                time.sleep(0.2)
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    """Run all blocks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scripts = make_environment(folder)
        env = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
        env.pop("PYTHONPATH", None)
        where = [scripts / "python", "-c", "import optuna_s2e; print(optuna_s2e.__file__)"]
        found = subprocess.run(
            where, cwd=folder, env=env, check=True, capture_output=True, text=True
        )
        assert Path(found.stdout.strip()).is_relative_to(folder), found.stdout
        for number, block in enumerate(read_blocks((ROOT / "README.md").read_text())):
            if block.language == "python":
                script = folder / f"block{number}.py"
                script.write_text(block.text)
                run([scripts / "python", script], folder, env)
            for command in commands(block.text) if block.language == "bash" else ():
                if command == "s2e dashboard":
                    serve(command, folder, env)
                else:
                    run(["bash", "-c", command], folder, env)
        for page in PAGES:
            own = folder / f"{page.parent.name}-{page.stem}"
            own.mkdir()
            run([scripts / "python", ROOT / "tests" / "page_blocks.py", page], own, env)


def run(command: list[str | Path], folder: Path, env: dict[str, str]) -> None:
    """Run one command and say how long it took; show what it printed only if it fails."""
    shown, start = str(command[-1]), time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=env, timeout=TIMEOUT, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout}\n{Path(shown).name!r} ended with {done.returncode}.")
    print(f"{time.monotonic() - start:6.1f} s  {shown.removeprefix(str(folder) + os.sep)}")
    for line in done.stdout.splitlines():
        if line.startswith("skipped "):
            print(f"          {line}")


if __name__ == "__main__":
    main()
