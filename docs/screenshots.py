"""Make the pictures of docs/dashboard.md: a real search on the digits in a real Chromium.

    python docs/screenshots.py [--trials 60] [--space eq1] [--out docs/images]

Needs the test extra and a Chromium (S2E_CHROMIUM, or one on the path). Takes some minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
from PIL import Image
from playwright.sync_api import sync_playwright

from optuna_s2e.dashboard import serve

NAME = "digits-sym50"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
PLOTS = "[id^='user-defined-plot:']"


def shoot(page: Any, path: Path, **options: Any) -> None:
    """Take a picture of the page and make it small."""
    page.screenshot(path=path, timeout=180_000, **options)
    with Image.open(path) as image:
        image.convert("RGB").quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path} {path.stat().st_size / 1e3:.0f} kB", flush=True)


class Pages:
    """The dashboard's pages in one colour scheme."""

    def __init__(self, browser: Any, address: str, scheme: str, out: Path) -> None:
        self._browser, self._address, self._scheme, self._out = browser, address, scheme, out

    def _page(self, path: str, height: int, width: int = 1400, study: int = 1) -> Any:
        viewport = {"width": width, "height": height}
        page = self._browser.new_context(viewport=viewport, color_scheme=self._scheme).new_page()
        page.goto(f"{self._address}/studies/{study}{path}", timeout=90_000)
        return page

    def study(self, name: str) -> None:
        """Show the four plots of the study page."""
        page = self._page("", 1000)
        for number in range(4):
            page.locator(PLOTS).nth(number).locator(".main-svg").first.wait_for(timeout=60_000)
        page.evaluate(f'document.querySelector("{PLOTS}").scrollIntoView()')
        page.evaluate("window.scrollBy(0, -70)")
        page.wait_for_timeout(1500)
        shoot(page, self._out / name)
        page.context.close()

    def gallery(self, name: str) -> None:
        """Show the wall of schedules."""
        page = self._page("/smartSelection", 900)
        page.get_by_text("Show Artifacts").click(timeout=60_000)
        page.wait_for_timeout(5000)
        page.get_by_text("Target Artifact Index").scroll_into_view_if_needed()
        page.evaluate(
            "[...document.querySelectorAll('*')].find(e => e.textContent === 'Artifacts' && "
            "!e.children.length).scrollIntoView()"
        )
        page.evaluate("window.scrollBy(0, -75)")
        page.wait_for_timeout(1500)
        shoot(page, self._out / name)
        page.context.close()

    def note(self, name: str) -> None:
        """Show the status page."""
        page = self._page("/note", 1250, width=1150)
        page.wait_for_function("document.images.length && document.images[0].naturalWidth")
        page.wait_for_timeout(1000)
        shoot(page, self._out / name)
        page.context.close()

    def running_trial(self, name: str) -> None:
        """Show the first trial of the second study in the middle of its training."""
        page = self._page("/trials?numbers=0", 1000, study=2)
        page.wait_for_function(
            "/epoch (1|2)\\d\\d of/.test(document.body.innerText)", timeout=120_000
        )
        page.wait_for_timeout(1000)
        shoot(page, self._out / name)
        page.context.close()


def main() -> None:
    """Search, look, search on, look again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--space", default="eq1")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    chromium = os.environ.get("S2E_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        storage = f"sqlite:///{folder}/s2e.db"

        def search(epochs: int, trials: int, name: str = NAME) -> subprocess.Popen[bytes]:
            return subprocess.Popen([
                sys.executable, "-m", "optuna_s2e", "search", "--data", "digits",
                "--noise", "symmetric", "--noise-rate", "0.5", "--epochs", str(epochs),
                "--trials", str(trials), "--space", args.space, "--storage", storage,
                "--study-name", name,
            ])  # fmt: skip

        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        running = search(40, args.trials)
        while not Path(folder, "s2e.db").exists():
            time.sleep(0.2)
        time.sleep(3)
        with serve(storage, f"{folder}/s2e.db.artifacts") as address:
            light = Pages(browser, address, "light", args.out)
            dark = Pages(browser, address, "dark", args.out)
            while _completed(storage) < args.trials * 0.55:
                time.sleep(0.5)
            light.study("dashboard-running.png")
            light.note("dashboard-status.png")
            running.wait()
            light.gallery("dashboard-gallery.png")
            dark.gallery("dashboard-gallery-dark.png")
            dark.study("dashboard-finished-dark.png")
            light.study("dashboard-finished.png")
            slow = search(400, 1, "digits-400-epochs")
            while "digits-400-epochs" not in optuna.get_all_study_names(storage):
                time.sleep(0.2)
            time.sleep(1)
            dark.running_trial("dashboard-trial-dark.png")
            slow.terminate()
            slow.wait()
        browser.close()


def _completed(storage: str) -> int:
    try:
        study = optuna.load_study(study_name=NAME, storage=storage)
    except KeyError:  # not made yet
        return 0
    return sum(t.state.name == "COMPLETE" for t in study.get_trials(deepcopy=False))


if __name__ == "__main__":
    main()
