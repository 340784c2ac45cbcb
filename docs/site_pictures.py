"""Take pictures of the site and of a page of label errors, to see how they look.

    make docs && python docs/site_pictures.py [--only results] [--out docs/images/site]

One picture for each page, half its size: wide and narrow, light and dark, the top of each. Needs
the test extra and a Chromium (S2E_CHROMIUM, or one on the path). Takes some minutes. It fails if
a page is wider than its window, lacks a picture, or asks for anything outside the site.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits

from optuna_s2e.coteaching import NoisyData, find_label_errors, save_label_errors

SITE = Path(__file__).parent.parent / "build" / "site"
PAGES = {
    "start": "index.html",
    "table": "tutorials/wrong-labels-in-a-table.html",
    "images": "tutorials/wrong-labels-in-images.html",
    "trainers": "guides/other-trainers.html",
    "reference": "reference/api/optuna_s2e.classifier.NoisyLabelClassifier.html",
    "results": "results.html",
    "faq": "faq.html",
}
WIDTHS, HEIGHT, GAP = (1440, 400), 800, 10
PROBLEMS = """() => [
    ...[...document.images].filter(i => !i.naturalWidth).map(i => "no picture " + i.src),
    ...(document.documentElement.scrollWidth > innerWidth ? ["too wide"] : []),
]"""


def write_report(folder: Path) -> Path:
    """Write a page of label errors of digits; return its path."""
    digits = load_digits()
    images, true = (digits.images * 15).astype("uint8"), digits.target
    wrong = np.random.default_rng(0).random(len(true)) < 0.3
    labels = np.where(wrong, (true + 1) % 10, true)
    data = NoisyData.from_arrays(images[300:], labels[300:], images[:300], true[:300])
    save_label_errors(find_label_errors(data, device="cpu"), folder, inputs=data)
    return folder / "label-errors.html"


def shoot(browser: Any, page_file: Path) -> Image.Image:
    """Return one picture of the page in both widths and both colour schemes.

    Raises:
        RuntimeError: If something is wrong with the page.
    """
    sheet = Image.new("RGB", (sum(WIDTHS) // 2 + GAP, HEIGHT + GAP), "#888888")
    problems = []
    for row, scheme in enumerate(("light", "dark")):
        for column, width in enumerate(WIDTHS):
            viewport = {"width": width, "height": HEIGHT}
            page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(page_file.as_uri(), timeout=120_000)
            problems += [f"{width} {scheme}: {problem}" for problem in page.evaluate(PROBLEMS)]
            problems += [url for url in asked if not url.startswith(("file:", "data:"))]
            shot = Image.open(io.BytesIO(page.screenshot(timeout=120_000))).convert("RGB")
            page.context.close()
            place = (column * (WIDTHS[0] // 2 + GAP), row * (HEIGHT // 2 + GAP))
            sheet.paste(shot.resize((width // 2, HEIGHT // 2), Image.Resampling.LANCZOS), place)
    if problems:
        raise RuntimeError(f"{page_file}: {'; '.join(problems)}")
    return sheet


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*PAGES, "label-errors"], help="one page alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "site")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    chromium = os.environ.get("S2E_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = {name: SITE / page for name, page in PAGES.items()}
        if args.only in (None, "label-errors"):
            pages["label-errors"] = write_report(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for name in [args.only] if args.only else pages:
            path = args.out / f"{name}.png"
            sheet = shoot(browser, pages[name])
            few = sheet.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(path, optimize=True)
            print(f"{path} {path.stat().st_size / 1e3:.0f} kB", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
