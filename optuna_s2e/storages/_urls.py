"""Storage URLs: parse them, and show them without their passwords."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

import sqlalchemy

_JOURNAL = "journal:///"
_SECRET = r"[\w-]*(?:pass|secret|token)[\w-]*"  # keys of a query, such as sslpassword
_USER_PASSWORD = re.compile(r"(://[^:/@\s]*):[^\s'\"]*@")
_NAMED_PASSWORD = re.compile(
    rf"({_SECRET}\s*=\s*)('(?:[^'\\]|\\.)*'|[^&\s'\"]*)", re.IGNORECASE
)  # in a query, or as libpq writes it: host=db password='s3 cret'


def parse_database(url: str) -> sqlalchemy.URL:
    """Parse the URL of a database. PostgreSQL without a driver gets psycopg.

    Raises:
        ValueError: If it is no URL, or of an unknown database, or of SQLite without a file.
        ImportError: If the database's driver is missing.
    """
    try:
        parsed = _make_url(url)
        backend, plus, driver = parsed.drivername.partition("+")
        if backend in ("postgres", "postgresql"):  # libpq and Heroku say postgres
            # which driver no driver means depends on SQLAlchemy
            parsed = parsed.set(drivername=f"postgresql+{driver if plus else 'psycopg'}")
        parsed.get_dialect()
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ValueError(  # its causes show passwords
            "url must be a database URL such as sqlite:///s2e.db, or journal:///FILE or "
            f"grpc://HOST:PORT, but got {mask_url(url)!r}. In a user, a password or a file of a "
            "database URL, write %40 for @, %2F for /, %3F for ?, %25 for %."
        ) from None
    except ImportError as error:
        raise driver_is_missing(parsed) from error
    if parsed.get_backend_name() == "sqlite":
        _check_sqlite(url, parsed)
        if (file := sqlite_file(parsed)) is not None:  # the same one, wherever this process goes
            parsed = parsed.set(database=os.path.abspath(file))
    return parsed


def _check_sqlite(url: str, parsed: sqlalchemy.URL) -> None:
    """Refuse URLs of SQLite that SQLAlchemy refuses late, or takes for another file."""
    if parsed.host is not None:
        raise ValueError(
            f"url must be sqlite:///FILE with three slashes (four before an absolute path), but "
            f"got {mask_url(url)!r}."
        )
    if "?" in url and not parsed.query:
        raise ValueError(
            "url must have options such as timeout=5 after its ?, but got "
            f"{hide_passwords(url)!r}. In the name of a file, write %3F for ?."
        )


def parse_journal(url: str) -> str:
    """Return the file of a journal's URL, with its folder.

    Raises:
        ValueError: If it names no file.
    """
    path = url.removeprefix(_JOURNAL)
    if not path or path == url:
        raise ValueError(f"url must be journal:///FILE, but got {mask_url(url)!r}.")
    return os.path.abspath(os.path.expanduser(path))


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
        shown = "grpc://***" if "@" in url else url
        raise ValueError(
            f"url must be grpc://HOST:PORT with a port in [1, 65535], but got {shown!r}."
        ) from None
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
    return _NAMED_PASSWORD.sub(r"\1***", _USER_PASSWORD.sub(r"\1:***@", text))


def mask_url(url: str | sqlalchemy.URL) -> str:
    """Return a storage URL with *** in place of its passwords.

    Masked are the user's password and values of the query whose key contains "pass", "secret" or
    "token". Text that is no URL, but might hold a password, is not shown.

    Example:
        >>> mask_url("postgresql://me:secret@db/s2e?sslmode=require&sslpassword=hush")
        'postgresql://me:***@db/s2e?sslmode=require&sslpassword=***'
    """
    if isinstance(url, str) and url.startswith(_JOURNAL):
        return url  # a file's name, whatever is in it
    try:
        parsed = _make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        scheme, separator, rest = str(url).rpartition("://")
        hides = "@" in rest or "=" in rest
        return (scheme if scheme.isidentifier() else "") + separator + "***" if hides else str(url)
    is_secret = re.compile(_SECRET, re.IGNORECASE).search
    query = {key: "***" if is_secret(key) else value for key, value in parsed.query.items()}
    masked = parsed.set(query=query).render_as_string(hide_password=True)
    return masked.replace("%2A%2A%2A", "***")  # as SQLAlchemy encodes it in a query


def _make_url(url: str | sqlalchemy.URL) -> sqlalchemy.URL:
    """Parse a database URL.

    Raises:
        ValueError: If it is none, or holds a second @: that of a password which is not encoded,
            of which SQLAlchemy would take a part for the host or the database.
    """
    parsed = sqlalchemy.make_url(url)
    if isinstance(url, str) and url.count("@") > 1 and not parsed.drivername.startswith("sqlite"):
        raise ValueError("There is more than one @.")
    return parsed


def absolute_url(url: str) -> str:
    """Return a storage URL that means the same file in every folder; others stay as they are.

    Example:
        >>> absolute_url("sqlite:////data/../s2e.db")
        'sqlite:////s2e.db'
    """
    file = file_of(url)
    if file is None:
        return url
    if url.startswith(_JOURNAL):
        return _JOURNAL + file
    parsed = sqlalchemy.make_url(url).set(database=file)
    return parsed.render_as_string(hide_password=False)


def file_of(url: str) -> str | None:
    """Return the file of a storage URL; None if it names a server, nothing, or SQLite's own URI.

    Example:
        >>> file_of("sqlite:////data/my%20searches.db"), file_of("postgresql://db/s2e")
        ('/data/my searches.db', None)
    """
    if url.startswith(_JOURNAL):
        return parse_journal(url)
    try:
        return sqlite_file(_make_url(url))
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return None


def sqlite_file(url: sqlalchemy.URL) -> str | None:
    """Return the file of an SQLite database, with its folder.

    None in memory, for SQLite's own URIs and for other databases.
    """
    file = url.database if url.drivername.partition("+")[0] == "sqlite" else None
    if not file or file == ":memory:" or (file.startswith("file:") and "uri" in url.query):
        return None
    return os.path.abspath(os.path.expanduser(file))
