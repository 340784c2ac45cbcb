"""A benchmark that stops in time and says what failed."""

import json
import re
import shlex
import signal
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from processes import Process

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


def hung(*command):
    """Run the benchmark, whose second way hangs as what waits for a device does."""
    bench, measuring = _modules()

    def hang(self, backend, n_trials, **_):
        time.sleep(60)

    try_run = bench.Bench.try_run

    def in_half_a_second(self, way, train, entry, left, run_limit, save):
        if way == "loop":  # the time of all ways is over, or of this one
            if hasattr(signal, "pthread_sigmask"):  # no exception reaches what waits for a device
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            left, run_limit = (0.5, run_limit) if "--limit" in command else (left, 0.5)
        return try_run(self, way, train, entry, left, run_limit, save)

    measuring.GRACE = 0.5
    bench.Bench.package, bench.Bench.try_run = hang, in_half_a_second
    sys.argv = ["bench_training.py", *command]
    bench.main()


def sick(*command):
    """Run the benchmark, whose second way leaves a device that no longer answers."""
    bench, measuring = _modules()

    def fail(self, backend, n_trials, **_):
        measuring.is_well = lambda device: False  # as after an error in a kernel
        raise RuntimeError("an illegal memory access")

    bench.Bench.package = fail
    sys.argv = ["bench_training.py", *command]
    bench.main()


def _modules():
    sys.path.insert(0, str(HERE))
    import bench_training
    import measuring

    bench_training.ROWS, bench_training.COPIED = 128, 2**10
    return bench_training, measuring


def _in_a_process(changed, tmp_path, *options):
    """Run a benchmark that is changed, in a process of its own."""
    command = ["--case", "digits-mlp", "--device", "cpu", "--share", "0.2", "--epochs", "1"]
    command += ["--repeats", "1", "--ways", "floor", "loop", "--out", str(tmp_path / "out.json")]
    process = Process(changed, *command, *options)
    code = process.wait(50)  # it would hang for 60
    (entry,) = json.loads((tmp_path / "out.json").read_text())["cases"].values()
    return code, process.errors, entry


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        (hung, {"loop": "a run takes more than 0.5 s"}),
        (sick, {"loop": "RuntimeError: an illegal memory access"}),
    ],
)
def test_a_process_that_cannot_go_on_leaves_its_rows_to_the_next(
    bench, monkeypatch, capsys, tmp_path, changed, failed
):
    monkeypatch.chdir(tmp_path)
    code, errors, entry = _in_a_process(changed, tmp_path)
    assert (code, errors) == (75, "")
    assert entry["failed"] == failed
    assert len(entry["runs"]["floor"]) == 1
    options = ("--epochs", 1, "--repeats", 1, "--ways", "floor", "loop", "auto")
    printed = _main(bench, monkeypatch, capsys, *options, "--out", tmp_path / "out.json")
    assert f"failed: {failed['loop']}\n" in printed
    assert "\nauto " in printed


