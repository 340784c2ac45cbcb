"""Storage URLs: read, checked, and printed without their passwords."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import sqlalchemy


def hide_passwords(text: str) -> str:
    """Replace the passwords of all URLs in a text by ***."""
    text = re.sub(r"(://[^:/@\s]*):[^\s'\"]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", text)


def parse_grpc(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        shown = url.rpartition("@")[2]
        raise ValueError(f"storage must be grpc://HOST:PORT, but got {shown!r}.")
    return host, port


def parse_url(url: str) -> sqlalchemy.URL:
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.drivername == "postgresql":  # which driver that means depends on SQLAlchemy
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect()
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        shown = hide_passwords(url.rpartition("@")[2])  # never a password
        raise ValueError(
            f"storage must be a database URL such as sqlite:///s2e.db, but got {shown!r}."
        ) from error
    except ImportError as error:
        raise driver_is_missing(parsed) from error
    return parsed


def driver_is_missing(url: sqlalchemy.URL) -> ImportError:
    shown = hide_passwords(url.render_as_string())
    return ImportError(
        f'The database driver of {shown} is missing: pip install "optuna-s2e[postgres]" for '
        "PostgreSQL, or the driver of your database."
    )
