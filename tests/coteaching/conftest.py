from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from optuna_s2e.coteaching import NoisyData  # noqa: E402 - after the check for torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread(digits_are_read_once: None) -> Iterator[None]:
    """Train on one thread: test processes share the cores, and more threads are slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> NoisyData:
    """Make 23 training samples of five features and three classes, some labels wrong."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(3, 5))

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(n) % 3
        return (centres[y] + rng.normal(size=(n, 5))).astype(np.float32), y

    (x, clean), (x_val, y_val), (x_test, y_test) = draw(23), draw(9), draw(12)
    noisy = np.where(np.arange(23) % 3 == 1, (clean + rng.integers(0, 2, 23)) % 3, clean)
    return NoisyData.from_arrays(
        x, noisy, x_val, y_val, x_test=x_test, y_test=y_test, clean_labels=clean
    )
