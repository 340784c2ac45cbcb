"""s2e doctor: a line for each thing, its remedy, and an exit code that scripts can use."""

import json
import sqlite3
import sys
from contextlib import closing
from importlib import metadata
from pathlib import Path

import optuna
import pytest
import torch

from optuna_s2e.cli import _doctor, main
from optuna_s2e.coteaching import make_network
from optuna_s2e.coteaching.backends import _choice as choice
from optuna_s2e.coteaching.backends._memory import trial_bytes, width_that_fits


def lines(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, dict]:
    capsys.readouterr()
    assert main(["doctor", "--json", *argv]) == code
    document = json.loads(capsys.readouterr().out)
    return {line["topic"].strip(): line for line in document["lines"]}


def test_what_is_installed_and_what_trains(capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().iterdir())
    found = lines(capsys, "--device", "cpu")
    for name in ("numpy", "optuna", "scipy", "sqlalchemy"):
        assert (found[name]["state"], found[name]["text"]) == ("ok", metadata.version(name))
    assert found["[coteaching]"]["state"] == "ok"
    assert torch.__version__ in found["torch"]["text"]
    assert found["device"]["text"] == "cpu"
    assert found["precision"]["text"].startswith("float32")
    assert found["mlp"]["text"].startswith("backend 'fused', up to ")
    assert found["cnn2"]["text"] == "backend 'rows', one trial at a time (inputs 3 x 32 x 32)"
    assert found["cnn9"]["text"].startswith("backend 'loop', one trial at a time")
    assert found["storage"]["text"].endswith("/s2e.db is not there yet")
    assert all(line["remedy"] for line in found.values() if line["state"] != "ok")
    assert sorted(Path().iterdir()) == before


def test_trials_at_once_are_counted_with_whole_mini_batches_and_evaluations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device without memory stands for a GPU of 40 GiB."""
    monkeypatch.setattr(choice, "free_bytes", lambda _: 40 * 2**30)
    network = make_network("cnn9", (3, 32, 32), 10, seed=0)
    sizes = {"batch_size": 128, "evaluation_batch": 512, "itemsize": 4}
    fitting = width_that_fits(trial_bytes(network, (3, 32, 32), **sizes), 40 * 2**30, 64)
    assert 2 < fitting < 20
    line = _doctor._backend("cnn9", (3, 32, 32), torch.device("meta"))
    assert f"up to {fitting} trials at once" in line.text


def test_it_is_printed_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("ok      python:          3.")
    assert all(line.startswith(("ok ", "warning ", "   ")) for line in out[:-1])
    assert out[-1].startswith("0 errors, ")


def test_a_storage_that_answers(capsys: pytest.CaptureFixture[str]) -> None:
    optuna.create_study(storage="sqlite:///own.db")
    with closing(sqlite3.connect("own.db")) as database:
        (schema,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    text = lines(capsys, "--storage", "sqlite:///own.db")["storage"]["text"]
    assert text == f"sqlite:///{Path.cwd()}/own.db answers: 1 study, tables of version {schema}"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////no/such/x.db", "the folder /no/such does not exist"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/x", "127.0.0.1:1/x cannot be opened"),
        ("here", "must be a database URL"),
    ],
)
def test_a_storage_that_does_not(
    url: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = lines(capsys, "--storage", url, code=1)["storage"]
    assert line["state"] == "error"
    assert message in line["text"]
    assert "secret" not in line["text"]


def test_a_device_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    line = lines(capsys, "--device", "tpu", code=1)["device"]
    assert (line["state"], line["remedy"]) == ("error", "--device cpu trains on the CPU")


def test_packages_that_are_missing_or_old(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"numpy": "1.20", "grpcio": None, "torchvision": "0.1", "tenacity": None}
    real = _doctor._installed
    monkeypatch.setattr(_doctor, "_installed", lambda name: versions.get(name, real(name)))
    found = lines(capsys, "--device", "cpu", code=1)
    assert found["numpy"] == {
        "topic": "numpy", "state": "error", "text": "1.20, but >=1.26 is needed",
        "remedy": "pip install 'numpy>=1.26'",
    }  # fmt: skip
    assert found["tenacity"]["text"] == "not installed"
    assert found["[grpc]"]["state"] == "ok"
    assert found["[grpc]"]["text"] == "not installed (grpcio); it is for grpc:// storages"
    assert found["[coteaching]"]["state"] == "warning"
    assert found["[coteaching]"]["text"] == "torchvision 0.1, but >=0.21 is needed"


def test_without_torch_all_else_is_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = lines(capsys, code=1)
    assert found["torch"]["state"] == "error"
    assert "device" not in found
    assert found["storage"]["state"] == "ok"


def test_torchvision_of_another_torch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"torchvision": ["numpy", "torch==2.1.0"]}
    real = _doctor.requires
    monkeypatch.setattr(_doctor, "requires", lambda name: asked.get(name) or real(name))
    line = lines(capsys, "--device", "cpu")["torchvision"]
    assert line["state"] == "warning"
    assert "is made for torch 2.1.0, but torch is " in line["text"]
