"""Draw `images/thumbnail.png` of the OptunaHub package for plots; needs a Chromium.

.venv/bin/python docs/optunahub/thumbnail.py
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import optuna
from PIL import Image
from playwright.sync_api import sync_playwright

from optuna_s2e import ScheduleSpace
from optuna_s2e.visualization import plot_schedules

OUT = Path(__file__).parent / "package/visualization/plot_s2e_schedules/images/thumbnail.png"


def main() -> None:
    """Search as the package's example does, and take a picture of the plot."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = ScheduleSpace(n_epochs=40)

    def objective(trial: optuna.Trial) -> float:
        keep_rates = space.suggest(trial).keep_rates
        return float(abs(keep_rates[:10].mean() - 0.8) + abs(keep_rates[10:] - 0.5).mean())

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), study_name="example")
    study.optimize(objective, n_trials=40)
    chromium = os.environ.get("S2E_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "plot.html"
        plot_schedules(study).write_html(page_file)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 800, "height": 500})
        page.goto(page_file.as_uri())
        page.locator(".main-svg").first.wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=OUT)
        browser.close()
    with Image.open(OUT) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
