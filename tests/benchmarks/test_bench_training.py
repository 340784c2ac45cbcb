"""A benchmark that stops in time and says what failed."""

import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import bench_training

    monkeypatch.setattr(bench_training, "ROWS", 128)  # seconds less in each run
    monkeypatch.setattr(bench_training, "COPIED", 2**10)
    return bench_training


def _main(bench, monkeypatch, capsys, *options):
    """Run the benchmark on the digits and return what it prints."""
    command = ["bench_training.py", "--case", "digits-mlp", "--device", "cpu", "--share", "0.2"]
    monkeypatch.setattr(sys, "argv", [*command, *map(str, options)])
    bench.main()
    if hasattr(signal, "setitimer"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    return capsys.readouterr().out


def test_a_run_that_takes_too_long_is_a_row_with_its_reason(bench, monkeypatch, capsys, tmp_path):
    options = ("--epochs", 10**6, "--ways", "floor", "loop", "--out", tmp_path / "out.json")
    printed = _main(bench, monkeypatch, capsys, *options, "--run-limit", 0.5)
    assert printed.count("failed: a run takes more than 0.5 s") == 2
    assert "stopped at --limit" not in printed
    started = time.monotonic()
    again = _main(bench, monkeypatch, capsys, *options)
    assert time.monotonic() - started < 60  # nothing is tried again
    assert again.count("failed: a run takes more than 0.5 s") == 2


def test_a_benchmark_stops_within_a_run_and_begins_it_anew(bench, monkeypatch, capsys, tmp_path):
    options = (
        "--epochs",
        1,
        "--ways",
        "floor",
        "loop",
        "--repeats",
        1,
        "--out",
        tmp_path / "out.json",
    )
    package = bench.Bench.package

    armed = []

    def endless(self, backend, n_trials):
        armed.append(signal.getitimer(signal.ITIMER_REAL)[0])
        signal.raise_signal(signal.SIGALRM)  # as the alarm will
        time.sleep(60)

    monkeypatch.setattr(bench.Bench, "package", endless)
    printed = _main(bench, monkeypatch, capsys, *options, "--limit", 250)
    (seconds,) = armed
    assert 0 < seconds < 250  # what is left; a run may take 300
    assert "stopped at --limit" in printed
    assert "failed" not in printed
    monkeypatch.setattr(bench.Bench, "package", package)
    printed = _main(bench, monkeypatch, capsys, *options)
    assert "stopped at --limit" not in printed
    assert "\nloop " in printed


def test_a_way_that_fails_is_a_row_with_its_reason(bench, monkeypatch, capsys):
    def failing(self, backend, n_trials):
        raise RuntimeError("TF32 is not float32\nby far")

    monkeypatch.setattr(bench.Bench, "package", failing)
    printed = _main(
        bench, monkeypatch, capsys, "--epochs", 1, "--ways", "floor", "loop", "--repeats", 1
    )
    assert "failed: RuntimeError: TF32 is not float32\n" in printed
    assert "\nfloor " in printed


PAGE = HERE.parents[1] / "docs" / "speed.md"
COMMANDS = re.findall(
    r"python tests/benchmarks/bench_training\.py (.*)", PAGE.read_text().replace("\\\n", " ")
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_are_understood(bench, monkeypatch, command):
    options = shlex.split(command, comments=True)
    monkeypatch.setattr(sys, "argv", ["bench_training.py", *options])
    args = bench.parse_args()
    of_cuda = ("fused", "unfolded", "graphs", "tf32", "bf16")
    known = {f"{way} x{k}" for way in ("auto", *of_cuda) for k in args.widths}
    assert set(args.ways or []) <= known | {"floor", "floor + eval", "auto", "loop", "authors"}
    assert args.limit >= args.run_limit or args.run_limit == 300  # the default


def test_the_page_has_the_commands_of_a_first_run():
    assert sum("--device cuda" in command for command in COMMANDS) >= 5
