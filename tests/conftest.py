import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# what takes longest, longest first: what begins last ends soon
LONG_FILES = [
    "test_browser.py", "test_cli_search.py", "test_batch_kills.py", "test_figure3_benchmark.py",
    "test_launch.py", "test_process.py", "test_lease.py", "test_cli_evaluate.py",
    "test_every_storage.py", "test_surrogate_search.py", "test_worker.py", "test_processes.py",
    "test_noise_estimate.py", "test_cli_workers.py", "test_deferral.py", "test_cli_main.py",
    "test_recommend.py", "test_security.py", "test_harmless.py", "test_cuda_graph.py",
    "test_signals.py", "test_retry.py", "test_sql.py", "test_cli_interrupt.py", "test_sampler.py",
    "test_optunahub.py", "test_fused_cnn.py", "test_engine.py", "test_training.py",
    "test_conditional_schedules.py", "test_reporter.py", "test_optimize_batch.py",
    "test_cli_fit.py", "test_faults.py", "test_rdb.py", "test_warm_start.py",
    "test_label_errors.py", "test_server.py", "test_training_methods.py", "test_bench_training.py",
    "test_theory_and_estimators.py", "test_driver.py", "test_rooms.py", "test_fastest.py",
]  # fmt: skip


MEMORY = Path("/dev/shm")  # Linux keeps its files in memory


def _keep_temporary_files_in_memory() -> None:
    """Let databases of tests, and of processes they start, wait for no disk at each commit.

    A process that is killed leaves the same files there as on a disk. TMPDIR names another folder.
    """
    large = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**31  # Docker's has 64 MB
    if large and os.access(MEMORY, os.W_OK) and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        tempfile.tempdir = os.environ.setdefault("TMPDIR", str(MEMORY))


_keep_temporary_files_in_memory()
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Let one process more than there are cores run tests: some wait, for processes and pages."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all that the tests need without looking for garbage, and never look there again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: n for n, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    for item in items:
        if item.get_closest_marker("gpu"):  # drivers and libraries warn of what is no fault here
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    import optuna  # what hands out the tests to other processes does not need it

    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(autouse=True, scope="session")
def _migrations_are_read_once() -> None:
    from read_once import keep_migrations

    keep_migrations()


@pytest.fixture(scope="session")
def digits_are_read_once() -> None:
    from read_once import keep_digits

    keep_digits()


@pytest.fixture(scope="session")
def own_postgres_url() -> Iterator[str]:
    """A server of these tests alone: a test may set it up for a role of its own."""
    from servers import PostgresServer

    server = PostgresServer()
    yield server.url
    server.remove()


@pytest.fixture(scope="session")
def _postgres_server_url(request: pytest.FixtureRequest) -> str:
    from servers import given_server

    return given_server() or request.getfixturevalue("own_postgres_url")


@pytest.fixture
def postgres_url(_postgres_server_url: str) -> str:
    """A database of its own, on the server of S2E_TEST_POSTGRES_URL or one that comes along."""
    from servers import new_database

    return new_database(_postgres_server_url)