def test_a_process_that_hangs_at_the_limit_leaves_no_row(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, entry = _in_a_process(hung, tmp_path, "--limit", "120")
    assert code == 75
    assert (entry["failed"], len(entry["runs"]["floor"])) == ({}, 1)


AGAIN = """
import os, sys
from pathlib import Path

_, name, *options = sys.argv
out = Path(options[options.index("--out") + 1])
seen = [*(out.read_text().splitlines() if out.exists() else []), options[-1]]
out.write_text("\\n".join(seen))
print(len(seen), "limit", options[-1], flush=True)
os._exit(75 if len(seen) < int(name) else 3)
"""


def again(n_processes, limit):
    """Run a script in new processes."""
    Path("again.py").write_text(AGAIN)
    sys.argv = ["again.py", str(n_processes)]
    _modules()[1].in_new_processes(limit, None)


@pytest.mark.parametrize(("n_processes", "limit", "code"), [(3, 60.0, 3), (10**6, 0.5, 0)])
def test_new_processes_go_on_until_one_ends_by_itself_or_the_time_is_over(
    tmp_path, monkeypatch, n_processes, limit, code
):
    monkeypatch.chdir(tmp_path)
    process = Process(again, n_processes, limit)
    assert (process.wait(), process.errors) == (code, "")
    lines = process.printed.splitlines()
    if code == 0:
        assert lines.pop() == "stopped at --limit: run the same command again"
    limits = [float(line.split()[-1]) for line in lines]
    assert all(a > b for a, b in pairwise(limits))  # what is left of the time
    assert limits[0] <= limit
    assert len(limits) == n_processes or code == 0


def test_steps_that_were_not_recorded_are_a_way_that_failed(bench, monkeypatch, capsys):
    train = bench.train_batch

    def warning(*args, **options):
        if options["backend"] == "auto":
            warnings.warn("a step cannot be recorded as a CUDA graph", RuntimeWarning, 2)
        return train(*args, **options)

    monkeypatch.setattr(bench, "train_batch", warning)
    options = ("--epochs", 1, "--repeats", 1, "--ways", "floor", "loop", "auto")
    printed = _main(bench, monkeypatch, capsys, *options)
    assert "failed: RuntimeError: a step cannot be recorded" in printed
    assert printed.count("failed") == 1


def test_ways_with_the_same_bits_are_named_together(bench, monkeypatch, capsys):
    options = ("--epochs", 1, "--repeats", 2, "--ways", "floor", "loop", "auto", "auto x6")
    printed = _main(bench, monkeypatch, capsys, *options)
    # each once, as both runs are the same; on a CPU nothing follows from the number of trials
    assert "trial 0 has the same bits in: auto, loop, auto x6" not in printed
    assert "trial 0 has the same bits in: auto, auto x6; loop\n" in printed.replace(
        "in: loop; auto, auto x6", "in: auto, auto x6; loop"
    )


def test_who_is_killed_while_writing_leaves_the_file_before(bench, monkeypatch, tmp_path):
    import measuring

    path = tmp_path / "out.json"
    measuring.write_json(path, {"runs": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        measuring.write_json(path, {"runs": 2})
    assert json.loads(path.read_text()) == {"runs": 1}


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


def test_the_page_runs_all_tests_that_need_a_gpu_and_no_others():
    """They need little beside PyTorch: machines with a GPU may have no more."""
    (paths,) = re.findall(r"pytest -q -m gpu .*?(tests/.*)", PAGE.read_text())
    root = HERE.parents[1]
    named = {
        file
        for path in map(root.joinpath, paths.split())
        for file in (path.rglob("test_*.py") if path.is_dir() else [path])
    }
    marked = {
        file
        for file in (root / "tests").rglob("test_*.py")
        if re.search(r"^@pytest\.mark\.gpu", file.read_text(), re.MULTILINE)
    }
    assert marked <= named
    assert not [
        f for f in named if re.search(r"^(from|import) (sklearn|PIL)", f.read_text(), re.M)
    ]


def test_what_needs_a_missing_package_is_left_out_or_fails_alone(bench, monkeypatch, capsys):
    missing = ("sklearn", "torchvision", "PIL")
    for name in {*missing, *(name for name in sys.modules if name.startswith(missing))}:
        monkeypatch.setitem(sys.modules, name, None)
    options = ("--synthetic", "--case", "mnist-mlp", "--epochs", 1, "--repeats", 1)
    options += ("--share", 0.003, "--ways", "floor", "authors", "nobody's")
    printed = _main(bench, monkeypatch, capsys, *options)
    assert "digits-mlp is left out: The digits need scikit-learn" in printed
    assert "failed: ImportError: MNIST and CIFAR, ResNets and DenseNets need" in printed
    assert """mnist-mlp has no ways ["nobody's"] on cpu""" in printed
    assert "\nfloor " in printed


def test_the_page_has_the_commands_of_a_first_run():
    assert sum("--device cuda" in command for command in COMMANDS) >= 5
