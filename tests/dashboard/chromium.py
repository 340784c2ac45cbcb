"""Where a Chromium is, and how it starts."""

import os
import shutil

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def find_chromium() -> str | None:
    """Return the path of a Chromium or a Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("S2E_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
