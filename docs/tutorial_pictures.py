"""Make the pictures of the start page and of the tutorial on images.

    python docs/tutorial_pictures.py [--out docs/images]

Needs the test extra and a Chromium (S2E_CHROMIUM, or one on the path). Takes less than a minute.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits

from optuna_s2e import NoisyLabelClassifier, standard_schedule, suggested_schedule
from optuna_s2e.coteaching import NoisyData, TrainingConfig, save_label_errors, train_batch

N_EPOCHS, N_SEEDS = 60, 5
BAD, GOOD, INK = "#c2410c", "#0f766e", "#1f2937"


def make_smaller(path: Path) -> None:
    """Write a picture again with few colours."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_front(path: Path) -> None:
    """Draw the digits whose labels are trusted least, and what wrong labels do to a training."""
    digits = load_digits()
    images, true = (digits.images * 15).astype("uint8"), digits.target
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(len(true)) < 0.44, rng.integers(0, 10, len(true)), true)
    model = NoisyLabelClassifier(search=False, random_state=0).fit(images[300:], labels[300:])
    errors = model.find_label_errors(n=9)

    data = NoisyData.from_arrays(images[300:], labels[300:], images[:300], true[:300])
    schedules = {
        "all samples": (standard_schedule(N_EPOCHS).keep_rates, BAD),
        "suggested schedule": (suggested_schedule(N_EPOCHS, 0.4).keep_rates, GOOD),
    }
    config = TrainingConfig(batch_size=64, learning_rate=5e-3)
    figure = Figure(figsize=(10, 4.1), dpi=130, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[0.85, 1])
    grid = left.subplots(3, 3)
    for axes, error in zip(grid.flat, errors.itertuples(), strict=True):
        axes.imshow(images[300:][error.index], cmap="gray_r")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_color("#d1d5db")
        axes.set_xlabel(f"given {error.given_label}", color=BAD, fontsize=12, loc="left")
        axes.text(
            1, -0.07, f"→ {error.suggested_label}", color=GOOD, fontsize=12, weight="bold",
            transform=axes.transAxes, ha="right", va="top",
        )  # fmt: skip
    accuracy, keep = right.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    epochs = np.arange(N_EPOCHS)
    for name, (rates, colour) in schedules.items():
        results = train_batch(
            [rates] * N_SEEDS, range(N_SEEDS), data=data, config=config, device="cpu"
        )
        curves = 100 * (1 - np.array([r.curves.error.mean(axis=1) for r in results]))
        accuracy.fill_between(
            epochs, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15
        )
        accuracy.plot(epochs, curves.mean(axis=0), color=colour, lw=2, label=name)
        keep.plot(epochs, 100 * rates, color=colour, lw=2)
    accuracy.set_ylabel("accuracy, %")
    accuracy.legend(frameon=False, loc="lower left")
    keep.set_ylabel("trained on, %")
    keep.set_xlabel("epoch")
    keep.set_ylim(0, 105)
    for axes in (accuracy, keep):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
        axes.grid(axis="y", color="#e5e7eb")
        axes.tick_params(colors=INK)
    FigureCanvasAgg(figure).print_png(path)
    make_smaller(path)


def shoot_report(path: Path) -> None:
    """Take a picture of the report of the tutorial on images."""
    digits = load_digits()
    images, true = (digits.images * 15).astype("uint8"), digits.target
    wrong = np.random.default_rng(0).random(len(true)) < 0.3
    labels = np.where(wrong, (true + 1) % 10, true).astype(str)
    train = slice(200, 1200)
    model = NoisyLabelClassifier(search=False, random_state=0)
    model.fit(images[train], labels[train], images[:200], true[:200].astype(str))
    chromium = os.environ.get("S2E_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        save_label_errors(model.find_label_errors(), folder, inputs=images[train])
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900}, device_scale_factor=1.5)
        page.goto(Path(folder, "label-errors.html").as_uri())
        box = page.locator("section li").first.bounding_box()
        assert box is not None
        height = box["y"] + box["height"] + 12  # to the end of the first row
        page.screenshot(path=path, clip={"x": 0, "y": 0, "width": 1000, "height": height})
        browser.close()
    make_smaller(path)


def main() -> None:
    """Make both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    out = parser.parse_args().out
    draw_front(out / "front.png")
    shoot_report(out / "label-errors.png")


if __name__ == "__main__":
    main()
