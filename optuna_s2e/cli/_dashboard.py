"""The `s2e dashboard` command, and the option of pictures that other commands share with it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna_s2e.dashboard import DashboardReporter

HELP = """\
Open optuna-dashboard on the storage: schedules, theta, generations and a picture of each trial.

The pages follow a running search by themselves. The dashboard can change and delete studies:
--read-only forbids it, --password keeps others out. Beyond this machine, put TLS before it.

    s2e dashboard --storage sqlite:///s2e.db
    s2e dashboard --storage postgresql+psycopg://me@db/s2e --refresh --read-only --password
"""


def add_options(dashboard: argparse.ArgumentParser) -> None:
    """Add the options that only this command has."""
    dashboard.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    dashboard.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    dashboard.add_argument("--read-only", action="store_true", help="refuse every change")
    dashboard.add_argument(
        "--password", action="store_true",
        help="ask visitors for a password: the environment's S2E_DASHBOARD_PASSWORD, else typed",
    )  # fmt: skip
    dashboard.add_argument(
        "--refresh", action="store_true",
        help="first paint all pages anew from the stored trials: after a rename, copy or import",
    )  # fmt: skip
    dashboard.add_argument("--no-browser", action="store_true", help="open no browser")
    add_artifact_dir(dashboard)


def add_artifact_dir(parser: Any) -> None:
    """Add the option that says where the pictures are."""
    parser.add_argument(
        "--artifact-dir", type=Path, metavar="DIR",
        help="folder of the trials' pictures (default: FILE.artifacts beside a database file, "
        "else s2e-artifacts)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve the pages until Ctrl-C."""
    import threading

    from optuna_s2e import open_storage
    from optuna_s2e.dashboard import DashboardReporter, find_artifact_dir, serve

    storage = open_storage(args.storage)
    folder = args.artifact_dir or find_artifact_dir(storage, args.storage)
    if args.refresh:
        _refresh(storage, DashboardReporter(folder))
    password = _password() if args.password else None
    if not password and args.host not in ("127.0.0.1", "localhost", "::1"):
        print("Anyone who reaches this address can read and change the studies; --password keeps "
              "others out.", file=sys.stderr)  # fmt: skip
    with serve(
        storage,
        folder,
        host=args.host,
        port=args.port,
        read_only=args.read_only,
        password=password,
    ) as address:
        print(f"{address} (Ctrl-C stops it)", flush=True)
        print(f"Pictures: {folder}", flush=True)
        if not args.no_browser:
            _open_browser(address)
        threading.Event().wait()
    return 0


def _refresh(storage: Any, reporter: DashboardReporter) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        if len(study.directions) > 1:
            print(f"Study {name!r} has several objectives: nothing to paint.")
            continue
        print(f"Study {name!r}: painted, with {reporter.repaint(study)} trials.", flush=True)


def _password() -> str:
    import getpass
    import os

    password = os.environ.get("S2E_DASHBOARD_PASSWORD") or getpass.getpass("Password to set: ")
    if not password:
        raise ValueError("The password must not be empty.")
    return password


def _open_browser(address: str) -> None:
    """Open a browser where there is a screen: elsewhere it might be one in this terminal."""
    import os
    import webbrowser

    has_screen = sys.platform in ("darwin", "win32") or any(
        name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    if has_screen:
        webbrowser.open(address)
