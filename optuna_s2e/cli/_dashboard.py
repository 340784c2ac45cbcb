"""The `s2e dashboard` command."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage

from optuna_s2e.cli._options import ARTIFACTS, Options, add_table, flag, option, whole
from optuna_s2e.storages import open_storage

if TYPE_CHECKING:
    from optuna_s2e.dashboard import DashboardReporter

HELP = """\
It starts optuna-dashboard with the schedules, theta, the generations and a
picture of each trial. The pages follow a running search. Ctrl-C stops it.

Visitors can change and delete studies: --read-only forbids that, --password
keeps others out. Put TLS before it if other machines reach it.

    s2e dashboard
    s2e dashboard --storage postgresql://me@db/s2e --read-only --password

Next: open the address that is printed.
"""


OPTIONS: Options = {
    "--host": option("HOST", "address to listen on (default %(default)s: this machine only)",
                     "127.0.0.1"),
    "--port": option("N", "port to listen on; 0 takes a free one", 8080, whole(0, 65535)),
    "--read-only": flag("refuse every change"),
    "--password": flag(
        "ask visitors for a password, which you type first or set in the environment variable "
        "S2E_DASHBOARD_PASSWORD"
    ),
    "--refresh": flag(
        "draw all pages anew first, which is needed after a study was renamed, copied or imported"
    ),
    "--no-browser": flag("open no browser"),
    **ARTIFACTS,
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    add_table(parser, OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Serve the pages until Ctrl-C."""
    from optuna_s2e.dashboard import DashboardReporter, Painter, find_artifact_dir, serve

    storage = open_storage(args.storage, create=False)
    folder = args.artifact_dir or find_artifact_dir(storage, args.storage)
    if args.refresh:
        _refresh(storage, DashboardReporter(folder))
    password = _read_password() if args.password else None
    if not password and args.host not in ("127.0.0.1", "localhost", "::1"):
        print("Everyone who reaches this address can read and change the studies. --password "
              "keeps others out.", file=sys.stderr)  # fmt: skip
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
        Painter(storage, read_only=args.read_only).keep_looking()


def _refresh(storage: BaseStorage, reporter: DashboardReporter) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        if len(study.directions) > 1:
            print(f"Study {name!r} has several objectives: nothing to paint.")
            continue
        print(f"Study {name!r}: painted, with {reporter.repaint(study)} trials.", flush=True)


def _read_password() -> str:
    import getpass
    import os

    password = os.environ.get("S2E_DASHBOARD_PASSWORD") or getpass.getpass("Password to set: ")
    if not password:
        raise ValueError("The password must not be empty.")
    return password


def _open_browser(address: str) -> None:
    """Open a browser if there is a screen; without one it could start in this terminal."""
    import os
    import webbrowser

    has_screen = sys.platform in ("darwin", "win32") or any(
        name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    if has_screen:
        webbrowser.open(address)
