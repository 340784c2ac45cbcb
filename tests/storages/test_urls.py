"""URLs are parsed with clear errors, and shown without passwords."""

from pathlib import Path

import pytest

from optuna_s2e import open_storage
from optuna_s2e.storages import absolute_url, hide_passwords, mask_url
from optuna_s2e.storages._urls import parse_database, parse_grpc, parse_journal

BAD_URLS = {
    "foo": "url must be a database URL such as sqlite:///s2e.db, .* but got 'foo'",
    "": "url must be a database URL such as sqlite:///s2e.db, .* but got ''",
    "nope://x": "must be a database URL",
    "postgresql://me:secret@db:port/x": "must be a database URL",
    "journal://s.log": "url must be journal:///FILE, but got 'journal://s.log'",
    "journal:///": "url must be journal:///FILE",
    "grpc://": "url must be grpc://HOST:PORT with a port in",
    "grpc://host": "url must be grpc://HOST:PORT",
    "grpc://host:x": "url must be grpc://HOST:PORT",
    "grpc://host:0": "url must be grpc://HOST:PORT",
    "grpc://host:65536": r"with a port in \[1, 65535\], but got 'grpc://host:65536'",
    "grpc://u:secret@h": "url must be grpc://HOST:PORT",
}


@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=BAD_URLS[url]) as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_good_urls_are_parsed() -> None:
    assert parse_grpc("grpc://db.example:13000") == ("db.example", 13000)
    assert parse_grpc("grpc://[::1]:65535") == ("::1", 65535)
    assert parse_journal("journal:////data/a b?.log") == "/data/a b?.log"
    assert parse_database("postgresql://db/x").drivername == "postgresql+psycopg"
    assert parse_database("sqlite://").drivername == "sqlite"


TEXTS = {
    "postgresql://me:secret@db/x": "postgresql://me:***@db/x",
    "--storage 'postgresql://me:s@e:c@db/x' -n": "--storage 'postgresql://me:***@db/x' -n",
    "postgresql://:secret@db/x gone": "postgresql://:***@db/x gone",
    "postgresql://db/x?user=me&password=secret&a=b": "postgresql://db/x?user=me&password=***&a=b",
    "postgresql://db/x?sslPassword=secret": "postgresql://db/x?sslPassword=***",
    "mysql://me:secret@a/x, then mysql://me:secret@b/x": "mysql://me:***@a/x, then "
    "mysql://me:***@b/x",
    "sqlite:///s2e.db at 12:30 by me@home": "sqlite:///s2e.db at 12:30 by me@home",
}


@pytest.mark.parametrize("text", TEXTS)
def test_passwords_are_hidden_in_texts(text: str) -> None:
    assert hide_passwords(text) == TEXTS[text]


URLS = {
    "postgresql+psycopg://me:s3cret@db/s2e?password=s3cret&sslmode=require": (
        "postgresql+psycopg://me:***@db/s2e?password=***&sslmode=require"
    ),
    "postgresql://me:s3 cr'et@db/x": "postgresql://me:***@db/x",  # blanks and quotes inside
    "postgresql://me:s3%40cret@db/x": "postgresql://me:***@db/x",
    "postgresql://db/x?sslpassword=s3cret&AUTH_TOKEN=s3cret": (
        "postgresql://db/x?AUTH_TOKEN=***&sslpassword=***"
    ),
    "me:s3cret@nowhere?password=s3cret": "nowhere?password=***",  # no URL
    "sqlite:///s2e.db": "sqlite:///s2e.db",
    "journal:///a@b?token=c.log": "journal:///a@b?token=c.log",  # the name of a file
    "grpc://me:s3cret@host:13000": "grpc://me:***@host:13000",
}


@pytest.mark.parametrize("url", URLS)
def test_one_url_is_masked(url: str) -> None:
    assert mask_url(url) == URLS[url]
    assert "s3cret" not in mask_url(url)


def test_files_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_url("sqlite:///s.db") == f"sqlite:///{tmp_path}/s.db"
    assert absolute_url("journal:///s.log") == f"journal:///{tmp_path}/s.log"
    for url in (
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:s.db?mode=ro&uri=true",
        "postgresql://me:s3cret@db/x",
        "grpc://host:13000",
        "foo",
    ):
        assert absolute_url(url) == url
