"""Ctrl-C outside of running trials: one line, at once, wherever the process is."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import DATA, K, as_script, study
from optuna.trial import TrialState
from processes import Process, wait_until

from optuna_s2e.cli import main

# sends itself Ctrl-C when it imports a module, or in the callback of a weak reference
CODE = """
import os, signal, sys, weakref
where, sys.argv[1:] = sys.argv[1], sys.argv[2:]
def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == where:
            interrupt()
        elif where == "callback" and name == "optuna":
            thing = Finder()
            reference = weakref.ref(thing, interrupt)
            del thing
from optuna_s2e.cli import main
sys.meta_path.insert(0, Finder())
sys.exit(main())
"""
SEARCH = ["search", "--data", DATA, "--epochs", "2", "--trials", str(K), "--no-dashboard"]
NOTHING = "Interrupted: nothing was changed; the same command begins anew."
KEPT = "Interrupted: completed trials are kept; the same command goes on with them."


def run(
    *argv: str, handler: signal.Handlers | object = signal.default_int_handler
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        argv, capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("argparse", NOTHING),
        ("optuna_s2e.cli._main", NOTHING),
        ("callback", NOTHING),
        ("numpy", NOTHING),
        ("scipy.linalg", NOTHING),
        ("optuna_s2e.cli._search", NOTHING),
        ("torch", KEPT),
        ("torch._C", KEPT),
        ("optuna_s2e.coteaching", KEPT),
    ],
)
def test_ctrl_c_amid_imports_is_one_line(where: str, line: str) -> None:
    ran = run(sys.executable, "-c", CODE, where, *SEARCH)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", f"\n{line}\n")
    assert not Path("s2e.db").exists()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_amid_trials_ends_the_process_without_clearing_up(sign: signal.Signals) -> None:
    script = Process(as_script, [*SEARCH[:-3], "--trials", "100000", "--no-dashboard"])
    wait_until(lambda: "/100000 " in script.errors, script)  # the progress bar
    own = study("own-none")
    wait_until(lambda: any(t.state == TrialState.COMPLETE for t in own.trials), script)
    code, out, _ = script.stop(sign)
    assert code == 128 + sign
    assert out.splitlines()[-1].startswith(f"{sign.name}: stopped. Completed trials are kept")


def test_a_command_that_ignores_ctrl_c_goes_on() -> None:
    ran = run(sys.executable, "-c", CODE, "numpy", "status", handler=signal.SIG_IGN)
    assert ran.returncode == 2
    assert "the file does not exist" in ran.stderr


def test_main_with_arguments_leaves_the_process_to_its_caller() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert main(["status"]) == 2
    assert signal.getsignal(signal.SIGINT) is before
