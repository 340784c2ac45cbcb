"""An undisturbed search by batches, and processes to run trials on."""

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import pytest
from batches import K, new_study, parabola, thetas
from processes import CONTEXT

from optuna_s2e import generations, optimize_batch


@pytest.fixture(scope="session")
def undisturbed() -> list[str]:
    """Hashes of the first n thetas, n = 0 .. 6."""
    study = new_study()
    optimize_batch(study, parabola, 5 * K + 1)
    assert len(generations(study)) == 6
    return [thetas(study, n) for n in range(7)]


@pytest.fixture(scope="session")
def pool() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=CONTEXT) as executor:
        yield executor
