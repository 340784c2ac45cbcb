"""Storage URLs: parse them, and show them without their passwords."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

import sqlalchemy

_JOURNAL = "journal:///"
_SECRET = r"[\w-]*(?:pass|secret|token)[\w-]*"  # keys of a query, such as sslpassword
_USER_PASSWORD = re.compile(r"(://[^:/@\s]*):[^\s'\"]*@")
_QUERY_PASSWORD = re.compile(rf"([?&]{_SECRET}=)[^&\s'\"]*", re.IGNORECASE)
_ANY_PASSWORD = re.compile(rf"({_SECRET}=)[^&\s]*", re.IGNORECASE)


def parse_database(url: str) -> sqlalchemy.URL:
    """Parse the URL of a database. PostgreSQL without a driver gets psycopg.

    Raises:
        ValueError: If it is no URL, or of an unknown database.
        ImportError: If the database's driver is missing.
    """
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.drivername == "postgresql":  # which driver that means depends on SQLAlchemy
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect()
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise ValueError(
            "url must be a database URL such as sqlite:///s2e.db, or journal:///FILE or "
            f"grpc://HOST:PORT, but got {mask_url(url)!r}."
        ) from error
    except ImportError as error:
        raise driver_is_missing(parsed) from error
    return parsed


def parse_journal(url: str) -> str:
    """Return the file of a journal's URL.

    Raises:
        ValueError: If it names no file.
    """
    path = url.removeprefix(_JOURNAL)
    if not path or path == url:
        raise ValueError(f"url must be journal:///FILE, but got {url!r}.")
    return path


def parse_grpc(url: str) -> tuple[str, int]:
    """Return host and port of a gRPC proxy's URL.

    Raises:
        ValueError: If one of them is missing, or the port is not in [1, 65535].
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is no number, or too large
        host = port = None
    if not host or not port:
        shown = url.rpartition("@")[2]
        raise ValueError(
            f"url must be grpc://HOST:PORT with a port in [1, 65535], but got {shown!r}."
        )
    return host, port


def driver_is_missing(url: sqlalchemy.URL) -> ImportError:
    """Return the error for a database whose driver is not installed."""
    return ImportError(
        f"The database driver of {mask_url(url)} is missing: pip install "
        '"optuna-s2e[postgres]" for PostgreSQL, or the driver of your database.'
    )


def hide_passwords(text: str) -> str:
    """Replace the passwords in all URLs of a text by ***.

    Args:
        text: A message, a command line or a log, in which URLs end at a blank or a quote. Use
            `mask_url` for a single URL, whose password may contain these.

    Example:
        >>> hide_passwords("postgresql://me:secret@db/s2e cannot be opened")
        'postgresql://me:***@db/s2e cannot be opened'
    """
    return _QUERY_PASSWORD.sub(r"\1***", _USER_PASSWORD.sub(r"\1:***@", text))


def mask_url(url: str | sqlalchemy.URL) -> str:
    """Return a storage URL with *** in place of its passwords.

    Masked are the user's password and values of the query whose key contains "pass", "secret" or
    "token". Of text that is no URL, only what follows its last @ is kept.

    Example:
        >>> mask_url("postgresql://me:secret@db/s2e?sslmode=require&sslpassword=hush")
        'postgresql://me:***@db/s2e?sslmode=require&sslpassword=***'
    """
    if isinstance(url, str) and url.startswith(_JOURNAL):
        return url  # a file's name, whatever is in it
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return _ANY_PASSWORD.sub(r"\1***", str(url).rpartition("@")[2])
    is_secret = re.compile(_SECRET, re.IGNORECASE).search
    query = {key: "***" if is_secret(key) else value for key, value in parsed.query.items()}
    masked = parsed.set(query=query).render_as_string(hide_password=True)
    return masked.replace("%2A%2A%2A", "***")  # as SQLAlchemy encodes it in a query


def absolute_url(url: str) -> str:
    """Return a storage URL that means the same file in every folder; others stay as they are.

    Example:
        >>> absolute_url("sqlite:////data/../s2e.db")
        'sqlite:////s2e.db'
    """
    if url.startswith(_JOURNAL):
        return _JOURNAL + os.path.abspath(url.removeprefix(_JOURNAL))
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return url
    file = sqlite_file(parsed)
    if file is None or file.startswith("file:"):
        return url
    return parsed.set(database=os.path.abspath(file)).render_as_string(hide_password=False)


def sqlite_file(url: sqlalchemy.URL) -> str | None:
    """Return the file of an SQLite database; None in memory, and for other databases."""
    is_sqlite = url.get_backend_name() == "sqlite"
    return url.database if is_sqlite and url.database not in ("", ":memory:") else None
