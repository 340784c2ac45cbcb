"""URLs are parsed with clear errors, and shown without passwords."""

from pathlib import Path
from urllib.parse import quote

import optuna
import pytest

from optuna_s2e import _optuna, open_storage
from optuna_s2e.dashboard import default_artifact_dir
from optuna_s2e.storages import absolute_url, file_of, hide_passwords, mask_url
from optuna_s2e.storages._urls import parse_database, parse_grpc, parse_journal

BAD_URLS = {
    "foo": "url must be a database URL such as sqlite:///s2e.db, .* but got 'foo'",
    "": "url must be a database URL such as sqlite:///s2e.db, .* but got ''",
    "nope://x": "must be a database URL",
    "postgresql://me:secret@db:port/x": "database URL .* but got 'postgresql://\\*\\*\\*'",
    "postgresql://me:p@secret/secret@db/x": "got 'postgresql://\\*\\*\\*'. In .*, write %40 for @",
    "postgresql://me:p@secret@db/x": "but got 'postgresql://\\*\\*\\*'",
    "host=db user=me password=secret": "must be a database URL .* but got '\\*\\*\\*'",
    "sqlite://s2e.db": "must be sqlite:///FILE with three slashes .* but got 'sqlite://s2e.db'",
    "sqlite:///what?.db": r"write %3F for \?",
    "journal://s.log": "url must be journal:///FILE, but got 'journal://s.log'",
    "journal:///": "url must be journal:///FILE",
    "grpc://": "url must be grpc://HOST:PORT with a port in",
    "grpc://host": "url must be grpc://HOST:PORT",
    "grpc://host:x": "url must be grpc://HOST:PORT",
    "grpc://host:0": "url must be grpc://HOST:PORT",
    "grpc://host:65536": r"with a port in \[1, 65535\], but got 'grpc://host:65536'",
    "grpc://u:secret@h": "url must be grpc://HOST:PORT .* but got 'grpc://\\*\\*\\*'",
    "grpc://u:p@secret/x": "url must be grpc://HOST:PORT",
}


@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=BAD_URLS[url]) as caught:
        open_storage(url)
    error: BaseException | None = caught.value
    while error is not None:  # what a traceback shows
        assert "secret" not in str(error)
        assert "\n" not in str(error)
        error = None if error.__suppress_context__ else error.__context__


def test_good_urls_are_parsed() -> None:
    assert parse_grpc("grpc://db.example:13000") == ("db.example", 13000)
    assert parse_grpc("grpc://[::1]:65535") == ("::1", 65535)
    assert parse_journal("journal:////data/a b?.log") == "/data/a b?.log"
    for scheme in ("postgresql", "postgres", "postgres+psycopg"):
        assert parse_database(f"{scheme}://db/x").drivername == "postgresql+psycopg"
    assert parse_database("postgresql://me:p%40ss%2Fword@db/x").password == "p@ss/word"
    assert parse_database("sqlite://").drivername == "sqlite"


TEXTS = {
    "postgresql://me:secret@db/x": "postgresql://me:***@db/x",
    "--storage 'postgresql://me:s@e:c@db/x' -n": "--storage 'postgresql://me:***@db/x' -n",
    "postgresql://:secret@db/x gone": "postgresql://:***@db/x gone",
    "postgresql://db/x?user=me&password=secret&a=b": "postgresql://db/x?user=me&password=***&a=b",
    "postgresql://db/x?sslPassword=secret": "postgresql://db/x?sslPassword=***",
    "mysql://me:secret@a/x, then mysql://me:secret@b/x": "mysql://me:***@a/x, then "
    "mysql://me:***@b/x",
    "connection to host=db password=secret failed": "connection to host=db password=*** failed",
    "password = 'se cr\\'et' port=1": "password = *** port=1",
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
    # no URLs: they are not shown
    "me:s3cret@nowhere?password=s3cret": "***",
    "host=db user=me password='s3 cret'": "***",
    "postgresql://me:s3@cret/s3cret@db/x": "postgresql://***",
    "postgresql://me:s3@cr/e?t=s3cret@db/x": "postgresql://***",
    "postgresql://me:s3cret@db:port/x": "postgresql://***",
    "mysql://me:s3@s3cret@db/x": "mysql://***",
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


NAMES = [
    "plain",
    "my dir",
    "100%",
    "a%20b",
    "#1",
    "what?",
    "a&b=c",
    "übung",
    "C:\\x",
    "{name}",
    "~",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_database_journal_and_pictures_are_in_the_folder_that_the_url_names(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for url, file in (
        (f"sqlite:///{quote(str(folder))}/s.db", folder / "s.db"),
        (f"journal:///{folder}/s.log", folder / "s.log"),
    ):
        study = optuna.create_study(storage=open_storage(url))
        assert file.is_file()
        for same in (url, absolute_url(url), _optuna.url_of(study)):
            assert file_of(str(same)) == str(file)
            assert default_artifact_dir(str(same)) == Path(f"{file}.artifacts")
            open_storage(str(same), create=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_a_tilde_is_the_home_folder(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    url = f"{scheme}:///~/s.db"
    open_storage(url)
    assert (tmp_path / "s.db").is_file()
    assert default_artifact_dir(url) == tmp_path / "s.db.artifacts"
    assert absolute_url(url) == f"{scheme}:///{tmp_path}/s.db"
