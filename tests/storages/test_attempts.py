"""What is raised and logged of an operation that did not succeed (outages: `test_retry.py`)."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from optuna_s2e import open_storage
from optuna_s2e.storages import _deferral


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a signal of Unix")
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
@pytest.mark.parametrize("error", [TimeoutError("too late"), ConnectionError("too late")])
def test_what_a_handler_raises_amid_an_operation_is_not_taken_for_the_storage(
    error: OSError, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(_deferral, "MAX_WAIT", 0.1)
    storage = open_storage(f"{kind}:///{tmp_path}/s")
    study = optuna.create_study(storage=storage)
    called: list[int] = []

    def own(number: int, frame: Any) -> None:
        called.append(number)
        raise error

    def operate(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            pass

    before = signal.signal(signal.SIGUSR1, own)
    try:
        with caplog.at_level(logging.WARNING), pytest.raises(type(error)) as raised:
            storage.run(operate, writing=True)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert raised.value is error
    assert called == [signal.SIGUSR1]
    assert caplog.messages == []
    study.set_user_attr("a", 1)
