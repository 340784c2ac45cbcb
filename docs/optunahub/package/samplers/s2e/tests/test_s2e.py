"""Optuna's sampler suite, as OptunaHub's recipe for samplers asks."""

from collections.abc import Callable

import optunahub
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

S2ESampler = optunahub.load_local_module(
    package="samplers/s2e", registry_root="package/"
).S2ESampler


class TestS2ESampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """All 111 tests, none overridden."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        """Return a factory without arguments."""
        return lambda: S2ESampler()
